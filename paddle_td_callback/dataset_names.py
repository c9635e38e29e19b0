"""Names that a data set carries itself: ids of its samples and names of its classes, without reading the data."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_MAX_NESTING = 16  # subsets of subsets


@dataclass(frozen=True)
class DatasetNames:
    """Names of the samples and classes of a data set.

    Attributes:
        sample_ids: `[sample]` all different, paths relative to the folder of the data set where there is one; None
            where the data set has no names for its samples.
        class_names: `[class]`, or None.
        paths: `[sample]`, the files that the samples are read from, or None.
    """

    sample_ids: list[str] | None = None
    class_names: list[str] | None = None
    paths: list[str] | None = None


def names_of(dataset: Any) -> DatasetNames:
    """The names of a `DatasetFolder`, an `ImageFolder`, a `Subset` of these, or anything with `classes`.

    Data sets of Paddle and of PyTorch (`samples` or `imgs`, `classes` or `class_to_idx`, `root`) are understood.
    Nothing is read but attributes: no item, no file. Attributes that mean something else give no names.

    Args:
        dataset: any data set.
    """
    try:
        return _names_of(dataset)
    except Exception:  # of a property; names are no reason to end a training
        return DatasetNames()


def _names_of(dataset: Any) -> DatasetNames:
    chosen: npt.NDArray[np.int64] | None = None
    for _ in range(_MAX_NESTING):
        if _is_a(dataset, "PlantedLabelErrors"):
            dataset = dataset.dataset
            continue
        subset = subset_of(dataset)
        if subset is None:
            break
        dataset, outer = subset
        chosen = outer if chosen is None else outer[chosen]
    paths = _paths(dataset)
    if paths is not None and chosen is not None:
        is_within = not len(chosen) or (chosen.min() >= 0 and chosen.max() < len(paths))
        paths = [paths[index] for index in chosen] if is_within else None
    return DatasetNames(_ids(paths, getattr(dataset, "root", None)), _classes(dataset), paths)


def subset_of(dataset: Any) -> tuple[Any, npt.NDArray[np.int64]] | None:
    """The data set that a `Subset` is of, and which of its samples `[sample]`; None = it is no subset."""
    if not _is_a(dataset, "Subset"):
        return None
    indices = np.asarray(dataset.indices)
    if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
        return None
    return dataset.dataset, indices.astype(np.int64)


def selection_of(dataset: Any) -> int | None:
    """A checksum of which samples a `Subset`, also one of another, holds; None = it is no subset, or cannot be read."""
    checksum = None
    try:
        for _ in range(_MAX_NESTING):
            subset = subset_of(dataset)
            if subset is None:
                break
            dataset, indices = subset
            checksum = zlib.crc32(indices.tobytes(), checksum or 0)
    except Exception:  # of a property
        return None
    return checksum


def _is_a(dataset: Any, name: str) -> bool:
    """By the name of a class, since this module knows neither Paddle nor PyTorch."""
    return any(base.__name__ == name for base in type(dataset).__mro__)


def _paths(dataset: Any) -> list[str] | None:
    """One path a sample; `DatasetFolder` has (path, label) pairs, Paddle's `ImageFolder` bare paths."""
    samples = getattr(dataset, "samples", None)
    if samples is None:
        samples = getattr(dataset, "imgs", None)
    if not isinstance(samples, (list, tuple)) or not samples:
        return None
    paths = []
    for sample in samples:
        path = sample[0] if isinstance(sample, (list, tuple)) and sample else sample
        if not isinstance(path, (str, os.PathLike)):
            return None
        paths.append(os.fspath(path))
    return paths if all(isinstance(path, str) for path in paths) else None


def _ids(paths: list[str] | None, root: Any) -> list[str] | None:
    if paths is None:
        return None
    folder = os.path.abspath(root) if isinstance(root, (str, os.PathLike)) else ""
    start = os.path.join(folder, "") if folder else ""
    ids = []
    for path in paths:
        whole = os.path.abspath(path) if start else path
        ids.append((whole[len(start) :] if start and whole.startswith(start) else path).replace(os.sep, "/"))
    return ids if len(set(ids)) == len(ids) else None  # a data set may list a file twice; then it is no name


def _classes(dataset: Any) -> list[str] | None:
    """One name a class; None where there are none, or where two attributes disagree."""
    found = [
        names
        for names in (
            _class_names(getattr(dataset, "classes", None)),
            _class_names(getattr(dataset, "class_to_idx", None)),
        )
        if names is not None
    ]
    return found[0] if found and all(names == found[0] for names in found) else None


def _class_names(classes: Any) -> list[str] | None:
    """Of a list or an array of names or numbers, a mapping from name to number, or one from number to name."""
    if isinstance(classes, Mapping):
        by_number = classes if all(map(_is_number, classes)) else {v: k for k, v in classes.items()}
        if not all(map(_is_number, by_number)) or sorted(by_number) != list(range(len(classes))):
            return None
        classes = [by_number[number] for number in range(len(classes))]
    if isinstance(classes, np.ndarray) and classes.ndim == 1:
        classes = classes.tolist()
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    return [str(name) for name in classes] if all(isinstance(name, (str, int)) for name in classes) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
