"""Transactions under HDF5: kept whole or undone, sealed, and read as of one commit."""

import errno
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_td_callback.store import appending, disk, redo
from paddle_td_callback.store.appending import AppendedChecksums
from paddle_td_callback.store.journal import DamagedError, Journal, NotSealedError, Snapshot
from paddle_td_callback.store.redo import USER_BLOCK_BYTES
from paddle_td_callback.store.seals import UNIT_BYTES, SealedFile, find_seals


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


@pytest.fixture
def journal(path):
    made = Journal.create(path)
    yield made
    made.close()


def set_value(journal, value, note=b""):
    with journal.transaction() as transaction:
        if "x" in transaction.h5:
            transaction.h5["x"][...] = value
        else:
            transaction.h5.create_dataset("x", data=np.full(1000, value))
        transaction.note = note


def values(path):
    snapshot = Snapshot(path)
    try:
        return checked_values(snapshot)
    finally:
        snapshot.close()


def checked_values(snapshot):
    try:
        return snapshot.h5["x"][:]
    finally:
        snapshot.check()


def test_what_is_committed_is_read_by_us_and_by_plain_hdf5(path, journal):
    for value in range(5):
        set_value(journal, value)
        assert set(values(path)) == {value}
    journal.close()
    with h5py.File(path) as plain:
        assert set(plain["x"][:]) == {4}
        assert plain.userblock_size == USER_BLOCK_BYTES


def test_a_block_that_raises_changes_nothing(path, journal):
    set_value(journal, 1)
    before = path.read_bytes()

    def fail():
        with journal.transaction() as transaction:
            transaction.h5["x"][...] = 2
            transaction.h5["big"] = np.zeros(100_000)
            raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        fail()
    assert path.read_bytes()[USER_BLOCK_BYTES:] == before[USER_BLOCK_BYTES:]
    assert set(values(path)) == {1}
    set_value(journal, 3)
    assert set(values(path)) == {3}


def test_changes_in_place_reach_the_disk_only_after_the_commit(path, journal):
    set_value(journal, 1)
    before = path.read_bytes()
    with journal.transaction() as transaction:
        transaction.h5["x"][...] = 2
        transaction.h5.flush()
        assert path.read_bytes()[: len(before)] == before
        assert set(values(path)) == {1}
    assert set(values(path)) == {2}


def test_a_snapshot_stays_at_its_commit_until_it_is_refreshed(path, journal):
    set_value(journal, 1)
    snapshot = Snapshot(path)
    assert snapshot.is_current
    assert snapshot.h5["x"][0] == 1
    with journal.transaction() as transaction:
        transaction.h5["y"] = 5
    assert not snapshot.is_current
    assert "y" not in snapshot.h5
    snapshot.refresh()
    assert snapshot.h5["y"][()] == 5
    snapshot.close()
    snapshot.close()


def test_data_changed_in_place_under_a_snapshot_is_refused_not_mixed(path, journal):
    set_value(journal, 1)
    snapshot = Snapshot(path)
    set_value(journal, 2)
    set_value(journal, 3)
    with pytest.raises(DamagedError, match="not what was committed"):
        checked_values(snapshot)
    snapshot.refresh()
    assert set(checked_values(snapshot)) == {3}
    snapshot.close()


def test_a_second_writer_is_refused_and_may_come_later(path, journal):
    with pytest.raises(BlockingIOError):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_a_writer_that_came_between_is_noticed_where_locks_do_not_work(path, journal, monkeypatch):
    monkeypatch.setattr(disk, "lock", lambda file: None)
    set_value(journal, 1)
    other = Journal(path)
    set_value(other, 2)
    with pytest.raises(BlockingIOError, match="written by another process"):
        set_value(journal, 3)
    other.close()
    assert set(values(path)) == {2}


def test_changes_too_large_for_their_slot_go_behind_the_data(path, journal):
    size = 100_000
    with journal.transaction() as transaction:
        transaction.h5["x"] = np.zeros(size)
    for value in (1.0, 2.0, 3.0):
        with journal.transaction() as transaction:
            transaction.h5["x"][...] = value
        assert set(values(path)) == {value}
    journal.close()
    again = Journal(path)
    with again.transaction() as transaction:
        assert set(transaction.h5["x"][:]) == {3.0}
    again.close()


def test_every_byte_that_hdf5_reads_is_checked(path, journal):
    with journal.transaction() as transaction:
        transaction.h5["x"] = np.arange(60_000)
    journal.close()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for at in rng.integers(USER_BLOCK_BYTES, USER_BLOCK_BYTES + 480_000, 40):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert (values(path) == np.arange(60_000)).all()
        except DamagedError:
            n_refused += 1
    assert n_refused >= 39  # all that were not in a gap of HDF5's


def test_a_chunk_of_zeros_is_found_though_its_fletcher32_is_right(path, journal):
    data = np.arange(1, 50_001, dtype="f4")
    with journal.transaction() as transaction:
        transaction.h5.create_dataset("x", data=data, chunks=(50_000,), fletcher32=True)
        transaction.h5.flush()
    journal.close()
    content = path.read_bytes()
    at = content.index(data.tobytes())
    path.write_bytes(content[:at] + bytes(200_004) + content[at + 200_004 :])
    with h5py.File(path) as plain:
        assert (plain["x"][:] == 0).all()  # HDF5 sees nothing
    with pytest.raises(DamagedError):
        values(path)


@pytest.mark.parametrize("commits", [1, 2, 5])
def test_a_damaged_newest_record_does_not_bring_the_commit_before_back(commits, path, journal):
    for value in range(commits + 1):
        set_value(journal, value)
    newest = commits + 1
    journal.close()
    content = bytearray(path.read_bytes())
    slot = newest % 2 * (USER_BLOCK_BYTES // 2)
    content[slot + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="last commit record is damaged"):
        Snapshot(path)
    with pytest.raises(DamagedError, match="last commit record is damaged"):
        Journal(path)


@pytest.mark.parametrize("n_bytes", [0, 100, USER_BLOCK_BYTES, USER_BLOCK_BYTES + 700])
def test_a_file_cut_off_is_refused(n_bytes, path, journal):
    set_value(journal, 1)
    journal.close()
    path.write_bytes(path.read_bytes()[:n_bytes])
    for kind in (Snapshot, Journal):
        with pytest.raises((DamagedError, NotSealedError)):
            kind(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"not HDF5 " * 100, "it is something else"),
        (b"\x89HDF\r\n\x1a\n" + bytes(1000), "is an HDF5 file, but no recording"),
        (bytes(2048) + b"\x89HDF\r\n\x1a\n" + bytes(1000), "is an HDF5 file, but no recording"),
        (bytes(USER_BLOCK_BYTES) + b"\x89HDF\r\n\x1a\n", "has lost its commit records"),
    ],
)
def test_files_that_are_not_ours_are_never_given_to_hdf5(content, message, path, monkeypatch):
    path.write_bytes(content)
    monkeypatch.setattr(h5py, "File", lambda *arguments, **options: pytest.fail("given to HDF5"))
    for kind in (Snapshot, Journal):
        with pytest.raises(NotSealedError, match=message):
            kind(path)


def test_a_record_as_it_stands_on_disk(path, journal):
    """The layout that every later version must read."""
    set_value(journal, 1, note=b"hello")
    journal.close()
    content = path.read_bytes()
    magic, sequence, committed, *rest = struct.unpack_from("<8sQQQQIQQI", content, USER_BLOCK_BYTES // 2)
    assert (magic, sequence, committed) == (b"PTDredo1", 1, len(content))
    seal_offset, seal_length, _ = rest[3:]
    seal = struct.unpack_from("<8sQQQQIQQQQ", content, seal_offset)
    assert seal[:2] == (b"PTDseal1", seal_length)
    assert seal[6:] == (USER_BLOCK_BYTES // UNIT_BYTES, 1, 0, 5)
    (end_of_file,) = struct.unpack_from("<Q", content, USER_BLOCK_BYTES + 40)
    assert end_of_file == len(content)


def test_all_seals_are_found_in_a_damaged_file(path, journal):
    for number in range(6):
        set_value(journal, number, note=b"note %d" % number)
    journal.close()
    path.write_bytes(bytes(USER_BLOCK_BYTES) + path.read_bytes()[USER_BLOCK_BYTES:])
    with open(path, "rb", buffering=0) as file:
        notes = [seal.note for seal in find_seals(file)]
    assert notes == [b"", *(b"note %d" % number for number in range(6))]


def test_threads_read_while_others_write(path, journal):
    set_value(journal, 0)
    failures = []

    def read():
        for _ in range(60):
            found = values_or_newer(path)
            if len(set(found)) != 1:
                failures.append(found)

    def values_or_newer(path):
        while True:
            try:
                return values(path)
            except DamagedError:  # noqa: PERF203  a commit came between
                continue

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for value in range(60):
        set_value(journal, value)
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_file_left_open_at_the_end_of_python_does_no_harm(path, journal):
    import subprocess
    import sys

    set_value(journal, 1)
    code = """
import sys
from paddle_td_callback.store.journal import Journal, Snapshot
snapshot = Snapshot(sys.argv[1])
snapshot.h5["x"][:]
kept = []
try:
    content = bytearray(open(sys.argv[1], "rb").read())
    content[131072 + 100] ^= 1
    open(sys.argv[2], "wb").write(content)
    Snapshot(sys.argv[2]).h5
except OSError as error:
    kept.append(error)
    kept.append(kept)
print("end")
"""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path), str(path) + "2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (0, "end\n"), child.stderr


def test_ctrl_c_inside_hdf5_comes_out(path, journal, monkeypatch):
    set_value(journal, 1)

    def interrupted(self, unit):
        raise KeyboardInterrupt

    monkeypatch.setattr(SealedFile, "unit", interrupted)
    snapshot = Snapshot(path)
    with pytest.raises(KeyboardInterrupt):
        _ = snapshot.h5
    snapshot.close()


def test_without_durable_nothing_waits_for_the_disk(path, monkeypatch):
    def refuse(file):
        raise AssertionError("fsync")

    monkeypatch.setattr(disk, "fsync", refuse)
    made = Journal.create(path, durable=False)
    set_value(made, 4)
    made.close()
    assert set(values(path)) == {4}


def test_no_descriptor_is_left_open(path, journal):
    set_value(journal, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            values(path)
            with pytest.raises(BlockingIOError):
                Journal(path)
        assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.lists(
        st.tuples(st.integers(0, 3 * UNIT_BYTES), st.integers(1, UNIT_BYTES), st.booleans()), max_size=6
    ),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_checksums_of_what_passes_by_are_right_or_unknown(writes, seed):
    """Written in any order, over each other, with gaps and truncations: what is claimed is true."""
    rng = np.random.default_rng(seed)
    content, checksums, end = bytearray(), AppendedChecksums(None), 0
    for at, n_bytes, behind in writes:
        offset = end if behind else at
        data = rng.bytes(n_bytes)
        content.extend(bytes(max(0, offset + n_bytes - len(content))))
        content[offset : offset + n_bytes] = data
        checksums.add(offset, memoryview(data))
        end = offset + n_bytes
        if rng.random() < 0.2:
            cut = int(rng.integers(0, len(content) + 1))
            content[cut:] = bytes(len(content) - cut)
            checksums.forget(cut)
    checksums.settle()
    for unit in range(-(-len(content) // UNIT_BYTES)):
        start, stop = unit * UNIT_BYTES, min((unit + 1) * UNIT_BYTES, len(content))
        assert checksums.get(unit, stop) in (None, zlib.crc32(content[start:stop]))


@pytest.mark.parametrize("beside", [False, True])
def test_checksums_of_what_is_appended_are_known(beside, monkeypatch):
    monkeypatch.setattr(appending, "_CHECKSUM_BATCH_BYTES", 5000)
    data = np.random.default_rng(0).bytes(3 * UNIT_BYTES + 100)
    with ThreadPoolExecutor(1) as executor:
        checksums = AppendedChecksums(executor if beside else None)
        for start in range(0, len(data), 1000):
            checksums.add(start, memoryview(data)[start : start + 1000])
            checksums.proceed()
        checksums.settle()
    for start in range(0, len(data), UNIT_BYTES):
        stop = min(start + UNIT_BYTES, len(data))
        assert checksums.get(start // UNIT_BYTES, stop) == zlib.crc32(data[start:stop])
    assert checksums.get(0, UNIT_BYTES - 1) is None


def append_units(journal, n_units, value):
    """A chunk of so many units, written in parts from where they lie."""
    data = np.full(n_units * UNIT_BYTES, value, np.uint8)
    with journal.transaction() as transaction:
        name = f"chunk{value}"
        transaction.h5.create_dataset(name, data.shape, data.dtype, chunks=data.shape)
        parts = [data.data[:100], data.data[100:]]
        transaction.write_chunk(transaction.h5[name].id, (0,), parts)


def test_a_chunk_is_written_from_where_its_parts_lie(path, journal):
    append_units(journal, 40, 7)
    append_units(journal, 1, 8)
    journal.close()
    with h5py.File(path) as plain:
        assert set(plain["chunk7"][:]) == {7}
        assert set(plain["chunk8"][:]) == {8}
    snapshot = Snapshot(path)
    assert set(snapshot.h5["chunk7"][:]) == {7}
    snapshot.check()
    snapshot.close()


def test_a_chunk_written_over_another_one_lies_below_the_boundary(path, journal):
    data = np.zeros(2000, np.uint8)
    with journal.transaction() as transaction:
        transaction.h5.create_dataset("x", data=data, chunks=data.shape)
    data[:] = 9
    before = path.read_bytes()
    with journal.transaction() as transaction:
        transaction.write_chunk(transaction.h5["x"].id, (0,), [data.data[:7], data.data[7:]])
        assert path.read_bytes()[: len(before)] == before
    assert set(values(path)) == {9}


@pytest.mark.parametrize("chunk_bytes", [3, 300, 2096])  # the last: as a node of HDF5's index of chunks
def test_chunks_are_kept_apart_from_metadata_that_hdf5_writes_between(path, journal, chunk_bytes):
    """It does so where a commit has more metadata than its cache holds: beyond some 30,000 chunks, or 30 GB."""
    n_chunks = 1500
    data = np.random.default_rng(0).integers(0, 256, (n_chunks, chunk_bytes), np.uint8)
    with journal.transaction() as transaction:
        transaction.h5.create_dataset("x", (data.size,), data.dtype, chunks=(chunk_bytes,))
    with journal.transaction() as transaction:
        shrink_metadata_cache(transaction.h5)
        dataset = transaction.h5["x"].id
        for index in np.random.default_rng(1).permutation(n_chunks).tolist():
            offset = transaction.write_chunk(dataset, (index * chunk_bytes,), [data[index].data])
            assert disk.read_at(journal._file, offset, chunk_bytes) == data[index].tobytes()
    np.testing.assert_array_equal(values(path), data.ravel())
    journal.close()
    with h5py.File(path) as plain:
        np.testing.assert_array_equal(plain["x"][:], data.ravel())


def shrink_metadata_cache(h5):
    config = h5.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = 1024
    config.incr_mode = config.decr_mode = config.flash_incr_mode = 0
    h5.id.set_mdc_config(config)


def test_a_chunk_that_hdf5_does_not_write_is_noticed(path, journal):
    set_value(journal, 1)

    class Forgetful:
        def write_direct_chunk(self, at, given):
            assert len(given) == 100

    with pytest.raises(OSError, match="did not write the chunk"), journal.transaction() as transaction:
        transaction.write_chunk(Forgetful(), (0,), [memoryview(bytes(100))])
    assert set(values(path)) == {1}


def test_the_disk_is_asked_early_and_what_it_says_then_is_not_lost(path, journal, monkeypatch):
    monkeypatch.setattr(appending, "_EARLY_SYNC_BYTES", 4 * UNIT_BYTES)
    append_units(journal, 1, 1)
    real, asked = disk.fsync, []

    def refuse_the_first(file):
        asked.append(os.fstat(file.fileno()).st_size)
        if len(asked) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(disk, "fsync", refuse_the_first)
    with pytest.raises(OSError, match="Input/output error"):
        append_units(journal, 20, 2)
    assert len(asked) > 1  # and the file was brought back to the commit before
    snapshot = Snapshot(path)
    assert list(snapshot.h5) == ["chunk1"]
    snapshot.close()
    asked.clear()
    asked.append(0)
    append_units(journal, 20, 2)
    assert len(asked) >= 4  # early, the data, the record
    append_units(journal, 1, 3)
    journal.close()
    with h5py.File(path) as plain:
        assert [set(plain[name][:]) for name in plain] == [{1}, {2}, {3}]


def test_nothing_is_under_way_once_a_transaction_failed_for_want_of_memory(path, journal, monkeypatch):
    set_value(journal, 1)
    monkeypatch.setattr(appending, "_EARLY_SYNC_BYTES", UNIT_BYTES)
    monkeypatch.setattr(appending, "_CHECKSUM_BATCH_BYTES", UNIT_BYTES)
    begun, ended, recovered = [], [], []
    recover = Journal._recover

    def slow(file):
        begun.append(1)
        time.sleep(0.2)
        ended.append(1)

    def exhausted(checksums, batch):
        raise MemoryError

    def recover_alone(journal):
        recovered.append(len(ended))
        recover(journal)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "fsync_early", slow)
        patch.setattr(AppendedChecksums, "_compute", exhausted)
        patch.setattr(Journal, "_recover", recover_alone)
        with pytest.raises(MemoryError):
            append_units(journal, 3, 2)
    assert recovered == [len(begun)] == [1]
    assert set(values(path)) == {1}
    append_units(journal, 3, 2)


def test_what_went_wrong_in_a_batch_of_checksums_is_not_lost(monkeypatch):
    monkeypatch.setattr(appending, "_CHECKSUM_BATCH_BYTES", 1)
    compute, failing = AppendedChecksums._compute, [True]

    def fails_once(checksums, batch):
        if failing:
            failing.clear()
            raise MemoryError
        compute(checksums, batch)

    monkeypatch.setattr(AppendedChecksums, "_compute", fails_once)
    with ThreadPoolExecutor(1) as executor:
        checksums = AppendedChecksums(executor)
        checksums.add(0, b"first")
        checksums.proceed()
        executor.submit(int).result()
        checksums.add(5, b"second")
        with pytest.raises(MemoryError):
            checksums.proceed()


def test_threads_may_need_h5pys_lock_at_any_moment(path, journal, monkeypatch):
    """Python frees h5py's objects in whichever thread it likes, and that takes the lock."""
    monkeypatch.setattr(appending, "_EARLY_SYNC_BYTES", UNIT_BYTES)
    monkeypatch.setattr(appending, "_CHECKSUM_BATCH_BYTES", UNIT_BYTES)
    sync, compute, n_taken = disk.fsync_early, AppendedChecksums._compute, []

    def with_lock(work):
        def locked(*arguments):
            with h5py._objects.phil:
                n_taken.append(1)
            return work(*arguments)

        return locked

    monkeypatch.setattr(disk, "fsync_early", with_lock(sync))
    monkeypatch.setattr(AppendedChecksums, "_compute", with_lock(compute))
    writer = threading.Thread(target=append_chunks, args=(journal, 30), daemon=True)
    writer.start()
    writer.join(60)
    assert not writer.is_alive()
    assert len(n_taken) >= 2
    journal.close()
    with h5py.File(path) as plain:
        assert set(plain["x"][:]) == {1}


def append_chunks(journal, n_chunks):
    data = np.ones(2 * UNIT_BYTES, np.uint8)
    with journal.transaction() as transaction:
        shape = (n_chunks * len(data),)
        dataset = transaction.h5.create_dataset("x", shape, data.dtype, chunks=data.shape).id
        for index in range(n_chunks):
            transaction.write_chunk(dataset, (index * len(data),), [data.data])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that share a position in a file")
def test_a_reader_opened_before_a_fork_serves_both_processes(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 4_000_000, np.uint8).tobytes()
    path = tmp_path / "file"
    path.write_bytes(content)
    with disk.open_file(path, "rb") as file:
        child = os.fork()
        for start in range(0, 3_000_000, 1000):
            if disk.read_at(file, start, 1000) != content[start : start + 1000]:
                if child == 0:
                    os._exit(1)
                pytest.fail("read from where the other process stood")
        if child == 0:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("n_changed", [100, 60_000])
def test_recovery_writes_the_record_again_whose_fsync_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_changed: int
) -> None:
    """In its slot or, of many changes, elsewhere: after a failed fsync the system calls its pages clean."""
    journal = Journal.create(tmp_path / "file")
    with journal.transaction() as transaction:
        transaction.h5.create_dataset("numbers", data=np.zeros(200_000, "<i4"))
    fsync, lost = disk.fsync, []

    def fails_once_the_record_is_there(file: disk.io.FileIO) -> None:
        record = redo.read_newest_record(file)
        if record.sequence == before.sequence + 1 and not lost:
            lost.append(record)
            raise OSError(errno.EIO, "no medium")
        fsync(file)

    before = redo.read_newest_record(journal._file)
    header = redo.Record.write
    rewritten = []
    monkeypatch.setattr(
        redo.Record, "write", lambda record, *rest: (rewritten.append(record.sequence), header(record, *rest))
    )
    monkeypatch.setattr(disk, "fsync", fails_once_the_record_is_there)
    with pytest.raises(OSError, match="no medium"), journal.transaction() as transaction:
        transaction.h5["numbers"][:n_changed] = 1
    assert len(lost) == 1
    assert lost[0].is_inline == (n_changed == 100)
    monkeypatch.setattr(disk, "fsync", fsync)
    with journal.transaction():
        pass
    assert rewritten[:2] == [before.sequence + 1] * 2
    journal.close()
