"""A detector trained on recordings: what it is given of each, how it is trained, what it is left without."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_td_callback.detection import dataset_features
from paddle_td_callback.detection.feature_table import FeatureTable
from paddle_td_callback.detection.lstm import first_pass_features
from paddle_td_callback.detection.lstm.detector import NoiseDetector
from paddle_td_callback.detection.trajectories import trajectories_of

from .reading import Recording, read

CHANNELS = ("given", "largest_other", "predicted_right", "log_given", "log_other")
N_STEPS, HIDDEN_SIZE, N_LAYERS = 12, 32, 1
FIRST_MIX, SECOND_MIX = (96,), (96, 96)
WHOLE, VARIED = 400, 150  # samples taken of each recording as it is, and of a cut and thinned copy
WRONG = 0.3  # of the samples taken, at least, have wrong labels where there are so many; weights undo it
FIT: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 1024,
    "learning_rate": 4e-3,
    "weight_decay": 0.05,
    "dropout": 0.25,
    "ranking": 0.3,
    "progress": False,
}
FIRST_BALANCE, SECOND_BALANCE = 0.3, 0.0  # the second's odds are to be probabilities
N_MEMBERS = 2  # of the second
N_FOLDS = 4
SECOND_ONLY = (
    "graded",
    "trees",
)  # groups that are judged nowhere and that the second stage alone learns from


def trajectories(recording: Recording, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """What the LSTM reads: [sample, epoch, 3], NaN = unseen."""
    return trajectories_of(recording.given_probabilities[rows], recording.margins[rows])


def table(recording: Recording) -> FeatureTable:
    """The features of all its samples."""
    return dataset_features.feature_table(
        recording.given_probabilities, recording.margins, recording.predictions, recording.labels
    )


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
    epochs = np.arange(max(1, round(n_epochs * rng.uniform(0.1, 1))))
    if rng.random() < 0.5:
        epochs = np.sort(rng.permutation(epochs)[: max(1, round(len(epochs) * rng.uniform(0.4, 1)))])
    unseen = rng.random((n_samples, len(epochs))) < rng.uniform(0, 0.4) * (rng.random() < 0.6)
    return cut(recording, epochs, unseen)


def drawn(wrong: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some samples, wrong labels among them more often than they occur, and the weights that undo that."""
    bad, good = rng.permutation(np.flatnonzero(wrong)), rng.permutation(np.flatnonzero(~wrong))
    n = min(n, len(wrong))
    n_bad = min(len(bad), max(round(n * WRONG), round(n * len(bad) / len(wrong))))
    n_bad = max(n_bad, n - len(good))
    rate = len(bad) / len(wrong)
    weights = np.r_[
        np.full(n_bad, rate * n / max(n_bad, 1)), np.full(n - n_bad, (1 - rate) * n / max(n - n_bad, 1))
    ]
    return np.concatenate([bad[:n_bad], good[: n - n_bad]]), weights


@dataclass(frozen=True)
class Part:
    """Some samples of one recording.

    Args:
        raw: trajectories [sample, epoch, 3].
        wrong: bool [sample].
        weight: [sample].
        table: features of these samples.
    """

    raw: np.ndarray
    wrong: np.ndarray
    weight: np.ndarray
    table: FeatureTable


def views(path: Path) -> list[tuple[Recording, int]]:
    """A recording as it is and as `varied`, each with the number of samples to take of it."""
    recording = read(path)
    return [(recording, WHOLE), (varied(recording, np.random.default_rng([*path.stem.encode()])), VARIED)]


def parts(path: Path, tables: Path) -> list[Part]:
    """What detectors are trained on of a recording; the features of all samples go into the folder `tables`."""
    rng = np.random.default_rng([1, *path.stem.encode()])
    made, whole = [], []
    for recording, n in views(path):
        whole.append(table(recording))
        rows, weight = drawn(recording.is_mislabeled, n, rng)
        raw = trajectories(recording, rows)
        made.append(Part(raw, recording.is_mislabeled[rows], weight, whole[-1][rows]))
    with open(tables / f"{path.stem}.pkl", "wb") as file:
        pickle.dump(whole, file)
    return made


def first_passes(path: Path, tables: Path, firsts: dict[str, NoiseDetector]) -> dict[str, list[FeatureTable]]:
    """The features that each first stage adds to the samples of `parts`."""
    rng = np.random.default_rng([1, *path.stem.encode()])
    with open(tables / f"{path.stem}.pkl", "rb") as file:
        whole: list[FeatureTable] = pickle.load(file)
    made: dict[str, list[FeatureTable]] = {name: [] for name in firsts}
    for (recording, n), table in zip(views(path), whole, strict=True):
        rows, _ = drawn(recording.is_mislabeled, n, rng)
        raw = trajectories(recording)
        for name, first in firsts.items():
            found = first_pass_features.with_first_pass(table, first.log_odds(raw, dataset_features=table))[
                rows
            ]
            added = set(first_pass_features.feature_names())
            alone = {name: column for name, column in found.of_sample.items() if name in added}
            made[name].append(FeatureTable(alone, found.of_recording, found.labels, found.others))
    return made


def fit_first(examples: Sequence[Part], seed: int = 0) -> NoiseDetector:
    """The first stage, on what `parts` made of many recordings."""
    detector = NoiseDetector(
        CHANNELS,
        N_STEPS,
        HIDDEN_SIZE,
        N_LAYERS,
        dataset_features=dataset_features.feature_names(),
        mix_sizes=FIRST_MIX,
    )
    return _fit(detector, examples, [part.table for part in examples], FIRST_BALANCE, seed)


def fit_second(
    examples: Sequence[Part], tables: list[FeatureTable], first: NoiseDetector, seed: int = 0
) -> NoiseDetector:
    """The second stage; `tables` hold the features of first stages that had not seen the recording."""
    detector = NoiseDetector(
        CHANNELS,
        N_STEPS,
        HIDDEN_SIZE,
        N_LAYERS,
        n_members=N_MEMBERS,
        dataset_features=(*dataset_features.feature_names(), *first_pass_features.feature_names()),
        mix_sizes=SECOND_MIX,
        first_stage=first,
    )
    return _fit(detector, examples, tables, SECOND_BALANCE, seed)


def _fit(
    detector: NoiseDetector, examples: Sequence[Part], tables: list[FeatureTable], balance: float, seed: int
) -> NoiseDetector:
    # recordings without any wrong label teach what clean data look like, so they stay
    return detector.fit(
        [part.raw for part in examples],
        [part.wrong for part in examples],
        dataset_features=tables,
        sample_weight=[part.weight for part in examples],
        balance=balance,
        seed=seed,
        **FIT,
    )


def folds(groups: Sequence[str]) -> list[list[str]]:
    """Which groups are left out together; those that are never judged are in none."""
    names = sorted(set(groups) - set(SECOND_ONLY))
    return [names[k::N_FOLDS] for k in range(N_FOLDS)]


def is_of(path: Path, left_out: Sequence[str], n_recordings: int) -> bool:
    """Whether there is a detector that was trained without these groups, on so many recordings."""
    if not path.exists():
        return False
    provenance = NoiseDetector.load(path).provenance
    return (provenance.get("left out"), provenance.get("recordings")) == (list(left_out), n_recordings)


@functools.cache
def loaded(path: Path) -> NoiseDetector:
    """A detector from a file, read once in each process."""
    return NoiseDetector.load(path)
