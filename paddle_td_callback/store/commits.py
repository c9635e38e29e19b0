"""One commit, from `commit_epoch` to its last fsync: nothing that is referenced is ever overwritten.

A commit

1. appends the chunks of the epoch, the B-tree nodes that became full, its state (all that it changes) and HDF5 metadata
   for other readers, and calls fsync;
2. writes the superblock, one sector, which leads every reader to the new metadata and these to the new state, and calls
   fsync: now the epoch is committed.

A process that dies, a disk that fails or a power cut leaves what was committed, since no byte of it was touched. The
next writer cuts off what was appended beyond it. Readers take the newest state, and need no lock.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import blocks
from .blocks import FRAME_BYTES, START, Frame, Root
from .chunks import CHECKSUM_BYTES, encode_chunk
from .disk import SIGN_AT, RawFile, sign, take
from .hdf5_format import END_AT, SLACK_BYTES, ChunkTree, padded, superblock
from .paths import move_into_place
from .schema import Field
from .state import State

_AHEAD_BYTES = 16 << 20  # from the newest commit to the end of the file, while it is recorded
_MARGIN_BYTES = 4 << 20  # from the newest commit to the told end, and from that to the end of the file
_WRITE_BEHIND_BYTES = 8 << 20  # appended since the disk was last asked to begin writing


class EpochLog:
    """The one writer of a file at `real`; StoreError if another process records into it."""

    def __init__(self, file: RawFile, real: str) -> None:
        self._file, self._real, self.path = file, real, file.name
        self._token = secrets.token_bytes(16)
        self._root = 0  # address in the superblock
        self._end = self._told_end = START  # of the log; of the file, as the superblock says
        self._kept_end = START  # end of what the superblock on the disk may lead to
        self._behind = START  # end of what the disk was asked to write
        self._will_replace: tuple[str, RawFile] | None = None  # path and locked file, until the first epoch
        self._trees: list[ChunkTree] = []  # in the order of `layout.fields`
        self._dropped: list[int] = []
        self.labels: npt.NDArray[np.int32] = np.empty(0, np.int32)  # [sample] as committed, -1 = never seen
        self._written = self.labels, self._dropped  # in the file
        self._is_locked = take(file)

    @property
    def n_epochs(self) -> int:
        """Committed epochs, dropped ones included."""
        return self._state.n_epochs

    def _go_on_from(self, state: State) -> None:
        self._state, self._constants, self.layout = state, state.constants(), state.layout

    def _begin(self, root: Root | None = None) -> None:
        """Lay out an empty file, or cut off what was appended to one after its newest commit."""
        if root is None:
            self._file.run = secrets.randbits(32)
            self._file.write(0, superblock(0, START, 0).ljust(START, b"\0"))
        else:
            self._root, self._end, self._kept_end = root.at, root.end, root.end
        self._file.write(SIGN_AT, sign(self._token))
        self._cut_off()
        self._lengthen()

    def commit_epoch(
        self, index: int, epoch: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.int32]
    ) -> None:
        """Write one epoch; when this returns it is durable, if it raises the file is as before.

        Args:
            index: number of the epoch; a gap behind the last committed one stays unseen and is noted as
                dropped, an epoch already committed is left alone.
            epoch: one array for each field of the layout; samples whose `n_presentations` is 0 are
                stored as unseen, whatever the other arrays hold for them.
            labels: `[sample]` int32, -1 = not seen so far.

        Raises:
            OSError: the disk refused, or the file is gone, or another process writes into it.
        """
        if index >= self.n_epochs:
            with self._transaction():
                trees = [tree.copy() for tree in self._trees]
                for field, tree in zip(self.layout.fields, trees, strict=True):
                    self._append_chunks(index, field, epoch, tree)
                self._commit(index + 1, trees, labels, [*self._dropped, *range(self.n_epochs, index)])
        if self._will_replace is not None:
            real, held = self._will_replace
            move_into_place(self._real, real, overwrite=True)
            self._real, self._will_replace = real, None
            held.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Append in this block, `_commit` at its end; where it raises, what was appended is given up."""
        if not self._file.is_at(self._real):
            raise FileNotFoundError(f"'{self._real}' was removed, or replaced by another file")
        if self._file.n_bytes < self._end:
            raise OSError(
                f"'{self._real}' was cut off by another program; save its good epochs by `paddle-td verify --salvage`, "
                "and record to another path"
            )
        self._check_alone()
        self._behind = self._end
        try:
            yield
        except BaseException:
            self._end = self._kept_end
            with contextlib.suppress(OSError):
                self._check_alone()  # what another writer has appended is not to be cut off
                self._cut_off()
                self._lengthen()
            raise

    def _append_chunks(
        self, index: int, field: Field, epoch: Mapping[str, npt.NDArray[Any]], tree: ChunkTree
    ) -> None:
        """Append one epoch of a field. HDF5 stores whole chunks, the last too."""
        rows, unseen, n_rows = epoch[field.name], epoch["n_presentations"] == 0, field.chunk_rows
        put_node = functools.partial(self._append_block, blocks.NODE)
        blank = np.full((n_rows, *rows.shape[1:]), field.unseen, field.dtype)
        if index > self.n_epochs:  # all chunks of dropped epochs are one: some readers know no gaps
            place = self._append_chunk(self.n_epochs, field, blocks.SHARED, blank)
            for _ in range((index - self.n_epochs) * field.n_chunks):
                tree.append(*place, put_node)
        for number, start in enumerate(range(0, len(rows), n_rows)):
            part, missing = rows[start : start + n_rows], unseen[start : start + n_rows]
            if len(part) < n_rows or missing.any():
                block = blank.copy()
                block[: len(part)][~missing] = part[~missing]
                part = block
            tree.append(*self._append_chunk(index, field, number, part), put_node)

    def _append_chunk(self, epoch: int, field: Field, number: int, rows: npt.NDArray[Any]) -> tuple[int, int]:
        """Append a chunk; returns its address and size."""
        payload, fletcher, checksum = encode_chunk(rows, gzip_level=self.layout.gzip_level)
        n_bytes = len(payload) + CHECKSUM_BYTES
        frame = Frame(blocks.CHUNK, field.number, epoch, number, n_bytes, checksum)
        return self._append(frame, payload, fletcher), n_bytes

    def _append_block(self, kind: int, body: bytes, long: int = 0) -> int:
        """Append a block that is no chunk; returns its address."""
        return self._append(Frame(kind, 0, *divmod(long, 1 << 32), len(body), zlib.crc32(body)), body)

    def _append(self, frame: Frame, *parts: Any) -> int:
        """Append a block; returns its address, behind the frame."""
        if not self._is_locked:
            self._check_alone()
        at = self._end + FRAME_BYTES
        frame = frame._replace(run=self._file.run or 0)
        self._file.write(self._end, frame.pack(self._end), *parts, bytes(-frame.n_bytes % 8))
        self._end = at + padded(frame.n_bytes)
        if self._end - self._behind >= _WRITE_BEHIND_BYTES:
            self._file.write_behind(self._behind, self._end - self._behind)
            self._behind = self._end
        return at

    def _commit(
        self, n_epochs: int, trees: list[ChunkTree], labels: npt.NDArray[np.int32], dropped: list[int]
    ) -> None:
        """Commit what was appended; when this returns, it is durable."""
        state = replace(self._state, n_epochs=n_epochs)
        if not np.array_equal(labels, self._written[0]):
            raw = np.ascontiguousarray(labels, "<i4").tobytes()
            state = replace(state, labels=(self._append_block(blocks.LABELS, raw), zlib.crc32(raw)))
        if dropped != self._written[1]:
            raw = np.asarray(dropped, "<i8").tobytes()
            state = replace(state, dropped=(self._append_block(blocks.ARRAY, raw), len(dropped)))
        state, block, metadata = state.laid_out(self._end + FRAME_BYTES, trees, self._constants)
        self._append_block(blocks.STATE, block)
        root = self._append_block(blocks.METADATA, metadata, state.at)
        self._file.write(self._end, bytes(SLACK_BYTES))
        self._file.sync()
        self._check_alone()
        if self._told_end < self._end + SLACK_BYTES + _MARGIN_BYTES:
            self._told_end = max(self._end + SLACK_BYTES, self._file.n_bytes - _MARGIN_BYTES)
        self._kept_end = self._end  # also if the next lines fail: the disk may have written the superblock
        self._file.write(0, superblock(root, self._told_end, self._root))
        self._file.sync()
        # Committed.
        self._root, self._state, self._trees, self._dropped = root, state, trees, dropped
        self.labels = labels.copy()
        self._written = self.labels, dropped
        self._lengthen()

    def _lengthen(self) -> None:
        """Make the file longer than its next commits, by a hole.

        HDF5 asks for a file's size, then reads the end in the superblock, and then the root there. If commits came in
        between, it would find a file that is too short, or a root beyond the end, and refuse the file. So both are
        ahead of the commits: the end seldom moves, and only to where the file has been on disk for a while.
        """
        if self._file.n_bytes < self._end + _AHEAD_BYTES // 2:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end + _AHEAD_BYTES)

    def _cut_off(self) -> None:
        """Give back the space behind the log. The superblock says so first, or a power cut leaves a file too short."""
        self._told_end = self._end + SLACK_BYTES
        self._file.write(END_AT, struct.pack("<Q", self._told_end))
        self._file.sync()
        self._file.truncate(self._told_end)

    def _check_alone(self) -> None:
        """Where the file system has no locks, two writers notice each other by their signs."""
        if self._file.read(SIGN_AT + 8, 16) != self._token:
            raise BlockingIOError("another process has begun to record into it; this recording of it ends")

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        if self._file.fd >= 0:
            with contextlib.suppress(OSError):
                self._check_alone()
                self._file.write(SIGN_AT, bytes(len(sign(b""))))
                self._cut_off()
                self._file.sync()
            self._file.close()
