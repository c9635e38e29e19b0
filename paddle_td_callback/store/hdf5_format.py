"""HDF5 metadata as bytes: superblock 0, object headers 1, old-style groups, version 1 B-trees, global heaps.

Only what a recording needs of the HDF5 File Format Specification, version 3.0. Callers give the addresses, so the same
arguments always give the same bytes.

B-tree nodes and symbol table nodes are written without their unused tail: a reader takes as many bytes as a full node
has, and uses as many entries as the node says. So a file must be `SLACK_BYTES` longer than the start of its last node.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

UNDEFINED = (1 << 64) - 1
SLACK_BYTES = 4096  # more than the largest node: 24 + 65 keys of 40 bytes + 64 addresses
END_AT, ROOT_AT = 40, 64  # places in the superblock of the end of the file and of the root group's address

_HEAP_BYTES = 1 << 16
_LEAF_K, _GROUP_K = 5, 16  # room for 10 names in a symbol table node
_MOST_ENTRIES = 64  # of a chunk B-tree node, fixed by HDF5 for superblock 0
_TEXT = struct.pack("<B3BI", 0x19, 1, 1, 0, 16) + struct.pack("<B3BIHH", 0x10, 0, 0, 0, 1, 0, 8)

Message = tuple[int, bytes]  # type and body
Put = Callable[[bytes], int]  # appends bytes and returns their address


def padded(n_bytes: int) -> int:
    """So many bytes rounded up to a multiple of 8."""
    return n_bytes + -n_bytes % 8


def _pad(raw: bytes) -> bytes:
    return raw.ljust(padded(len(raw)), b"\0")


def superblock(root: int, end: int) -> bytes:
    """The first 96 bytes of the file."""
    start = 0, 0, 0, 0, 0, 8, 8, 0, _LEAF_K, _GROUP_K, 0, 0, UNDEFINED, end, UNDEFINED, 0, root, 0, 0
    return b"\x89HDF\r\n\x1a\n" + struct.pack("<8BHHIQQQQQQII16x", *start)


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


def attribute(name: str, value: bytes | int, dtype: np.dtype[Any] | None) -> Message:
    """A scalar attribute; of variable-length text the value is what `text_heaps` gave."""
    raw = value.to_bytes(8, "little", signed=True) if isinstance(value, int) else value
    label, kind, space = name.encode() + b"\0", datatype(dtype), dataspace(())
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


def contiguous(dtype: np.dtype[Any] | None, n: int, at: int) -> bytes:
    """Header of a one-dimensional dataset in one piece; without a dtype one of variable-length text."""
    n_bytes = n * (16 if dtype is None else dtype.itemsize)
    layout = struct.pack("<BBQQ", 3, 1, at if n else UNDEFINED, n_bytes)
    fill = struct.pack("<BBBB", 2, 2, 2, 0)
    return header([(0x01, dataspace((n,))), (0x03, datatype(dtype)), (0x05, fill), (0x08, layout)])


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
    references, waiting, n_bytes = bytearray(), list[bytes](), 0

    def flush() -> None:
        body = b"".join(
            struct.pack("<HH4xQ", i, 1, len(text)) + _pad(text) for i, text in enumerate(waiting, 1)
        )
        size = max(4096, len(body) + 32)
        free = struct.pack("<HH4xQ", 0, 0, size - 16 - len(body))
        at = put((struct.pack("<4sB3xQ", b"GCOL", 1, size) + body + free).ljust(size, b"\0"))
        references.extend(
            b"".join(struct.pack("<IQI", len(text), at, i) for i, text in enumerate(waiting, 1))
        )
        waiting.clear()

    for text in texts:
        waiting.append(text)
        n_bytes += 16 + len(text)
        if n_bytes >= _HEAP_BYTES:
            flush()
            n_bytes = 0
    if waiting:
        flush()
    return bytes(references)


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


class ChunkIndex:
    """The chunks of one dataset in order: a B-tree that grows at its right end alone.

    A full node is written once. Each commit writes the nodes on the way to the last chunk again.

    Args:
        rank: axes of the dataset.
        fan_out: entries of a full node, at most 64. Few keep small commits small, many keep large trees flat.
    """

    def __init__(self, rank: int, fan_out: int) -> None:
        self.rank, self.fan_out = rank, fan_out
        self._key = struct.Struct(f"<II{rank + 1}Q")  # stored bytes, filter mask, first element
        place = "<u8", (rank + 1,)
        self._entry = np.dtype([("n_bytes", "<u4"), ("mask", "<u4"), ("first", *place), ("child", "<u8")])
        # Level 0: entries of the last leaf. Level n: full nodes of level n - 1 that no full node holds yet.
        self._levels: list[list[bytes]] = [[]]

    def copy(self) -> ChunkIndex:
        """An index that can be changed by itself."""
        other = ChunkIndex(self.rank, self.fan_out)
        other._levels = [list(level) for level in self._levels]
        return other

    def append(self, n_bytes: int, first: Sequence[int], address: int, put: Put) -> None:
        """Add the next chunk: its stored bytes, first element and address. `put` takes nodes that became full."""
        key, level = self._key.pack(n_bytes, 0, *first, 0), 0
        if len(self._levels[0]) == self.fan_out:
            while len(self._levels[level]) == self.fan_out:
                entries = self._levels[level]
                node = put(self._node(level, entries, key))
                level += 1
                if level == len(self._levels):
                    self._levels.append([])
                self._levels[level].append(entries[0][:-8] + node.to_bytes(8, "little"))
                entries.clear()
        self._levels[0].append(key + address.to_bytes(8, "little"))

    def write(self, end: Sequence[int], put: Put) -> int:
        """Write the nodes on the way to the last chunk; `end` lies behind all chunks. Returns the root's address."""
        last, root = self._key.pack(0, 0, *end, 0), b""
        for level, entries in enumerate(self._levels):
            here = [*entries, root] if root else entries
            if not here or (root and not any(self._levels[level:])):
                break
            root = here[0][:-8] + put(self._node(level, here, last)).to_bytes(8, "little")
        return int.from_bytes(root[-8:], "little") if root else UNDEFINED

    def _node(self, level: int, entries: Sequence[bytes], end: bytes) -> bytes:
        head = struct.pack("<4sBBHQQ", b"TREE", 1, level, len(entries), UNDEFINED, UNDEFINED)
        return head + b"".join(entries) + end

    def follow(self, root: int, n_chunks: int, read: Callable[[int], bytes]) -> npt.NDArray[Any]:
        """Take over a tree from a file.

        Args:
            root: its address.
            n_chunks: how many chunks it holds.
            read: gives the bytes from an address on, those of a node at least.

        Returns:
            `[chunk]` entries with the fields `n_bytes`, `mask`, `first` and `child`, the address.

        Raises:
            ValueError: it is no such tree.
        """
        self._levels, here, level = [[]], [] if root == UNDEFINED else [root], -1
        every = np.empty(0, self._entry)
        while here:
            parts = []
            for place in here:
                node = read(place)
                found, count = struct.unpack_from("<BH", node, 5)
                if (
                    node[:5] != b"TREE\x01"
                    or node[8:24] != b"\xff" * 16
                    or not 1 <= count <= self.fan_out
                    or found != (level if level >= 0 else found)
                ):
                    raise ValueError(f"at byte {place} is no node of its level")
                entries = np.frombuffer(node, self._entry, count, 24)
                parts.append(entries)
                if (entries["child"] >= place).any():  # children are written first, so no path is a circle
                    raise ValueError(f"the node at byte {place} is older than what it holds")
                if entries["mask"].any() or entries["first"][:, -1].any():
                    raise ValueError(f"the node at byte {place} holds what no writer wrote")
            every = np.concatenate(parts)
            if len(every) > n_chunks or found > 20:
                raise ValueError(f"it holds more than {n_chunks} chunks")
            if level < 0:
                self._levels = [[] for _ in range(found + 1)]
            last = parts[-1] if found == 0 else parts[-1][:-1]
            self._levels[found] = [entry.tobytes() for entry in last]
            here, level = (every["child"].tolist(), found - 1) if found else ([], -1)
        return every
