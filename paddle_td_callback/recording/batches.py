"""Rows of a batch: checks, the one softmax, and what is stored of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.schema import Layout
from .float16 import to_float16

Indices = npt.NDArray[np.int64]
_MOST_PASSES = 64
_LARGEST = np.finfo(np.float32).max
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Rows:
    """What is stored of some rows, in the order in which they came.

    Attributes:
        indices: `[row]`, the samples' places in the data set.
        labels: `[row]` int64, the given labels.
        steps: `[row]` int64, the step of the epoch that each row came in.
        values: of every field but `n_presentations`, `[row, ...]`.
    """

    indices: Indices
    labels: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    values: dict[str, npt.NDArray[Any]]

    def only(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """The rows that are kept, `[row]`."""
        values = {name: value[kept] for name, value in self.values.items()}
        return Rows(self.indices[kept], self.labels[kept], self.steps[kept], values)


def as_array(values: Any) -> npt.NDArray[Any]:
    """A NumPy array of whatever was given; bfloat16 tensors, for which NumPy has no type, as float32."""
    if isinstance(values, np.ndarray):
        return values
    if "bfloat16" in str(getattr(values, "dtype", "")).lower() and hasattr(values, "astype"):
        values = values.astype("float32")
    return np.asarray(values)


def as_integers(values: Any, name: str) -> npt.NDArray[np.int64]:
    """`[row]` or `[row, 1]` integers as `[row]` int64, which may be the array that was given.

    Raises:
        TypeError: something else than integers.
        ValueError: another shape.
    """
    array = as_array(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(
            f"{name} must be integers, got {array.dtype}; where labels are soft (mixup), give the data set's"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} must have shape [row] or [row, 1], got {array.shape}; give one number for each row"
        )
    return array.astype(np.int64, copy=False)


def check_indices(indices: Indices, n_samples: int, where: str) -> None:
    """Raise ValueError unless all indices `[row]` are in `[0, n_samples)`."""
    if len(indices) and indices.view(np.uint64).max() >= n_samples:  # a negative one is a large one there
        row = np.flatnonzero((indices < 0) | (indices >= n_samples))[0]
        raise ValueError(
            f"{where}: indices must be in [0, {n_samples}), got index {indices[row]} in row {row}; pass n_samples= "
            "the size of the whole data set"
        )


def check_labels(
    labels: npt.NDArray[np.int64], n_classes: int, where: str, indices: Indices | None = None
) -> None:
    """Raise ValueError unless all labels `[row]` are in range; `indices` `[row]` are their samples, where known."""
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(outside):
        row = outside[0]
        whose = f"in row {row}" if indices is None else f"for sample {indices[row]}"
        raise ValueError(f"{where}: labels must be in [0, {n_classes}), got {labels[row]} {whose}")


def check_rows(
    indices: Indices, labels: npt.NDArray[np.int64], n_samples: int, n_classes: int, where: str
) -> None:
    """Raise ValueError unless all indices and labels, both `[row]`, are in range."""
    check_indices(indices, n_samples, where)
    check_labels(labels, n_classes, where, indices)


def as_matrix(values: Any, name: str, shape: tuple[int, int], where: str) -> npt.NDArray[Any]:
    """Floating-point numbers `[row, class]` of any precision.

    Raises:
        TypeError: no floating-point numbers.
        ValueError: another shape.
    """
    array = as_array(values)
    if array.shape != shape:
        raise ValueError(
            f"{where}: {name} must have shape {shape} [row, class], got {array.shape}; give one row for "
            "each index, and n_classes= the number of columns"
        )
    if array.dtype.kind != "f":
        raise TypeError(
            f"{where}: {name} must be floating point, got {array.dtype}; give the network's outputs"
        )
    return array


def softmax(logits: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Softmax of finite logits `[row, class]`, in place; `largest` `[row]` is the largest logit of each row."""
    with np.errstate(over="ignore", under="ignore"):
        np.subtract(logits, largest[:, np.newaxis], out=logits)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
    return logits


def log_of(probabilities: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """Logits whose softmax the probabilities are; the smallest normal float32 stands for 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        np.maximum(probabilities, _TINY, out=out)
        np.log(out, out=out)


def finite_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows of `[row, class]` are finite, `[row]`."""
    # Mostly all of them, which two quick passes tell: NaN comes through both.
    if np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)):
        return np.ones(len(values), np.bool_)
    return np.asarray(np.isfinite(values).all(axis=1))


def stored_values(
    layout: Layout,
    labels: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float32] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """What is stored of each row, by field.

    Args:
        layout: of the recording.
        labels: `[row]`, in range.
        logits: `[row, class]` contiguous, finite; overwritten.
        probabilities: `[row, class]` contiguous, finite, their softmax where it is known.
    """
    rows = np.arange(len(labels))
    predicted = logits.argmax(axis=1)
    largest, own = logits[rows, predicted], logits[rows, labels]
    logits[rows, labels] = -np.inf
    second = logits[rows, logits.argmax(axis=1)]  # of the other classes; for few classes faster than max
    logits[rows, labels] = own
    with np.errstate(over="ignore"):
        margin = np.clip(own - second, -_LARGEST, _LARGEST)
    soft = softmax(logits, largest) if probabilities is None else probabilities

    def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return to_float16(values, in_unit=probabilities is None) if layout.dtype == "float16" else values

    values: dict[str, npt.NDArray[Any]] = {
        "given_probability": soft[rows, labels],
        "margin": margin,
        "predicted": predicted,
    }
    if layout.keep == "all":
        values["probabilities"] = rounded(soft)
    elif isinstance(layout.keep, int):
        values["top_classes"] = classes = top_classes(soft, layout.keep)
        values["top_probabilities"] = rounded(np.take_along_axis(soft, classes, axis=1))
    return values


def top_classes(probabilities: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The `k` largest of `[row, class]`, largest first, of equal ones the first: `[row, k]`."""
    if k > _MOST_PASSES:
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    left, rows = probabilities.copy(), np.arange(len(probabilities))
    classes = np.empty((len(rows), k), np.int64)
    for rank in range(k):  # of 21,841 classes, a pass takes 3 microseconds a row and a sort 2 milliseconds
        classes[:, rank] = left.argmax(axis=1)
        left[rows, classes[:, rank]] = -np.inf
    return classes
