"""What a recording is made of: framed blocks, each with its checksum, and the addresses of the newest states.

Byte 0 holds the HDF5 superblock, byte 96 the address of the root group before, byte 512 the sign of the writer. From
byte 4096 on, framed blocks follow each other. A frame says what its block is and holds its checksum, its place and the
recording's number: a block that was moved, or came from another recording, is none. All of it is one HDF5 file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import StoreError
from .disk import RawFile
from .hdf5_format import padded

START, FRAME_BYTES = 4096, 32
CHUNK, NODE, TEXT, ARRAY, LABELS, STATE, METADATA = range(1, 8)  # kinds of blocks
SHARED = (1 << 32) - 1  # number of the chunk that epochs which were never written share

_FRAME, FRAME_MAGIC = struct.Struct("<4sBBxxIIIII"), b"PTDb"


class DamagedError(StoreError):
    """Bytes on disk are not those that were committed; `what` says it without the rest."""

    def __init__(self, file: RawFile, what: str) -> None:
        super().__init__(f"'{file.name}' is damaged: {what}; `paddle-td verify` says what can be salvaged")
        self.what = what


class Frame(NamedTuple):
    """What stands before each block: its kind, and of chunks field, epoch and number in it; length, checksum."""

    kind: int
    field: int
    epoch: int  # of metadata, together with `number`, the address of their state
    number: int
    n_bytes: int
    checksum: int  # of a chunk by `checksums`, of other blocks their CRC-32
    run: int = 0  # number of the recording

    def pack(self, at: int) -> bytes:
        """The 32 bytes at a place in the file."""
        raw = _FRAME.pack(FRAME_MAGIC, *self)
        return raw + zlib.crc32(raw, at & 0xFFFFFFFF).to_bytes(4, "little")

    @classmethod
    def unpack(cls, raw: bytes, at: int, run: int | None = None) -> Frame | None:
        """The frame in bytes that stand at a place, None if they are none of that recording."""
        raw = raw[:FRAME_BYTES]
        if len(raw) < FRAME_BYTES or at < START or at % 8:
            return None
        frame = cls(*_FRAME.unpack(raw[:-4])[1:])
        return frame if raw == frame.pack(at) and run in (None, frame.run) else None

    @classmethod
    def read(cls, file: RawFile, at: int) -> Frame | None:
        """The frame at a place, None where there is none."""
        return cls.unpack(file.read(at, FRAME_BYTES), at, file.run)


def read_block(file: RawFile, at: int, kind: int, most: int = 1 << 62) -> bytes:
    """A block that is no chunk, of at most so many bytes; DamagedError where it is not there or not whole."""
    frame = Frame.read(file, at - FRAME_BYTES)
    if frame is not None and frame.kind == kind and frame.n_bytes <= min(most, file.n_bytes - at):
        body = file.read(at, frame.n_bytes)
        if zlib.crc32(body) == frame.checksum:
            return body
    raise DamagedError(file, f"the block at byte {at} is not what was committed")


def scan(file: RawFile, end: int) -> Iterator[tuple[int, Frame | None]]:
    """All blocks from the start of the log to `end`, by their addresses.

    Where something else stands, None comes with that place, and the search goes on for the next frame.
    """
    at = START
    while at + FRAME_BYTES <= end:
        frame = Frame.read(file, at)
        if frame is not None and frame.n_bytes <= end - at - FRAME_BYTES:
            yield at + FRAME_BYTES, frame
            at += FRAME_BYTES + padded(frame.n_bytes)
            continue
        yield at, None
        at += 8
        while at < end:
            window = file.read(at, min(1 << 20, end - at))
            found = window.find(FRAME_MAGIC)
            at += padded(found) if found >= 0 else max(8, len(window) & ~7)
            if found >= 0 and found % 8 == 0:
                break


class Root(NamedTuple):
    """Where a commit ends: addresses of its state and of its metadata for other readers, end of the log as of then."""

    state: int
    at: int
    end: int


def read_root(file: RawFile, place: int) -> Root:
    """The commit whose root group's address stands at a place of the first sector, or DamagedError."""
    at = int.from_bytes(file.read(place, 8), "little")
    frame = Frame.read(file, at - FRAME_BYTES)
    if frame is None and at > file.n_bytes:
        raise DamagedError(file, f"it is cut off: {file.n_bytes} bytes of more than {at}")
    if frame is None or frame.kind != METADATA:
        raise DamagedError(file, f"the address at byte {place} leads to no commit")
    file.run = frame.run
    return Root(frame.epoch << 32 | frame.number, at, at + padded(frame.n_bytes))
