"""A recording of a made-up training in which some labels are wrong, for tests of what comes after: no Paddle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from paddle_td_callback import TrainingDynamicsRecorder

N_CLASSES = 4


def record(
    path: str | os.PathLike[str],
    *,
    n_samples: int = 300,
    n_classes: int = N_CLASSES,
    n_epochs: int = 6,
    noise: float = 0.15,
    hard: float = 0.0,
    missing: float = 0.05,
    never_seen: int = 2,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Logits that lean to the true class more and more, and to the given one late.

    Returns:
        `[sample]` bool, which labels are wrong.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(0, n_classes, n_samples)
    wrong = rng.random(n_samples) < noise
    given = np.where(wrong, (true + rng.integers(1, n_classes, n_samples)) % n_classes, true)
    ease = rng.uniform(0.5, 2, n_samples)
    ease[np.random.default_rng([seed, 1]).random(n_samples) < hard] = (
        0.05  # never learned, whatever their label
    )
    with TrainingDynamicsRecorder(
        Path(path), n_samples=n_samples, n_classes=n_classes, **options
    ) as recorder:
        for epoch in range(n_epochs):
            logits = rng.normal(0, 0.7, (n_samples, n_classes)).astype(np.float32)
            logits[np.arange(n_samples), true] += ease * (epoch + 1) * 0.6
            seen = rng.random(n_samples) >= missing
            seen[n_samples - never_seen :] = False
            rows = np.flatnonzero(seen)
            recorder.update(rows, logits[rows], given[rows])
            recorder.end_epoch()
    return wrong
