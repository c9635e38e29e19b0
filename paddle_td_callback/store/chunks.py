"""Chunks: encoded and decoded here, and readable through HDF5's stock filters shuffle, gzip and fletcher32."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import CHUNK, FRAME_BYTES, SHARED, DamagedError, Frame
from .disk import RawFile
from .schema import Field, Layout

CHECKSUM_BYTES = 4
_ROW_WORDS = 2048
_PLACES = np.arange(_ROW_WORDS)
DEFLATE_MAX_RATIO = 1100  # no deflate stream expands further (1032), so a dataset that claims to is forged


def encode_chunk(block: npt.NDArray[Any], *, gzip_level: int | None) -> tuple[memoryview, bytes, int]:
    """One whole chunk, as HDF5's shuffle and gzip filters would leave it, and its `checksums`.

    Nothing is copied that need not be: touching fresh memory costs more than all else that is done here.
    """
    plain = np.ascontiguousarray(block).reshape(-1)
    payload: Any = plain.view(np.uint8)
    if gzip_level is not None:
        shuffled = np.ascontiguousarray(payload.reshape(-1, plain.itemsize).T)
        payload = np.frombuffer(zlib.compress(shuffled.data, gzip_level), np.uint8)
    return memoryview(payload), *checksums(payload)


def checksums(payload: bytes | memoryview) -> tuple[bytes, int]:
    """What HDF5's fletcher32 filter puts behind a chunk, and the number in its frame.

    Fletcher's checksum takes words of 0xffff, of which a chunk of -1 is made, for zeros. So the frame has a CRC-32 of
    the exact sums from which it follows. No change within 4,096 bytes in a row leaves all sums of columns the same.
    """
    octets = np.frombuffer(payload, np.uint8)
    rows, columns = _sums(octets)
    exact = zlib.crc32(rows.astype("<u4").tobytes(), zlib.crc32(columns.astype("<u4").tobytes()))
    fletcher = _fletcher32(octets, rows, columns).to_bytes(CHECKSUM_BYTES, "little")
    return fletcher, zlib.crc32(octets[len(rows) * 2 * _ROW_WORDS :].tobytes(), exact)


def decode_chunk(
    encoded: bytes | memoryview, shape: tuple[int, ...], dtype: npt.DTypeLike, *, gzip_level: int | None
) -> npt.NDArray[Any]:
    """The block that `encode_chunk` was given, from payload and checksum; ValueError if it is of another size."""
    payload: Any = encoded[:-CHECKSUM_BYTES]
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if gzip_level is not None:
        try:
            payload = zlib.decompressobj().decompress(payload, n_bytes + 1)
        except zlib.error as error:
            raise ValueError(f"it cannot be decompressed: {error}") from error
    if len(payload) != n_bytes:
        raise ValueError(f"it holds {len(payload)} bytes, wanted {n_bytes}")
    if gzip_level is not None:
        shuffled = np.frombuffer(payload, np.uint8).reshape(dtype.itemsize, -1)
        payload = np.ascontiguousarray(shuffled.T).tobytes()
    return np.frombuffer(payload, dtype).reshape(shape)


def _sums(octets: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Sums of the little-endian 16-bit words by rows of 2,048, `[row]`, and by columns, `[2048]`; without the last row.

    Two words are added at once, as one of 32 bits. The sums of the upper words tell the sums of the lower ones, also
    where the sum of both has wrapped around.
    """
    n_rows = len(octets) // (2 * _ROW_WORDS)
    dtype = np.uint32 if n_rows <= 65536 else np.uint64
    rows, columns = np.zeros(n_rows, dtype), np.zeros((_ROW_WORDS // 2, 2), dtype)
    if n_rows:
        pairs = octets[: n_rows * 2 * _ROW_WORDS].view("<u4").reshape(n_rows, -1)
        upper, shift = pairs >> np.uint32(16), dtype(16)
        upper_rows, columns[:, 1] = np.add.reduce(upper, 1, dtype), np.add.reduce(upper, 0, dtype)
        columns[:, 0] = np.add.reduce(pairs, 0, dtype) - (columns[:, 1] << shift)
        rows = np.add.reduce(pairs, 1, dtype) - (upper_rows << shift) + upper_rows
    return rows, columns.reshape(-1)


def _fletcher32(octets: npt.NDArray[np.uint8], rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> int:
    """Fletcher's checksum as HDF5 defines it: over big-endian 16-bit words, sums modulo 65535 kept in 1..65535.

    It follows from the sums of rows and columns, and the bytes behind the last row. Word i of n weighs n - i in the
    second sum, so nothing is multiplied word by word. Nor are bytes swapped: modulo 65535 that is a multiplication by
    256, of the sums as well as of the words.
    """
    n_words = len(octets) // 2
    tail = octets[len(rows) * 2 * _ROW_WORDS : 2 * n_words].view("<u2").astype(np.int64)
    first = int(tail.sum())
    second = len(tail) * first - int(tail @ _PLACES[: len(tail)])
    if len(rows):
        total = int(np.add.reduce(columns, dtype=np.uint64))
        first += total
        second += n_words * total - int(columns.astype(np.int64) @ _PLACES)
        second -= _ROW_WORDS * int((rows % 65535).astype(np.int64) @ np.arange(len(rows)))
    first, second = 256 * first, 256 * second
    if len(octets) % 2:
        # HDF5 pads the last odd byte to a word of its own.
        first += int(octets[-1]) << 8
        second += first
    if first == 0:
        return 0
    # HDF5 adds carries back instead of dividing, so a sum that is a multiple of 65535 is 65535, not 0.
    return (second % 65535 or 65535) << 16 | (first % 65535 or 65535)


def read_chunk(
    file: RawFile, layout: Layout, one: Field, epoch: int, number: int, at: int, n_bytes: int
) -> npt.NDArray[Any]:
    """The chunk of a field by its address and stored size: `[sample]`, `[sample, class]` or `[sample, k]`.

    It is compared with its frame, or DamagedError.
    """
    plain = one.n_bytes // layout.n_samples * one.chunk_rows + CHECKSUM_BYTES
    sizes = range(plain // DEFLATE_MAX_RATIO, plain + plain // 100 + 64) if layout.gzip_level else (plain,)
    raw = file.read(at - FRAME_BYTES, FRAME_BYTES + n_bytes) if n_bytes in sizes else b""
    frame, stored = Frame.unpack(raw, at - FRAME_BYTES, file.run), memoryview(raw)[FRAME_BYTES:]
    kind = CHUNK, one.number
    if frame is None or frame[:2] != kind or not frame.n_bytes == len(stored) == n_bytes:
        raise DamagedError(file, f"there is no chunk of {n_bytes} bytes of '{one.name}' at byte {at}")
    if frame.number != SHARED and (frame.epoch, frame.number) != (epoch, number):
        raise DamagedError(file, f"the chunk at byte {at} is of epoch {frame.epoch}, not {epoch}")
    try:
        if checksums(stored[:-CHECKSUM_BYTES]) != (bytes(stored[-CHECKSUM_BYTES:]), frame.checksum):
            raise ValueError("its checksum is wrong")
        shape = one.chunk_rows, *one.shape[1:]
        dtype = np.dtype(one.dtype).newbyteorder("<")
        return decode_chunk(stored, shape, dtype, gzip_level=layout.gzip_level)
    except ValueError as error:
        raise DamagedError(file, f"the chunk at byte {at} is damaged: {error}") from error
