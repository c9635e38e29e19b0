"""Rows of batches: their checks, the block that collects them, the one softmax, and what is stored of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..messages import warn
from ..store.schema import Layout
from .committer import Indices, Rows
from .float16 import to_float16

# Small enough to stay in the cache of the processor, large enough for the fixed costs of some fifty NumPy calls.
BLOCK_BYTES = 1 << 20
SOFTMAX_BYTES = 1 << 18  # that a framework gets at once: it takes memory for them

Softmax = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
_Matrix = npt.NDArray[np.float32]
_MOST_PASSES = 64
_LARGEST = np.finfo(np.float32).max
_TINY = np.finfo(np.float32).tiny


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


class Block:
    """Collects the rows of steps, and hands on what is stored of them whenever it is full.

    A step costs one copy of its rows. What is stored of the rows is the same, whatever the size of the block.

    Args:
        layout: of the recording.
        put: takes what is stored of some rows.
        softmax: of logits `[row, class]`, as the network's own framework computes it; None = NumPy's.
        name: of the recording, for warnings.

    Attributes:
        n_nonfinite: rows with NaN or infinite outputs so far; they are not handed on.
        n_outside: rows with labels that are no classes so far; they are not handed on either.
    """

    def __init__(
        self, layout: Layout, put: Callable[[Rows], None], *, softmax: Softmax | None = None, name: str = ""
    ) -> None:
        self._layout = layout
        self._put = put
        self._softmax = softmax
        self._name = name
        self._capacity = max(1, BLOCK_BYTES // (4 * layout.n_classes))
        self._indices = np.empty(self._capacity, np.int64)
        self._labels = np.empty(self._capacity, np.int64)
        self._steps = np.empty(self._capacity, np.int64)
        shape = (self._capacity, layout.n_classes)
        self._logits, self._probabilities = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._has = (False, False)  # logits, probabilities
        self._n_rows = 0
        self.n_nonfinite = 0
        self.n_outside = 0

    def add(
        self,
        indices: Indices,
        labels: npt.NDArray[np.int64],
        logits: npt.NDArray[np.floating] | None,
        probabilities: npt.NDArray[np.floating] | None,
        steps: npt.NDArray[np.int64] | int,
    ) -> None:
        """Copy rows: `[row]` and `[row, class]`; logits or probabilities may be None, all rows may be of one step."""
        has = (logits is not None, probabilities is not None)
        if has != self._has:
            self.flush()
            self._has = has
        start, n_rows = 0, len(indices)
        while start < n_rows:
            n_taken = min(n_rows - start, self._capacity - self._n_rows)
            here = slice(self._n_rows, self._n_rows + n_taken)
            there = slice(start, start + n_taken)
            self._indices[here] = indices[there]
            self._labels[here] = labels[there]
            self._steps[here] = steps if isinstance(steps, int) else steps[there]
            if logits is not None:
                _copy(logits[there], self._logits[here])
            if probabilities is not None:
                _copy(probabilities[there], self._probabilities[here])
            self._n_rows += n_taken
            start += n_taken
            if self._n_rows == self._capacity:
                self.flush()

    def flush(self) -> None:
        """Hand on what is here."""
        # Emptied before the work, so that nothing is counted twice if Ctrl-C interrupts it.
        here, self._n_rows = slice(self._n_rows), 0
        if here.stop == 0:
            return
        indices, labels, steps = self._indices[here], self._labels[here], self._steps[here]
        logits = self._logits[here]
        has_logits, has_probabilities = self._has
        probabilities = self._probabilities[here] if has_probabilities else None
        if probabilities is not None and not has_logits:
            log_of(probabilities, logits)
        finite = finite_rows(logits)
        if probabilities is not None:
            finite &= finite_rows(probabilities)
        inside = labels.view(np.uint64) < self._layout.n_classes  # a negative label is a large number there
        messages = self._count(indices, labels, finite, inside)
        kept = finite & inside
        if not kept.all():
            indices, labels, steps, logits = indices[kept], labels[kept], steps[kept], logits[kept]
            probabilities = None if probabilities is None else probabilities[kept]
        if probabilities is None and self._softmax is not None:
            probabilities = self._softmax_of(logits, self._softmax)
        self._put(Rows(indices, labels, steps, stored_values(self._layout, labels, logits, probabilities)))
        for message in messages:  # last, as a filter may turn warnings into errors
            warn(f"'{self._name}': {message}", RuntimeWarning, stacklevel=4)

    def _softmax_of(self, logits: _Matrix, softmax: Softmax) -> _Matrix:
        """Into memory that is here, as fresh pages for all rows cost more than the softmax."""
        n_rows = max(1, SOFTMAX_BYTES // (4 * self._layout.n_classes))
        probabilities = self._probabilities[: len(logits)]
        for start in range(0, len(logits), n_rows):
            rows = slice(start, start + n_rows)
            probabilities[rows] = softmax(logits[rows])
        return probabilities

    def _count(
        self,
        indices: Indices,
        labels: npt.NDArray[np.int64],
        finite: npt.NDArray[np.bool_],
        inside: npt.NDArray[np.bool_],
    ) -> list[str]:
        """Count rows that are left out; returns what there is to say about the first of each kind."""
        messages = []
        infinite, outside = np.flatnonzero(~finite), np.flatnonzero(~inside)
        if len(infinite) and self.n_nonfinite == 0:
            messages.append(
                f"the network's output for sample {indices[infinite[0]]} is NaN or infinite; such rows are recorded "
                "as unseen and counted in n_nonfinite, and this is said once"
            )
        if len(outside) and self.n_outside == 0:
            row = outside[0]
            messages.append(
                f"labels must be in [0, {self._layout.n_classes}), got {labels[row]} for sample {indices[row]}; such "
                "rows are recorded as unseen and counted in skipped_rows, and this is said once; leave out rows that "
                "the loss ignores, or pass n_classes= the number of all classes"
            )
        self.n_nonfinite += len(infinite)
        self.n_outside += len(outside)
        return messages


def _copy(values: npt.NDArray[np.floating], out: _Matrix) -> None:
    if values.dtype == np.float32:
        out[...] = values
        return
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is counted as such
        out[...] = values
