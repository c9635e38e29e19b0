"""A block of steps: their rows are copied in one by one, and worked on together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..messages import warn
from ..store.schema import Layout
from .batches import Indices, Rows, finite_rows, log_of, stored_values

# Small enough to stay in the cache of the processor, large enough for the fixed costs of some fifty NumPy calls.
BLOCK_BYTES = 1 << 20
SOFTMAX_BYTES = 1 << 18  # that a framework gets at once: it takes memory for them

Softmax = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
_Matrix = npt.NDArray[np.float32]


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

    def clear(self) -> None:
        """Forget what is here."""
        self._n_rows = 0


def _copy(values: npt.NDArray[np.floating], out: _Matrix) -> None:
    if values.dtype == np.float32:
        out[...] = values
        return
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is counted as such
        out[...] = values
