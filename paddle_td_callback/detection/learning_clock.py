"""How many epochs of a recording the detector reads: those in which something was still learned.

The detector resamples a trajectory to a fixed number of steps of equal length. Epochs after everything is memorised
look the same for every sample, and where they are many, what tells wrong labels from right ones lies within the first
step. So reading ends at the first epoch in which nearly all given labels were predicted: a recording that is cut there
and one that is ten times as long give the same ranking. A training that never memorises is read whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..store.border import RecordingReader

MEMORISED = (
    0.999  # share of the given labels; at 0.99, half a percent of wrong labels would not be learned yet
)
MIN_EPOCHS = 4  # that are read all the same; features compare four parts of a training
MIN_SEEN = 0.5  # share of the samples that an epoch must have seen to count


def epochs_to_read(store: RecordingReader) -> int:
    """How many epochs, from the first one on, the detector reads of a recording.

    Args:
        store: a recording; its predictions are read once, tile by tile.

    Returns:
        The number of epochs up to the one that memorised, at least `MIN_EPOCHS` and enough for every sample to be
        seen; all epochs where none memorised.
    """
    fitted, first_seen_by_all = _fitted(store)
    memorised = fitted >= MEMORISED
    if not memorised.any():
        return store.n_epochs
    return min(store.n_epochs, max(MIN_EPOCHS, first_seen_by_all, int(memorised.argmax()) + 1))


def fitted_shares(store: RecordingReader) -> npt.NDArray[np.float64]:
    """The share of the given labels that were predicted in each epoch, `[epoch]`.

    Args:
        store: a recording; its predictions are read once, tile by tile.

    Returns:
        float64, of the samples seen in the epoch; NaN where it saw less than half of them.
    """
    return _fitted(store)[0]


def _fitted(store: RecordingReader) -> tuple[npt.NDArray[np.float64], int]:
    """The shares, and how many epochs it took until every sample was seen."""
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
    return np.divide(n_right, n_seen, out=np.full(len(n_seen), np.nan), where=counts), least
