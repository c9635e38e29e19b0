import numpy as np
import pytest

from paddle_td_callback import LabelIssues
from paddle_td_callback.detection.learning_clock import LearningClock
from paddle_td_callback.detection.several_runs import _noise_rate, advice, stability

FAST = [0.5, 0.96, 0.99, 1.0, 1.0]
LATE = [0.5, 0.6, 0.7, 0.9, 0.96]
NEVER = [0.5, 0.6, 0.7, 0.7, np.nan]


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        ([FAST], "after 2 of 5 epochs; in such trainings several short runs"),
        ([LATE], None),
        ([NEVER], None),
        ([NEVER, NEVER], "no run fitted 95 percent"),
        ([NEVER, LATE], None),
        ([FAST, FAST], None),
    ],
)
def test_advice_follows_what_was_fitted(runs, wanted):
    said = advice([LearningClock(np.array(shares), 1) for shares in runs])
    assert said == () if wanted is None else wanted in said[0]


def test_without_a_detector_there_is_no_advice():
    assert advice([None]) == ()


def test_how_stable_a_ranking_is_needs_samples_that_all_runs_scored():
    scores = np.array([[0.1, 0.9, np.nan], [0.2, np.nan, 0.4]])
    assert stability(scores) is None
    assert stability(np.array([[0.1, 0.9, np.nan], [0.2, 0.3, 0.4]])) == pytest.approx(1)


def test_runs_without_intervals_have_a_rate_and_no_interval():
    zeros = np.zeros(2, np.int32)
    run = LabelIssues(
        "lstm", np.array([0.2, 0.4]), zeros, zeros, np.zeros(2, np.float32), zeros, noise_rate=0.3
    )
    rate, interval = _noise_rate([run, run], run.noise_score)
    assert rate == pytest.approx(0.3)
    assert interval is None
