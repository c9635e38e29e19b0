"""One writer, locks or not; and records, superblock and state where they contradict each other."""

import errno
import math
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from support.faulty_file import Disk
from support.forging import forge, frame_of, newest, put_roots
from support.recordings import assert_same_epochs, make_epoch, make_labels, read_epochs, write_recording

from paddle_td_callback import StoreError, TrainingDynamicsStore
from paddle_td_callback.store import StoreWriter, disk, schema
from paddle_td_callback.store.blocks import CHUNK, FRAME_BYTES, START, Frame
from paddle_td_callback.store.schema import Layout
from paddle_td_callback.store.verify import salvage, verify

LAYOUT = Layout(30, 3)
LABELS = make_labels(LAYOUT)
EPOCHS = [make_epoch(LAYOUT, LABELS, index) for index in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """A file system on which no file can be locked."""

    def fcntl(*arguments):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.fcntl", fcntl)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_that_is_said_once_and_a_second_writer_is_known_by_the_sign(path):
    with pytest.warns(RuntimeWarning, match="cannot lock files .* from one process only") as caught:
        writer = StoreWriter.create(path, LAYOUT)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.commit_epoch(0, EPOCHS[0], LABELS)
        with pytest.raises(StoreError, match="is being recorded by another process"):
            StoreWriter.resume(path)
        writer.commit_epoch(1, EPOCHS[1], LABELS)
    writer.close()
    with pytest.warns(RuntimeWarning, match="cannot lock files"):
        StoreWriter.resume(path).close()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.filterwarnings("ignore:.*cannot lock files")
@pytest.mark.parametrize("when", ["before", "amid", "at the end"])
def test_without_locks_a_writer_that_was_taken_over_damages_nothing(when, path, monkeypatch):
    first = StoreWriter.create(path, LAYOUT)
    first.commit_epoch(0, EPOCHS[0], LABELS)
    monkeypatch.setattr(disk, "_is_alive", lambda process: False)  # the other is on another machine

    def take_over():
        second = StoreWriter.resume(path)
        second.commit_epoch(1, EPOCHS[1], LABELS)
        second.commit_epoch(2, EPOCHS[2], LABELS)
        return second

    others = [take_over()] if when == "before" else []
    commit, append = first._commit, first._append_chunk

    def taken_over_before(function):
        def wrapped(*arguments):
            if not others:
                others.append(take_over())
            return function(*arguments)

        return wrapped

    if when == "amid":
        first._append_chunk = taken_over_before(append)
    elif when == "at the end":
        first._commit = taken_over_before(commit)
    with pytest.raises(BlockingIOError, match="another process has begun to record into it"):
        first.commit_epoch(1, EPOCHS[5], LABELS)
    first.close()
    others[0].commit_epoch(3, EPOCHS[3], LABELS)
    others[0].close()
    assert_same_epochs(read_epochs(path)[0], EPOCHS[:4])
    assert verify(path).ok


def test_a_stale_sign_does_not_keep_a_writer_out(path, no_locks, recwarn):
    write_recording(path, LAYOUT, 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    content = bytearray(path.read_bytes())
    sign = disk._SIGN.pack(disk._SIGN_MAGIC, b"x" * 16, ended.pid, disk._host())
    content[disk.SIGN_AT : disk.SIGN_AT + len(sign)] = sign
    path.write_bytes(content)
    StoreWriter.resume(path).close()


def test_a_forked_child_does_not_keep_the_file(path):
    writer = StoreWriter.create(path, LAYOUT)
    fd = writer._file.fd
    child = os.fork()
    if child == 0:
        try:
            os.fstat(fd)
            os._exit(1)
        except OSError:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.commit_epoch(0, EPOCHS[0], LABELS)
    writer.close()
    assert_same_epochs(read_epochs(path)[0], EPOCHS[:1])


@pytest.mark.parametrize("value", [0, 1, START + FRAME_BYTES, 2**62])
def test_a_superblock_that_leads_nowhere_gives_the_commit_before(value, path, tmp_path):
    written = write_recording(path, LAYOUT, 4)
    content = bytearray(path.read_bytes())
    put_roots(content, newest=value)
    path.write_bytes(content)
    with pytest.warns(
        RuntimeWarning, match=r"its newest commit is damaged .* these are the 3 epochs of the commit"
    ):
        assert_same_epochs(read_epochs(path)[0], written[:3])
    with pytest.raises(StoreError, match="is damaged"):
        StoreWriter.resume(path)
    report = salvage(path, tmp_path / "out.h5")
    assert report.good_epochs == [0, 1, 2, 3]
    assert_same_epochs(read_epochs(tmp_path / "out.h5")[0], written)


@pytest.mark.parametrize("value", [0, 2**62])
def test_the_address_of_the_commit_before_is_used_by_nobody_while_the_newest_is_whole(value, path):
    written = write_recording(path, LAYOUT, 4)
    content = bytearray(path.read_bytes())
    put_roots(content, before=value)
    path.write_bytes(content)
    assert_same_epochs(read_epochs(path)[0], written)
    assert verify(path).ok
    StoreWriter.resume(path).close()
    put_roots(content, newest=0)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: the address at byte 64 leads to no commit"):
        read_epochs(path)


def test_a_superblock_that_may_be_on_the_disk_although_its_fsync_failed(path, monkeypatch):
    disk = Disk(monkeypatch)
    writer = StoreWriter.create(path, LAYOUT)
    writer.commit_epoch(0, EPOCHS[0], LABELS)
    before = len(disk.operations)
    writer.commit_epoch(1, EPOCHS[1], LABELS)
    fsyncs = [i for i, one in enumerate(disk.operations[before:]) if one[0] == "fsync"]
    disk.fail_from, disk.n_failures = len(disk.operations) + fsyncs[1], 1
    with pytest.raises(OSError, match="No space left"):
        writer.commit_epoch(2, EPOCHS[2], LABELS)
    assert len(read_epochs(path)[0]) == 3  # it leads to bytes that stay
    disk.fail_from = None
    writer.commit_epoch(2, EPOCHS[3], LABELS)  # the retry may hold something else
    writer.commit_epoch(3, EPOCHS[4], LABELS)
    writer.close()
    assert_same_epochs(read_epochs(path)[0], [*EPOCHS[:2], EPOCHS[3], EPOCHS[4]])
    assert verify(path).ok


def test_blocks_of_another_recording_are_no_blocks_of_this_one(path, tmp_path):
    """As after a copy over an older file of the same size that was cut off in between."""
    other = tmp_path / "other.h5"
    written = write_recording(path, LAYOUT, 4)
    labels = make_labels(LAYOUT, 1)
    theirs = write_recording(other, LAYOUT, 4, labels=labels)
    one, two = path.read_bytes(), other.read_bytes()
    assert len(one) == len(two)
    for share in np.linspace(0.02, 0.98, 25):
        at = int(share * len(one))
        path.write_bytes(one[:at] + two[at:])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_epochs(path)[0]
        except StoreError:
            continue
        assert_same_epochs(
            found, (written if found[0]["margin"][0] == written[0]["margin"][0] else theirs)[: len(found)]
        )


def test_a_block_that_was_moved_is_none(path):
    write_recording(path, LAYOUT, 3)
    content = bytearray(path.read_bytes())
    state = newest(path).state
    frame_of(content, state)
    assert Frame.unpack(bytes(content[state - FRAME_BYTES : state]), START) is None


def claim_epoch(path, index):
    """Let a chunk be of a later epoch, and no state say how many there are. Returns the place of the chunk."""
    root, content = newest(path), bytearray(path.read_bytes())
    run = frame_of(content, root.state).run
    content[root.state - FRAME_BYTES : root.state] = bytes(FRAME_BYTES)  # so that chunks speak for themselves
    place = content.index(b"PTDb", START + 8)
    content[place : place + FRAME_BYTES] = Frame(CHUNK, 0, index, 0, 124, 0, run).pack(place)
    path.write_bytes(content)
    return place


def test_a_chunk_of_an_epoch_far_away(path, tmp_path):
    """No list of all epochs before it is made of it."""
    write_recording(path, LAYOUT, 2)
    place = claim_epoch(path, 2**32 - 1)
    report = salvage(path, tmp_path / "out.h5")
    assert report.n_epochs == 2
    assert (
        f"the chunk at byte {place + FRAME_BYTES} claims to be of epoch {2**32 - 1}" in str(report)
        or not report.ok
    )


def test_sizes_are_computed_once_however_many_epochs_a_file_claims(path, monkeypatch):
    sizes, counts = [], []
    monkeypatch.setattr(schema, "math", SimpleNamespace(prod=lambda row: sizes.append(row) or math.prod(row)))
    for n_epochs in (3, 300):
        write_recording(path, LAYOUT, 2, overwrite=n_epochs > 3)
        claim_epoch(path, n_epochs - 1)
        sizes.clear()
        assert verify(path).n_epochs == n_epochs
        counts.append(len(sizes))
    assert counts[0] == counts[1] > 0


def test_an_empty_recording_of_a_size_without_end(path):
    """The labels have to back it, so nothing goes through all samples."""
    writer = StoreWriter.create(path, Layout(30, 3, keep="given"))
    content = path.read_bytes()
    writer.close()
    path.write_bytes(content)
    forge(path, change_state=lambda facts: facts["layout"].update(n_samples=2**39))
    for reads in (TrainingDynamicsStore, StoreWriter.resume):
        with pytest.raises(StoreError, match=r"is damaged: .* it claims at least"):
            reads(path)


def test_a_sign_of_another_users_process_keeps_a_writer_out(path, no_locks, monkeypatch):
    def refuse(_process, _signal):
        raise PermissionError(1, "Operation not permitted")

    with pytest.warns(RuntimeWarning, match="cannot lock files"):
        writer = StoreWriter.create(path, LAYOUT)
    writer.commit_epoch(0, EPOCHS[0], LABELS)
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(StoreError, match="is being recorded by another process"):
        StoreWriter.resume(path)
    writer.close()


@pytest.mark.parametrize(("system", "is_locked"), [("darwin", True), ("win32", False)])
def test_a_second_writer_on_other_systems(system, is_locked, path):
    code = f"""
import os, sys
sys.platform = {system!r}
from paddle_td_callback.store.disk import RawFile, lock
file = RawFile({str(path)!r}, os.O_RDWR | os.O_CREAT)
lock(file)
if len(sys.argv) > 1:
    import subprocess
    sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ("is being recorded by another process" in done.stderr) == is_locked, done.stderr
    assert done.returncode == int(is_locked)
