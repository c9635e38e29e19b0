"""HDF5 metadata as bytes: superblock 0, object headers 1, old-style groups, version 1 B-trees, global heaps.

Only what a recording needs of the HDF5 File Format Specification, version 3.0. The same arguments give the same bytes.
B-tree nodes and symbol table nodes are written without their unused tail: a reader takes as many bytes as a full node
has, and uses as many entries as the node says. So a file must be `SLACK_BYTES` longer than the start of its last node.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .schema import Field

UNDEFINED = (1 << 64) - 1
SLACK_BYTES = 4096  # more than the largest node: 24 + 65 keys of 40 bytes + 64 addresses
SIGNATURE = b"\x89HDF\r\n\x1a\n"
END_AT, ROOT_AT = 40, 64  # places of the end of the file and of the root group's address
BEFORE_AT = 96  # the first byte behind the superblock

_HEAP_BYTES = 1 << 16
_LEAF_K, _GROUP_K = 5, 16  # room for 10 names in a symbol table node
_TEXT = struct.pack("<B3BI", 0x19, 1, 1, 0, 16) + struct.pack("<B3BIHH", 0x10, 0, 0, 0, 1, 0, 8)

Message = tuple[int, bytes]  # type and body
Put = Callable[[bytes], int]  # appends bytes and returns their address


def padded(n_bytes: int) -> int:
    """So many bytes rounded up to a multiple of 8."""
    return n_bytes + -n_bytes % 8


def _pad(raw: bytes) -> bytes:
    return raw.ljust(padded(len(raw)), b"\0")


def superblock(root: int, end: int, before: int) -> bytes:
    """The first bytes of the file; the address of the root group before stands behind what HDF5 reads."""
    start = 0, 0, 0, 0, 0, 8, 8, 0, _LEAF_K, _GROUP_K, 0, 0, UNDEFINED, end, UNDEFINED, 0, root, 0, 0, before
    return SIGNATURE + struct.pack("<8BHHIQQQQQQII16xQ", *start)


def datatype(dtype: np.dtype[Any] | None) -> bytes:
    """Little-endian integers and floats, fixed-length UTF-8; None = variable-length UTF-8."""
    if dtype is None:
        return _TEXT
    size = dtype.itemsize
    if dtype.kind in "iu":
        return struct.pack("<B3BIHH", 0x10, 8 if dtype.kind == "i" else 0, 0, 0, size, 0, 8 * size)
    if dtype.kind == "f":
        exponent, mantissa, bias = {2: (5, 10, 15), 4: (8, 23, 127)}[size]
        bits = 0, 8 * size, mantissa, exponent, 0, mantissa, bias
        return struct.pack("<B3BIHHBBBBI", 0x11, 0x20, 8 * size - 1, 0, size, *bits)
    return struct.pack("<B3BI", 0x13, 0x11, 0, 0, size)


def dataspace(shape: Sequence[int], limits: Sequence[int | None] = ()) -> bytes:
    """A shape and, where given, the shape up to which it may grow (None = any)."""
    most = [UNDEFINED if n is None else n for n in limits]
    head = struct.pack("<BBBxI", 1, len(shape), int(bool(most)), 0)
    return head + struct.pack(f"<{len(shape) + len(most)}Q", *shape, *most)


def attribute(name: str, value: bytes | int, *, is_reference: bool = False) -> Message:
    """A scalar attribute: a number, UTF-8, or what `text_heaps` gave."""
    raw = value.to_bytes(8, "little", signed=True) if isinstance(value, int) else value
    dtype = np.dtype("<i8" if isinstance(value, int) else f"S{len(raw)}")
    label, kind, space = name.encode() + b"\0", datatype(None if is_reference else dtype), dataspace(())
    head = struct.pack("<BxHHH", 1, len(label), len(kind), len(space))
    return 0x0C, head + _pad(label) + _pad(kind) + _pad(space) + raw


def messages(parts: Sequence[Message]) -> bytes:
    """Messages as they stand in an object header or in its continuation."""
    return b"".join(struct.pack("<HHB3x", kind, padded(len(raw)), 0) + _pad(raw) for kind, raw in parts)


class Continuation(NamedTuple):
    """Messages of an object header that lie elsewhere, because they never change."""

    at: int
    n_bytes: int
    n_messages: int


def header(parts: Sequence[Message], rest: Continuation | None = None) -> bytes:
    """An object header."""
    count = len(parts)
    if rest is not None:
        parts = [*parts, (0x10, struct.pack("<QQ", rest.at, rest.n_bytes))]
        count += 1 + rest.n_messages
    body = messages(parts)
    return struct.pack("<BxHII4x", 1, count, 1, len(body)) + body


def chunked_type(dtype: np.dtype[Any], unseen: float, gzip_level: int | None) -> list[Message]:
    """What never changes in the header of a chunked dataset: type, fill value, filters."""
    fill = np.asarray(unseen, dtype).tobytes()
    used = [(2, b"shuffle", dtype.itemsize), (1, b"deflate", gzip_level)] if gzip_level else []
    pipeline = struct.pack("<BB6x", 1, len(used) + 1)
    for number, name, option in used:
        pipeline += struct.pack("<HHHH8sI4x", number, 8, number == 2, 1, name, option)
    pipeline += struct.pack("<HHHH16s", 3, 16, 0, 0, b"fletcher32")  # h5repack 1.10 aborts without names
    value = struct.pack("<BBBBI", 2, 3, 2, 1, len(fill)) + fill
    return [(0x03, datatype(dtype)), (0x05, value), (0x0B, pipeline)]


def chunked_layout(chunk: Sequence[int], itemsize: int, index: int) -> Message:
    """Shape of a dataset's chunks, and the address of their B-tree."""
    return 0x08, struct.pack(f"<BBBQ{len(chunk) + 1}I", 3, 2, len(chunk) + 1, index, *chunk, itemsize)


def contiguous(dtype: np.dtype[Any] | None, n: int, at: int) -> tuple[Message, list[Message], Message]:
    """Shape, kind and place of a one-dimensional dataset in one piece; without a dtype it is variable-length text."""
    n_bytes = n * (16 if dtype is None else dtype.itemsize)
    place = 0x08, struct.pack("<BBQQ", 3, 1, at if n else UNDEFINED, n_bytes)
    return (0x01, dataspace((n,))), [(0x03, datatype(dtype)), (0x05, b"\2\2\2\0")], place


def local_heap(names: Iterable[str], put: Put) -> tuple[int, dict[str, int]]:
    """Names of a group's members; returns the heap's address, and where each name is in it."""
    text, places = b"\0" * 8, {}
    for name in sorted(names):
        places[name] = len(text)
        text += _pad(name.encode() + b"\0")
    return put(struct.pack("<4sB3xQQQ", b"HEAP", 0, len(text), 1, put(text))), places


def symbol_table(heap: int, places: Mapping[str, int], members: Mapping[str, int], put: Put) -> Message:
    """What makes an object header that of a group."""
    names = sorted(members)
    entries = b"".join(struct.pack("<QQII16x", places[name], members[name], 0, 0) for name in names)
    node = put(struct.pack("<4sBxH", b"SNOD", 1, len(names)) + entries)
    keys = UNDEFINED, UNDEFINED, 0, node, places[names[-1]]
    return 0x11, struct.pack("<QQ", put(struct.pack("<4sBBHQQQQQ", b"TREE", 0, 0, 1, *keys)), heap)


def text_heaps(texts: Iterable[bytes], put: Put) -> bytes:
    """Write strings into global heaps; returns `[text]` references of 16 bytes each."""
    heaps, n_bytes, references = list[list[bytes]](), _HEAP_BYTES, list[bytes]()
    for text in texts:
        if n_bytes >= _HEAP_BYTES:
            heaps, n_bytes = [*heaps, []], 0
        heaps[-1].append(text)
        n_bytes += 16 + len(text)
    for heap in heaps:
        body = b"".join(struct.pack("<HH4xQ", i, 1, len(text)) + _pad(text) for i, text in enumerate(heap, 1))
        size = max(4096, len(body) + 32)
        free = struct.pack("<HH4xQ", 0, 0, size - 16 - len(body))
        at = put((struct.pack("<4sB3xQ", b"GCOL", 1, size) + body + free).ljust(size, b"\0"))
        references += [struct.pack("<IQI", len(text), at, i) for i, text in enumerate(heap, 1)]
    return b"".join(references)


def heap_texts(heap: bytes) -> list[bytes]:
    """The strings of a global heap that `text_heaps` wrote, in order."""
    texts, at = list[bytes](), 16
    while at + 16 <= len(heap):
        number, size = struct.unpack_from("<H6xQ", heap, at)
        if number != len(texts) + 1 or size > len(heap) - at - 16:
            break
        texts.append(heap[at + 16 : at + 16 + size])
        at += 16 + padded(size)
    return texts


@functools.lru_cache(1024)
def tree_head(level: int, n_entries: int) -> bytes:
    """How a node of a tree of chunks begins."""
    return struct.pack("<4sBBHQQ", b"TREE", 1, level, n_entries, UNDEFINED, UNDEFINED)


class ChunkTree:
    """The chunks of one field in order, epoch by epoch: a B-tree that grows at its right end alone.

    A full node is written once. The nodes on the way to the last chunk are written anew by each commit. All other nodes
    are full, so the number of a chunk tells the way to it.
    """

    def __init__(self, field: Field, n_chunks: int = 0) -> None:
        self.field, self.n_chunks = field, n_chunks
        # Few keep small commits small, many keep large trees flat.
        self.fan_out = 8 if field.n_chunks < 8 else 64
        self._key = struct.Struct(f"<II{len(field.shape) + 2}Q")  # stored bytes, filter mask, first element
        # Level 0: entries of the last leaf. Level n: full nodes of level n - 1 that no full node holds yet.
        self._levels: list[list[bytes]] = [[]]

    def copy(self) -> ChunkTree:
        """A tree that can grow by itself."""
        other = ChunkTree(self.field, self.n_chunks)
        other._levels = [list(level) for level in self._levels]
        return other

    def _key_of(self, number: int, n_bytes: int) -> bytes:
        epoch, part = divmod(number, self.field.n_chunks)
        return self._key.pack(n_bytes, 0, epoch, part * self.field.chunk_rows, *[0] * len(self.field.shape))

    def append(self, address: int, n_bytes: int, put: Put) -> None:
        """Add the next chunk. `put` takes the nodes that became full."""
        key, level = self._key_of(self.n_chunks, n_bytes), 0
        while len(self._levels[level]) == self.fan_out:
            entries = self._levels[level]
            node, level = put(self._node(level, entries, key)), level + 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(entries[0][:-8] + node.to_bytes(8, "little"))
            entries.clear()
        self._levels[0].append(key + address.to_bytes(8, "little"))
        self.n_chunks += 1

    def write(self, put: Put) -> int:
        """Write the nodes on the way to the last chunk. Returns the root's address."""
        end, root = self._key_of(self.n_chunks, 0), list[bytes]()
        for level, entries in enumerate(self._levels):
            if here := entries + root:
                root = [here[0][:-8] + put(self._node(level, here, end)).to_bytes(8, "little")]
        return int.from_bytes(root[0][-8:], "little") if root else UNDEFINED

    def _node(self, level: int, entries: Sequence[bytes], end: bytes) -> bytes:
        return tree_head(level, len(entries)) + b"".join(entries) + end
