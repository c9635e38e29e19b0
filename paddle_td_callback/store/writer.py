"""The one writer of a recording."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..errors import StoreError, StoreNotFoundError
from .chunks import encode_chunk, read_chunk
from .commits import (
    ARRAY,
    CHUNK,
    FRAME_BYTES,
    HEAD,
    METADATA,
    NODE,
    SHARED,
    TEXT,
    DamagedError,
    Frame,
    Log,
    NotARecordingError,
    RawFile,
    commits,
    lock,
    open_file,
)
from .hdf5_format import UNDEFINED, ChunkIndex, text_heaps
from .metadata import MAX_EMPTY_SAMPLES, Chunks, Head, NewerSchemaError, State
from .paths import check_path, make_beside, move_into_place
from .schema import LABELS, TEXTS, Field, Layout, label_checksum

LABELS_FIELD = 255  # in frames, in which other fields are numbered as in `Layout.fields`
HINT = "; `paddle-td verify` says what can be salvaged"


class StoreWriter:
    """The one writer of a recording; made by `create` or `resume`.

    Attributes:
        path: as given.
        layout: the fixed facts of the recording.
        labels: `[sample]` int32 as committed, -1 = never seen.
        n_epochs: committed epochs, dropped ones included.
    """

    def __init__(self, log: Log, path: str, state: State, indexes: dict[str, ChunkIndex]) -> None:
        self._log, self.path, self._state, self._indexes = log, path, state, indexes
        self.layout = state.head.layout
        _, self._metadata = state.head.metadata()
        self.labels = np.full(self.layout.n_samples, LABELS.unseen, np.int32)
        self._dropped: list[int] = []
        self._label_chunks: dict[int, tuple[int, int]] = {}  # number: stored bytes, address
        self._fresh: str | None = (
            None  # where the file lies until its first epoch, if it will replace another
        )
        self._replaced: RawFile | None = None  # that other file, held and locked until then
        self._is_new = False

    @property
    def n_epochs(self) -> int:
        """Committed epochs, dropped ones included."""
        return self._state.n_epochs

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: Layout,
        *,
        class_names: Sequence[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        label_shifts: Sequence[str] | None = None,
        overwrite: bool = False,
        durable: bool = True,
    ) -> StoreWriter:
        """Make an empty recording. With `overwrite` it replaces a file once its first epoch is committed.

        Args:
            path: where; its folder must exist.
            layout: the fixed facts of the recording.
            class_names: one for each class, or None.
            sample_ids: one for each sample, all different, or None where they are known by their indices.
            label_shifts: for each sample by how many classes its label was moved on purpose, in digits, or None.
            overwrite: replace an existing file.
            durable: whether commits wait for the disk.

        Raises:
            StoreError: see `check_path`; or a recorder is writing the file to replace; or the disk refused.
            ValueError: a wrong number of class names or sample ids.
        """
        name = check_path(path, overwrite=overwrite)
        names: dict[str, Sequence[str]] = {}
        for kind, given in zip(TEXTS, (class_names, sample_ids, label_shifts), strict=True):
            if given is not None:
                count = layout.n_texts(kind)
                if len(given) != count:
                    raise ValueError(f"{kind} must have {count} names, got {len(given)}")
                names[kind] = given
        real = os.path.realpath(name)
        replaced = _lock_replaced(name, real) if overwrite and os.path.exists(real) else None
        fresh = None
        try:
            fresh = make_beside(real)
            log = Log(open_file(fresh, os.O_RDWR), fresh, durable=durable)
            try:
                writer = cls._lay_out(log, name, layout, names)
                if replaced is None:
                    move_into_place(fresh, real, overwrite=False)
                    log.path, fresh = real, None
            except BaseException:
                log.close()
                raise
        except BaseException as error:
            if replaced is not None:
                replaced.close()
            if fresh is not None:
                with contextlib.suppress(OSError):
                    os.unlink(fresh)
            if isinstance(error, OSError):
                raise StoreError(f"'{name}' cannot be created: {error}; give another path") from error
            raise
        writer._fresh, writer._replaced, writer._is_new = fresh, replaced, True
        return writer

    @classmethod
    def _lay_out(cls, log: Log, name: str, layout: Layout, names: Mapping[str, Sequence[str]]) -> StoreWriter:
        """Write a recording without epochs into an empty file."""
        log.lay_out()
        n_blocks = 0

        def put_text(heap: bytes) -> int:
            nonlocal n_blocks
            n_blocks += 1
            return log.append_block(TEXT, heap)

        places = {}
        for kind, given in names.items():
            first, n_blocks = log.end + FRAME_BYTES, 0
            references = text_heaps(map(encode_name, given), put_text)
            places[kind] = [log.append_block(ARRAY, references), first, n_blocks]
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        paddle = getattr(sys.modules.get("paddle"), "__version__", "none")
        libraries = f"paddle {paddle}, h5py {h5py.__version__}, numpy {np.__version__}"
        versions = f"paddle_td_callback {__version__}, {libraries}"
        texts = text_heaps(
            (one.encode() for one in Head.strings(layout, created, versions).values()), put_text
        )
        head = Head(layout, created, versions, texts.hex(), places, log.end + FRAME_BYTES)
        log.append_block(METADATA, head.metadata()[0])
        state = State(head, log.append_block(HEAD, head.block()), 0, "", (0, 0), {LABELS.name: UNDEFINED})
        writer = cls(log, name, state, {one.name: head.index(one) for one in layout.fields})
        with log.transaction():
            writer._end_commit(0, writer._indexes, writer.labels, [])
        return writer

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        layout: Layout | None = None,
        *,
        n_epochs: int | None = None,
        durable: bool = True,
    ) -> StoreWriter:
        """Open a recording to go on after its last committed epoch.

        Args:
            path: an existing recording.
            layout: what the caller is about to record; compression is the file's own. None takes the file's.
            n_epochs: how many epochs to keep, for a training that goes on from an older checkpoint. None keeps all.
            durable: whether commits wait for the disk.

        Raises:
            StoreError: not such a file, another recording than `layout`, fewer epochs than `n_epochs`, damaged
                labels, or another process is recording into it.
        """
        name = check_path(path, resume=True)
        real = os.path.realpath(name)
        try:
            log = Log(open_file(real, os.O_RDWR), real, durable=durable)
        except FileNotFoundError as error:
            raise StoreNotFoundError(
                f"'{name}': there is no such file; record to it without resume="
            ) from error
        except BlockingIOError as error:
            raise _being_recorded(name) from error
        except OSError as error:
            raise StoreError(
                f"'{name}' cannot be written: {error.strerror or error}; give another path"
            ) from error
        try:
            return cls._resume(log, name, layout, n_epochs)
        except DamagedError as error:
            log.close()
            raise StoreError(
                f"'{name}' is damaged: {error}; `paddle-td verify` says what can be salvaged"
            ) from error
        except NotARecordingError as error:
            log.close()
            raise StoreError(f"'{name}' {error}") from error
        except NewerSchemaError as error:
            log.close()
            raise StoreError(f"'{name}' has {error}; upgrade paddle_td_callback") from error
        except BaseException:
            log.close()
            raise

    @classmethod
    def _resume(cls, log: Log, name: str, layout: Layout | None, n_epochs: int | None) -> StoreWriter:
        file = log.file
        commit = commits(file)[0]
        state = State.read(file, commit)
        there = state.head.layout
        for fact in ("n_samples", "n_classes", "keep", "dtype", "mode"):
            old, new = getattr(there, fact), getattr(layout or there, fact)
            if old != new:
                raise StoreError(
                    f"'{name}' was recorded with {fact}={old!r}, this training has {new!r}; "
                    "resume needs the same, so record to another path"
                )
        if layout is None and state.n_epochs == 0 and there.n_samples > MAX_EMPTY_SAMPLES:
            raise StoreError(
                f"'{name}' holds no epoch of its {there.n_samples} samples; give layout= to go on with it"
            )
        if n_epochs is not None and not 0 <= n_epochs <= state.n_epochs:
            raise StoreError(
                f"'{name}' has {state.n_epochs} epochs, so the first {n_epochs} cannot be kept; "
                f"resume with a number up to {state.n_epochs}"
            )
        dropped = state.read_dropped(file)
        chunks = {one.name: Chunks(file, state, commit.at, one) for one in (*there.fields, LABELS)}
        writer = cls(log, name, state, {one.name: chunks[one.name].index for one in there.fields})
        writer._dropped = dropped.tolist()
        writer._read_labels(file, chunks[LABELS.name])
        log.go_on_from(commit, state.metadata_at(commit))
        if n_epochs is not None and n_epochs < state.n_epochs:
            writer._keep(n_epochs, chunks)
        return writer

    def _read_labels(self, file: RawFile, chunks: Chunks) -> None:
        n_rows = self.layout.chunk_rows(LABELS)
        for number, (at, n_bytes) in enumerate(zip(chunks.at.tolist(), chunks.n_bytes.tolist(), strict=True)):
            part = self.labels[number * n_rows : (number + 1) * n_rows]
            part[:] = read_chunk(file, at, n_bytes, self.layout, LABELS)[: len(part)]
            self._label_chunks[number] = n_bytes, at
        if label_checksum(self.labels) != self._state.label_checksum:
            raise DamagedError(f"the labels do not match their checksum {self._state.label_checksum}")

    def _keep(self, n_epochs: int, chunks: Mapping[str, Chunks]) -> None:
        """Commit a state that has the first epochs alone."""
        dropped = [epoch for epoch in self._dropped if epoch < n_epochs]
        with self._log.transaction():
            indexes = {}
            for field in self.layout.fields:
                index, found = self._state.head.index(field), chunks[field.name]
                starts = range(0, self.layout.n_samples, self.layout.chunk_rows(field))
                keys = [(epoch, start) for epoch in range(n_epochs) for start in starts]
                for (epoch, start), at, n_bytes in zip(
                    keys, found.at.tolist(), found.n_bytes.tolist(), strict=False
                ):
                    index.append(n_bytes, _first(field, epoch, start), at, self._put_node)
                indexes[field.name] = index
            labels = self.labels if n_epochs else np.full_like(self.labels, LABELS.unseen)
            self._end_commit(n_epochs, indexes, labels, dropped)

    def commit_epoch(
        self, index: int, epoch: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.int32]
    ) -> None:
        """Write one epoch; when this returns it is durable, if it raises the file is as before.

        Args:
            index: number of the epoch; a gap behind the last committed one stays unseen and is noted as
                dropped, an epoch already committed is left alone.
            epoch: arrays as `Layout.unseen_epoch` makes them; samples whose `n_presentations` is 0 are
                stored as unseen, whatever the other arrays hold for them.
            labels: `[sample]` int32, -1 = not seen so far.

        Raises:
            OSError: the disk refused, or the file is gone, or another process writes into it.
        """
        if index >= self.n_epochs:
            with self._log.transaction():
                indexes = {name: one.copy() for name, one in self._indexes.items()}
                self._skip(range(self.n_epochs, index), indexes)
                for number, field in enumerate(self.layout.fields):
                    for start, part in self._blocks(field, epoch):
                        at, n_bytes = self._put_chunk(
                            number, index, start // len(part), part, self.layout.gzip_level
                        )
                        indexes[field.name].append(n_bytes, _first(field, index, start), at, self._put_node)
                self._end_commit(index + 1, indexes, labels, [*self._dropped, *range(self.n_epochs, index)])
        self._take_name()

    def _skip(self, epochs: range, indexes: Mapping[str, ChunkIndex]) -> None:
        """Let all chunks of epochs that were never written be one unseen chunk: some readers know no gaps."""
        for number, field in enumerate(self.layout.fields if epochs else ()):
            shape = self.layout.chunk_rows(field), *self.layout.epoch_shape(field)[1:]
            unseen = np.full(shape, field.unseen, field.dtype)
            at, n_bytes = self._put_chunk(number, epochs[0], SHARED, unseen, self.layout.gzip_level)
            for epoch in epochs:
                for start in range(0, self.layout.n_samples, shape[0]):
                    indexes[field.name].append(n_bytes, _first(field, epoch, start), at, self._put_node)

    def _blocks(
        self, field: Field, epoch: Mapping[str, npt.NDArray[Any]]
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The chunks of a field by their first samples, unseen rows made so. HDF5 stores whole ones, the last too."""
        rows, unseen, n_rows = epoch[field.name], epoch["n_presentations"] == 0, self.layout.chunk_rows(field)
        any_unseen = bool(unseen.any())
        for start in range(0, self.layout.n_samples, n_rows):
            part = rows[start : start + n_rows]
            if len(part) < n_rows or (any_unseen and unseen[start : start + n_rows].any()):
                block = np.full((n_rows, *part.shape[1:]), field.unseen, field.dtype)
                seen = ~unseen[start : start + n_rows]
                block[: len(part)][seen] = part[seen]
                part = block
            yield start, part

    def _put_chunk(
        self, field: int, epoch: int, number: int, rows: npt.NDArray[Any], gzip_level: int | None
    ) -> tuple[int, int]:
        chunk = encode_chunk(rows, gzip_level=gzip_level)
        frame = Frame(CHUNK, field, epoch, number, chunk.n_bytes, chunk.checksum)
        return self._log.append(frame, *chunk.parts), chunk.n_bytes

    def _put_node(self, node: bytes) -> int:
        return self._log.append_block(NODE, node)

    def _put_labels(
        self, epoch: int, labels: npt.NDArray[np.int32]
    ) -> tuple[int, dict[int, tuple[int, int]]]:
        """Write the labels that changed; returns the root of their chunks' index, and the chunks."""
        n_rows, chunks = self.layout.chunk_rows(LABELS), dict(self._label_chunks)
        for number in range(self.layout.n_chunks(LABELS)):
            rows = slice(number * n_rows, (number + 1) * n_rows)
            if number not in chunks or not np.array_equal(labels[rows], self.labels[rows]):
                block = np.full(n_rows, LABELS.unseen, LABELS.dtype)
                block[: len(labels[rows])] = labels[rows]
                at, n_bytes = self._put_chunk(LABELS_FIELD, epoch, number, block, None)
                chunks[number] = n_bytes, at
        if chunks == self._label_chunks:
            return self._state.roots[LABELS.name], chunks
        index = self._state.head.index(LABELS)
        for number, (n_bytes, at) in sorted(chunks.items()):
            index.append(n_bytes, (number * n_rows,), at, self._put_node)
        return index.write((self.layout.n_chunks(LABELS) * n_rows,), self._put_node), chunks

    def _end_commit(
        self, n_epochs: int, indexes: dict[str, ChunkIndex], labels: npt.NDArray[np.int32], dropped: list[int]
    ) -> None:
        root, chunks = self._put_labels(n_epochs - 1, labels) if n_epochs else (UNDEFINED, {})
        place = self._state.dropped
        if dropped != self._dropped:
            place = self._log.append_block(ARRAY, np.asarray(dropped, "<i8").tobytes()), len(dropped)
        head, head_at = self._state.head, self._state.head_at
        state = State(head, head_at, n_epochs, label_checksum(labels), place, {LABELS.name: root})
        self._log.commit(lambda at: state.block(at, indexes), lambda at: state.metadata(at, self._metadata))
        self._state, self._indexes, self.labels = state, indexes, labels.copy()
        self._label_chunks, self._dropped = chunks, dropped

    def _take_name(self) -> None:
        """Replace the file that `overwrite` is for, now that an epoch is there."""
        if self._fresh is not None:
            real = os.path.realpath(self.path)
            move_into_place(self._fresh, real, overwrite=True)
            self._log.path, self._fresh = real, None
            self._release_replaced()

    def _release_replaced(self) -> None:
        if self._replaced is not None:
            self._replaced.close()
            self._replaced = None

    def close(self) -> None:
        """Release the file, and remove it if it is new and holds no epoch. Closing twice is fine."""
        if self._is_new and self.n_epochs == 0:
            for path in (self._fresh, self._log.path):
                if path is not None and self._log.file.is_at(path):
                    with contextlib.suppress(OSError):
                        os.unlink(path)
        self._log.close()
        self._release_replaced()


def _first(field: Field, epoch: int, start: int) -> tuple[int, ...]:
    return (epoch, start) if field.last_axis is None else (epoch, start, 0)


def _being_recorded(name: str) -> StoreError:
    return StoreError(
        f"'{name}' is being recorded by another process, or by another recorder of this one; "
        "wait for it to end, or record to another path"
    )


def _lock_replaced(name: str, real: str) -> RawFile | None:
    """Hold the lock of a file that will be replaced, so that no other process records into it meanwhile."""
    try:
        file = open_file(real, os.O_RDWR)
    except PermissionError:
        return open_file(real, os.O_RDONLY)  # no process of this user records into it
    try:
        lock(file)
    except BlockingIOError as error:
        file.close()
        raise _being_recorded(name) from error
    except OSError:
        pass  # a file system without locks
    return file


def encode_name(name: str) -> bytes:
    """UTF-8; what an undecodable file name holds stays as it was, other lone surrogates are spelt out."""
    try:
        return str(name).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return str(name).encode("utf-8", "backslashreplace")
