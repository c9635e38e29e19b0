"""Redo records: what a commit changes below the old end of the file, in one of two slots used in turn."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from .disk import CRC, PAGE_BYTES, DamagedError, NotSealedError, Place, read_at, write_all

USER_BLOCK_BYTES = 128 * 1024
SLOT_BYTES = USER_BLOCK_BYTES // 2
# magic, sequence, committed file size, body offset, length, CRC, seal offset, length, CRC; then CRC of these
_HEADER = struct.Struct("<8sQQQQIQQI")
_MAGIC = b"PTDredo1"
HEADER_BYTES = _HEADER.size + CRC.size
_RUN = struct.Struct("<QI")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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
        return (self.sequence % 2) * SLOT_BYTES

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
        return head + CRC.pack(zlib.crc32(head))

    def write(self, file: io.FileIO, body: bytes) -> None:
        """Put the record into its slot; a body that does not fit must have been written elsewhere."""
        write_all(file, self._slot_start, self.header() + (body if self.is_inline else b""))


def _read_header(file: io.FileIO, slot: int) -> Record | None:
    raw = read_at(file, slot * SLOT_BYTES, HEADER_BYTES)
    if len(raw) < HEADER_BYTES or zlib.crc32(raw[: _HEADER.size]) != CRC.unpack(raw[_HEADER.size :])[0]:
        return None
    magic, sequence, committed, *rest = _HEADER.unpack(raw[: _HEADER.size])
    if magic != _MAGIC or sequence % 2 != slot:
        return None
    return Record(sequence, committed, Place(*rest[:3]), Place(*rest[3:]))


def headers(file: io.FileIO) -> bytes:
    """The headers of both slots as they stand, which change with every commit."""
    return b"".join(read_at(file, slot * SLOT_BYTES, HEADER_BYTES) for slot in (0, 1))


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
        limit = SLOT_BYTES if record.is_inline else os.fstat(file.fileno()).st_size
        body = read_at(file, record.body.offset, record.body.length) if record.body.length <= limit else b""
        if len(body) == record.body.length and zlib.crc32(body) == record.body.crc:
            record.pages = _unpack_pages(body)
        elif record.is_inline:
            continue
        # else written behind the data and since overwritten: its changes were made durable before that
        records.append(record)
    return sorted(records, key=lambda record: -record.sequence)


def _is_in_place(file: io.FileIO, record: Record) -> bool:
    return all(read_at(file, page * PAGE_BYTES, PAGE_BYTES) == data for page, data in record.pages.items())


def _describe_foreign(file: io.FileIO) -> str:
    size = os.fstat(file.fileno()).st_size
    if read_at(file, USER_BLOCK_BYTES, 8) == _HDF5_SIGNATURE:
        return "has lost its commit records: it is damaged, or another program has rewritten it"
    offset = 0
    while offset < size:
        if read_at(file, offset, 8) == _HDF5_SIGNATURE:
            return (
                "is an HDF5 file, but no recording of training dynamics, or another program has rewritten it"
            )
        offset = max(512, 2 * offset)
    return "cannot be opened as HDF5: it is " + ("something else" if size else "empty")


def page_runs(pages: Iterable[int]) -> list[list[int]]:
    """Neighbouring pages together: the first one, and the one after the last."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and runs[-1][1] == page:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    return runs


def pack_pages(pages: dict[int, bytearray]) -> bytes:
    """Runs of neighbouring pages, each with its offset and length in the file."""
    parts: list[bytes | bytearray] = []
    for first, stop in page_runs(pages):
        parts.append(_RUN.pack(first, stop - first))
        parts.extend(pages[page] for page in range(first, stop))
    return b"".join(parts)


def pages_of(offset: int, data: bytes) -> dict[int, bytearray]:
    """Bytes that begin and end with a page, as pages."""
    return {
        (offset + at) // PAGE_BYTES: bytearray(data[at : at + PAGE_BYTES])
        for at in range(0, len(data), PAGE_BYTES)
    }


def _unpack_pages(body: bytes) -> dict[int, bytes]:
    pages: dict[int, bytes] = {}
    position = 0
    while position + _RUN.size <= len(body):
        first, count = _RUN.unpack_from(body, position)
        position += _RUN.size
        for page in range(first, first + count):
            pages[page] = body[position : position + PAGE_BYTES]
            position += PAGE_BYTES
    return pages
