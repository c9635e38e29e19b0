"""Whether a recording is being written, as its reader can tell."""

import sys

import pytest

from paddle_td_callback import TrainingDynamicsRecorder
from paddle_td_callback.detection.writing_lock import is_being_written


def test_it_is_as_long_as_its_recorder_is_open(path, monkeypatch):
    with TrainingDynamicsRecorder(path, n_samples=2, n_classes=2) as recorder:
        recorder.update([0, 1], [[0.0, 1.0], [1.0, 0.0]], [0, 1])
        recorder.end_epoch()
        recorder.flush()
        if sys.platform == "linux":
            assert is_being_written(path)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(sys, "platform", "darwin")  # where nobody can ask for another's lock
            assert not is_being_written(path)
    assert not is_being_written(path)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_of_a_file_that_cannot_be_opened_it_is_not_known(system, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    assert not is_being_written(tmp_path / "gone.h5")
