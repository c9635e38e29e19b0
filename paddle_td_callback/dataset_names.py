"""Names that a data set carries itself: ids of its samples and names of its classes, without reading the data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

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
    Nothing is read but attributes: no item, no file.

    Args:
        dataset: any data set.
    """
    chosen: Sequence[int] | None = None
    for _ in range(_MAX_NESTING):
        inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
        if inner is not None and hasattr(dataset, "label_shifts"):  # `PlantedLabelErrors`
            dataset = inner
            continue
        if inner is None or indices is None:
            break
        outer = [int(index) for index in indices]
        chosen = outer if chosen is None else [outer[index] for index in chosen]
        dataset = inner
    paths = _paths(dataset)
    if paths is not None and chosen is not None:
        paths = [paths[index] for index in chosen] if _all_within(chosen, len(paths)) else None
    return DatasetNames(_ids(paths, getattr(dataset, "root", None)), _classes(dataset), paths)


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
    classes = getattr(dataset, "classes", None)
    if classes is None and isinstance(getattr(dataset, "class_to_idx", None), Mapping):
        numbered = dataset.class_to_idx
        if sorted(numbered.values()) != list(range(len(numbered))):
            return None
        classes = sorted(numbered, key=numbered.__getitem__)
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Sequence) or not len(classes):
        return None
    if not all(isinstance(name, str) for name in islice(classes, 1_000_000)):
        return None
    return list(classes)


def _all_within(indices: Sequence[int], length: int) -> bool:
    return not indices or (min(indices) >= 0 and max(indices) < length)
