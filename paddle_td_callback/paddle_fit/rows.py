"""Which rows of a batch have a sample and a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..recording.batches import check_rows
from .internals import LOSS
from .losses import ignored_labels
from .options import RecordingOptions
from .outputs import Batch


class RowsError(CaptureError):
    """Some rows of a batch cannot be recorded."""


class RowFilter:
    """Leaves out rows that the loss ignores, and rows that cannot be recorded.

    Args:
        options: `labels`, `ignore_label`.
        model: whose loss says which labels it ignores.
        tell: is called with an error for rows that cannot be recorded.

    Attributes:
        n_lost: how many could not be recorded.
    """

    def __init__(self, options: RecordingOptions, model: Any, tell: Callable[[RowsError], None]) -> None:
        self._options, self._model, self._tell = options, model, tell
        self._ignored: tuple[Any, list[int]] | None = None  # by which loss, and which labels
        self.n_lost = 0

    def recordable(self, batch: Batch, n_samples: int, *, is_first: bool) -> Batch:
        """The rows that can be recorded, with their labels.

        Args:
            batch: a step; where its indices are None it is only looked at.
            n_samples: of the data set.
            is_first: whether none was recorded before.

        Raises:
            ValueError: in the first step, an index outside of the data set, or no label that is a class.
        """
        indices, n_classes = batch.indices, batch.outputs.shape[1]
        if indices is not None:
            is_sample = (indices >= 0) & (indices < n_samples)
            if not is_sample.all():
                row = int(np.flatnonzero(~is_sample)[0])
                why = (
                    f"indices must be in [0, {n_samples}), got index {indices[row]}; pass n_samples= (the "
                    "largest size of the data set)"
                )
                self._lose(~is_sample, why, is_fatal=is_first)
                batch = batch.only(is_sample)
            if self._options.labels is not None:
                self.check_number_of_labels(n_samples)
                batch = replace(batch, labels=self._options.labels[batch.indices])
        labels = batch.labels
        if labels is None:
            return batch
        is_given = ~self._is_ignored(labels, n_classes)
        is_class = (labels >= 0) & (labels < n_classes)
        odd = is_given & ~is_class
        if odd.any():
            row = int(np.flatnonzero(odd)[0])
            whose = f"in row {row}" if batch.indices is None else f"for sample {batch.indices[row]}"
            why = (
                f"labels must be in [0, {n_classes}), got {labels[row]} {whose}; pass ignore_label= if such samples "
                "have no label, or labels= (the classes of all samples)"
            )
            is_fatal = is_first and not (is_given & is_class).any()
            if is_fatal or indices is not None:
                self._lose(odd, why, is_fatal=is_fatal)
        return batch.only(is_given & is_class)

    def _lose(self, rows: npt.NDArray[np.bool_], why: str, *, is_fatal: bool) -> None:
        if is_fatal:
            raise ValueError(f"first step: {why}")
        self.n_lost += int(rows.sum())
        self._tell(RowsError(why))

    def _is_ignored(self, labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[np.bool_]:
        loss = getattr(self._model, LOSS)
        if self._options.ignore_label is not None:
            ignored = [self._options.ignore_label]
        else:
            if self._ignored is None or self._ignored[0] is not loss:
                self._ignored = loss, ignored_labels(loss, n_classes)
            ignored = self._ignored[1]
        found = np.zeros(len(labels), bool)
        for label in ignored:  # one or two
            found |= labels == label
        return found

    def check_number_of_labels(self, n_samples: int) -> None:
        """Raise CaptureError unless `labels=` is one for each sample."""
        labels = self._options.labels
        if labels is not None and len(labels) != n_samples:
            raise CaptureError(
                f"labels= has {len(labels)} entries for a data set of {n_samples} samples; give one for each, in the "
                "order of the data set"
            )

    def check_labels(self, n_samples: int, n_classes: int) -> None:
        """Refuse `labels=` that do not fit the data.

        Raises:
            CaptureError: not one for each sample.
            ValueError: one is no class.
        """
        labels = self._options.labels
        if labels is None:
            return
        self.check_number_of_labels(n_samples)
        samples = np.flatnonzero(~self._is_ignored(labels, n_classes))
        try:
            check_rows(samples, labels[samples], n_samples, n_classes, "labels=")
        except ValueError as error:
            raise ValueError(f"{error}; pass ignore_label= if such samples have no label") from None
