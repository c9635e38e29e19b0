"""Seals: the checksum of every unit of the file, and a file none of whose bytes is handed out unchecked."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .disk import CRC, PAGE_BYTES, DamagedError, Place, read_at, read_overlaid, to_page_boundary
from .redo import USER_BLOCK_BYTES, Record

UNIT_BYTES = 64 * 1024  # of one checksum: small metadata reads stay cheap, a terabyte has 64 MB of checksums
_CACHED_UNITS = 32
_SCAN_BYTES = 1 << 20
# magic, own length, end of the sealed data, seal before: offset, length, CRC; first unit of the new ones, how
# many, how many changed ones, bytes of note; behind it all comes the CRC of all
SEAL = struct.Struct("<8sQQQQIQQQQ")
SEAL_MAGIC = b"PTDseal1"


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
        head = read_overlaid(file, pages, offset, SEAL.size)
        if len(head) < SEAL.size:
            return None
        magic, length, data_end, *before, first, n_fresh, n_changed, n_note = SEAL.unpack(head)
        wanted = SEAL.size + 12 * n_changed + 4 * n_fresh + n_note + CRC.size
        if magic != SEAL_MAGIC or length != wanted or offset + length > os.fstat(file.fileno()).st_size:
            return None
        raw = read_overlaid(file, pages, offset, length)
        if zlib.crc32(raw[: -CRC.size]) != CRC.unpack(raw[-CRC.size :])[0]:
            return None
        changed = np.frombuffer(raw, "<u8", n_changed, SEAL.size).astype(np.intp)
        crcs = np.frombuffer(raw, "<u4", n_changed + n_fresh, SEAL.size + 8 * n_changed)
        units = np.concatenate([changed, np.arange(first, first + n_fresh, dtype=np.intp)])
        note = raw[length - n_note - CRC.size : -CRC.size]
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
        return self.offset + to_page_boundary(self.length)


def find_seals(file: io.FileIO) -> Iterator[Seal]:
    """All whole seals of a file, oldest first, wherever they are: for a file that is damaged."""
    offset, size = USER_BLOCK_BYTES, os.fstat(file.fileno()).st_size
    (magic,) = struct.unpack("<Q", SEAL_MAGIC)
    while offset < size:
        block = read_at(file, offset, _SCAN_BYTES)
        pages = np.frombuffer(block[: len(block) // PAGE_BYTES * PAGE_BYTES], "<u8")
        for page in np.flatnonzero(pages[:: PAGE_BYTES // 8] == magic):
            seal = Seal.read(file, offset + int(page) * PAGE_BYTES, {})
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
