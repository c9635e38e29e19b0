"""Commits beside training: in order, in two buffers, within a memory limit, and never the training's death."""

import mmap
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
from support.recordings import assert_same_epochs, make_epoch, make_labels, read_epochs, unseen_epoch

from paddle_td_callback import StoreError, TrainingDynamicsRecorder, TrainingDynamicsStore
from paddle_td_callback.recording import committer as committer_module
from paddle_td_callback.recording.committer import Committer, spill_bytes
from paddle_td_callback.recording.memory_limit import default_memory_limit_bytes
from paddle_td_callback.recording.spill import Spill
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.schema import Layout

LAYOUT = Layout(60, 4)
LABELS = make_labels(LAYOUT)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def submit(committer, index, layout=LAYOUT, labels=LABELS):
    epoch = make_epoch(layout, labels, index)
    for name, array in committer.buffer.items():
        np.copyto(array, epoch[name])
    committer.submit(labels)
    return epoch


@pytest.mark.parametrize("limit", [None, 1])
def test_epochs_are_committed_in_order(path, limit):
    committer = Committer(StoreWriter.create(path, LAYOUT), memory_limit_bytes=limit)
    epochs = [submit(committer, index) for index in range(12)]
    committer.close()
    committer.close()
    assert_same_epochs(read_epochs(path)[0], epochs)
    assert committer.next_index == 12


@pytest.mark.parametrize("limit", [None, 1])
def test_where_the_system_gives_no_threads_each_epoch_is_committed_once(path, monkeypatch, limit):
    start, commits = threading.Thread.start, []
    commit = StoreWriter.commit_epoch

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    def noted(writer, index, *arguments):
        commits.append(index)
        commit(writer, index, *arguments)

    monkeypatch.setattr(StoreWriter, "commit_epoch", noted)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    committer = Committer(StoreWriter.create(path, LAYOUT), memory_limit_bytes=limit)
    epochs = [submit(committer, index) for index in range(3)]
    monkeypatch.setattr(threading.Thread, "start", start)
    epochs += [submit(committer, index) for index in range(3, 6)]
    committer.close()
    assert commits == [0, 1, 2, 3, 4, 5]
    assert_same_epochs(read_epochs(path)[0], epochs)


def test_the_trainer_waits_only_for_the_commit_before(path, monkeypatch):
    writer = StoreWriter.create(path, LAYOUT)
    inside, go_on = threading.Event(), threading.Event()
    commit = writer.commit_epoch

    def slow(*arguments):
        inside.set()
        assert go_on.wait(30)
        commit(*arguments)

    monkeypatch.setattr(writer, "commit_epoch", slow)
    committer = Committer(writer)
    submit(committer, 0)
    assert inside.wait(30)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 0
    first_of_next = committer.buffer  # filled while the other is written
    assert (first_of_next["n_presentations"] == 0).all()
    go_on.set()
    submit(committer, 1)
    committer.close()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2


def test_labels_are_those_of_the_submission(path):
    committer = Committer(StoreWriter.create(path, LAYOUT))
    labels = LABELS.copy()
    submit(committer, 0, labels=labels)
    labels[:] = -1
    committer.close()
    np.testing.assert_array_equal(read_epochs(path)[1], LABELS)


@pytest.mark.parametrize(
    "error", [OSError("no disk"), RuntimeError("a fault of ours"), MemoryError("no memory")]
)
def test_whatever_goes_wrong_in_a_commit_training_goes_on(path, error, monkeypatch):
    writer = StoreWriter.create(path, LAYOUT)
    commit = writer.commit_epoch
    failing = [True]

    def fail(*arguments):
        if failing[0]:
            raise error
        commit(*arguments)

    monkeypatch.setattr(writer, "commit_epoch", fail)
    committer = Committer(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epochs = [submit(committer, index) for index in range(3)]
        failing[0] = False
        epochs.append(submit(committer, 3))
        committer.close()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert f"epoch 0 cannot be written ({error})" in messages[0]
    assert "epochs [1, 2] could not be written and are missing" in messages[1]
    found, _ = read_epochs(path)
    unseen = unseen_epoch(LAYOUT)
    assert_same_epochs(found, [epochs[0], unseen, unseen, epochs[3]])


def test_on_error_raise(path, monkeypatch):
    writer = StoreWriter.create(path, LAYOUT)

    def fail(*arguments):
        raise OSError("no disk")

    monkeypatch.setattr(writer, "commit_epoch", fail)
    committer = Committer(writer, on_error="raise")
    submit(committer, 0)
    with pytest.raises(OSError, match="no disk"):
        submit(committer, 1)
    with pytest.raises(OSError, match="no disk"):
        committer.close()


def test_where_the_buffers_go():
    assert default_memory_limit_bytes() > 1 << 26
    assert spill_bytes(LAYOUT, None) == 0
    assert spill_bytes(Layout(1000, 10, keep="given"), 1) == 0  # 13 bytes a sample stay in memory
    wide = Layout(1000, 1000)
    assert spill_bytes(wide, 2 * wide.epoch_bytes) == 0
    assert spill_bytes(wide, 2 * wide.epoch_bytes - 1) >= 2 * 1000 * 1000 * 2


@pytest.mark.parametrize("lacking", ["nothing", "posix_fallocate", "MADV_DONTNEED"])
def test_the_spill_file_has_no_name_and_goes_away(tmp_path, monkeypatch, lacking):
    for module in (os, mmap):  # as on other systems
        monkeypatch.delattr(module, lacking, raising=False)
    free_before = os.listdir(tmp_path)
    spill = Spill(str(tmp_path), 1 << 20)
    one, other = spill.empty((100, 7), "f2"), spill.empty((50,), "i4")
    assert os.listdir(tmp_path) == free_before
    one[:], other[:] = 3, 7
    time.sleep(0.1)  # the pages have been given back by now
    assert (one == 3).all()
    assert (other == 7).all()
    spill.close()
    spill.close()
    assert (one == 3).all()


def test_no_room_for_the_spill_file_is_said_at_once(path, monkeypatch):
    def full(folder, n_bytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(committer_module, "Spill", full)
    with pytest.raises(StoreError, match=r"pass the memory limit.*No space left.*raise memory_limit_bytes"):
        TrainingDynamicsRecorder(path, n_samples=100, n_classes=50, memory_limit_bytes=1)


def test_a_recording_stays_within_its_memory_limit(path):
    """Two epochs are 64 MB; with a limit of 8 MB, resident memory must not show them."""
    code = f"""
        import resource
        import numpy as np
        from paddle_td_callback import TrainingDynamicsRecorder

        def resident():
            lines = open("/proc/self/status").read().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

        logits = np.random.default_rng(0).normal(size=(200, 1000)).astype(np.float32)
        np.argsort(logits, axis=1)
        limit = None if __import__("sys").argv[1] == "memory" else 8 << 20
        recorder = TrainingDynamicsRecorder({str(path)!r}, n_samples=16_000, n_classes=1000, overwrite=True,
                                            memory_limit_bytes=limit)
        before = resident()
        for epoch in range(3):
            for at in range(0, 16_000, 200):
                rows = np.arange(at, at + 200)
                recorder.update(rows, logits, rows % 1000)
            recorder.end_epoch()
        recorder.close()
        print(resident() - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    peaks = {}
    for where in ("memory", "file"):
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), where], capture_output=True, text=True, check=True
        )
        peaks[where] = int(child.stdout)
    assert peaks["memory"] > 60 << 20
    assert peaks["file"] < peaks["memory"] - (16 << 20), peaks
    with TrainingDynamicsStore(path) as store:
        assert (store.n_presentations() == 1).all()
        np.testing.assert_allclose(store.probabilities(slice(0, 50)).sum(axis=2), 1, atol=2e-3)


def test_memory_does_not_grow_with_epochs(path):
    recorder = TrainingDynamicsRecorder(path, n_samples=2000, n_classes=50, memory_limit_bytes=1 << 30)
    rows = np.arange(2000)
    logits = np.random.default_rng(0).normal(size=(2000, 50)).astype(np.float32)
    peaks = []
    for epoch in range(60):
        recorder.update(rows, logits, rows % 50)
        recorder.end_epoch()
        if epoch in (9, 59):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    recorder.close()
    assert peaks[1] - peaks[0] < 8 * 1024  # KiB


def test_the_thread_is_there_before_there_is_work(path, monkeypatch):
    committer = Committer(StoreWriter.create(path, LAYOUT))
    threads = []
    commit = StoreWriter.commit_epoch

    def noted(*arguments):
        threads.append(threading.get_ident())
        commit(*arguments)

    monkeypatch.setattr(StoreWriter, "commit_epoch", noted)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("too late"))
    submit(committer, 0)
    committer.close()
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_where_the_thread_takes_no_more_work_the_epoch_is_committed_now(path):
    """As where the interpreter is about to end."""
    committer = Committer(StoreWriter.create(path, LAYOUT))
    committer._pool.shutdown()
    epochs = [submit(committer, index) for index in range(2)]
    committer.close()
    assert_same_epochs(read_epochs(path)[0], epochs)
