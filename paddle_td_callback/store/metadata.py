"""The head and the state of a recording: HDF5 metadata for every reader, and behind it the facts it is made from."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hdf5_format as h5
from .commits import (
    ARRAY,
    FRAME_BYTES,
    HEAD,
    METADATA,
    NODE,
    START,
    STATE,
    TEXT,
    Commit,
    DamagedError,
    Frame,
    RawFile,
    read_block,
)
from .hdf5_format import UNDEFINED, ChunkIndex, Continuation, padded
from .schema import DROPPED, FORMAT, LABELS, SCHEMA_VERSION, TEXTS, Field, Layout

_INT64, _CHECKSUM = np.dtype("<i8"), np.dtype("S8")
_MAX_FACTS_BYTES = 1 << 20
MAX_EMPTY_SAMPLES = 1 << 22  # no bytes on disk back the size of a recording without epochs
_DEFLATE_MAX_RATIO = 1100  # no deflate stream expands further (1032), so a dataset that claims to is forged


class NewerSchemaError(ValueError):
    """A later version of this package wrote the file."""


class _Body:
    """A block under construction, that will lie at an address."""

    def __init__(self, at: int) -> None:
        self._at, self.raw = at, bytearray()

    def put(self, raw: bytes) -> int:
        """Append; returns the address."""
        self.raw += bytes(-len(self.raw) % 8)
        self.raw += raw
        return self._at + len(self.raw) - len(raw)

    def put_messages(self, parts: Sequence[h5.Message]) -> Continuation:
        """Append messages for an object header elsewhere."""
        raw = h5.messages(parts)
        return Continuation(self.put(raw), len(raw), len(parts))


def pack_facts(facts: dict[str, Any], before: bytes = b"") -> bytes:
    """A block that ends in facts."""
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    return before + text + struct.pack("<I", len(text))


def unpack_facts(block: bytes) -> dict[str, Any]:
    """The facts at the end of a block.

    Raises:
        ValueError: there are none.
    """
    n_bytes = int.from_bytes(block[-4:], "little")
    if not 2 <= n_bytes <= min(_MAX_FACTS_BYTES, len(block) - 4):
        raise ValueError(f"{n_bytes} bytes of facts in a block of {len(block)}")
    try:
        facts = json.loads(block[-4 - n_bytes : -4])
    except RecursionError as error:
        raise ValueError("its facts are nested too deeply") from error
    if not isinstance(facts, dict):
        raise ValueError("its facts are no mapping")
    return facts


def whole(value: Any, low: int, high: int) -> int:
    """A whole number that a file claims, if it is one in `[low, high]`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{value!r:.50} where a number in [{low}, {high}] was expected")
    return value


@dataclass(frozen=True)
class Head:
    """What never changes.

    Args:
        layout: of the recording.
        created: when it began, ISO 8601, UTC.
        versions: of the packages that recorded it.
        texts: references to the attributes that are text, 16 bytes each, as hexadecimal digits.
        names: of class names and sample ids, if there are any: address of the array of references, address of the
            first block of text, number of such blocks, which follow each other.
        metadata_at: address of the HDF5 metadata that never change.
    """

    layout: Layout
    created: str
    versions: str
    texts: str
    names: Mapping[str, Sequence[int]]
    metadata_at: int

    @staticmethod
    def strings(layout: Layout, created: str, versions: str) -> dict[str, str]:
        """The attributes of the file that are text."""
        facts = {"keep": str(layout.keep), "mode": layout.mode, "dtype": layout.dtype}
        return {"format": FORMAT, **facts, "created": created, "versions": versions}

    @classmethod
    def read(cls, file: RawFile, at: int) -> Head:
        """The head at an address.

        Raises:
            DamagedError: it is not there, or says what cannot be.
            NewerSchemaError: a later version of this package wrote it.
        """
        block = read_block(file, at, HEAD)
        try:
            facts = unpack_facts(block)
            if whole(facts.pop("schema_version"), 1, 1 << 31) > SCHEMA_VERSION:
                raise NewerSchemaError(f"a later schema than {SCHEMA_VERSION}")
            layout = Layout(**facts.pop("layout"))
            for name, places in facts["names"].items():
                if name not in TEXTS or len([whole(place, 0, at) for place in places]) != 3:
                    raise ValueError(f"names {name!r:.50}")
            whole(facts["metadata_at"], START, at)
            for name in ("created", "versions"):
                if not isinstance(facts[name], str) or not (
                    facts[name].isascii() and facts[name].isprintable()
                ):
                    raise ValueError(f"{name} {facts[name]!r:.50}")
            if len(bytes.fromhex(facts["texts"])) != 16 * len(cls.strings(layout, "", "")):
                raise ValueError(f"texts {facts['texts']:.50}")
            return cls(layout, **facts)
        except NewerSchemaError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"the head at byte {at} says what cannot be: {error}") from error

    def block(self) -> bytes:
        """The bytes of the head."""
        return pack_facts({"schema_version": SCHEMA_VERSION, **asdict(self)})

    def metadata(self) -> tuple[bytes, HeadMetadata]:
        """The HDF5 metadata that never change, and what is where in them."""
        layout, body = self.layout, _Body(self.metadata_at)
        members = {
            name: body.put(h5.contiguous(None, layout.n_texts(name), p[0])) for name, p in self.names.items()
        }
        types = {}
        for one in (*layout.fields, LABELS):
            gzip_level = None if one is LABELS else layout.gzip_level
            constant = h5.chunked_type(np.dtype(one.dtype), one.unseen, gzip_level)
            meaning = one.meaning.encode()
            constant.append(h5.attribute("meaning", meaning, np.dtype(f"S{len(meaning)}")))
            types[one.name] = body.put_messages(constant)
        raw = bytes.fromhex(self.texts)
        constant = [
            h5.attribute(name, raw[16 * i : 16 * i + 16], None)
            for i, name in enumerate(self.strings(layout, self.created, self.versions))
        ]
        for name, value in {
            "schema_version": SCHEMA_VERSION,
            "n_samples": layout.n_samples,
            "n_classes": layout.n_classes,
            "gzip_level": layout.gzip_level or 0,
        }.items():
            constant.append(h5.attribute(name, value, _INT64))
        root = body.put_messages(constant)
        heap, places = h5.local_heap([*types, *members, DROPPED], body.put)
        return bytes(body.raw), HeadMetadata(root, heap, places, members, types)

    def index(self, one: Field) -> ChunkIndex:
        """An empty index of a dataset's chunks."""
        rank = 1 if one is LABELS else 1 + len(self.layout.epoch_shape(one))
        return ChunkIndex(rank, 8 if self.layout.n_chunks(one) < 8 else 64)


@dataclass(frozen=True)
class HeadMetadata:
    """Addresses: the constants of the root group and of each dataset, names, whole datasets."""

    root: Continuation
    heap: int
    places: Mapping[str, int]
    members: Mapping[str, int]
    types: Mapping[str, Continuation]


@dataclass
class State:
    """All that a commit changes.

    Args:
        head: of the recording.
        head_at: its address.
        n_epochs: committed epochs, dropped ones included.
        label_checksum: CRC-32 of the labels.
        dropped: address and number of the epochs that were never written.
        roots: of the datasets' chunk indexes, by name.
    """

    head: Head
    head_at: int
    n_epochs: int
    label_checksum: str
    dropped: tuple[int, int]
    roots: dict[str, int]

    def block(self, at: int, indexes: Mapping[str, ChunkIndex]) -> bytes:
        """The bytes of the state for an address: the last nodes of the chunk indexes, and the facts. Sets `roots`."""
        body = _Body(at)
        for one in self.head.layout.fields:
            end = self.n_epochs, *[0] * len(self.head.layout.epoch_shape(one))
            self.roots[one.name] = indexes[one.name].write(end, body.put)
        facts = {name: value for name, value in vars(self).items() if name != "head"}
        return pack_facts(facts, bytes(body.raw))

    def metadata(self, at: int, metadata: HeadMetadata) -> bytes:
        """The HDF5 metadata of the state for an address; they begin with the root group's header."""
        layout, body = self.head.layout, _Body(at)
        changing = [
            h5.attribute("committed_epochs", self.n_epochs, _INT64),
            h5.attribute("label_checksum", self.label_checksum.encode(), _CHECKSUM),
        ]
        body.put(bytes(len(h5.header([(0x11, bytes(16)), *changing], metadata.root))))
        members = dict(metadata.members)
        for one in (*layout.fields, LABELS):
            shape = layout.epoch_shape(one)
            rows = layout.chunk_rows(one), *shape[1:]
            space = h5.dataspace(shape, shape)
            if one is not LABELS:
                space, rows = h5.dataspace((self.n_epochs, *shape), (None, *shape)), (1, *rows)
            chunks = h5.chunked_layout(rows, np.dtype(one.dtype).itemsize, self.roots[one.name])
            members[one.name] = body.put(h5.header([(0x01, space), chunks], metadata.types[one.name]))
        members[DROPPED] = body.put(h5.contiguous(_INT64, self.dropped[1], self.dropped[0]))
        group = h5.symbol_table(metadata.heap, metadata.places, members, body.put)
        root = h5.header([group, *changing], metadata.root)
        body.raw[: len(root)] = root
        return bytes(body.raw)

    @classmethod
    def read(cls, file: RawFile, commit: Commit) -> State:
        """The state of a commit.

        Raises:
            DamagedError: it is not there, says what cannot be, or the file is too short for it.
            NewerSchemaError: a later version of this package wrote it.
        """
        at = commit.at
        frame_at = max(START, at - FRAME_BYTES)
        frame = Frame.unpack(file.read(frame_at, FRAME_BYTES), frame_at)
        if frame is None or frame.long != commit.sequence:
            raise DamagedError(f"there is no state {commit.sequence} at byte {at}")
        file.run = frame.run
        block = read_block(file, at, STATE)
        if commit.end > file.n_bytes:
            raise DamagedError(f"it is cut off: {file.n_bytes} bytes of {commit.end}")
        try:
            whole(commit.sequence, 1, 1 << 62)
            whole(commit.end, at + padded(len(block)), file.n_bytes)
            facts = unpack_facts(block)
            head = Head.read(file, whole(facts["head_at"], START, at))
            n_epochs = whole(facts["n_epochs"], 0, (1 << 32) - 1)
            dropped = whole(facts["dropped"][0], 0, at), whole(facts["dropped"][1], 0, n_epochs)
            roots = {
                one.name: whole(facts["roots"][one.name], 0, UNDEFINED)
                for one in (*head.layout.fields, LABELS)
            }
            checksum = facts["label_checksum"]
            if len(checksum) != 8 or len(bytes.fromhex(checksum)) != 4:
                raise ValueError(f"label_checksum {checksum!r:.50}")
            state = cls(head, facts["head_at"], n_epochs, checksum, dropped, roots)
            state._check_room(commit.end)
            return state
        except (ValueError, TypeError, KeyError, IndexError) as error:
            if isinstance(error, NewerSchemaError):
                raise
            raise DamagedError(f"the state at byte {at} says what cannot be: {error}") from error

    def _check_room(self, n_bytes: int) -> None:
        """Believe no shape that the bytes in the file cannot back."""
        layout, n_written = self.head.layout, self.n_epochs - self.dropped[1]
        n_chunks = sum(map(layout.n_chunks, layout.fields))
        least = n_written * (layout.epoch_bytes // (_DEFLATE_MAX_RATIO if layout.gzip_level else 1))
        least += (
            32 * n_chunks * self.n_epochs + 8 * self.dropped[1] + 4 * layout.n_samples * (self.n_epochs > 0)
        )
        if least > n_bytes:
            raise ValueError(f"it claims at least {least} bytes, the file has {n_bytes}")

    def check_metadata(self, file: RawFile, commit: Commit) -> None:
        """Compare what other HDF5 readers see with what follows from the facts.

        Raises:
            DamagedError: they differ.
        """
        constant, metadata = self.head.metadata()
        at = self.metadata_at(commit)
        for place, wanted in ((self.head.metadata_at, constant), (at, self.metadata(at, metadata))):
            if read_block(file, place, METADATA) != wanted:
                raise DamagedError(f"the HDF5 metadata at byte {place} are not what was committed")

    def metadata_at(self, commit: Commit) -> int:
        """Address of the HDF5 metadata of this state; they are what a commit ends with."""
        _, metadata = self.head.metadata()
        return commit.end - padded(len(self.metadata(START, metadata)))

    def read_dropped(self, file: RawFile) -> npt.NDArray[np.int64]:
        """The epochs that were never written, in order.

        Raises:
            DamagedError: the list is damaged.
        """
        at, count = self.dropped
        block = read_block(file, at, ARRAY) if count else b""
        if len(block) != 8 * count:
            raise DamagedError("the list of dropped epochs is damaged")
        dropped = np.frombuffer(block, "<i8")
        if (np.diff(dropped) <= 0).any() or (count and not 0 <= dropped[0] <= dropped[-1] < self.n_epochs):
            raise DamagedError("the list of dropped epochs is damaged")
        return dropped.astype(np.int64)

    def read_names(self, file: RawFile, kind: str) -> list[str] | None:
        """Class names, sample ids or label shifts, None where there are none.

        Raises:
            DamagedError: they are damaged.
        """
        if kind not in self.head.names:
            return None
        count = self.head.layout.n_texts(kind)
        texts: list[bytes] = []
        _, at, n_blocks = self.head.names[kind]
        for _ in range(n_blocks):
            heap = read_block(file, at, TEXT)
            texts += h5.heap_texts(heap)
            at += FRAME_BYTES + padded(len(heap))
        if len(texts) != count:
            raise DamagedError(f"there are {len(texts)} of {count} {kind}")
        return [text.decode("utf-8", "surrogateescape") for text in texts]


class Chunks:
    """The chunks of one dataset of a state, in the order of epochs and samples.

    Args:
        file: the recording.
        state: read from it.
        at: address of the state.
        one: the dataset. Epochs that were never written share one unseen chunk.

    Attributes:
        at: `[chunk]` addresses.
        n_bytes: `[chunk]` stored sizes.
        index: of them, for chunks to come.

    Raises:
        DamagedError: the index is damaged, or does not hold exactly the chunks that the state says there are.
    """

    def __init__(self, file: RawFile, state: State, at: int, one: Field) -> None:
        layout, self.index = state.head.layout, state.head.index(one)
        state_block = read_block(file, at, STATE)
        n_rows = layout.chunk_rows(one)
        starts = np.arange(0, layout.n_samples if state.n_epochs else 0, n_rows)
        wanted = [starts]
        if one is not LABELS:
            wanted = [np.repeat(np.arange(state.n_epochs), len(starts)), np.tile(starts, state.n_epochs)]
        self.n_a_epoch = len(starts)

        def read(node: int) -> bytes:
            if at <= node < at + len(state_block):
                return state_block[node - at : node - at + h5.SLACK_BYTES]
            return read_block(file, node, NODE, h5.SLACK_BYTES)

        try:
            entries = self.index.follow(state.roots[one.name], len(wanted[0]), read)
        except (ValueError, struct.error) as error:
            raise DamagedError(f"the chunk index of '{one.name}' is damaged: {error}") from error
        self.at, self.n_bytes = entries["child"].astype(np.int64), entries["n_bytes"].astype(np.int64)
        first = entries["first"].astype(np.int64)
        packed, n_bytes = layout.gzip_level and one is not LABELS, layout.chunk_bytes(one) + 4
        if (
            len(first) != len(wanted[0])
            or any((first[:, axis] != column).any() for axis, column in enumerate(wanted))
            or first[:, len(wanted) :].any()
            or (self.n_bytes * _DEFLATE_MAX_RATIO < n_bytes if packed else self.n_bytes != n_bytes).any()
            or self.n_bytes[np.unique(self.at, return_index=True)[1]].sum() > file.n_bytes
        ):
            raise DamagedError(f"the chunk index of '{one.name}' is not that of {state.n_epochs} epochs")
