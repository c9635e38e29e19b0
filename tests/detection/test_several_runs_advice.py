import numpy as np
import pytest

from paddle_td_callback.detection.learning_clock import LearningClock
from paddle_td_callback.detection.several_runs import advice

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
