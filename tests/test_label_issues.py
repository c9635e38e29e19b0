"""LabelIssues: thresholds, what to train on again, several runs."""

import numpy as np
import pytest

from paddle_td_callback import LabelIssues, TrainingDynamicsRecorder, find_label_issues
from paddle_td_callback.issues import _stability


@pytest.fixture
def issues():
    return LabelIssues(
        method="lstm",
        noise_score=np.array([0.9, 0.1, 0.7, np.nan, 0.5]),
        given_label=np.array([0, 1, 2, -1, 1], np.int32),
        suggested_label=np.array([1, 2, 0, -1, 0], np.int32),
        suggested_confidence=np.array([0.8, 0.9, 0.3, 0.0, 1.0], np.float32),
        n_epochs_seen=np.array([3, 3, 3, 0, 3], np.int32),
        noise_rate=0.55,
        noise_rate_interval=(0.5, 0.6),
    )


def test_flags_and_ranking(issues):
    assert issues.is_label_issue.tolist() == [True, False, True, False, False]
    assert issues.ranking.tolist() == [0, 2, 4, 1]
    assert issues.unscored.tolist() == [3]
    assert np.allclose(issues.label_quality[:3], [0.1, 0.9, 0.3])


def test_clean_indices(issues):
    assert issues.clean_indices().tolist() == [1, 3, 4]
    assert issues.clean_indices(keep_unscored=False).tolist() == [1, 4]
    assert issues.clean_indices(max_noise_score=0.2).tolist() == [1, 3]
    assert issues.clean_indices(max_noise_score=1).tolist() == [0, 1, 2, 3, 4]


def test_corrected_labels_change_only_sure_suspects(issues):
    assert issues.corrected_labels().tolist() == [1, 1, 2, -1, 1]
    assert issues.corrected_labels(min_confidence=0.2).tolist() == [1, 1, 0, -1, 1]
    assert issues.corrected_labels(min_noise_score=0.05).tolist() == [1, 2, 2, -1, 0]
    assert issues.given_label.tolist() == [0, 1, 2, -1, 1]


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("clean_indices", "max_noise_score"),
        ("corrected_labels", "min_confidence"),
        ("corrected_labels", "min_noise_score"),
    ],
)
def test_thresholds_outside_0_to_1_are_refused(issues, method, argument):
    with pytest.raises(ValueError, match=rf"{argument} must be in \[0, 1\], got 50"):
        getattr(issues, method)(**{argument: 50})


def test_text_tells_rate_and_interval(issues):
    assert "2 of 5 labels look wrong; 1 samples were never seen" in repr(issues)
    assert "estimated share of wrong labels: 55.0% (50.0% to 60.0%)" in repr(issues)


def test_stability_is_spearmans_correlation():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    runs = np.round(rng.random((3, 50)), 1)  # rounded: ties
    pairs = [stats.spearmanr(runs[a], runs[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert _stability(runs) == pytest.approx(np.mean(pairs))
    runs[1, 7] = np.nan
    assert _stability(runs[:2]) == pytest.approx(
        stats.spearmanr(np.delete(runs[0], 7), np.delete(runs[1], 7)).statistic
    )
    assert _stability(np.ones((2, 5))) is None


def test_several_runs_report_their_agreement(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    for name in ("a.h5", "b.h5"):
        with TrainingDynamicsRecorder(tmp_path / name, n_samples=40, n_classes=3) as recorder:
            for _ in range(3):
                recorder.update(np.arange(40), rng.standard_normal((40, 3)).astype(np.float32), labels)
                recorder.end_epoch()
    alone = find_label_issues(tmp_path / "a.h5", method="aum", progress=False)
    twice = find_label_issues([tmp_path / "a.h5", tmp_path / "a.h5"], method="aum", progress=False)
    both = find_label_issues([tmp_path / "a.h5", tmp_path / "b.h5"], method="aum", progress=False)
    assert alone.stability is None
    assert twice.stability == pytest.approx(1)
    assert np.array_equal(twice.ranking, alone.ranking)
    assert -1 <= both.stability < 0.9
    assert "rank correlation between runs" in repr(both)
    assert both.noise_rate is None
