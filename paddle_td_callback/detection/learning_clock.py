"""How many epochs of a recording the detector reads: those in which something was still learned.

The detector resamples a trajectory to a fixed number of steps of equal length. Epochs after everything is memorised
look the same for every sample, and where they are many, what tells wrong labels from right ones lies within the first
step. So reading ends at the first epoch in which nearly all given labels were predicted: a recording that is cut there
and one that is ten times as long give the same ranking. A training that never memorises is read whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..store.border import RecordingReader

MEMORISED = (
    0.999  # share of the given labels; at 0.99, half a percent of wrong labels would not be learned yet
)
FITTED = 0.95  # share of the given labels after which a short run ends, see `train_several_runs`
MIN_EPOCHS = 4  # that are read all the same; features compare four parts of a training
MIN_SEEN = 0.5  # share of the samples that an epoch must have seen to count


@dataclass(frozen=True)
class LearningClock:
    """What the epochs of a recording learned.

    Args:
        fitted: float64 `[epoch]`, the share of the given labels that were predicted, of the samples seen in the epoch;
            NaN where it saw less than half of them.
        first_seen_by_all: how many epochs it took until every sample was seen.
    """

    fitted: npt.NDArray[np.float64]
    first_seen_by_all: int

    @classmethod
    def of(cls, store: RecordingReader) -> LearningClock:
        """That of a recording; its predictions are read once, tile by tile."""
        n_seen, n_right = np.zeros((2, store.n_epochs), np.int64)
        n_known = least = 0
        for samples in store.tiles():
            predictions, labels = store.predictions(samples), store.labels[samples]
            seen = predictions >= 0
            known = seen.any(axis=1)
            n_known += int(known.sum())
            least = max(least, int(seen[known].argmax(axis=1).max(initial=0)) + 1)
            n_seen += seen.sum(axis=0)
            n_right += (seen & (predictions == labels[:, np.newaxis])).sum(axis=0)
        counts = n_seen >= max(1.0, MIN_SEEN * n_known)
        return cls(np.divide(n_right, n_seen, out=np.full(len(n_seen), np.nan), where=counts), least)

    def epochs_until(self, share: float) -> int | None:
        """How many epochs it took until this share of the given labels was predicted; None = never."""
        reached = self.fitted >= share
        return int(reached.argmax()) + 1 if reached.any() else None

    @property
    def epochs_to_read(self) -> int:
        """How many epochs, from the first one on, the detector reads.

        Those up to the one that memorised, at least `MIN_EPOCHS` and enough for every sample to be seen; all epochs
        where none memorised.
        """
        memorised = self.epochs_until(MEMORISED)
        n_epochs = len(self.fitted)
        return (
            n_epochs
            if memorised is None
            else min(n_epochs, max(MIN_EPOCHS, self.first_seen_by_all, memorised))
        )
