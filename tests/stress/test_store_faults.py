"""Law 3 under a failing disk: each operation of a commit stopped, refused, or undone by a power cut."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.faulty_file import Disk, after_kill, after_power_cut, write_file
from support.recordings import assert_same_epochs, make_epoch, make_labels, read_epochs, write_recording

from paddle_td_callback import StoreError, TrainingDynamicsRecorder, TrainingDynamicsStore
from paddle_td_callback.store import StoreWriter, commits
from paddle_td_callback.store.schema import Layout

LAYOUTS = {
    "all": Layout(300, 5),
    "all, gzip": Layout(300, 5, gzip_level=1),
    "given": Layout(300, 5, keep="given"),
    "large": Layout(40_000, 2, keep="given"),  # several chunks a field
}


def resumes(path: Path, layout: Layout, labels: np.ndarray, wanted: list[dict[str, np.ndarray]]) -> None:
    """Go on with a file as found until it holds all wanted epochs."""
    writer = StoreWriter.resume(path, layout)
    for index in range(writer.n_epochs, len(wanted)):
        writer.commit_epoch(index, wanted[index], labels)
    writer.close()
    found, found_labels = read_epochs(path)
    assert_same_epochs(found, wanted)
    np.testing.assert_array_equal(found_labels, labels)


def read_by_h5py(path: Path, layout: Layout) -> list[dict[str, np.ndarray]]:
    """All epochs as a program reads them that knows nothing of this package."""
    with h5py.File(path) as file:
        columns = {field.name: file[field.name][:] for field in layout.fields}
        n_epochs = file.attrs["committed_epochs"]
        assert {len(column) for column in columns.values()} == {n_epochs}
        if n_epochs:
            assert zlib.crc32(file["labels"][:].astype("<i4").tobytes()) == int(
                file.attrs["label_checksum"], 16
            )
    return [{name: column[epoch] for name, column in columns.items()} for epoch in range(n_epochs)]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is asked to begin writing as often as in a large recording."""
    monkeypatch.setattr(commits, "_WRITE_BEHIND_BYTES", 1500)


STOPS = [
    pytest.param("all", 2, 2, id="all"),
    pytest.param("all", 0, 9, id="all, the first epoch"),
    pytest.param("all, gzip", 2, 13, id="gzip"),
    pytest.param("given", 2, 5, id="given"),
    pytest.param("large", 2, 29, id="large"),
    *(pytest.param(name, n, 1, marks=pytest.mark.slow) for name in LAYOUTS for n in (0, 2)),
]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(("name", "n_before", "stride"), STOPS)
def test_a_commit_stopped_at_any_operation_loses_nothing(
    name: str, n_before: int, stride: int, disk: Disk, tmp_path: Path
) -> None:
    layout, labels = LAYOUTS[name], make_labels(LAYOUTS[name])
    path = tmp_path / "run.h5"
    # Half of the labels are first seen in the last epoch, so that labels change in place.
    early = np.where(np.arange(len(labels)) % 2, labels, -1).astype(np.int32)
    writer = StoreWriter.create(path, layout)
    epochs = [make_epoch(layout, early, index) for index in range(n_before)]
    for index, epoch in enumerate(epochs):
        writer.commit_epoch(index, epoch, early)
    if n_before:
        writer.close()
        start = path.read_bytes()
        disk.operations.clear()
        writer = StoreWriter.resume(path, layout)
    else:
        start = path.read_bytes()
        disk.operations.clear()
    epochs.append(make_epoch(layout, labels, n_before))
    writer.commit_epoch(n_before, epochs[-1], labels)
    returned = len(disk.operations)
    epochs.append(make_epoch(layout, labels, n_before + 1))
    writer.commit_epoch(n_before + 1, epochs[-1], labels)
    operations = disk.operations[:]
    writer.close()

    rng = np.random.default_rng(0)
    ends = set()
    # All around the two moments of commit, where the order of things matters; elsewhere each stride-th.
    fsyncs = [i for i, (kind, *_) in enumerate(operations) if kind == "fsync"]
    near = {i + d for i in fsyncs for d in range(-3, 4)} if stride == 2 else set()
    for n_done in sorted({*range(0, len(operations) + 1, stride), *fsyncs, len(operations)} | near):
        images = [after_kill(start, operations, n_done, torn) for torn in (0, 0.5, 0.99)]
        images += [after_power_cut(start, operations, n_done, rng) for _ in range(3)]
        for image in images:
            found_path = write_file(tmp_path / "found.h5", image)
            found, _ = read_epochs(found_path)
            plain = read_by_h5py(found_path, layout)
            assert_same_epochs(plain, found)
            assert len(found) >= n_before + (n_done >= returned), f"operation {n_done}"
            assert_same_epochs(found, epochs[: len(found)])
            ends.add(len(found))
        resumes(found_path, layout, labels, epochs)
    assert ends == {n_before, n_before + 1, n_before + 2}
    assert len(fsyncs) >= 4
    assert sum(kind == "early" for kind, *_ in operations) >= 2


def attempt(writer: StoreWriter, index: int, epoch: dict[str, np.ndarray], labels: np.ndarray) -> int | None:
    """The errno with which a commit was refused, None if it was not."""
    try:
        writer.commit_epoch(index, epoch, labels)
    except OSError as error:
        return error.errno
    return None


REFUSALS = [
    pytest.param("all", errno.ENOSPC, id="all, full"),
    pytest.param("given", errno.EIO, id="given, broken"),
    *(pytest.param(name, e, marks=pytest.mark.slow) for name in LAYOUTS for e in (errno.ENOSPC, errno.EIO)),
]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(("name", "error"), REFUSALS)
def test_an_operation_refused_leaves_the_file_as_it_was_and_a_retry_completes_it(
    name: str, error: int, disk: Disk, tmp_path: Path
) -> None:
    layout, labels = LAYOUTS[name], make_labels(LAYOUTS[name])
    path = tmp_path / "run.h5"
    epochs = write_recording(path, layout, 1)
    epochs += [make_epoch(layout, labels, 1), make_epoch(layout, labels, 2)]
    start = path.read_bytes()
    disk.error = error
    n_refused = 0
    for number in range(200):
        path.write_bytes(start)
        writer = StoreWriter.resume(path, layout)
        disk.operations.clear()
        disk.fail_from, disk.n_failures = number, 1
        refused = attempt(writer, 1, epochs[1], labels)
        if refused is not None:
            assert refused == error  # the disk's own words, not HDF5's
            n_refused += 1
            found, _ = read_epochs(path)
            assert_same_epochs(found, epochs[: len(found)])
        disk.fail_from = None
        writer.commit_epoch(1, epochs[1], labels)
        writer.commit_epoch(2, epochs[2], labels)
        writer.close()
        assert_same_epochs(read_epochs(path)[0], epochs)
        if len(disk.operations) < number:
            break
    assert n_refused > 5
    assert number < 199


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("name", ["all", "given", pytest.param("large", marks=pytest.mark.slow)])
def test_a_power_cut_after_a_refused_operation_loses_nothing(name: str, disk: Disk, tmp_path: Path) -> None:
    """What an fsync that failed had to write is not written by those that follow it."""
    layout, labels = LAYOUTS[name], make_labels(LAYOUTS[name])
    path, found_path = tmp_path / "run.h5", tmp_path / "found.h5"
    epochs = write_recording(path, layout, 1)
    epochs += [make_epoch(layout, labels, 1), make_epoch(layout, labels, 2)]
    start = path.read_bytes()
    disk.error = errno.EIO
    rng = np.random.default_rng(0)
    refused: set[str] = set()
    for number in range(200):
        path.write_bytes(start)
        writer = StoreWriter.resume(path, layout)
        disk.operations.clear()
        disk.fail_from, disk.n_failures = number, (1, 3, 8)[number % 3]  # those of the recovery too
        returned = [0]  # after so many operations, the commit of the epoch of this index
        while len(returned) < 3:
            if attempt(writer, len(returned), epochs[len(returned)], labels) is None:
                returned.append(len(disk.operations))
        writer.close()
        operations, disk.fail_from = disk.operations[:], None
        if len(operations) <= number:
            break
        refused |= {operations[number][0], *(kind for kind, *_ in operations if kind.startswith("failed"))}
        for n_done in {*rng.integers(number, len(operations), 4).tolist(), *returned[1:]}:
            found, _ = read_epochs(write_file(found_path, after_power_cut(start, operations, n_done, rng)))
            assert len(found) >= sum(n_done >= end for end in returned), f"{number} refused, cut at {n_done}"
            assert_same_epochs(found, epochs[: len(found)])
        resumes(found_path, layout, labels, epochs)
    assert refused >= {"write", "failed truncate", "failed fsync"}
    assert number < 199


def test_a_disk_that_refuses_everything_for_a_while(disk: Disk, tmp_path: Path) -> None:
    layout, labels = LAYOUTS["all"], make_labels(LAYOUTS["all"])
    path = tmp_path / "run.h5"
    epochs = write_recording(path, layout, 2)
    epochs.append(make_epoch(layout, labels, 2))
    start = path.read_bytes()
    for number in range(0, 60, 2):
        path.write_bytes(start)
        writer = StoreWriter.resume(path, layout)
        disk.operations.clear()
        disk.fail_from = number
        refused = [attempt(writer, 2, epochs[2], labels) for _ in range(3)]
        assert set(refused) <= {errno.ENOSPC, None}
        writer.close()
        disk.fail_from = None
        found, _ = read_epochs(path)
        assert len(found) == 3 or None not in refused
        assert_same_epochs(found, epochs[: len(found)])
        if refused[0] is None:
            break
    assert refused[0] is None
    resumes(path, layout, labels, epochs)


def record(recorder: TrainingDynamicsRecorder, epoch: int) -> None:
    rng = np.random.default_rng(epoch)
    indices = rng.permutation(recorder.layout.n_samples)
    logits = rng.normal(size=(len(indices), recorder.layout.n_classes)).astype(np.float32)
    recorder.update(indices, logits, indices % recorder.layout.n_classes)
    recorder.end_epoch()


def test_a_disk_full_for_a_while_costs_the_epochs_of_that_time_and_one_warning(
    disk: Disk, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder = TrainingDynamicsRecorder(path, n_samples=50, n_classes=3)
        for epoch in range(8):
            disk.fail_from = len(disk.operations) if 2 <= epoch < 6 else None
            record(recorder, epoch)
            if epoch == 1:
                recorder.flush()
        recorder.close()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2, messages
    assert "epoch 2 cannot be written ([Errno 28] No space left on device)" in messages[0]
    assert "2 committed epochs stay" in messages[0]
    assert "epochs [3, 4, 5] could not be written" in messages[1]
    with TrainingDynamicsStore(path) as store:
        assert (store.n_epochs, store.dropped_epochs) == (8, [3, 4, 5])
        unseen = np.isnan(store.given_probabilities()).all(axis=0)
        np.testing.assert_array_equal(unseen, [False, False, False, True, True, True, False, False])


def test_on_error_raise_raises_the_disks_own_error(disk: Disk, tmp_path: Path) -> None:
    recorder = TrainingDynamicsRecorder(tmp_path / "run.h5", n_samples=50, n_classes=3, on_error="raise")
    record(recorder, 0)
    recorder.flush()
    disk.fail_from = len(disk.operations)
    record(recorder, 1)
    with pytest.raises(OSError, match="No space"):
        recorder.flush()
    disk.fail_from = None
    recorder.close()  # tries once more
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        assert store.n_epochs == 2


@pytest.mark.parametrize("what", ["deleted", "replaced", "moved away and back"])
def test_a_file_that_goes_away_mid_run(what: str, tmp_path: Path) -> None:
    path, aside = tmp_path / "run.h5", tmp_path / "aside.h5"
    recorder = TrainingDynamicsRecorder(path, n_samples=50, n_classes=3)
    record(recorder, 0)
    recorder.flush()
    path.rename(aside)
    if what == "replaced":
        path.write_bytes(b"something of the user's")
    record(recorder, 1)
    with pytest.warns(RuntimeWarning, match="epoch 1 cannot be written"):
        recorder.flush()
    if what == "moved away and back":
        aside.rename(path)
        record(recorder, 2)
        recorder.close()
        with TrainingDynamicsStore(path) as store:
            assert store.n_epochs == 3
        return
    with pytest.warns(RuntimeWarning, match=r"epochs \[1\] could not be written"):
        recorder.close()
    if what == "replaced":
        assert path.read_bytes() == b"something of the user's"
    with TrainingDynamicsStore(aside) as store:
        assert store.n_epochs == 1


def test_a_file_size_limit_stops_the_recording_not_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    code = f"""
        import resource, signal, warnings
        import numpy as np
        from paddle_td_callback import TrainingDynamicsRecorder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        recorder = TrainingDynamicsRecorder({str(path)!r}, n_samples=5000, n_classes=10)
        for epoch in range(8):
            recorder.update(np.arange(5000), np.ones((5000, 10), np.float32), np.arange(5000) % 10)
            recorder.end_epoch()
        recorder.close()
        print("trained on")
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (child.returncode, child.stdout) == (0, "trained on\n"), child.stderr
    assert "epoch 2 cannot be written ([Errno 27] File too large)" in child.stderr
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2


KILLED = """
import os, sys, time
import numpy as np
from paddle_td_callback import TrainingDynamicsRecorder
recorder = TrainingDynamicsRecorder(sys.argv[1], n_samples=400, n_classes=6, resume=True, compression={compression})
while True:
    epoch = recorder.n_epochs
    rng = np.random.default_rng(epoch)
    indices = rng.permutation(400)[:350]
    recorder.update(indices, rng.normal(size=(350, 6)).astype(np.float32), indices % 6)
    recorder.end_epoch()
    recorder.flush()
    print(epoch, flush=True)
"""


@pytest.mark.parametrize("compression", ["None", "'gzip'"])
def test_killed_and_resumed_from_the_file_as_found(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(5)
    committed = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED.format(compression=compression), str(path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        said = int(child.stdout.readline())
        try:
            child.wait(timeout=float(rng.uniform(0, 0.1)))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in child.stdout.read().split())])
        child.wait()
        child.stdout.close()
        assert said >= committed
        with TrainingDynamicsStore(path) as store:
            assert said + 1 <= store.n_epochs <= said + 2
            committed = store.n_epochs
    for epoch, found in enumerate(read_epochs(path)[0]):
        rng = np.random.default_rng(epoch)
        indices = rng.permutation(400)[:350]
        logits = rng.normal(size=(350, 6)).astype(np.float32)
        assert (found["n_presentations"] == np.isin(np.arange(400), indices)).all()
        np.testing.assert_array_equal(found["predicted"][indices], logits.argmax(axis=1))


def test_forked_children_that_outlive_a_killed_parent_do_not_block_resume(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    code = f"""
        import os, sys, time
        from paddle_td_callback import TrainingDynamicsRecorder
        recorder = TrainingDynamicsRecorder({str(path)!r}, n_samples=4, n_classes=2)
        ready, is_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(is_ready, b"!")
            os.close(1)
            time.sleep(60)
        os.read(ready, 1)
        print(child, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    try:
        with pytest.raises(StoreError, match="is being recorded by another process"):
            StoreWriter.resume(path)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        os.kill(orphan, 0)  # still there
        StoreWriter.resume(path).close()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_reader_in_the_same_process_does_not_cost_the_writer_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with TrainingDynamicsRecorder(path, n_samples=4, n_classes=2):
        TrainingDynamicsStore(path).close()
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from paddle_td_callback.store import *; StoreWriter.resume({str(path)!r})",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "is being recorded by another process" in child.stderr
        with pytest.raises(StoreError, match="is being recorded"):
            StoreWriter.resume(path)


def test_readers_of_every_kind_cost_the_recording_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    code = f"""
        import h5py, sys
        from paddle_td_callback import TrainingDynamicsStore
        store = TrainingDynamicsStore({str(path)!r})
        plain = h5py.File({str(path)!r}, "r")  # takes HDF5's lock and keeps it
        print("open", flush=True)
        sys.stdin.read()
        print(store.margins().shape)
    """
    recorder = TrainingDynamicsRecorder(path, n_samples=50, n_classes=3, on_error="raise")
    record(recorder, 0)
    recorder.flush()
    reader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "open\n"
    early = TrainingDynamicsStore(path)
    for epoch in range(1, 30):
        record(recorder, epoch)
        recorder.flush()
        with TrainingDynamicsStore(path) as store:
            assert store.n_epochs == epoch + 1
            assert not np.isnan(store.margins()).any()
    assert early.margins().shape == (50, 1)
    early.close()
    out, _ = reader.communicate("", timeout=60)
    assert out == "(50, 1)\n"
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 30
    with h5py.File(path) as plain:
        assert plain["margin"].shape == (30, 50)


def test_reading_while_another_process_commits_without_pause(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(compression="None"), str(path)], stdout=subprocess.DEVNULL
    )
    try:
        while not path.exists():
            assert child.poll() is None
        last, n_reads = 0, 0
        while last < 40:
            with TrainingDynamicsStore(path) as store:
                assert store.n_epochs >= last
                last = store.n_epochs
                for _ in range(3):
                    predicted, times = store.predictions(), store.n_presentations()
                    n_reads += 1
                    assert predicted.shape == (400, last)
                    np.testing.assert_array_equal(predicted >= 0, times > 0)
                    np.testing.assert_array_equal((times > 0).sum(axis=0), [350] * last)
        assert n_reads > 3
    finally:
        child.kill()
        child.wait()
