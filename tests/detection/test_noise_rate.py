import numpy as np
import pytest

from paddle_td_callback import LabelIssues, TrainingDynamicsRecorder, find_label_issues
from paddle_td_callback.detection.noise_rate import rate_by_planted, shifted_to, trust, with_noise_rate


def issues(scores):
    n = len(scores)
    zeros = np.zeros(n, np.int32)
    return LabelIssues("lstm", np.array(scores, float), zeros, zeros, np.zeros(n, np.float32), zeros)


def test_planted_labels_that_are_found_as_surely_as_expected_change_nothing():
    # Ten of forty are wrong; each wrong one has 0.8 and each right one 1/15, so these are probabilities.
    scores = [0.8] * 10 + [1 / 15] * 30
    expected = sum(p * p for p in scores) / sum(scores)
    rate, low, high = rate_by_planted(np.array(scores), np.full(50, expected))
    assert rate == pytest.approx(0.25)
    assert low < rate < high
    made = with_noise_rate(issues(scores), {}, np.full(50, expected))
    assert made.noise_rate == pytest.approx(0.25)
    np.testing.assert_allclose(made.noise_score, scores, atol=1e-9)


def test_planted_labels_that_are_missed_raise_the_rate_and_the_probabilities():
    scores = np.array([0.8] * 10 + [1 / 15] * 30)
    made = with_noise_rate(issues([*scores, np.nan]), {}, np.full(50, 0.3))
    assert made.noise_rate > 0.4
    assert np.nanmean(made.noise_score) == pytest.approx(made.noise_rate)
    assert (np.argsort(made.noise_score[:40], kind="stable") == np.argsort(scores, kind="stable")).all()
    assert np.isnan(made.noise_score[40])
    assert "of 50 labels moved on purpose 0 were found (0%)" in made.notes


def test_planted_labels_found_better_than_expected_lower_only_the_interval():
    scores = [0.6] * 10 + [0.2] * 30
    plain = with_noise_rate(issues(scores), {"noise_rate_error_by_uncertainty": 0.1}, np.array([]))
    made = with_noise_rate(issues(scores), {"noise_rate_error_by_uncertainty": 0.1}, np.full(50, 0.95))
    assert made.noise_rate == plain.noise_rate == pytest.approx(0.3)
    assert made.noise_rate_interval[0] < plain.noise_rate_interval[0]
    assert made.noise_rate_interval[1] == plain.noise_rate_interval[1]


def test_few_planted_labels_make_a_wide_interval():
    scores = np.full(100, 0.3)
    widths = [np.ptp(rate_by_planted(scores, np.full(n, 0.5))[1:]) for n in (5, 50, 500)]
    assert widths[0] > widths[1] > widths[2]


def test_where_no_sample_is_scored_no_rate_is_estimated():
    nothing = issues([np.nan, np.nan])
    assert with_noise_rate(nothing, {}, np.array([])) is nothing


def test_a_shift_has_the_mean_wanted():
    scores = np.array([0.0, 0.2, np.nan, 1.0, 0.7])
    for mean in (0.3, 0.475, 0.9):
        moved = shifted_to(scores, mean)
        assert np.nanmean(moved) == pytest.approx(mean)
        assert np.isnan(moved[2])


def test_the_sentence_follows_the_width_of_the_interval():
    assert trust(None) == ()
    assert "fairly sure" in trust((0.1, 0.15))[0]
    assert "unsure" in trust((0.1, 0.35))[0]


@pytest.fixture
def planted(tmp_path):
    """A recording of 60 samples, of which 6 had their label moved, by a network that says the right one."""
    path, rng = tmp_path / "run.h5", np.random.default_rng(0)
    right, shifts = np.arange(60) % 3, np.where(np.arange(60) < 6, 2, 0)
    given = (right + shifts) % 3
    with TrainingDynamicsRecorder(path, n_samples=60, n_classes=3, label_shifts=shifts) as recorder:
        for epoch in range(6):
            logits = rng.normal(0, 0.3, (60, 3)).astype(np.float32)
            logits[np.arange(60), right] += 0.5 * epoch
            recorder.update(np.arange(59), logits[:59], given[:59])  # the last one is never seen
            recorder.end_epoch()
    return path, right


@pytest.mark.parametrize("method", ["lstm", "margin"])
def test_samples_whose_label_was_moved_are_not_scored_and_keep_their_label(method, planted):
    path, right = planted
    found = find_label_issues(path, method=method, progress=False)
    np.testing.assert_array_equal(found.given_label, [*right[:59], -1])
    np.testing.assert_array_equal(found.unscored, [0, 1, 2, 3, 4, 5, 59])
    assert (found.suggested_label[:6] == -1).all()
    assert found.n_planted == found.to_json()["n_planted"] == 6
    assert "1 samples were never seen and are not scored" in str(found)
    assert "6 labels were moved on purpose; their samples are not scored" in str(found)
    assert ("of 6 labels moved on purpose" in str(found)) == (method == "lstm")


def test_a_report_takes_a_recording_whose_labels_were_moved(planted, tmp_path):
    path, _ = planted
    found = find_label_issues(path, method="margin", progress=False)
    found.report(path, tmp_path / "report.html")


def test_runs_average_over_those_in_which_a_label_was_not_moved(planted, tmp_path):
    path, right = planted
    other, rng = tmp_path / "other.h5", np.random.default_rng(1)
    shifts = np.where(np.arange(60) == 5, 1, 0)
    with TrainingDynamicsRecorder(other, n_samples=60, n_classes=3, label_shifts=shifts) as recorder:
        for _ in range(6):
            recorder.update(np.arange(60), rng.normal(size=(60, 3)).astype(np.float32), (right + shifts) % 3)
            recorder.end_epoch()
    found = find_label_issues([path, other], method="margin", progress=False)
    np.testing.assert_array_equal(found.unscored, [5])
    assert found.n_planted == 1
    np.testing.assert_array_equal(found.given_label, right)
