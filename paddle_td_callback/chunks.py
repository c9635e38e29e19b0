"""Chunks made outside HDF5: encoded here, off Python's lock, and readable through its stock filters."""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import numpy as np

_FLETCHER_BLOCK_WORDS = 256


def creation_properties(chunk_shape: tuple[int, ...], fill_value: Any, *, gzip_level: int | None) -> Any:
    """HDF5 creation properties of a dataset whose chunks `encode_chunk` makes.

    Args:
        chunk_shape: shape of one chunk, elements.
        fill_value: zero-dimensional array that stands for what was never written.
        gzip_level: 1 to 9 for shuffle and gzip before the checksum, None for the checksum alone.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(chunk_shape)
    properties.set_fill_value(np.asarray(fill_value))
    if gzip_level is not None:
        properties.set_shuffle()
        properties.set_deflate(gzip_level)
    properties.set_fletcher32()
    return properties


def encode_chunk(block: np.ndarray, *, gzip_level: int | None) -> bytes:
    """Bytes of one whole chunk, as HDF5's shuffle, gzip and fletcher32 filters would leave them."""
    if gzip_level is None:
        payload = block.tobytes()
    else:
        flat = np.ascontiguousarray(block).reshape(-1)
        shuffled = np.ascontiguousarray(flat.view(np.uint8).reshape(-1, flat.itemsize).T)
        payload = zlib.compress(shuffled.data, gzip_level)
    return payload + fletcher32(payload).to_bytes(4, "little")


def fletcher32(data: bytes) -> int:
    """Fletcher's checksum as HDF5 defines it: over big-endian 16-bit words, sums modulo 65535 kept in 1..65535.

    With word i of n weighing n - i in the second sum, both sums follow from the sums of the rows and columns
    of the words laid out as a matrix, so nothing is multiplied word by word.
    """
    n_words = len(data) // 2
    words = np.frombuffer(data, dtype=np.uint16, count=n_words).byteswap()
    n_whole = n_words // _FLETCHER_BLOCK_WORDS * _FLETCHER_BLOCK_WORDS
    tail = words[n_whole:].astype(np.int64)
    first = int(tail.sum())
    second = int((tail * np.arange(len(tail), 0, -1)).sum())
    if n_whole:
        matrix = words[:n_whole].reshape(-1, _FLETCHER_BLOCK_WORDS)
        rows = matrix.sum(axis=1, dtype=np.uint32).astype(np.int64) % 65535
        columns = matrix.sum(axis=0, dtype=np.uint64).astype(np.int64)
        starts = n_words - _FLETCHER_BLOCK_WORDS * np.arange(len(rows), dtype=np.int64)
        first += int(columns.sum())
        second += int((rows * (starts % 65535) % 65535).sum())
        second -= int((columns * np.arange(_FLETCHER_BLOCK_WORDS)).sum())
    if len(data) % 2:
        # HDF5 pads the last odd byte to a word of its own.
        last = data[-1] << 8
        second += first + last
        first += last
    if first == 0:
        return 0
    # HDF5 adds carries back instead of dividing, so a sum that is a multiple of 65535 is 65535, not 0.
    return (second % 65535 or 65535) << 16 | (first % 65535 or 65535)
