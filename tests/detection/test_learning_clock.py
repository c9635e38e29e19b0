"""The learning clock: epochs after everything is memorised change nothing, and other trainings are read whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recordings import unseen_epoch

from paddle_td_callback import (
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    detector_features,
    detector_input,
    find_label_issues,
)
from paddle_td_callback.detection.learning_clock import LearningClock
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.schema import Layout

N_SAMPLES, N_CLASSES = 1_000, 4


def record(path: Path, n_right: list[int], n_seen: list[int] | None = None) -> Path:
    """A recording in which, epoch by epoch, the first `n_right` of the first `n_seen` samples are predicted right."""
    labels = (np.arange(N_SAMPLES) % N_CLASSES).astype(np.int32)
    layout = Layout(n_samples=N_SAMPLES, n_classes=N_CLASSES, keep="given")
    writer = StoreWriter.create(path, layout)
    for epoch, right in enumerate(n_right):
        arrays = unseen_epoch(layout)
        seen = np.arange(N_SAMPLES) < (N_SAMPLES if n_seen is None else n_seen[epoch])
        is_right = (np.arange(N_SAMPLES) < right)[seen]
        arrays["given_probability"][seen] = np.where(is_right, 0.9, 0.1)
        arrays["margin"][seen] = np.where(is_right, 2.0, -2.0)
        arrays["predicted"][seen] = np.where(is_right, labels[seen], (labels[seen] + 1) % N_CLASSES)
        arrays["n_presentations"][seen] = 1
        writer.commit_epoch(epoch, arrays, labels)
    writer.close()
    return path


@pytest.mark.parametrize(
    ("n_right", "n_seen", "wanted"),
    [
        ([500, 700, 900, 950, 998, 998], None, 6),  # never memorised
        ([500, 700, 900, 950, 998, 999], None, 6),  # in the last epoch
        ([500, 700, 900, 950, 999, 990, 1000], None, 5),  # what comes later does not count
        ([1000] * 9, None, 4),  # at least four
        ([1000, 1000], None, 2),
        ([500, 400, 400, 400, 400, 900], [1000, 400, 400, 400, 400, 1000], 6),  # few samples say little
        ([500, 500, 500, 500, 500, 900], [500, 500, 500, 500, 500, 1000], 6),  # the rest is seen at the end
        ([500, 0, 700, 999, 1000, 1000], [1000, 0, 1000, 1000, 1000, 1000], 4),
    ],
)
def test_reading_ends_where_the_labels_are_memorised(
    tmp_path: Path, n_right: list[int], n_seen: list[int] | None, wanted: int
) -> None:
    with TrainingDynamicsStore(record(tmp_path / "run.h5", n_right, n_seen)) as store:
        assert LearningClock.of(store).epochs_to_read == wanted
        assert detector_input(store).shape == (N_SAMPLES, wanted, 3)
        assert detector_input(store, slice(3, 5)).shape == (2, wanted, 3)


def trained(path: Path, n_epochs: int) -> tuple[Path, np.ndarray]:
    """300 samples of 3 classes, 30 wrong labels: right ones are learned by epoch 3, wrong ones by epoch 12."""
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    wrong = np.arange(300) >= 270
    labels = np.where(wrong, (truth + 1) % 3, truth)
    with TrainingDynamicsRecorder(path, n_samples=300, n_classes=3) as recorder:
        for epoch in range(n_epochs):
            logits = rng.normal(0, 0.3, (300, 3))
            logits[np.arange(300), truth] += min(epoch, 3)
            logits[np.arange(300), labels] += np.where(wrong, 0.5 * epoch, 0)
            recorder.update(np.arange(300), logits.astype(np.float32), labels)
            recorder.end_epoch()
    return path, wrong


def test_a_memorised_tail_changes_no_score(tmp_path: Path) -> None:
    pytest.importorskip("paddle")
    short, wrong = trained(tmp_path / "short.h5", 14)
    issues: dict[int, Any] = {14: find_label_issues(short, progress=False)}
    assert issues[14].n_epochs_read < 14
    for n_epochs in (30, 140):
        path, _ = trained(tmp_path / f"{n_epochs}.h5", n_epochs)
        issues[n_epochs] = find_label_issues(path, progress=False)
        np.testing.assert_array_equal(issues[n_epochs].noise_score, issues[14].noise_score)
        assert issues[n_epochs].n_epochs_read == issues[14].n_epochs_read
        assert f"rests on {issues[14].n_epochs_read} of {n_epochs} epochs: by then nearly all" in repr(
            issues[n_epochs]
        )
        assert (issues[n_epochs].n_epochs_seen == n_epochs).all()
    score = issues[140].noise_score
    assert score[wrong].min() > score[~wrong].max()
    assert 0.5 * wrong.mean() < issues[140].noise_rate < 3 * wrong.mean()
    assert issues[140].is_label_issue[wrong].mean() > 0.8
    with TrainingDynamicsStore(tmp_path / "140.h5") as long, TrainingDynamicsStore(short) as one:
        names = detector_features(one).names
        np.testing.assert_array_equal(
            detector_features(long).columns(names), detector_features(one).columns(names)
        )
