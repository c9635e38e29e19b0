"""A detector trained on recordings: what it is given of each, how it is trained, what it is left without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_td_callback.detector import NoiseDetector
from paddle_td_callback.evidence import NAMES, evidence
from paddle_td_callback.suggestions import largest_other_probabilities

from .reading import Recording, read

CHANNELS = ("given", "largest_other", "predicted_right", "log_given", "log_other")
N_STEPS, HIDDEN_SIZE, N_LAYERS = 12, 32, 1
WHOLE, VARIED = 300, 100  # samples taken of each recording as it is, and of a cut and thinned copy
FIT: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 512,
    "learning_rate": 4e-3,
    "weight_decay": 0.05,
    "dropout": 0.25,
    "balance": 0.6,
    "progress": False,
}
N_FOLDS = 4


def trajectories(recording: Recording, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """What the LSTM reads: [sample, epoch, 3], NaN = unseen."""
    given, predicted = recording.given_probabilities[rows], recording.predictions[rows]
    right = np.where(predicted < 0, np.nan, predicted == recording.labels[rows][:, np.newaxis])
    others = largest_other_probabilities(given, recording.margins[rows])
    return np.stack([given, others, right], axis=2).astype(np.float32)


def table(recording: Recording) -> np.ndarray:
    """The evidence of all its samples."""
    return evidence(recording.given_probabilities, recording.margins, recording.predictions, recording.labels)


def cut(recording: Recording, epochs: np.ndarray, unseen: np.ndarray | None = None) -> Recording:
    """The same recording with some epochs only, and without the entries [sample, epoch] that were not seen."""
    given, margins, predictions = (
        array[:, epochs].copy()
        for array in (recording.given_probabilities, recording.margins, recording.predictions)
    )
    if unseen is not None:
        unseen = unseen & ~unseen.all(axis=1, keepdims=True)
        given[unseen] = margins[unseen] = np.nan
        predictions[unseen] = -1
    return Recording(recording.labels, given, margins, predictions, recording.right_labels, recording.about)


def varied(recording: Recording, rng: np.random.Generator) -> Recording:
    """Stopped early, some epochs lost, some samples missing in some epochs."""
    n_samples, n_epochs = recording.given_probabilities.shape
    epochs = np.arange(max(1, round(n_epochs * rng.uniform(0.25, 1))))
    if rng.random() < 0.5:
        epochs = np.sort(rng.permutation(epochs)[: max(1, round(len(epochs) * rng.uniform(0.4, 1)))])
    unseen = rng.random((n_samples, len(epochs))) < rng.uniform(0, 0.4) * (rng.random() < 0.6)
    return cut(recording, epochs, unseen)


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # trajectories, wrong or not, evidence


def parts(path: Path) -> tuple[str, list[Part]]:
    """The group of a recording, and what a detector is trained on of it."""
    recording = read(path)
    rng = np.random.default_rng([*path.stem.encode()])
    made = []
    for one, n in ((recording, WHOLE), (varied(recording, rng), VARIED)):
        rows = rng.permutation(len(one.labels))[:n]
        made.append((trajectories(one, rows), one.is_mislabeled[rows], table(one)[rows]))
    return recording.group, made


def fit(examples: Sequence[Part], *, seed: int = 0, n_members: int = 1) -> NoiseDetector:
    """The detector, on what `parts` made of many recordings."""
    detector = NoiseDetector(CHANNELS, N_STEPS, HIDDEN_SIZE, N_LAYERS, n_members=n_members, evidence=NAMES)
    raws, wrongs, tables = zip(*examples, strict=True)
    # recordings without any wrong label teach what clean data look like, so they stay
    return detector.fit(list(raws), list(wrongs), evidence=list(tables), seed=seed, **FIT)


def folds(groups: Sequence[str]) -> list[list[str]]:
    """Which groups are left out together."""
    names = sorted(set(groups))
    return [names[k::N_FOLDS] for k in range(N_FOLDS)]
