"""From scores to probabilities, on recordings whose wrong labels are known, and how far to trust their mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..trajectories import need_both


def platt(odds: NDArray[np.float64], wrong: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and bias of log-odds by Newton's method; Platt's targets keep separable data finite."""
    n_wrong, n_right = int(wrong.sum()), int((~wrong).sum())
    need_both(n_wrong, n_right, "calibration")
    targets = np.where(wrong, (n_wrong + 1) / (n_wrong + 2), 1 / (n_right + 2))
    design = np.stack([odds, np.ones_like(odds)], axis=1)

    def loss(solution: NDArray[np.float64]) -> float:
        z = design @ solution
        return float((np.logaddexp(0, z) - targets * z).sum())

    solution = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ solution, -80, 80)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - targets))
        while loss(solution - step) > loss(solution) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        solution = solution - step
        if np.abs(step).max() < 1e-9:
            break
    return float(solution[0]), float(solution[1])


def uncertainty(probability: NDArray[np.floating]) -> float:
    """How unsure probabilities `[sample]` are on average, 0.005 for those that are all 0 or 1, 0.505 at most.

    The estimated share of wrong labels is their mean; its error on recordings not trained on grows with this.
    """
    return float(np.minimum(probability, 1 - probability).mean()) + 0.005
