"""The one given label of each sample, as far as it was seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..messages import warn
from .batches import Rows

_WAYS_OUT = (
    "a recording holds one given label for each sample: where labels were corrected, record to another path or with "
    "overwrite=True; where the loss gets other labels than the given ones, pass the given ones as labels="
)


class GivenLabels:
    """Keeps the first label of each sample; a row with another one costs that row.

    Args:
        labels: `[sample]` int32, those known so far, -1 = not yet; changed in place.
        name: of the recording, for warnings.

    Attributes:
        n_changed: rows with another label than the sample's first in the epochs that ended.
    """

    def __init__(self, labels: npt.NDArray[np.int32], name: str) -> None:
        self.labels = labels
        self.n_changed = 0
        self._name = name
        self._example = ""
        self._has_warned = False
        self._n_kept_in_epoch = 0
        self._n_changed_in_epoch = 0

    def take(self, rows: Rows) -> Rows:
        """Note labels that are new, and return the rows whose label is the sample's first one."""
        known = self.labels[rows.indices]
        new = known < 0
        if new.any():
            samples, labels = rows.indices[new], rows.labels[new]
            self.labels[samples[::-1]] = labels[::-1]  # of a sample that comes twice, the first
            known = self.labels[rows.indices]
        same = known == rows.labels
        n_kept = int(same.sum())
        self._n_kept_in_epoch += n_kept
        if n_kept == len(same):
            return rows
        self._note_changed(rows, known, ~same)
        return rows.only(same)

    def _note_changed(self, rows: Rows, known: npt.NDArray[np.int32], changed: npt.NDArray[np.bool_]) -> None:
        row = np.flatnonzero(changed)[0]
        self._example = (
            f"the label of sample {rows.indices[row]} was {known[row]}, now it is {rows.labels[row]}"
        )
        self._n_changed_in_epoch += int(changed.sum())

    def end_epoch(self) -> None:
        """Count what was left out, and begin to count anew.

        Raises:
            CaptureError: more than half of its rows have another label than their sample had before: they are not
                the samples that they are taken for. They are not counted.
        """
        n_changed, n_rows = self._n_changed_in_epoch, self._n_changed_in_epoch + self._n_kept_in_epoch
        self.drop_epoch()
        if 2 * n_changed > n_rows:
            raise CaptureError(
                f"{n_changed} of {n_rows} rows of this epoch have another label than their sample had before: "
                f"{self._example}; {_WAYS_OUT}; where the rows of a batch are not in the order of the sampler's "
                "indices, no epoch of this recording is right"
            )
        self.n_changed += n_changed

    def drop_epoch(self) -> None:
        """Begin to count anew."""
        self._n_kept_in_epoch = self._n_changed_in_epoch = 0

    def warn(self) -> None:
        """Say once what was left out."""
        if self.n_changed and not self._has_warned:
            self._has_warned = True
            warn(
                f"'{self._name}': {self._example}; rows with another label than their sample had before are recorded "
                f"as unseen ({self.n_changed} so far) and counted in skipped_rows, and this is said once; {_WAYS_OUT}",
                RuntimeWarning,
                stacklevel=6,
            )
