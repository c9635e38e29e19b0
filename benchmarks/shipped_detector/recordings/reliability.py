"""How far probabilities are from what turns out to be true."""

from __future__ import annotations

import numpy as np

N_BINS = 10


def bins(wrong: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """[bin, 3] for ten bins of the probability: its sum, the number of wrong labels, and of samples."""
    of = (chance * N_BINS).astype(int).clip(0, N_BINS - 1)
    return np.stack([np.bincount(of, weight, N_BINS) for weight in (chance, wrong, np.ones(len(of)))], axis=1)


def error(counts: np.ndarray) -> float:
    """Calibration error: the mean gap between said and true over the samples of all bins."""
    return float(np.abs(counts[:, 0] - counts[:, 1]).sum() / counts[:, 2].sum())
