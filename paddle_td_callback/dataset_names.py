"""Names that a data set carries itself: ids of its samples and names of its classes, without reading the data."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    *_, (dataset, chosen, _) = nested(dataset)  # the innermost has the names
    paths = _paths(dataset)
    if paths is not None and chosen is not None:
        is_within = not len(chosen) or (chosen.min() >= 0 and chosen.max() < len(paths))
        paths = [paths[index] for index in chosen] if is_within else None
    return DatasetNames(_ids(paths, getattr(dataset, "root", None)), _classes(dataset), paths)


class Level(NamedTuple):
    """A data set within another.

    Attributes:
        dataset: it.
        chosen: `[sample of the outermost]`, which of its samples the outermost one holds; None = all.
        indices: `[sample of the one around]`, which of its samples a `Subset` around it holds; None = there is none.
    """

    dataset: Any
    chosen: npt.NDArray[np.int64] | None
    indices: npt.NDArray[np.int64] | None


def nested(dataset: Any) -> Iterator[Level]:
    """A data set and those within it, through every `Subset` and `PlantedLabelErrors`, from the outside in."""
    chosen: npt.NDArray[np.int64] | None = None
    indices: npt.NDArray[np.int64] | None = None
    for _ in range(_MAX_NESTING):
        yield Level(dataset, chosen, indices)
        indices = None
        if _is_a(dataset, "Subset"):
            some = np.asarray(dataset.indices)
            if some.ndim != 1 or (len(some) and some.dtype.kind not in "iu"):
                return
            indices = some.astype(np.int64)
            chosen = indices if chosen is None else indices[chosen]
        elif not _is_a(dataset, "PlantedLabelErrors"):
            return
        dataset = dataset.dataset


def selection_of(dataset: Any) -> tuple[int, int] | None:
    """Size and checksum of which samples a `Subset`, also one within others, holds; None = there is none."""
    size, checksum = None, 0
    try:
        for level in nested(dataset):
            if level.indices is not None:
                checksum = zlib.crc32(level.indices.tobytes(), checksum)
                size = len(level.indices) if size is None else size
    except Exception:  # of a property
        return None
    return None if size is None else (size, checksum)


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
    is_path = isinstance(getattr(dataset, "root", None), (str, os.PathLike)) or all(
        map(_has_ending, paths[:100])
    )
    return paths if is_path and all(isinstance(path, str) for path in paths) else None


def _has_ending(path: Any) -> bool:
    """Whether a text looks like the path of a file, and not like a sentence."""
    return isinstance(path, str) and re.fullmatch(r"[^\n]{1,1000}\.\w{1,5}", path) is not None


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
