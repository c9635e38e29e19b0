"""The file object on which HDF5 runs: a sealed file, and the changes of the transaction under way."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
import numpy.typing as npt

from .appending import Appender
from .disk import CRC, PAGE_BYTES, DamagedError, Place, read_at, to_page_boundary
from .redo import USER_BLOCK_BYTES
from .seals import SEAL, SEAL_MAGIC, UNIT_BYTES, SealedFile, SealPlan, Seals

# Version 0 of the superblock, which libver="earliest" makes, has the end of file here.
_SUPERBLOCK_VERSION_AT = USER_BLOCK_BYTES + 8
_END_OF_FILE_AT = USER_BLOCK_BYTES + 40
_MARK_BYTES = 16


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
        self._appender = appender or Appender(file)
        self._stand_in = np.frombuffer(os.urandom(_MARK_BYTES), np.uint8)
        self._instead: Sequence[memoryview] | None = None
        self._instead_at: int | None = None

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

    def flush(self) -> None:
        """Nothing to do: HDF5 asks for it, and the disk is told at the commit."""

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
            data = read_at(self._file, boundary, stop - boundary)
            view[boundary - start : boundary - start + len(data)] = data
            view[boundary - start + len(data) :] = bytes(stop - boundary - len(data))  # not yet written
        self._overlay(view, start, stop)

    def _overlay(self, view: memoryview, start: int, stop: int) -> None:
        for page in self._changed(start, stop):
            low, high = max(start, page * PAGE_BYTES), min(stop, (page + 1) * PAGE_BYTES)
            inside = low - page * PAGE_BYTES
            view[low - start : high - start] = self.pages[page][inside : inside + high - low]

    def write_instead(self, parts: Sequence[memoryview]) -> npt.NDArray[np.uint8]:
        """Write these bytes, which stay as they are until the commit, where others are about to be written.

        Returns:
            The others, as many; known by the mark that they begin with, for HDF5 may write metadata before and after.
        """
        n_bytes = sum(map(len, parts))
        if n_bytes > len(self._stand_in):
            mark = self._stand_in[:_MARK_BYTES]
            self._stand_in = np.empty(n_bytes, np.uint8)  # never looked at behind the mark
            self._stand_in[:_MARK_BYTES] = mark
        self._instead, self._instead_at = parts, None
        return self._stand_in[:n_bytes]

    def written_instead(self) -> int:
        """Where the bytes given to `write_instead` lie.

        Raises:
            OSError: those that they stand for were not written.
        """
        self.check()
        if self._instead_at is None:
            raise OSError("HDF5 did not write the chunk that it was given, or not in one piece")
        return self._instead_at

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # noqa: D102
        view = memoryview(data).cast("B")
        n_bytes = len(view)
        if not self._discard:
            with self._keeping_error():
                self._write(view)
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
        if parts is not None and self._is_stand_in(view, parts):
            self._instead, self._instead_at = None, start
        else:
            parts, stay = [view], False
        for part in parts:
            self._write_part(part, start, self.boundary, stays=stay)
            start += len(part)

    def _is_stand_in(self, view: memoryview, parts: Sequence[memoryview]) -> bool:
        n_bytes = len(view)
        mark = self._stand_in[:n_bytes][:_MARK_BYTES]
        return n_bytes == sum(map(len, parts)) and view[:_MARK_BYTES] == mark.data

    def _write_part(self, view: memoryview, start: int, boundary: int, *, stays: bool) -> None:
        stop = start + len(view)
        below = min(stop, boundary)
        position = start
        while position < below:
            page = position // PAGE_BYTES
            inside = position - page * PAGE_BYTES
            take = min(below - position, PAGE_BYTES - inside)
            self._page(page)[inside : inside + take] = view[position - start : position - start + take]
            position += take
        if stop > boundary:
            first = max(start, boundary)
            self._appender.write(first, view[first - start :], stays=stays)
        self.size = max(self.size, stop)

    def _page(self, page: int) -> bytearray:
        if page not in self.pages:
            fresh = bytearray(PAGE_BYTES)
            self._base.read_into(memoryview(fresh), page * PAGE_BYTES)
            self.pages[page] = fresh
        return self.pages[page]

    def _changed(self, start: int, stop: int) -> Iterator[int]:
        first, last = start // PAGE_BYTES, -(-stop // PAGE_BYTES)
        if last - first < len(self.pages):
            return (page for page in range(first, last) if page in self.pages)
        return (page for page in self.pages if first <= page < last)

    def plan_seal(self, note: bytes) -> SealPlan:
        """Decide which units the seal covers and where it lies, and raise HDF5's end of file over it."""
        assert self.boundary is not None
        data_end = self.size
        first = max(USER_BLOCK_BYTES, self._base.seals.data_end) // UNIT_BYTES
        stop = -(-data_end // UNIT_BYTES)
        superblock = USER_BLOCK_BYTES // PAGE_BYTES  # its page is about to change
        pages = {*self.pages, *([superblock] if superblock * PAGE_BYTES < self.boundary else [])}
        changed = sorted({page * PAGE_BYTES // UNIT_BYTES for page in pages} - set(range(first, stop)))
        length = SEAL.size + 12 * len(changed) + 4 * (stop - first) + len(note) + CRC.size
        plan = SealPlan(to_page_boundary(data_end), length, data_end, first, stop, changed, note)
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
            SEAL.pack(
                *(SEAL_MAGIC, plan.length, plan.data_end),
                *(old.newest.offset, old.newest.length, old.newest.crc),
                *(first, stop - first, len(changed), len(plan.note)),
            )
            + np.asarray(changed, "<u8").tobytes()
            + crcs[changed].astype("<u4").tobytes()
            + crcs[first:].astype("<u4").tobytes()
            + plan.note
        )
        raw += CRC.pack(zlib.crc32(raw))
        place = Place(plan.offset, plan.length, zlib.crc32(raw))
        return raw.ljust(to_page_boundary(plan.length), b"\0"), Seals(crcs, plan.data_end, place)

    def _unit_crc(self, unit: int, data_end: int) -> int:
        assert self.boundary is not None
        start = unit * UNIT_BYTES
        stop = min(start + UNIT_BYTES, data_end)
        if start >= self.boundary:
            known = self._appender.checksums.get(unit, stop)
            if known is not None:
                return known
            return zlib.crc32(read_at(self._file, start, stop - start).ljust(stop - start, b"\0"))
        data = bytearray(read_at(self._file, start, stop - start).ljust(stop - start, b"\0"))
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


def open_h5(image: OverlayFile, mode: str) -> h5py.File:
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
