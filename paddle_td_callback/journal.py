"""Transactions under HDF5: a set of changes reaches the file whole, or not at all.

HDF5 rewrites its metadata in place, so a process that is killed between two of those writes leaves a file
that nobody can open. Here HDF5 never writes in place by itself. It runs on a file object of ours, which

1. passes everything past the old end of the file straight to disk, where nothing refers to it yet;
2. keeps every change below the old end in memory. These are few: some kilobytes of metadata, whatever the
   size of the data, and the labels that were seen for the first time.

Commit is then: fsync (the data), one checksummed *redo record* of those changes, fsync, and only then the
changes themselves. The redo record lives in the HDF5 user block, which every HDF5 reader skips, in one of two
slots used in turn. The fsync of the second step is the moment of commit:

* stopped before it, the newest valid record is the previous one: the file is as it was (what was appended is
  cut off by the next writer);
* stopped after it, whoever opens the file replays the record, which may be done any number of times.

A record is overwritten two commits later; the fsync of the commit between makes its changes durable first.
A record too large for its slot is written behind the data instead and its changes are fsynced at once, since
the next transaction will write over it.

A reader takes the newest record as an overlay, so it never depends on how far the writer has come with the
changes in place, and compares the record's number before and after each read: no locks, nobody waits.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator

import h5py

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there two writers of one file are the user's responsibility
    fcntl = None  # type: ignore[assignment]

USER_BLOCK_BYTES = 128 * 1024
_SLOT_BYTES = USER_BLOCK_BYTES // 2
_PAGE_BYTES = 512
_MAGIC = b"PTDredo1"
# magic, sequence, committed file size, body offset, body length, body CRC; then the CRC of all these
_HEADER = struct.Struct("<8sQQQQI")
_CRC = struct.Struct("<I")
_RUN = struct.Struct("<QI")
_HEADER_BYTES = _HEADER.size + _CRC.size


class Record:
    """A redo record as read from its slot: `sequence`, `committed_bytes` and the changed `pages`."""

    def __init__(self, sequence: int, committed_bytes: int, pages: dict[int, bytes]) -> None:
        self.sequence = sequence
        self.committed_bytes = committed_bytes
        self.pages = pages


def _read_header(file: io.FileIO, slot: int) -> tuple[int, int, int, int, int] | None:
    file.seek(slot * _SLOT_BYTES)
    raw = file.read(_HEADER_BYTES) or b""
    if len(raw) < _HEADER_BYTES or zlib.crc32(raw[: _HEADER.size]) != _CRC.unpack(raw[_HEADER.size :])[0]:
        return None
    magic, *fields = _HEADER.unpack(raw[: _HEADER.size])
    return tuple(fields) if magic == _MAGIC else None


def newest_sequence(file: io.FileIO) -> int:
    """Number of the last commit by the slot headers alone; -1 where there is no valid one."""
    headers = [_read_header(file, slot) for slot in (0, 1)]
    return max((h[0] for h in headers if h is not None), default=-1)


def read_newest_record(file: io.FileIO) -> Record | None:
    """Read the newest whole redo record of an open file, None where it has none (no file of this package)."""
    headers = [h for h in (_read_header(file, slot) for slot in (0, 1)) if h is not None]
    for sequence, committed_bytes, offset, length, crc in sorted(headers, reverse=True):
        inline = offset < USER_BLOCK_BYTES
        if length > (_SLOT_BYTES if inline else committed_bytes + length):
            continue
        file.seek(offset)
        body = _read_exactly(file, length)
        if len(body) == length and zlib.crc32(body) == crc:
            return Record(sequence, committed_bytes, _unpack_pages(body))
        if not inline:
            # Written behind the data and since overwritten: its changes were made durable before that.
            return Record(sequence, committed_bytes, {})
    return None


def _pack_pages(pages: dict[int, bytearray]) -> bytes:
    """Runs of neighbouring pages, each with its offset and length in the file."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and runs[-1][1] == page:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    parts: list[bytes | bytearray] = []
    for first, stop in runs:
        parts.append(_RUN.pack(first, stop - first))
        parts.extend(pages[page] for page in range(first, stop))
    return b"".join(parts)


def _unpack_pages(body: bytes) -> dict[int, bytes]:
    pages: dict[int, bytes] = {}
    position = 0
    while position + _RUN.size <= len(body):
        first, count = _RUN.unpack_from(body, position)
        position += _RUN.size
        for page in range(first, first + count):
            pages[page] = body[position : position + _PAGE_BYTES]
            position += _PAGE_BYTES
    return pages


def _read_exactly(file: io.FileIO, n_bytes: int) -> bytes:
    parts = []
    while n_bytes > 0:
        part = file.read(n_bytes)
        if not part:
            break
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _write_all(file: io.FileIO, offset: int, data: bytes | memoryview) -> None:
    file.seek(offset)
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


class OverlayFile(io.RawIOBase):
    """What h5py reads and writes: the file with some pages replaced, and an end of its own.

    Writes past `boundary` (a multiple of the page size, so that no page is half on disk and half here) go to
    disk, writes below it only into `pages`; with `boundary=None` it is read-only.
    """

    def __init__(self, file: io.FileIO, pages: dict[int, bytearray], size: int, boundary: int | None) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self._discard = False
        self.pages = pages
        self.size = size
        self.boundary = boundary
        self.error: OSError | None = None

    def discard_writes(self) -> None:
        """From now on accept writes and forget them, so that HDF5 can close a transaction that failed."""
        self._discard = True

    def readable(self) -> bool:  # noqa: D102
        return True

    def writable(self) -> bool:  # noqa: D102
        return self.boundary is not None

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:  # noqa: D102
        return self._position

    def truncate(self, size: int | None = None) -> int:  # noqa: D102
        size = self._position if size is None else size
        if not self._discard and self.boundary is not None:
            try:
                if size > self.boundary:
                    self._file.truncate(size)
            except OSError as error:
                self.error = self.error or error
                raise
            self.size = size
        return size

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # noqa: D102
        view = memoryview(buffer).cast("B")
        start, wanted = self._position, min(len(view), max(0, self.size - self._position))
        self._file.seek(start)
        data = _read_exactly(self._file, wanted)
        view[: len(data)] = data
        view[len(data) : wanted] = bytes(wanted - len(data))  # a hole that no write has reached yet
        for page in self._overlaid(start, start + wanted):
            low, high = max(start, page * _PAGE_BYTES), min(start + wanted, (page + 1) * _PAGE_BYTES)
            inside = low - page * _PAGE_BYTES
            view[low - start : high - start] = self.pages[page][inside : inside + high - low]
        self._position += wanted
        return wanted

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # noqa: D102
        view = memoryview(data).cast("B")
        n_bytes = len(view)
        if not self._discard:
            try:
                self._write(view)
            except OSError as error:
                self.error = self.error or error
                raise
        self._position += n_bytes
        return n_bytes

    def _write(self, view: memoryview) -> None:
        if self.boundary is None:
            raise io.UnsupportedOperation("the file is open for reading")
        start, stop = self._position, self._position + len(view)
        below = min(stop, self.boundary)
        position = start
        while position < below:
            page = position // _PAGE_BYTES
            inside = position - page * _PAGE_BYTES
            take = min(below - position, _PAGE_BYTES - inside)
            self._page(page)[inside : inside + take] = view[position - start : position - start + take]
            position += take
        if stop > self.boundary:
            first = max(start, self.boundary)
            _write_all(self._file, first, view[first - start :])
        self.size = max(self.size, stop)

    def _page(self, page: int) -> bytearray:
        if page not in self.pages:
            self._file.seek(page * _PAGE_BYTES)
            self.pages[page] = bytearray(_read_exactly(self._file, _PAGE_BYTES).ljust(_PAGE_BYTES, b"\0"))
        return self.pages[page]

    def _overlaid(self, start: int, stop: int) -> Iterator[int]:
        first, last = start // _PAGE_BYTES, (stop + _PAGE_BYTES - 1) // _PAGE_BYTES
        if last - first < len(self.pages):
            return (page for page in range(first, last) if page in self.pages)
        return (page for page in self.pages if first <= page < last)


def _to_page_boundary(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES


class Journal:
    """The one writer of a file: holds its lock and runs its transactions.

    Args:
        path: an existing file made by `create`.
        durable: whether commits wait for the disk (fsync). Without it a kill loses nothing, a power cut may.

    Raises:
        FileNotFoundError: there is no such file.
        BlockingIOError: another process records into it.
        ValueError: the file has no redo record, so it was not written by this package.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = os.fspath(path)
        self._durable = durable
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115  closed by close()
        try:
            self._lock()
            record = read_newest_record(self._file)
            if record is None:
                raise ValueError(f"'{self.path}' has no redo record")
            self._recover(record)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, durable: bool = True) -> Journal:
        """Make an empty HDF5 file at `path`, which must not exist, and open its journal."""
        with open(path, "x+b", buffering=0) as file:
            image = OverlayFile(file, {}, 0, boundary=0)
            with h5py.File(image, "w", libver="earliest", userblock_size=USER_BLOCK_BYTES):
                pass
            _write_all(file, 0, bytes(USER_BLOCK_BYTES))  # no hole: a record must not fail for want of space
            _write_record(file, 0, image.size, b"", 0)
            if durable:
                os.fsync(file.fileno())
        return cls(path, durable=durable)

    def _lock(self) -> None:
        # A lock of the process, not of the open file: DataLoader workers forked from a training that is then
        # killed must not keep it. HDF5's own readers use flock, which does not meet this one.
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            except BlockingIOError:
                raise
            except OSError:
                pass  # a file system without locks

    def _recover(self, record: Record) -> None:
        self._apply({page: bytearray(data) for page, data in record.pages.items()})
        self._file.truncate(_to_page_boundary(record.committed_bytes))
        self._sequence, self._size = record.sequence, record.committed_bytes
        self._sync()
        self._replay_pending = False

    def _apply(self, pages: dict[int, bytearray]) -> None:
        for page, data in sorted(pages.items()):
            _write_all(self._file, page * _PAGE_BYTES, bytes(data))

    def _sync(self) -> None:
        if self._durable:
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[h5py.File]:
        """The file, opened for changes that are kept if the block ends and undone if it raises.

        Yields:
            An `h5py.File`; nothing opened from it may be used after the block.

        Raises:
            OSError: the disk refused a write (its own error, not HDF5's). The file is as before.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(f"'{self.path}' was replaced by another file")
        if self._replay_pending:
            self._recover_from_newest()
        if newest_sequence(self._file) != self._sequence:
            raise BlockingIOError(f"'{self.path}' was written by another process")
        image = OverlayFile(self._file, {}, self._size, boundary=_to_page_boundary(self._size))
        h5: h5py.File | None = None
        try:
            h5 = h5py.File(image, "r+", libver="earliest")
            yield h5
            h5.close()
            self._commit(image)
        except BaseException as error:
            image.discard_writes()
            if h5 is not None:
                with contextlib.suppress(Exception):
                    h5.close()
            with contextlib.suppress(OSError):
                self._recover_from_newest()
            if image.error is not None and error is not image.error:
                raise image.error from error
            raise

    def _recover_from_newest(self) -> None:
        record = read_newest_record(self._file)
        if record is not None:
            self._recover(record)

    def _commit(self, image: OverlayFile) -> None:
        body = _pack_pages(image.pages)
        inline = _HEADER_BYTES + len(body) <= _SLOT_BYTES
        sequence = self._sequence + 1
        if inline:
            offset = (sequence % 2) * _SLOT_BYTES + _HEADER_BYTES
        else:
            offset = _to_page_boundary(image.size)
            _write_all(self._file, offset, body)
        self._sync()
        _write_record(self._file, sequence, image.size, body, offset)
        self._sync()
        self._sequence, self._size = sequence, image.size
        try:
            self._apply(image.pages)
            if not inline:
                self._sync()
        except OSError:  # committed all the same: the record stands
            self._replay_pending = True

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._file.close()


def _write_record(file: io.FileIO, sequence: int, committed_bytes: int, body: bytes, offset: int) -> None:
    slot_start = (sequence % 2) * _SLOT_BYTES
    offset = offset or slot_start + _HEADER_BYTES
    header = _HEADER.pack(_MAGIC, sequence, committed_bytes, offset, len(body), zlib.crc32(body))
    inline = offset == slot_start + _HEADER_BYTES
    _write_all(file, slot_start, header + _CRC.pack(zlib.crc32(header)) + (body if inline else b""))


class Snapshot:
    """A file as of its last commit, for reading while somebody may be writing.

    Args:
        path: an HDF5 file; one without a redo record (copied by another tool) is read as it stands.

    Raises:
        OSError: there is no such file, it may not be read, or HDF5 cannot open it.
        EOFError: the file is shorter than its last commit left it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        try:
            record = read_newest_record(self._file)
            size = os.fstat(self._file.fileno()).st_size
            self._sequence = record.sequence if record else -1
            if record is not None and size < record.committed_bytes:
                raise EOFError(f"holds {size} bytes of {record.committed_bytes}")
            pages = {page: bytearray(data) for page, data in record.pages.items()} if record else {}
            image = OverlayFile(self._file, pages, record.committed_bytes if record else size, boundary=None)
            self.h5 = h5py.File(image, "r")
        except BaseException:
            self._file.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether no commit happened since; if one did, what was read in between may be torn."""
        return newest_sequence(self._file) == self._sequence

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        with contextlib.suppress(Exception):
            self.h5.close()
        self._file.close()
