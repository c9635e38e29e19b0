"""One commit, from its first byte to its last fsync: nothing that is referenced is ever overwritten.

The file is a log. Byte 0 holds the HDF5 superblock, bytes 512 and 1024 two commit records that are used in turn, byte
1536 the sign of the writer. From byte 4096 on, framed blocks follow each other: chunks, B-tree nodes, text, the head
(what never changes) and, at the end of each commit, its state (all that changes) and HDF5 metadata for other readers.
A frame says what its block is and holds its checksum, its place and the recording's number: a block that was moved, or
came from another recording, is none. The blocks together are an HDF5 file. A commit

1. appends its chunks, the B-tree nodes that became full, its state and its metadata, and calls fsync;
2. writes one record, which names the new state, and calls fsync: now the epoch is committed;
3. moves the root in the superblock, eight bytes: from here on every HDF5 reader sees the epoch.

A process that dies, a disk that fails or a power cut leaves what was committed, since no byte of it was touched. The
next writer cuts off what was appended beyond it. Readers take the newest state, and need no lock.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..messages import warn
from .hdf5_format import END_AT, ROOT_AT, SLACK_BYTES, padded, superblock

if sys.platform != "win32":
    import fcntl

START, SECTOR_BYTES, FRAME_BYTES = 4096, 512, 32
RECORDS_AT, SIGN_AT = (512, 1024), 1536
CHUNK, NODE, TEXT, ARRAY, HEAD, STATE, METADATA = range(1, 8)  # kinds of blocks
SHARED = (1 << 32) - 1  # number of the chunk that epochs which were never written share

_FRAME, _FRAME_MAGIC = struct.Struct("<4sBBxxIIIII"), b"PTDb"
_RECORD, _RECORD_MAGIC = (
    struct.Struct("<8sQQQ"),
    b"PTDcommt",
)  # magic, sequence, state's frame, end of the log
_SIGN, _SIGN_MAGIC = struct.Struct("<8s16sQ64s"), b"PTDwritr"  # magic, token, process, host
_CRC = struct.Struct("<I")
_AHEAD_BYTES = 16 << 20  # that the file is longer than its newest commit, while it is recorded
_MARGIN_BYTES = (
    4 << 20
)  # between the newest commit, the end that the superblock tells, and the end of the file
_WRITE_BEHIND_BYTES = 8 << 20  # appended since the disk was last asked to begin writing


class DamagedError(OSError):
    """Bytes on disk are not those that were committed."""


class NotARecordingError(ValueError):
    """A file that this package did not write; the message says what it seems to be."""


class RawFile:
    """A file as the system sees it; the fault tests put theirs in its place.

    Attributes:
        run: number of the recording, once it is known; blocks with another one count as damaged.
    """

    run: int | None = None

    def __init__(self, path: str, flags: int) -> None:
        self.fd = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `offset` on, fewer at the end of the file."""
        parts = []
        while n_bytes > 0 and 0 <= offset < 1 << 62:
            if hasattr(os, "pread"):
                part = os.pread(self.fd, n_bytes, offset)
            else:
                os.lseek(self.fd, offset, os.SEEK_SET)
                part = os.read(self.fd, n_bytes)
            if not part:
                break
            parts.append(part)
            offset, n_bytes = offset + len(part), n_bytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, *parts: Any) -> None:
        """Write all of the parts, one after the other."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        while views:
            if hasattr(os, "pwritev"):
                done = os.pwritev(self.fd, views, offset)
            else:
                os.lseek(self.fd, offset, os.SEEK_SET)
                done = os.write(self.fd, views[0])
            offset += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]

    def write_behind(self, offset: int, n_bytes: int) -> None:
        """Have the disk begin to write; nothing relies on it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        getattr(os, "fdatasync", os.fsync)(self.fd)

    def truncate(self, n_bytes: int) -> None:
        """Cut the file off."""
        os.ftruncate(self.fd, n_bytes)

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return os.fstat(self.fd).st_size

    def is_at(self, path: str) -> bool:
        """Whether this very file lies at a path."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self.fd))
        except OSError:
            return False

    def close(self) -> None:
        """Closing twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):  # Ctrl-C may come between opening and any `try`
            with contextlib.suppress(OSError):
                self.close()


def open_file(path: str, flags: int) -> RawFile:
    """Open a file; the fault tests replace this."""
    return RawFile(path, flags)


class Frame(NamedTuple):
    """What stands before each block: its kind, and of chunks field, epoch and number in it; length, checksum."""

    kind: int
    field: int
    epoch: int  # of a state, together with `number`, its sequence; of metadata the state's address
    number: int
    n_bytes: int
    checksum: int  # of a chunk its fletcher32, of other blocks their CRC-32
    run: int = 0  # number of the recording

    @property
    def long(self) -> int:
        """`epoch` and `number` as one number."""
        return self.epoch << 32 | self.number

    def pack(self, at: int) -> bytes:
        """The 32 bytes at a place in the file."""
        raw = _FRAME.pack(_FRAME_MAGIC, *self)
        return raw + _CRC.pack(zlib.crc32(raw, at & 0xFFFFFFFF))

    @classmethod
    def read(cls, file: RawFile, at: int) -> Frame | None:
        """The frame at a place, None where there is none."""
        if at < START or at % 8:
            return None
        frame = cls.unpack(file.read(at, FRAME_BYTES), at)
        return frame if frame is None or file.run in (None, frame.run) else None

    @classmethod
    def unpack(cls, raw: bytes, at: int) -> Frame | None:
        """The frame in 32 bytes that stand at a place, None if they are none."""
        if len(raw) < FRAME_BYTES or zlib.crc32(raw[:-4], at & 0xFFFFFFFF) != _CRC.unpack(raw[-4:])[0]:
            return None
        magic, *facts = _FRAME.unpack(raw[:-4])
        return cls(*facts) if magic == _FRAME_MAGIC else None


def read_block(file: RawFile, at: int, kind: int, most: int = 1 << 62) -> bytes:
    """A block that is no chunk, by its address, behind its frame; of at most so many bytes.

    Raises:
        DamagedError: it is not there, or its checksum is wrong.
    """
    frame = Frame.read(file, at - FRAME_BYTES)
    if frame is not None and frame.kind == kind and frame.n_bytes <= min(most, file.n_bytes - at):
        body = file.read(at, frame.n_bytes)
        if zlib.crc32(body) == frame.checksum:
            return body
    raise DamagedError(f"the block at byte {at} is not what was committed")


def blocks(file: RawFile, end: int) -> Iterator[tuple[int, Frame | None]]:
    """All blocks from the start of the log to `end`, by the place of their frames.

    Where something else stands, None comes with that place, and the search goes on for the next frame.
    """
    at = START
    while at + FRAME_BYTES <= end:
        frame = Frame.read(file, at)
        if frame is not None and frame.n_bytes <= end - at - FRAME_BYTES:
            yield at, frame
            at += FRAME_BYTES + padded(frame.n_bytes)
            continue
        yield at, None
        at += 8
        while at < end:
            window = file.read(at, min(1 << 20, end - at))
            found = window.find(_FRAME_MAGIC)
            if found < 0:
                at += max(8, len(window) - len(window) % 8)
            elif found % 8:
                at += found - found % 8 + 8
            else:
                at += found
                break


class Commit(NamedTuple):
    """Where a state is: its number, from 1; the address of its block; the end of the log as of then."""

    sequence: int
    at: int
    end: int


def record_at(file: RawFile, at: int) -> Commit | None:
    """The commit record at a place, None where there is none."""
    raw = file.read(at, _RECORD.size + 4)
    if raw[:8] != _RECORD_MAGIC or _CRC.unpack(raw[-4:])[0] != zlib.crc32(raw[:-4]):
        return None
    return Commit(*_RECORD.unpack(raw[:-4])[1:])


def commits(file: RawFile) -> list[Commit]:
    """The states that a file points to, newest first: by its records, and by the superblock.

    The superblock names a state only after its record is on the disk, so it stands in for a record that was damaged.

    Raises:
        NotARecordingError: the file was not written by this package.
        DamagedError: nothing points to a state any more.
    """
    raw = file.read(0, START)
    if raw[:8] != superblock(0, 0)[:8]:
        what = "is empty" if not raw else "is no HDF5 file"
        raise NotARecordingError(f"{what}; it is no recording of training dynamics")
    found = {record for at in RECORDS_AT if (record := record_at(file, at)) is not None}
    root = int.from_bytes(raw[ROOT_AT : ROOT_AT + 8], "little")
    metadata = Frame.read(file, root - FRAME_BYTES)
    if metadata is not None and metadata.kind == METADATA:
        state = Frame.read(file, metadata.long - FRAME_BYTES)
        if state is not None and (state.kind, state.run) == (STATE, metadata.run):
            found.add(Commit(state.long, metadata.long, root + padded(metadata.n_bytes)))
    if not found and any(raw[at : at + 8] == _RECORD_MAGIC for at in RECORDS_AT):
        raise DamagedError("both commit records are damaged")
    if not found:
        raise NotARecordingError(
            "is an HDF5 file, but no recording of training dynamics as this package writes it; another program made it"
        )
    return sorted(found, reverse=True)


_open_logs: weakref.WeakSet[Log] = weakref.WeakSet()


class Log:
    """The one writer of a file.

    Args:
        file: opened for reading and writing; closed by `close`, and where this raises.
        path: where it lies.
        durable: whether commits wait for the disk. Without it a kill loses nothing, a power cut may.

    Raises:
        BlockingIOError: another process records into it.
    """

    def __init__(self, file: RawFile, path: str, *, durable: bool = True) -> None:
        self.file, self.path, self._durable = file, path, durable
        self._token = secrets.token_bytes(16)
        self._commit, self.end = Commit(0, 0, START), START
        self._slot = 0  # of the next record: never that of the newest commit
        self._told_end = START  # by the superblock
        self._kept = False  # whether a record may name what was appended although its commit failed
        self._behind = START
        try:
            self._locked = _take(file, path)
        except BaseException:
            file.close()
            raise
        _open_logs.add(self)

    def lay_out(self) -> None:
        """Begin an empty file."""
        self.file.run = secrets.randbits(32)
        self.file.write(0, superblock(0, START), bytes(START - 96))
        self.file.write(SIGN_AT, self._sign())
        self._lengthen()

    def go_on_from(self, commit: Commit, root: int) -> None:
        """Bring the file to its newest commit, with the root group there, and cut off what was appended after it."""
        self._commit, self.end = commit, commit.end
        self._slot = int(record_at(self.file, RECORDS_AT[0]) == commit)
        # The record is written again: if its fsync failed, the system takes it for written.
        self._write_record(1 - self._slot, commit)
        self.file.write(SIGN_AT, self._sign())
        self._sync()
        self.file.write(0, superblock(root, commit.end + SLACK_BYTES))
        self._cut_off()
        self._lengthen()

    def _lengthen(self) -> None:
        """Make the file longer than its next commits, by a hole.

        HDF5 asks for a file's size, then reads the end in the superblock, and then the root there. If commits came in
        between, it would find a file that is too short, or a root beyond the end, and refuse the file. So both are
        ahead of the commits: the end seldom moves, and only to where the file has been on disk for a while.
        """
        if self.file.n_bytes < self.end + _AHEAD_BYTES // 2:
            with contextlib.suppress(OSError):
                self.file.truncate(self.end + _AHEAD_BYTES)

    def _tell_end(self, end: int) -> None:
        self.file.write(END_AT, struct.pack("<Q", end))
        self._told_end = end

    def _cut_off(self) -> None:
        """Give back the space behind the log. The superblock says so first, or a power cut leaves a file too short."""
        self._tell_end(self.end + SLACK_BYTES)
        self._sync()
        self.file.truncate(self.end + SLACK_BYTES)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Append in this block and call `commit` at its end; where it raises, what was appended is given up.

        Raises:
            FileNotFoundError: the file is gone, or another is in its place.
            BlockingIOError: another process writes into it.
            OSError: the disk refused something.
        """
        if not self.file.is_at(self.path):
            raise FileNotFoundError(f"'{self.path}' was removed, or replaced by another file")
        self._check_alone()
        self._behind = self.end
        try:
            yield
        except BaseException:
            if not self._kept:
                self.end = self._commit.end
                with contextlib.suppress(OSError):
                    self._check_alone()  # what another writer has appended is not to be cut off
                    self._cut_off()
                    self._lengthen()
            raise

    def append(self, frame: Frame, *parts: Any) -> int:
        """Append a block; returns its address, behind the frame."""
        if not self._locked:
            self._check_alone()
        at = self.end + FRAME_BYTES
        frame = frame._replace(run=self.file.run or 0)
        self.file.write(self.end, frame.pack(self.end), *parts, bytes(-frame.n_bytes % 8))
        self.end = at + padded(frame.n_bytes)
        if self._durable and self.end - self._behind >= _WRITE_BEHIND_BYTES:
            self.file.write_behind(self._behind, self.end - self._behind)
            self._behind = self.end
        return at

    def append_block(self, kind: int, body: bytes, long: int = 0) -> int:
        """Append a block that is no chunk; returns its address."""
        high, low = divmod(long, 1 << 32)
        return self.append(Frame(kind, 0, high, low, len(body), zlib.crc32(body)), body)

    def commit(self, state: Callable[[int], bytes], metadata: Callable[[int], bytes]) -> None:
        """Commit what was appended; when this returns, it is durable.

        Args:
            state: makes the state's block for the address at which it will lie.
            metadata: makes the HDF5 metadata in the same way; they begin with the root group.
        """
        sequence = self._commit.sequence + 1
        at = self.append_block(STATE, state(self.end + FRAME_BYTES), sequence)
        root = self.append_block(METADATA, metadata(self.end + FRAME_BYTES), at)
        self.file.write(self.end, bytes(SLACK_BYTES))
        self._sync()
        self._check_alone()
        # From here on the appended bytes stay, whatever happens: the record may be on the disk although this fails.
        self._kept = True
        if self._told_end < self.end + SLACK_BYTES + _MARGIN_BYTES:
            self._tell_end(max(self.end + SLACK_BYTES, self.file.n_bytes - _MARGIN_BYTES))
        self._write_record(self._slot, Commit(sequence, at, self.end))
        self._sync()
        # Committed.
        self._commit, self._slot, self._kept = Commit(sequence, at, self.end), 1 - self._slot, False
        with contextlib.suppress(OSError):  # other HDF5 readers are one epoch behind then
            self.file.write(ROOT_AT, struct.pack("<Q", root))
        self._lengthen()

    def _write_record(self, slot: int, commit: Commit) -> None:
        record = _RECORD.pack(_RECORD_MAGIC, *commit)
        self.file.write(RECORDS_AT[slot], record, _CRC.pack(zlib.crc32(record)))

    def _sync(self) -> None:
        if self._durable:
            self.file.sync()

    def _sign(self) -> bytes:
        return _SIGN.pack(_SIGN_MAGIC, self._token, os.getpid(), _host()).ljust(SECTOR_BYTES, b"\0")

    def _check_alone(self) -> None:
        """Where the file system has no locks, two writers notice each other by their signs."""
        if self.file.read(SIGN_AT, _SIGN.size)[8:24] != self._token:
            raise BlockingIOError("another process has begun to record into it; this recording of it ends")

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        if self.file.fd >= 0:
            with contextlib.suppress(OSError):
                self._check_alone()
                self.file.write(SIGN_AT, bytes(SECTOR_BYTES))
                self._cut_off()  # which syncs the root too
                self._sync()
            self.file.close()


def _host() -> bytes:
    return socket.gethostname().encode()[:64].ljust(64, b"\0")


def _take(file: RawFile, path: str) -> bool:
    """Lock a file against other writers; where that cannot be done, see whether one of this machine has signed it.

    Returns:
        Whether it is locked.
    """
    try:
        lock(file)
        return True
    except BlockingIOError:
        raise
    except OSError as error:
        raw = file.read(SIGN_AT, _SIGN.size)
        if raw[:8] == _SIGN_MAGIC:
            _, _, process, host = _SIGN.unpack(raw)
            if host == _host() and _is_alive(process):
                raise BlockingIOError(f"process {process} records into it") from error
        warn(
            f"'{path}': this file system cannot lock files ({error.strerror}), so record into it from one process only",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def lock(file: RawFile) -> None:
    """Lock a file against other writers.

    The lock belongs to the open file: one of the process would be lost as soon as the process closed any other
    descriptor of the file. HDF5's readers use flock, which does not meet this one.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        return
    try:
        if sys.platform == "linux":
            # struct flock: type, whence, start, length, pid
            fcntl.fcntl(
                file.fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            )
        else:
            fcntl.lockf(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError("another process holds its lock") from error


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _close_in_child() -> None:
    """Give up the locks that a forked process, a DataLoader worker for instance, has inherited."""
    for log in list(_open_logs):
        log.file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
