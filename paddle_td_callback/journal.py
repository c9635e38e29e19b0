"""Transactions under HDF5: a set of changes reaches the file whole, or not at all, and is read back checked.

HDF5 rewrites its metadata in place, so a process that is killed between two of those writes leaves a file
that nobody can open. Here HDF5 never writes in place by itself. It runs on a file object of ours, which

1. passes everything past the old end of the file straight to disk, where nothing refers to it yet;
2. keeps every change below the old end in memory. These are few: some kilobytes of metadata, whatever the
   size of the data, and the labels that were seen for the first time.

Commit is then: fsync (the data), one checksummed *redo record* of those changes, fsync, and only then the
changes themselves, which the fsync of the next commit makes durable. The redo record lives in the HDF5 user
block, which every HDF5 reader skips, in one of two slots used in turn. The second fsync is the moment of
commit:

* stopped before it, the newest valid record is the previous one: the file is as it was (what was appended is
  cut off by the next writer);
* stopped after it, whoever opens the file replays the record, which may be done any number of times.

The disk is asked to write what was appended while more is being appended, so that little is left to wait for
at commit; what it answers then is kept, for the system reports a failed write only once. Nothing relies on these
early requests. One fsync for data and record together would do, if whoever opens the file then checked the
newest commit's data before believing its record. It was not taken: the second one writes a few kilobytes and
took 0.1 of the 14 ms of a commit where it was measured, and with it a record that is there is one that counts.

A record is overwritten two commits later; the fsync of the commit between makes its changes durable first.
A record too large for its slot is written behind the data instead and its changes are fsynced at once, since
the next transaction will write over it.

What HDF5 reads is checked before HDF5 sees it, for it can be crashed by damaged metadata, and its own
checksums (fletcher32, on chunks alone) call a chunk of zeros sound. The file is divided into *units*; each
commit appends a *seal*: the CRC-32 of every unit that it wrote or changed, and where the seal before is. The
redo record tells place and CRC of the newest seal, so every byte that HDF5 is given is one that was
committed, or reading fails. The CRCs are taken of what passes by on its way to the disk, in a thread of their
own; only of the few units that were not written from front to back they are taken of the file.

Seals lie in space that HDF5 takes for allocated: a commit raises the end of file in HDF5's superblock over its
seal. A seal is one of the changes in the redo record: so it is made while the first fsync runs, and needs none
of its own.

A reader takes the newest record as an overlay, so it never depends on how far the writer has come with the
changes in place. A unit that a later commit has changed under it fails its CRC; the reader then moves on to
the newest commit: no locks, nobody waits.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import h5py
import numpy as np
import numpy.typing as npt

from .threads import run_beside

if sys.platform != "win32":  # there, two writers of one file are the user's responsibility
    import fcntl

USER_BLOCK_BYTES = 128 * 1024
UNIT_BYTES = 64 * 1024  # of one checksum: small metadata reads stay cheap, a terabyte has 64 MB of checksums
_SLOT_BYTES = USER_BLOCK_BYTES // 2
_PAGE_BYTES = 512  # of a change: a record holds little else than what changed
_CACHED_UNITS = 32
_SCAN_BYTES = 1 << 20
_UNKNOWN = -1
_CHECKSUM_BATCH_BYTES = 2 << 20
_EARLY_SYNC_BYTES = 4 << 20  # appended since the disk was last asked to write
# magic, sequence, committed file size, body offset, length, CRC, seal offset, length, CRC; then CRC of these
_HEADER = struct.Struct("<8sQQQQIQQI")
_MAGIC = b"PTDredo1"
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_RUN = struct.Struct("<QI")
# magic, own length, end of the sealed data, seal before: offset, length, CRC; first unit of the new ones, how
# many, how many changed ones, bytes of note; behind it all comes the CRC of all
_SEAL = struct.Struct("<8sQQQQIQQQQ")
_SEAL_MAGIC = b"PTDseal1"
# Version 0 of the superblock, which libver="earliest" makes, has the end of file here.
_SUPERBLOCK_VERSION_AT = USER_BLOCK_BYTES + 8
_END_OF_FILE_AT = USER_BLOCK_BYTES + 40
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class DamagedError(OSError):
    """Bytes on disk are not those that were committed."""


class NotSealedError(ValueError):
    """A file that this package did not write; the message says what it seems to be."""


@dataclass(frozen=True)
class Place:
    """Where something lies in the file, and its CRC-32."""

    offset: int
    length: int
    crc: int


@dataclass
class Record:
    """A redo record as read from its slot: the changed `pages` and where the newest seal is."""

    sequence: int
    committed_bytes: int
    body: Place
    seal: Place
    pages: dict[int, bytes] = field(default_factory=dict)

    @property
    def _slot_start(self) -> int:
        return (self.sequence % 2) * _SLOT_BYTES

    @property
    def is_inline(self) -> bool:
        """Whether the changes lie in the slot itself, not behind the data."""
        return self.body.offset < USER_BLOCK_BYTES

    def header(self) -> bytes:
        """The slot's first bytes."""
        head = _HEADER.pack(
            _MAGIC,
            self.sequence,
            self.committed_bytes,
            *(self.body.offset, self.body.length, self.body.crc),
            *(self.seal.offset, self.seal.length, self.seal.crc),
        )
        return head + _CRC.pack(zlib.crc32(head))

    def write(self, file: io.FileIO, body: bytes) -> None:
        """Put the record into its slot; a body that does not fit must have been written elsewhere."""
        _write_all(file, self._slot_start, self.header() + (body if self.is_inline else b""))


def _read_header(file: io.FileIO, slot: int) -> Record | None:
    raw = _read_at(file, slot * _SLOT_BYTES, _HEADER_BYTES)
    if len(raw) < _HEADER_BYTES or zlib.crc32(raw[: _HEADER.size]) != _CRC.unpack(raw[_HEADER.size :])[0]:
        return None
    magic, sequence, committed, *rest = _HEADER.unpack(raw[: _HEADER.size])
    if magic != _MAGIC or sequence % 2 != slot:
        return None
    return Record(sequence, committed, Place(*rest[:3]), Place(*rest[3:]))


def headers(file: io.FileIO) -> bytes:
    """The headers of both slots as they stand, which change with every commit."""
    return b"".join(_read_at(file, slot * _SLOT_BYTES, _HEADER_BYTES) for slot in (0, 1))


def read_newest_record(file: io.FileIO, *, strict: bool = True) -> Record:
    """Read the newest whole redo record.

    Args:
        file: a file made by `Journal.create`.
        strict: whether to refuse a record behind which a newer one was committed and has been damaged since.

    Raises:
        NotSealedError: the file has no valid record.
        DamagedError: see `strict`.
    """
    while True:
        before = headers(file)
        found = _read_valid_records(file)
        if found:
            newest = found[0]
            torn = all(record.sequence != newest.sequence - 1 for record in found[1:])
            # A commit that was stopped may have left a torn record, but then the changes of the one before
            # are in place. If they are not, the damaged record was committed.
            if not (strict and torn and newest.sequence) or _is_in_place(file, newest):
                return newest
        if headers(file) == before:  # else a writer was at it
            break
    if found:
        raise DamagedError("its last commit record is damaged")
    raise NotSealedError(_describe_foreign(file))


def _read_valid_records(file: io.FileIO) -> list[Record]:
    """The records whose header and body are whole, newest first."""
    records = []
    for record in filter(None, map(_read_header, (file, file), (0, 1))):
        limit = _SLOT_BYTES if record.is_inline else os.fstat(file.fileno()).st_size
        body = _read_at(file, record.body.offset, record.body.length) if record.body.length <= limit else b""
        if len(body) == record.body.length and zlib.crc32(body) == record.body.crc:
            record.pages = _unpack_pages(body)
        elif record.is_inline:
            continue
        # else written behind the data and since overwritten: its changes were made durable before that
        records.append(record)
    return sorted(records, key=lambda record: -record.sequence)


def _is_in_place(file: io.FileIO, record: Record) -> bool:
    return all(_read_at(file, page * _PAGE_BYTES, _PAGE_BYTES) == data for page, data in record.pages.items())


def _describe_foreign(file: io.FileIO) -> str:
    size = os.fstat(file.fileno()).st_size
    if _read_at(file, USER_BLOCK_BYTES, 8) == _HDF5_SIGNATURE:
        return "has lost its commit records: it is damaged, or another program has rewritten it"
    offset = 0
    while offset < size:
        if _read_at(file, offset, 8) == _HDF5_SIGNATURE:
            return (
                "is an HDF5 file, but no recording of training dynamics, or another program has rewritten it"
            )
        offset = max(512, 2 * offset)
    return "cannot be opened as HDF5: it is " + ("something else" if size else "empty")


def _runs(pages: Iterable[int]) -> list[list[int]]:
    """Neighbouring pages together: the first one, and the one after the last."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and runs[-1][1] == page:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    return runs


def _pack_pages(pages: dict[int, bytearray]) -> bytes:
    """Runs of neighbouring pages, each with its offset and length in the file."""
    parts: list[bytes | bytearray] = []
    for first, stop in _runs(pages):
        parts.append(_RUN.pack(first, stop - first))
        parts.extend(pages[page] for page in range(first, stop))
    return b"".join(parts)


def _pages_of(offset: int, data: bytes) -> dict[int, bytearray]:
    """Bytes that begin and end with a page, as pages."""
    return {
        (offset + at) // _PAGE_BYTES: bytearray(data[at : at + _PAGE_BYTES])
        for at in range(0, len(data), _PAGE_BYTES)
    }


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


@dataclass
class Seals:
    """The checksums of all units as of one commit.

    Attributes:
        crcs: CRC-32 by unit; the first units are the user block and have none.
        data_end: bytes of the file that they cover.
        newest: where the newest seal is.
    """

    crcs: npt.NDArray[np.uint32]
    data_end: int
    newest: Place

    @classmethod
    def read(cls, file: io.FileIO, record: Record) -> Seals:
        """Follow the chain of seals back from a record's.

        Raises:
            DamagedError: a seal is not as it was written.
        """
        place, end = record.seal, -1
        crcs = np.zeros(0, np.uint32)
        known = np.zeros(0, bool)
        while place.length:
            seal = Seal.read(file, place.offset, record.pages)
            if seal is None or seal.place != place or seal.before.offset >= place.offset:
                raise DamagedError(f"the checksums at byte {place.offset} are damaged")
            if end < 0:
                end = seal.data_end
                crcs = np.zeros(seal.units.max(initial=-1) + 1, np.uint32)
                known = np.zeros(len(crcs), bool)
            older = ~known[seal.units]
            crcs[seal.units[older]] = seal.crcs[older]
            known[seal.units] = True
            place = seal.before
        return cls(crcs, end, record.seal)


@dataclass
class Seal:
    """What one commit left behind its data: checksums of the units it wrote or changed, and a note."""

    place: Place
    before: Place
    data_end: int
    units: npt.NDArray[np.intp]
    crcs: npt.NDArray[np.uint32]
    note: bytes

    @classmethod
    def read(cls, file: io.FileIO, offset: int, pages: dict[int, bytes]) -> Seal | None:
        """Read the seal at a place of a file some of whose pages are replaced, None if there is no whole one."""
        head = read_overlaid(file, pages, offset, _SEAL.size)
        if len(head) < _SEAL.size:
            return None
        magic, length, data_end, *before, first, n_fresh, n_changed, n_note = _SEAL.unpack(head)
        wanted = _SEAL.size + 12 * n_changed + 4 * n_fresh + n_note + _CRC.size
        if magic != _SEAL_MAGIC or length != wanted or offset + length > os.fstat(file.fileno()).st_size:
            return None
        raw = read_overlaid(file, pages, offset, length)
        if zlib.crc32(raw[: -_CRC.size]) != _CRC.unpack(raw[-_CRC.size :])[0]:
            return None
        changed = np.frombuffer(raw, "<u8", n_changed, _SEAL.size).astype(np.intp)
        crcs = np.frombuffer(raw, "<u4", n_changed + n_fresh, _SEAL.size + 8 * n_changed)
        units = np.concatenate([changed, np.arange(first, first + n_fresh, dtype=np.intp)])
        note = raw[length - n_note - _CRC.size : -_CRC.size]
        return cls(Place(offset, length, zlib.crc32(raw)), Place(*before), data_end, units, crcs, note)


@dataclass(frozen=True)
class SealPlan:
    """Where a seal will lie, and which units it covers: those from `first` to `stop`, and the `changed` ones."""

    offset: int
    length: int
    data_end: int
    first: int
    stop: int
    changed: list[int]
    note: bytes

    @property
    def committed_bytes(self) -> int:
        """Size of the file with the seal."""
        return self.offset + _to_page_boundary(self.length)


def find_seals(file: io.FileIO) -> Iterator[Seal]:
    """All whole seals of a file, oldest first, wherever they are: for a file that is damaged."""
    offset, size = USER_BLOCK_BYTES, os.fstat(file.fileno()).st_size
    (magic,) = struct.unpack("<Q", _SEAL_MAGIC)
    while offset < size:
        block = _read_at(file, offset, _SCAN_BYTES)
        pages = np.frombuffer(block[: len(block) // _PAGE_BYTES * _PAGE_BYTES], "<u8")
        for page in np.flatnonzero(pages[:: _PAGE_BYTES // 8] == magic):
            seal = Seal.read(file, offset + int(page) * _PAGE_BYTES, {})
            if seal is not None:
                yield seal
        offset += _SCAN_BYTES


class SealedFile:
    """The bytes of a file as of one commit, none of which is handed out unchecked.

    Args:
        file: the file.
        seals: the checksums of that commit.
        pages: what replaces the file's own bytes.
    """

    def __init__(self, file: io.FileIO, seals: Seals, pages: dict[int, bytes]) -> None:
        self._file = file
        self._pages = pages
        self._cache: dict[int, bytes] = {}
        self.seals = seals

    def unit(self, unit: int) -> bytes:
        """The bytes of a unit, as far as they are sealed.

        Raises:
            DamagedError: they are not what was committed.
        """
        data = self._cache.get(unit)
        if data is None:
            data = self._read_unit(unit)
            if zlib.crc32(data) != self.seals.crcs[unit]:
                stop = unit * UNIT_BYTES + len(data)
                raise DamagedError(
                    f"bytes {unit * UNIT_BYTES} to {stop} are not what was committed (or another program has "
                    "changed the file)"
                )
            if len(self._cache) >= _CACHED_UNITS:
                del self._cache[next(iter(self._cache))]
            self._cache[unit] = data
        return data

    def is_sound(self, unit: int) -> bool:
        """Whether a unit's bytes are what was committed."""
        return bool(zlib.crc32(self._read_unit(unit)) == self.seals.crcs[unit])

    def _read_unit(self, unit: int) -> bytes:
        start = unit * UNIT_BYTES
        n_bytes = max(0, min(UNIT_BYTES, self.seals.data_end - start))
        return read_overlaid(self._file, self._pages, start, n_bytes)

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill a buffer from byte `start` on; what is not sealed reads as zeros."""
        stop = min(start + len(view), self.seals.data_end)
        position = start
        while position < stop:
            unit, inside = divmod(position, UNIT_BYTES)
            take = min(stop - position, UNIT_BYTES - inside)
            if unit * UNIT_BYTES < USER_BLOCK_BYTES:  # HDF5 looks here for its signature
                view[position - start : position - start + take] = bytes(take)
            else:
                view[position - start : position - start + take] = self.unit(unit)[inside : inside + take]
            position += take
        position = max(position, start)
        view[position - start :] = bytes(len(view) - (position - start))


def _read_at(file: io.FileIO, offset: int, n_bytes: int) -> bytes:
    """Up to `n_bytes` from `offset` on, fewer at the end of the file."""
    parts = []
    file.seek(offset)
    while n_bytes > 0:
        part = file.read(n_bytes)
        if not part:
            break
        parts.append(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_overlaid(file: io.FileIO, pages: dict[int, bytes], offset: int, n_bytes: int) -> bytes:
    """Up to `n_bytes` of a file, some of whose pages are replaced; nothing is checked."""
    data = _read_at(file, offset, n_bytes)
    changed = [
        page
        for page in range(offset // _PAGE_BYTES, -(-(offset + len(data)) // _PAGE_BYTES))
        if page in pages
    ]
    if not changed:
        return data
    patched = bytearray(data)
    for page in changed:
        low, high = max(offset, page * _PAGE_BYTES), min(offset + len(data), (page + 1) * _PAGE_BYTES)
        inside = low - page * _PAGE_BYTES
        patched[low - offset : high - offset] = pages[page][inside : inside + high - low]
    return bytes(patched)


def _write_all(file: io.FileIO, offset: int, data: bytes | memoryview) -> None:
    file.seek(offset)
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


class WriteBehind:
    """Has the disk write what is appended while more is appended, and remembers what it said.

    Args:
        file: to which it is appended.
        executor: of one thread, which waits for the disk; None = leave it to the system when to write.
    """

    def __init__(self, file: io.FileIO, executor: Executor | None) -> None:
        self._file = file
        self._executor = executor
        self._n_bytes = 0
        self._running: Future[None] | None = None

    def add(self, n_bytes: int) -> None:
        """Note that so many bytes were appended.

        Raises:
            OSError: the disk refused earlier ones.
        """
        self._n_bytes += n_bytes
        if self._executor is None or self._n_bytes < _EARLY_SYNC_BYTES:
            return
        if self._running is None or self._running.done():
            self.settle()
            self._n_bytes = 0
            self._running = run_beside(self._executor, _fsync_early, self._file)

    def settle(self) -> None:
        """Wait until the disk is idle.

        Raises:
            OSError: it refused. The system says so only once, so this must not be lost.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()


class AppendedChecksums:
    """CRC-32 of the units that are written from front to back, taken of what passes by.

    Chunks of data are nearly all there is, and are appended in order. Of a unit that is written in any other
    way nothing is known here.

    Args:
        executor: what computes them, some megabytes at a time and one such batch after the other; None = at once.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._units: dict[int, tuple[int, int]] = {}  # unit: up to which byte of the file, CRC so far
        self._batch: list[tuple[int, memoryview | bytes]] = []
        self._n_bytes = 0
        self._running: Future[None] | None = None

    def add(self, offset: int, data: memoryview | bytes) -> None:
        """Take note of bytes that are written, and that stay as they are until `settle`."""
        if self._executor is None:
            self._add(offset, memoryview(data))
            return
        self._batch.append((offset, data))
        self._n_bytes += len(data)
        if self._n_bytes >= _CHECKSUM_BATCH_BYTES:
            self._start()

    def _start(self) -> None:
        assert self._executor is not None
        if self._running is not None:
            self._running.result()
        batch, self._batch, self._n_bytes = self._batch, [], 0
        self._running = run_beside(self._executor, self._add_all, batch)

    def settle(self) -> None:
        """Wait until all that was added is computed."""
        if self._batch:
            self._start()
        if self._running is not None:
            self._running.result()

    def _add_all(self, batch: list[tuple[int, memoryview | bytes]]) -> None:
        for offset, data in batch:
            self._add(offset, memoryview(data))

    def _add(self, offset: int, view: memoryview) -> None:
        stop = offset + len(view)
        position = offset
        while position < stop:
            unit = position // UNIT_BYTES
            end = min(stop, (unit + 1) * UNIT_BYTES)
            so_far, crc = self._units.get(unit, (unit * UNIT_BYTES, 0))
            if so_far == position:
                self._units[unit] = end, zlib.crc32(view[position - offset : end - offset], crc)
            else:
                self._units[unit] = _UNKNOWN, 0
            position = end

    def forget(self, offset: int) -> None:
        """Nothing is known any more of what lies behind a byte."""
        self.settle()
        for unit in self._units:
            if (unit + 1) * UNIT_BYTES > offset:
                self._units[unit] = _UNKNOWN, 0

    def get(self, unit: int, stop: int) -> int | None:
        """CRC-32 of a unit that ends at byte `stop`, None where it is not known; `settle` first."""
        so_far, crc = self._units.get(unit, (_UNKNOWN, 0))
        return crc if so_far == stop else None


class Appender:
    """Writes past the end of the last commit, where nothing refers to yet.

    Args:
        file: the file.
        syncer: see `WriteBehind`.
        checksummer: see `AppendedChecksums`.
    """

    def __init__(
        self, file: io.FileIO, syncer: Executor | None = None, checksummer: Executor | None = None
    ) -> None:
        self._file = file
        self._behind = WriteBehind(file, syncer)
        self.checksums = AppendedChecksums(checksummer)

    def write(self, offset: int, view: memoryview, *, stays: bool) -> None:
        """Write bytes, of which is known whether they stay as they are until the commit.

        Raises:
            OSError: the disk refused them, or earlier ones.
        """
        _write_all(self._file, offset, view)
        self.checksums.add(offset, view if stays else bytes(view))
        self._behind.add(len(view))

    def truncate(self, size: int, old_size: int) -> None:
        """Cut the file off, or make it longer by zeros."""
        self.checksums.forget(min(size, old_size))
        self._file.truncate(size)

    def settle(self) -> None:
        """Wait until nothing is under way any more.

        Raises:
            OSError: the disk refused something.
        """
        self.checksums.settle()
        self._behind.settle()


class OverlayFile(io.RawIOBase):
    """What h5py reads and writes: a sealed file, and the changes of the transaction under way.

    Writes past `boundary` (a multiple of the page size, so that no page is half on disk and half here) go to
    disk, writes below it only into `pages`; with `boundary=None` it is read-only.

    HDF5 never hears of an error, since what it does then is its least tested part, and with an exception
    pending h5py's callbacks go astray. After an error, reads give zeros and writes are forgotten; `check`
    raises it once HDF5 has returned, and whatever HDF5 made of the zeros is worth nothing.
    """

    def __init__(
        self,
        file: io.FileIO,
        base: SealedFile,
        size: int,
        boundary: int | None,
        appender: Appender | None = None,
    ) -> None:
        super().__init__()
        self._file = file
        self._base = base
        self._position = 0
        self._discard = False
        self._error: BaseException | None = None
        self.pages: dict[int, bytearray] = {}
        self.size = size
        self.boundary = boundary
        self.last_write = (0, 0)
        self._appender = appender or Appender(file)
        self._instead: Sequence[memoryview] | None = None

    def discard_writes(self) -> None:
        """From now on accept writes and forget them, so that HDF5 can close a transaction that failed."""
        self._discard = True

    def check(self) -> None:
        """Raise the first error there was, if any."""
        if self._error is not None:
            raise self._error

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
            with self._keeping_error():
                if size > self.boundary:
                    self._appender.truncate(size, self.size)
            self.size = size
        return size

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # noqa: D102
        view = memoryview(buffer).cast("B")
        start, wanted = self._position, min(len(view), max(0, self.size - self._position))
        with self._keeping_error():
            self._read(view[:wanted], start, start + wanted)
        if self._error is not None:
            view[:wanted] = bytes(wanted)
        self._position += wanted
        return wanted

    def _read(self, view: memoryview, start: int, stop: int) -> None:
        boundary = stop if self.boundary is None else min(stop, max(start, self.boundary))
        self._base.read_into(view[: boundary - start], start)
        if boundary < stop:
            data = _read_at(self._file, boundary, stop - boundary)
            view[boundary - start : boundary - start + len(data)] = data
            view[boundary - start + len(data) :] = bytes(stop - boundary - len(data))  # not yet written
        self._overlay(view, start, stop)

    def _overlay(self, view: memoryview, start: int, stop: int) -> None:
        for page in self._changed(start, stop):
            low, high = max(start, page * _PAGE_BYTES), min(stop, (page + 1) * _PAGE_BYTES)
            inside = low - page * _PAGE_BYTES
            view[low - start : high - start] = self.pages[page][inside : inside + high - low]

    def write_instead(self, parts: Sequence[memoryview]) -> None:
        """Have the next write, if it is one of as many bytes, write these, which stay as they are until the commit."""
        self._instead = parts

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # noqa: D102
        view = memoryview(data).cast("B")
        n_bytes = len(view)
        if not self._discard:
            with self._keeping_error():
                self._write(view)
        self.last_write = (self._position, n_bytes)
        self._position += n_bytes
        return n_bytes

    @contextlib.contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # Ctrl-C too
            self._discard = True
            self._error = self._error or error.with_traceback(None)

    def _write(self, view: memoryview) -> None:
        if self.boundary is None:
            raise io.UnsupportedOperation("the file is open for reading")
        start, parts, stay = self._position, self._instead, True
        if parts is None or sum(map(len, parts)) != len(view):
            parts, stay = [view], False
        self._instead = None
        for part in parts:
            self._write_part(part, start, self.boundary, stays=stay)
            start += len(part)

    def _write_part(self, view: memoryview, start: int, boundary: int, *, stays: bool) -> None:
        stop = start + len(view)
        below = min(stop, boundary)
        position = start
        while position < below:
            page = position // _PAGE_BYTES
            inside = position - page * _PAGE_BYTES
            take = min(below - position, _PAGE_BYTES - inside)
            self._page(page)[inside : inside + take] = view[position - start : position - start + take]
            position += take
        if stop > boundary:
            first = max(start, boundary)
            self._appender.write(first, view[first - start :], stays=stays)
        self.size = max(self.size, stop)

    def _page(self, page: int) -> bytearray:
        if page not in self.pages:
            fresh = bytearray(_PAGE_BYTES)
            self._base.read_into(memoryview(fresh), page * _PAGE_BYTES)
            self.pages[page] = fresh
        return self.pages[page]

    def _changed(self, start: int, stop: int) -> Iterator[int]:
        first, last = start // _PAGE_BYTES, -(-stop // _PAGE_BYTES)
        if last - first < len(self.pages):
            return (page for page in range(first, last) if page in self.pages)
        return (page for page in self.pages if first <= page < last)

    def plan_seal(self, note: bytes) -> SealPlan:
        """Decide which units the seal covers and where it lies, and raise HDF5's end of file over it."""
        assert self.boundary is not None
        data_end = self.size
        first = max(USER_BLOCK_BYTES, self._base.seals.data_end) // UNIT_BYTES
        stop = -(-data_end // UNIT_BYTES)
        superblock = USER_BLOCK_BYTES // _PAGE_BYTES  # its page is about to change
        pages = {*self.pages, *([superblock] if superblock * _PAGE_BYTES < self.boundary else [])}
        changed = sorted({page * _PAGE_BYTES // UNIT_BYTES for page in pages} - set(range(first, stop)))
        length = _SEAL.size + 12 * len(changed) + 4 * (stop - first) + len(note) + _CRC.size
        plan = SealPlan(_to_page_boundary(data_end), length, data_end, first, stop, changed, note)
        self._raise_end_of_file(data_end, plan.committed_bytes)
        return plan

    def make_seal(self, plan: SealPlan) -> tuple[bytes, Seals]:
        """Take the checksums.

        Returns:
            The seal's bytes, padded to whole pages, and the checksums it stands for.
        """
        old, first, stop, changed = self._base.seals, plan.first, plan.stop, plan.changed
        self._appender.checksums.settle()
        crcs = np.zeros(stop, np.uint32)
        crcs[:first] = old.crcs[:first]
        for unit in (*changed, *range(first, stop)):
            crcs[unit] = self._unit_crc(unit, plan.data_end)
        raw = (
            _SEAL.pack(
                *(_SEAL_MAGIC, plan.length, plan.data_end),
                *(old.newest.offset, old.newest.length, old.newest.crc),
                *(first, stop - first, len(changed), len(plan.note)),
            )
            + np.asarray(changed, "<u8").tobytes()
            + crcs[changed].astype("<u4").tobytes()
            + crcs[first:].astype("<u4").tobytes()
            + plan.note
        )
        raw += _CRC.pack(zlib.crc32(raw))
        place = Place(plan.offset, plan.length, zlib.crc32(raw))
        return raw.ljust(_to_page_boundary(plan.length), b"\0"), Seals(crcs, plan.data_end, place)

    def _unit_crc(self, unit: int, data_end: int) -> int:
        assert self.boundary is not None
        start = unit * UNIT_BYTES
        stop = min(start + UNIT_BYTES, data_end)
        if start >= self.boundary:
            known = self._appender.checksums.get(unit, stop)
            if known is not None:
                return known
            return zlib.crc32(_read_at(self._file, start, stop - start).ljust(stop - start, b"\0"))
        data = bytearray(_read_at(self._file, start, stop - start).ljust(stop - start, b"\0"))
        if start < self._base.seals.data_end:  # checked, so that no damage is sealed anew
            sealed = self._base.unit(unit)
            data[: len(sealed)] = sealed
        self._overlay(memoryview(data), start, stop)
        return zlib.crc32(data)

    def _raise_end_of_file(self, old: int, new: int) -> None:
        head = bytearray(_END_OF_FILE_AT + 8 - USER_BLOCK_BYTES)
        self._read(memoryview(head), USER_BLOCK_BYTES, _END_OF_FILE_AT + 8)
        (there,) = struct.unpack_from("<Q", head, _END_OF_FILE_AT - USER_BLOCK_BYTES)
        if head[_SUPERBLOCK_VERSION_AT - USER_BLOCK_BYTES] != 0 or there != old:
            raise DamagedError(f"HDF5's superblock is not as expected: it ends at {there}, the data at {old}")
        self.seek(_END_OF_FILE_AT)
        self.write(struct.pack("<Q", new))
        self.size = old


def _open_h5(image: OverlayFile, mode: str) -> h5py.File:
    """Open HDF5 on an image.

    Raises:
        OSError: it cannot be opened. The error is a new one, for the traceback of h5py's own holds an access
            property list, and one that is still alive when Python ends makes HDF5 call into the dead interpreter.
    """
    try:
        h5 = h5py.File(image, mode, libver="earliest")
    except Exception as error:
        message = str(error)
        h5 = None
    if h5 is None:
        image.check()
        raise DamagedError(message)
    return h5


def _to_page_boundary(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES


class Transaction:
    """What `Journal.transaction` yields: the HDF5 file `h5`, and a `note` to keep in the commit's seal."""

    def __init__(self, h5: h5py.File, image: OverlayFile) -> None:
        self.h5 = h5
        self.note = b""
        self._image = image
        self._blank = np.empty(0, np.uint8)

    def write_chunk(
        self, dataset: h5py.h5d.DatasetID, at: tuple[int, ...], parts: Sequence[memoryview]
    ) -> int:
        """Write one chunk of a dataset as it is to lie in the file.

        HDF5 finds the place and takes note of it; the bytes go there from where they are, without a copy.

        Args:
            dataset: of the transaction's file.
            at: its first element.
            parts: its bytes.

        Returns:
            Where it lies in the file. HDF5's own answer counts from different bytes in different versions.
        """
        n_bytes = sum(map(len, parts))
        if n_bytes > len(self._blank):
            self._blank = np.empty(n_bytes, np.uint8)  # never looked at
        self._image.write_instead(parts)
        dataset.write_direct_chunk(at, self._blank[:n_bytes])
        self._image.check()
        offset, n_written = self._image.last_write
        if n_written != n_bytes:
            raise OSError(f"HDF5 wrote {n_written} bytes for a chunk of {n_bytes}")
        return offset


class Journal:
    """The one writer of a file: holds its lock and runs its transactions.

    Args:
        path: an existing file made by `create`.
        durable: whether commits wait for the disk (fsync). Without it a kill loses nothing, a power cut may.

    Raises:
        FileNotFoundError: there is no such file.
        BlockingIOError: another process records into it.
        NotSealedError: the file was not written by this package.
        DamagedError: the file's record or checksums are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = os.fspath(path)
        self._durable = durable
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paddle_td_callback")
        self._checksummer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paddle_td_callback")
        self._file = _open_file(self.path, "r+b")
        try:
            _lock(self._file)
            self._recover()
        except BaseException:
            self._file.close()
            raise
        _open_journals.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, durable: bool = True) -> Journal:
        """Make an empty HDF5 file at `path`, which must not exist, and open its journal."""
        with contextlib.closing(_open_file(path, "x+b")) as file:
            empty = Seals(np.zeros(USER_BLOCK_BYTES // UNIT_BYTES, np.uint32), 0, Place(0, 0, 0))
            image = OverlayFile(file, SealedFile(file, empty, {}), 0, boundary=0)
            h5py.File(image, "w", libver="earliest", userblock_size=USER_BLOCK_BYTES).close()
            image.check()
            _write_all(file, 0, bytes(USER_BLOCK_BYTES))  # no hole: a record must not fail for want of space
            plan = image.plan_seal(b"")
            seal, seals = image.make_seal(plan)
            _write_all(file, plan.offset, seal)
            body = Place(_HEADER_BYTES, 0, zlib.crc32(b""))
            Record(0, plan.committed_bytes, body, seals.newest).write(file, b"")
            if durable:
                _fsync(file)
        return cls(path, durable=durable)

    def _recover(self) -> None:
        """Bring the file to the state of its last commit, durably."""
        record = read_newest_record(self._file)
        if os.fstat(self._file.fileno()).st_size < record.committed_bytes:
            raise DamagedError(f"the file is cut off before byte {record.committed_bytes}")
        # The record too, byte by byte the same: should its fsync have failed, the pages count as clean now
        # and no further fsync would write them.
        if record.is_inline:
            record.write(self._file, _pack_pages({p: bytearray(data) for p, data in record.pages.items()}))
        self._apply(record.pages)
        self._sync()
        self._file.truncate(record.committed_bytes)
        self._sync()
        seals = Seals.read(self._file, record)
        self._stand_at(record.sequence, record.committed_bytes, seals)

    def _stand_at(self, sequence: int, committed_bytes: int, seals: Seals) -> None:
        self._sequence, self._size = sequence, committed_bytes
        self._known_headers = headers(self._file)
        self._base = SealedFile(self._file, seals, {})
        self._recovery_needed = False

    def _apply(self, pages: dict[int, bytes] | dict[int, bytearray]) -> None:
        for first, stop in _runs(pages):
            data = b"".join(pages[page] for page in range(first, stop))
            _write_all(self._file, first * _PAGE_BYTES, data)

    def _sync(self) -> None:
        if self._durable:
            _fsync(self._file)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """The file, opened for changes that are kept if the block ends and undone if it raises.

        Where the disk fails in the last moment, the changes may have been kept although this raises: the next
        transaction finds them done or undone.

        Yields:
            A `Transaction`; nothing opened from its `h5` may be used after the block.

        Raises:
            OSError: the disk refused (its own error, not HDF5's), or the file is gone, replaced or damaged.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(f"'{self.path}' was replaced by another file")
        if self._recovery_needed:
            self._recover()
        self._check_headers()
        appender = Appender(self._file, self._syncer if self._durable else None, self._checksummer)
        image = OverlayFile(self._file, self._base, self._size, self._size, appender)
        self._recovery_needed = True
        transaction: Transaction | None = None
        try:
            transaction = Transaction(_open_h5(image, "r+"), image)
            yield transaction
            transaction.h5.close()
            image.check()
            self._commit(image, transaction.note, appender)
        except BaseException:
            image.discard_writes()
            if transaction is not None:
                with contextlib.suppress(Exception):
                    transaction.h5.close()
            with contextlib.suppress(OSError):
                appender.settle()
            with contextlib.suppress(OSError, ValueError):  # the next transaction will try again
                self._recover()
            image.check()  # HDF5's own error may be but a consequence of it
            raise

    def _check_headers(self) -> None:
        if headers(self._file) != self._known_headers:
            raise BlockingIOError(f"'{self.path}' was written by another process")

    def _commit(self, image: OverlayFile, note: bytes, appender: Appender) -> None:
        plan = image.plan_seal(note)
        committed_bytes = plan.committed_bytes
        self._file.truncate(committed_bytes)  # now, so that the second fsync need not save the file's size
        synced = run_beside(self._syncer, self._sync)
        try:
            seal, seals = image.make_seal(plan)  # while the disk is busy
        finally:
            wait([synced])
        appender.settle()
        synced.result()
        pages = {**image.pages, **_pages_of(plan.offset, seal)}
        body = _pack_pages(pages)
        sequence = self._sequence + 1
        inline = _HEADER_BYTES + len(body) <= _SLOT_BYTES
        offset = (sequence % 2) * _SLOT_BYTES + _HEADER_BYTES if inline else committed_bytes
        if not inline:
            _write_all(self._file, offset, body)
            self._sync()
        self._check_headers()
        record = Record(sequence, committed_bytes, Place(offset, len(body), zlib.crc32(body)), seals.newest)
        record.write(self._file, body)
        self._sync()
        # Committed. What fails from here on is made up for by the next transaction, or the next reader.
        self._stand_at(sequence, committed_bytes, seals)
        try:
            self._apply(pages)
            if not inline:
                self._sync()
        except OSError:
            self._recovery_needed = True

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._syncer.shutdown()
        self._checksummer.shutdown()
        self._file.close()

    def close_in_child(self) -> None:
        """Give up the lock in a forked process, in which there are no threads."""
        self._file.close()


class Snapshot:
    """A file as of its last commit, for reading while somebody may be writing.

    Args:
        path: a file made by `Journal.create`.
        strict: see `read_newest_record`.

    Raises:
        OSError: there is no such file, or it may not be read.
        NotSealedError: the file was not written by this package.
        DamagedError: the file is cut off, or its record or checksums are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        self._file = _open_file(path, "rb")
        self._strict = strict
        self._h5: h5py.File | None = None
        self._image: OverlayFile | None = None
        try:
            self.refresh()
        except BaseException:
            self._file.close()
            raise

    def refresh(self) -> None:
        """Move on to the last commit; what was opened from `h5` is of no use any more."""
        self._close_h5()
        while True:
            self._seen_headers = headers(self._file)
            self.record = read_newest_record(self._file, strict=self._strict)
            self.size = os.fstat(self._file.fileno()).st_size
            try:
                if self.size < self.record.committed_bytes:
                    raise DamagedError(f"it is cut off: {self.size} bytes of {self.record.committed_bytes}")
                self.seals = Seals.read(self._file, self.record)
                return
            except DamagedError:
                if self.is_current:
                    raise

    @property
    def h5(self) -> h5py.File:
        """The file, opened for reading; call `check` before believing what was read."""
        if self._h5 is None:
            base = SealedFile(self._file, self.seals, self.record.pages)
            self._image = OverlayFile(self._file, base, self.record.committed_bytes, None)
            self._h5 = _open_h5(self._image, "r")
        return self._h5

    def check(self) -> None:
        """Raise what went wrong while `h5` was read; to be called before what was read is believed.

        Raises:
            DamagedError: bytes are not what was committed.
        """
        if self._image is not None:
            self._image.check()

    @property
    def is_current(self) -> bool:
        """Whether no commit happened since."""
        return headers(self._file) == self._seen_headers

    def _close_h5(self) -> None:
        if self._h5 is not None:
            with contextlib.suppress(Exception):
                self._h5.close()
            self._h5 = None

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._close_h5()
        self._file.close()


def _open_file(path: str | os.PathLike[str], mode: str) -> io.FileIO:
    return open(path, mode, buffering=0)  # type: ignore[return-value]


def _fsync(file: io.FileIO) -> None:
    if hasattr(os, "fdatasync"):  # spares the time stamps, which lie elsewhere on the disk
        os.fdatasync(file.fileno())
    else:
        os.fsync(file.fileno())


def _fsync_early(file: io.FileIO) -> None:
    """The same where nothing relies on it."""
    _fsync(file)


def _lock(file: io.FileIO) -> None:
    """Lock a file against other writers.

    The lock belongs to the open file: one of the process would be lost as soon as the process closed any other
    descriptor of the file, as its own live readers do. HDF5's readers use flock, which does not meet this one.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if sys.platform == "win32":
        return
    try:
        if sys.platform == "linux":
            # struct flock: type, whence, start, length, pid
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError("another process holds its lock") from error
    except OSError:
        pass  # a file system without locks


def _close_in_child() -> None:
    """Give up the locks that a forked process, a DataLoader worker for instance, has inherited."""
    for journal in list(_open_journals):
        journal.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
