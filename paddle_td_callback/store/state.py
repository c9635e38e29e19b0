"""The state of a recording: the facts that each commit says anew, and the HDF5 metadata made from them."""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from . import blocks
from . import hdf5_format as h5
from .blocks import FRAME_BYTES, START, DamagedError, Root, read_block, read_root
from .chunks import DEFLATE_MAX_RATIO
from .disk import RawFile
from .hdf5_format import UNDEFINED, ChunkTree, padded
from .schema import DROPPED, FORMAT, LABELS, SCHEMA_VERSION, TEXTS, Field, Layout

_MOST_FACTS_BYTES = 1 << 16


class _Body:
    """A block under construction, that will lie at an address."""

    def __init__(self, at: int) -> None:
        self._at, self.raw = at, bytearray()

    def put(self, raw: bytes) -> int:
        """Append; returns the address."""
        self.raw += bytes(-len(self.raw) % 8) + raw
        return self._at + len(self.raw) - len(raw)

    def put_messages(self, parts: Sequence[h5.Message]) -> h5.Continuation:
        """Append messages for an object header elsewhere."""
        raw = h5.messages(parts)
        return h5.Continuation(self.put(raw), len(raw), len(parts))


class Constants(NamedTuple):
    """HDF5 metadata that never change, and the addresses of what is in them."""

    raw: bytes
    root: h5.Continuation
    heap: int
    places: Mapping[str, int]  # of names in the heap
    rest: Mapping[str, h5.Continuation]  # of the datasets' headers


@dataclass(frozen=True)
class State:
    """What a commit says of the recording. What reads it from a file raises DamagedError where that is damaged."""

    layout: Layout
    created: str  # when it began, ISO 8601, UTC
    versions: str  # of the packages that recorded it
    names: Mapping[str, Sequence[int]]  # of each of `TEXTS`: addresses of references and of the first text
    constants_at: int  # address of the HDF5 metadata that never change
    n_epochs: int = 0  # committed epochs, dropped ones included
    labels: Sequence[int] = (0, 0)  # address, and CRC-32
    dropped: Sequence[int] = (0, 0)  # address and number of the epochs that were never written
    roots: Sequence[int] = ()  # of the chunk trees, in the order of `layout.fields`
    at: int = 0  # address of the state
    nodes: bytes = field(default=b"", repr=False)  # right edges of the trees, which its block begins with

    def laid_out(
        self, at: int, trees: Iterable[ChunkTree], constants: Constants
    ) -> tuple[State, bytes, bytes]:
        """The state for an address, with the chunks that the trees hold; its block, and that of the metadata behind it.

        Its block has the trees' last nodes, the facts as JSON, and the length of these.
        """
        body = _Body(at)
        roots = [tree.write(body.put) for tree in trees]
        state = replace(self, roots=roots, at=at, nodes=bytes(body.raw))
        facts = {"schema_version": SCHEMA_VERSION, **asdict(state)}
        del facts["nodes"], facts["at"]
        text = json.dumps(facts, separators=(",", ":")).encode()
        block = state.nodes + text + struct.pack("<I", len(text))
        return state, block, state.metadata(at + padded(len(block)) + FRAME_BYTES, constants)

    @classmethod
    def read(cls, file: RawFile, root: Root) -> State:
        """The state of a commit, if it can be; StoreError where a later version of this package wrote it."""
        at, block = root.state, read_block(file, root.state, blocks.STATE)
        if root.end > file.n_bytes:
            raise DamagedError(file, f"it is cut off: {file.n_bytes} bytes of {root.end}")
        n_bytes = int.from_bytes(block[-4:], "little")
        try:
            if not 2 <= n_bytes <= min(_MOST_FACTS_BYTES, len(block) - 4):
                raise ValueError(f"{n_bytes} bytes of facts in a block of {len(block)}")
            facts = json.loads(block[-4 - n_bytes : -4])
            if facts.pop("schema_version") > SCHEMA_VERSION:
                what = f"has a later schema than {SCHEMA_VERSION}"
                raise StoreError(f"'{file.name}' {what}; upgrade paddle_td_callback")
            state = cls(Layout(**facts.pop("layout")), **facts, at=at, nodes=block[: -4 - n_bytes])
            state._check(root.end)
            return state
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedError(file, f"the state at byte {at} says what cannot be: {error}"[:300]) from error

    def _check(self, end: int) -> None:
        """Believe no fact outside its range, and no shape that the bytes in the file cannot back."""
        layout, most = self.layout, max(self.at, (1 << 32) - 1)
        ranges: list[tuple[Sequence[int], int, int, int]]
        ranges = [([self.n_epochs], 0, (1 << 32) - 1, 1), ([self.constants_at], START, self.at, 1)]
        ranges += [(self.labels, 0, most, 2), (self.dropped, 0, most, 2)]
        ranges += [(self.roots, START, UNDEFINED, len(layout.fields))]
        ranges += [(places, START, self.at, 2) for places in self.names.values()]
        for numbers, low, high, count in ranges:
            inside = [type(one) is int and low <= one <= high for one in numbers]
            if inside != [True] * count:
                raise ValueError(f"{numbers!r:.50} where {count} numbers in [{low}, {high}] were expected")
        for text in (self.created, self.versions):
            if not (text.isascii() and text.isprintable()):
                raise ValueError(f"{text!r:.50} where plain text was expected")
        if not self.names.keys() <= set(TEXTS):
            raise ValueError(f"names {list(self.names)!r:.50}")
        n_dropped, n_chunks = self.dropped[1], sum(one.n_chunks for one in layout.fields)
        written = layout.epoch_bytes // (DEFLATE_MAX_RATIO if layout.gzip_level else 1)
        least = written * (self.n_epochs - n_dropped) + 32 * n_chunks * self.n_epochs
        least += 8 * n_dropped + 4 * layout.n_samples
        if n_dropped > self.n_epochs or least > end:
            raise ValueError(f"{self.n_epochs} epochs, {n_dropped} dropped: it claims at least {least} bytes")

    def trees(self, file: RawFile) -> list[StoredTree]:
        """The chunks of each field."""
        return [StoredTree(file, self, one) for one in self.layout.fields]

    def read_labels(self, file: RawFile) -> npt.NDArray[np.int32]:
        """`[sample]`, -1 = never seen."""
        block = read_block(file, self.labels[0], blocks.LABELS)
        if len(block) != 4 * self.layout.n_samples or zlib.crc32(block) != self.labels[1]:
            raise DamagedError(file, f"the labels do not match their checksum {self.labels[1]:08x}")
        return np.frombuffer(block, "<i4").astype(np.int32)

    def read_dropped(self, file: RawFile) -> list[int]:
        """The epochs that were never written, in order."""
        at, count = self.dropped
        block = read_block(file, at, blocks.ARRAY) if count else b""
        dropped = np.frombuffer(block[: len(block) & ~7], "<i8")
        if len(block) != 8 * count or (np.diff(dropped, prepend=-1, append=self.n_epochs) <= 0).any():
            raise DamagedError(file, "the list of dropped epochs is damaged")
        return list(map(int, dropped))

    def read_names(self, file: RawFile, kind: str) -> list[str] | None:
        """Class names, sample ids or label shifts, None where there are none."""
        if kind not in self.names:
            return None
        texts, at, count = list[bytes](), self.names[kind][1], self.layout.n_names(kind)
        while len(texts) < count:
            heap = read_block(file, at, blocks.TEXT)
            found = h5.heap_texts(heap)
            texts, at = [*texts, *found], at + FRAME_BYTES + padded(len(heap))
            if not found or len(texts) > count:
                raise DamagedError(file, f"there are {len(texts)} of {count} {kind}")
        return [text.decode("utf-8", "surrogateescape") for text in texts]

    def _datasets(self) -> Iterator[tuple[str, list[h5.Message], list[h5.Message]]]:
        """Name of each dataset, messages of its header that never change, and those that do."""
        layout, n_samples = self.layout, self.layout.n_samples
        for one, root in zip(layout.fields, self.roots or [0] * len(layout.fields), strict=True):
            shape, dtype = one.shape, np.dtype(one.dtype)
            space = 0x01, h5.dataspace((self.n_epochs, *shape), (None, *shape))
            chunks = h5.chunked_layout((1, one.chunk_rows, *shape[1:]), dtype.itemsize, root)
            kind = h5.chunked_type(dtype, one.unseen, layout.gzip_level)
            yield one.name, [*kind, h5.attribute("meaning", one.meaning.encode())], [space, chunks]
        space, kind, place = h5.contiguous(np.dtype(LABELS.dtype), n_samples, self.labels[0])
        yield LABELS.name, [space, *kind, h5.attribute("meaning", LABELS.meaning.encode())], [place]
        space, kind, place = h5.contiguous(np.dtype("<i8"), self.dropped[1], self.dropped[0])
        yield DROPPED, kind, [space, place]
        for name, (at, _) in self.names.items():
            space, kind, place = h5.contiguous(None, layout.n_names(name), at)
            yield name, [space, *kind, place], []

    def constants(self) -> Constants:
        """The HDF5 metadata that never change."""
        layout, body = self.layout, _Body(self.constants_at)
        texts = {"format": FORMAT, "keep": str(layout.keep), "mode": layout.mode, "dtype": layout.dtype}
        texts.update(created=self.created, versions=self.versions)
        numbers = {"schema_version": SCHEMA_VERSION, "gzip_level": layout.gzip_level or 0}
        numbers.update(n_samples=layout.n_samples, n_classes=layout.n_classes)
        raw = h5.text_heaps((one.encode() for one in texts.values()), body.put)
        facts = [h5.attribute(name, raw[16 * i :][:16], is_reference=True) for i, name in enumerate(texts)]
        root = body.put_messages(facts + [h5.attribute(*fact) for fact in numbers.items()])
        rest = {name: body.put_messages(constant) for name, constant, _ in self._datasets()}
        heap, places = h5.local_heap(rest, body.put)
        return Constants(bytes(body.raw), root, heap, places, rest)

    def metadata(self, at: int, constants: Constants) -> bytes:
        """The HDF5 metadata of the state for an address; they begin with the root group's header."""
        body, checksum = _Body(at), h5.attribute("label_checksum", b"%08x" % self.labels[1])
        changing = [h5.attribute("committed_epochs", self.n_epochs), checksum]
        body.put(bytes(len(h5.header([(0x11, bytes(16)), *changing], constants.root))))
        members = {
            name: body.put(h5.header(parts, constants.rest[name])) for name, _, parts in self._datasets()
        }
        group = h5.symbol_table(constants.heap, constants.places, members, body.put)
        root = h5.header([group, *changing], constants.root)
        return root + bytes(body.raw[len(root) :])

    def check_metadata(self, file: RawFile, root: Root) -> None:
        """Compare what other HDF5 readers see with what follows from the facts."""
        constants = self.constants()
        for at, wanted in ((self.constants_at, constants.raw), (root.at, self.metadata(root.at, constants))):
            if read_block(file, at, blocks.METADATA) != wanted:
                raise DamagedError(file, f"the HDF5 metadata at byte {at} are not what was committed")


class StoredTree(ChunkTree):
    """The chunks of a field in a file, as of a state; DamagedError where its nodes are none of such a tree."""

    def __init__(self, file: RawFile, state: State, field: Field) -> None:
        super().__init__(field, state.n_epochs * field.n_chunks)
        self._file, self._state = file, state
        # Not a method: a cache that knows its tree would keep the file of a forgotten store open.
        self._read = functools.lru_cache(1024)(functools.partial(_read_node, file, state))

    def _wrong(self, what: str) -> DamagedError:
        return DamagedError(self._file, f"the chunk index of '{self.field.name}' is damaged: {what}")

    def _height(self, n_chunks: int) -> int:
        level = 0
        while self.fan_out ** (level + 1) < n_chunks:
            level += 1
        return level

    def _way(self, number: int) -> Iterator[tuple[int, bytes, int]]:
        """The nodes on the way to a chunk: level, bytes, and where in them the next one's entry ends."""
        at, level = self._state.roots[self.field.number], self._height(self.n_chunks)
        while level >= 0:
            span = self.fan_out**level
            start, place = divmod(number // span, self.fan_out)
            n_entries = min(self.fan_out, -(-self.n_chunks // span) - start * self.fan_out)
            node, end = self._read(at), 24 + (place + 1) * (self._key.size + 8)
            if node[:24] != h5.tree_head(level, n_entries):
                raise self._wrong(f"at byte {at} is no node of its level")
            yield level, node, end
            at, level = int.from_bytes(node[end - 8 : end], "little"), level - 1

    def find(self, epoch: int, number: int) -> tuple[int, int]:
        """Address and stored bytes of a chunk of an epoch."""
        number += epoch * self.field.n_chunks
        *_, (_, node, end) = self._way(number)
        key = node[end - 8 - self._key.size : end - 8]
        n_bytes = int.from_bytes(key[:4], "little")
        if key != self._key_of(number, n_bytes):
            raise self._wrong(f"another chunk stands in the place of number {number}")
        return int.from_bytes(node[end - 8 : end], "little"), n_bytes

    def cut(self, n_epochs: int) -> ChunkTree:
        """The chunks of the first epochs as a tree that can grow."""
        n_chunks, size = n_epochs * self.field.n_chunks, self._key.size + 8
        tree = ChunkTree(self.field, n_chunks)
        tree._levels = [[] for _ in range(self._height(n_chunks) + 1)]
        if self.n_chunks:
            self.find(0, self.n_chunks - 1)  # which says whether it is the tree of another dataset
        for level, node, end in self._way(n_chunks - 1) if n_chunks else ():
            if level < len(tree._levels):
                entries = [node[i : i + size] for i in range(24, end, size)]
                tree._levels[level] = entries[:-1] if level else entries
        return tree


def _read_node(file: RawFile, state: State, at: int) -> bytes:
    """The bytes from an address on, of a node at least."""
    if state.at <= at < state.at + len(state.nodes):
        return state.nodes[at - state.at :][: h5.SLACK_BYTES]
    return read_block(file, at, blocks.NODE, h5.SLACK_BYTES)


def newest_state(file: RawFile) -> tuple[Root, State, DamagedError | None]:
    """The newest state that is whole, and what is wrong with a newer one; StoreError if nothing leads to one."""
    wrong = list[DamagedError]()
    for place in (h5.ROOT_AT, h5.BEFORE_AT):
        try:
            root = read_root(file, place)
            return root, State.read(file, root), wrong[0] if wrong else None
        except DamagedError as error:  # noqa: PERF203 (twice at most)
            wrong.append(error)
    if file.read(START, 4) == blocks.FRAME_MAGIC:
        raise wrong[0]
    what = "is an HDF5 file, but no recording of training dynamics as this package writes it"
    if file.read(0, 8) != h5.SIGNATURE:
        what = "is no HDF5 file; it is no recording of training dynamics" if file.n_bytes else "is empty"
    raise StoreError(
        f"'{file.name}' {what}; give a file that TrainingDynamicsCallback or TrainingDynamicsRecorder made"
    )
