"""A recording on disk: its one writer and its readers.

An epoch is the transaction (see `journal`): `StoreWriter.commit_epoch` returns when the epoch is durable, and
no reader sees anything of it before.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import StoreError, StoreNotFoundError
from ..threads import one_thread, run_ahead
from .chunks import EncodedChunk, encode_chunk
from .journal import DamagedError, Journal, NotSealedError, Snapshot, Transaction
from .paths import check_path
from .schema import (
    EPOCH_FIELDS,
    FORMAT,
    LABELS,
    SAMPLE_IDS,
    SCHEMA_VERSION,
    Field,
    Layout,
    label_checksum,
    write_schema,
)

Samples = slice | npt.ArrayLike | None
# Of a chunk: its first sample, where it is in the file, how many bytes it has there, and its fletcher32.
ChunkPlace = tuple[int, int, int, int]
ChunkPlaces = dict[str, list[ChunkPlace]]
_T = TypeVar("_T")

HINT = "; `paddle-td verify` says what can be salvaged"
_GROUP_BYTES = (
    4 << 20
)  # of chunks that are encoded while those before are written: few handovers between threads
_MAX_EMPTY_SAMPLES = 1 << 24  # no bytes on disk back the size of a recording without epochs
_DEFLATE_MAX_RATIO = 1100  # no deflate stream expands further (1032), so a dataset that claims to is forged


def pack_note(facts: dict[str, Any]) -> bytes:
    """What a commit notes beside HDF5, so that `verify.salvage` finds the chunks where HDF5 cannot."""
    return zlib.compress(json.dumps(facts, separators=(",", ":")).encode())


def unpack_note(note: bytes) -> dict[str, Any]:
    """The facts given to `pack_note`; of a transaction without a note, none."""
    return dict(json.loads(zlib.decompress(note))) if note else {}


def _open_journal(path: str | os.PathLike[str], *, durable: bool) -> Journal:
    name = os.fspath(path)
    try:
        return Journal(path, durable=durable)
    except BlockingIOError as error:
        raise StoreError(
            f"'{name}' is being recorded by another process, or by another recorder of this one; "
            "wait for it to end, or record to another path"
        ) from error
    except (OSError, NotSealedError) as error:
        raise StoreError(f"'{name}' cannot be written: {error}") from error


class StoreWriter:
    """The one writer of a recording; made by `create` or `resume`.

    Attributes:
        path: of the file.
        layout: the fixed facts of the recording.
        labels: `[sample]` int32 as committed, -1 = never seen.
        n_epochs: committed epochs, dropped ones included.
    """

    def __init__(
        self, journal: Journal, layout: Layout, labels: npt.NDArray[np.int32], n_epochs: int
    ) -> None:
        self._journal = journal
        self.path = journal.path
        self.layout = layout
        self.labels = labels
        self.n_epochs = n_epochs
        self._encoder = one_thread()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: Layout,
        *,
        class_names: Sequence[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        overwrite: bool = False,
        durable: bool = True,
    ) -> StoreWriter:
        """Make an empty recording; an existing file is replaced only once the new one is whole.

        Args:
            path: where; its folder must exist.
            layout: the fixed facts of the recording.
            class_names: one for each class, or None.
            sample_ids: one for each sample, no two alike, or None where they are known by their indices.
            overwrite: replace an existing file.
            durable: whether commits wait for the disk.

        Raises:
            StoreError: see `check_path`; or the disk refused.
            ValueError: a wrong number of class names or sample ids.
        """
        name = check_path(path, overwrite=overwrite)
        if class_names is not None and len(class_names) != layout.n_classes:
            raise ValueError(f"got {len(class_names)} class names for {layout.n_classes} classes")
        if sample_ids is not None and len(sample_ids) != layout.n_samples:
            raise ValueError(f"got {len(sample_ids)} sample ids for {layout.n_samples} samples")
        fresh = f"{name}.{os.getpid()}.new"
        try:
            journal = Journal.create(fresh, durable=durable)
            with journal.transaction() as transaction:
                write_schema(transaction.h5, layout, class_names, sample_ids)
                names = None if class_names is None else [str(name) for name in class_names]
                transaction.note = pack_note({"layout": asdict(layout), "class_names": names})
            journal.close()
            _move_into_place(fresh, name, overwrite=overwrite)
            journal = Journal(name, durable=durable)
        except OSError as error:
            raise StoreError(f"'{name}' cannot be created: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
        return cls(journal, layout, np.full(layout.n_samples, -1, np.int32), 0)

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
            n_epochs: keep only so many epochs; None keeps all.
            durable: whether commits wait for the disk.

        Raises:
            StoreError: not such a file, another recording than `layout`, damaged labels, or another process
                is recording into it.
        """
        if n_epochs is not None:
            raise NotImplementedError("a number of epochs to keep")
        TrainingDynamicsStore(path).close()  # says best what is wrong with a file
        journal = _open_journal(path, durable=durable)
        try:
            return cls._resume(journal, layout)
        except BaseException:
            journal.close()
            raise

    @classmethod
    def _resume(cls, journal: Journal, layout: Layout | None) -> StoreWriter:
        path = journal.path
        with TrainingDynamicsStore(path) as store:
            there, n_epochs = store.layout, store.n_epochs
            for fact in ("n_samples", "n_classes", "keep", "dtype", "mode"):
                old, new = getattr(there, fact), getattr(layout or there, fact)
                if old != new:
                    raise StoreError(
                        f"'{path}' was recorded with {fact}={old!r}, this training has {new!r}; "
                        "resume needs the same, so record to another path"
                    )
            labels = store.labels if n_epochs else np.full(there.n_samples, LABELS.unseen, LABELS.dtype)
            if label_checksum(labels) != store.label_checksum:
                raise StoreError(
                    f"'{path}': the labels do not match their checksum {store.label_checksum}; "
                    "the file is damaged, see `paddle-td verify`"
                )
        return cls(journal, there, labels, n_epochs)

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
            OSError: the disk refused.
        """
        if index < self.n_epochs:
            return
        with self._journal.transaction() as transaction:
            h5 = transaction.h5
            if int(h5.attrs["committed_epochs"]) <= index:  # else the last try was kept although it failed
                places = self._write_epoch(transaction, index, epoch)
                places[LABELS.name] = self._write_labels(transaction, labels)
                checksum = label_checksum(labels)
                h5.attrs.modify("label_checksum", np.bytes_(checksum))
                skipped = list(range(self.n_epochs, index))
                if skipped:
                    dropped = [*h5.attrs["dropped_epochs"], *skipped]
                    h5.attrs["dropped_epochs"] = np.asarray(dropped, np.int64)
                h5.attrs.modify("committed_epochs", np.int64(index + 1))
                transaction.note = pack_note(
                    {
                        "layout": asdict(self.layout),
                        "epoch": index,
                        "dropped": skipped,
                        "label_checksum": checksum,
                        "chunks": places,
                    }
                )
        self.n_epochs = index + 1
        self.labels = labels.copy()

    def _write_epoch(
        self, transaction: Transaction, index: int, epoch: Mapping[str, npt.NDArray[Any]]
    ) -> ChunkPlaces:
        unseen = epoch["n_presentations"] == 0

        def encode(group: list[tuple[Field, int]]) -> list[EncodedChunk]:
            return [self._encode(field, start, epoch[field.name], unseen) for field, start in group]

        places: ChunkPlaces = {field.name: [] for field in self.layout.fields}
        groups = list(self._groups())
        encoded = run_ahead(self._encoder, encode, groups)
        with contextlib.closing(encoded):
            for group, chunks in zip(groups, encoded, strict=True):
                for (field, start), chunk in zip(group, chunks, strict=True):
                    if start == 0:
                        dataset = h5py.h5d.open(transaction.h5.id, field.name.encode())
                        dataset.set_extent((index + 1, *self.layout.epoch_shape(field)))
                    at = (index, start) if field.last_axis is None else (index, start, 0)
                    places[field.name].append(_write_chunk(transaction, dataset, at, start, chunk))
        return places

    def _groups(self) -> Iterator[list[tuple[Field, int]]]:
        """The chunks of an epoch, each by its field and first sample, in groups that are encoded at one go."""
        group: list[tuple[Field, int]] = []
        n_bytes = 0
        for field in self.layout.fields:
            n_rows = self.layout.chunk_rows(field)
            chunk_bytes = self.layout.field_bytes(field) // self.layout.n_samples * n_rows
            for start in range(0, self.layout.n_samples, n_rows):
                group.append((field, start))
                n_bytes += chunk_bytes
                if n_bytes >= _GROUP_BYTES:
                    yield group
                    group, n_bytes = [], 0
        if group:
            yield group

    def _encode(
        self, field: Field, start: int, epoch_rows: npt.NDArray[Any], all_unseen: npt.NDArray[np.bool_]
    ) -> EncodedChunk:
        n_rows = self.layout.chunk_rows(field)
        rows, unseen = epoch_rows[start : start + n_rows], all_unseen[start : start + n_rows]
        if len(rows) < n_rows or unseen.any():  # HDF5 stores whole chunks, the last one too
            block = np.full((n_rows, *rows.shape[1:]), field.unseen, field.dtype)
            block[: len(rows)][~unseen] = rows[~unseen]
            rows = block
        return encode_chunk(rows, gzip_level=self.layout.gzip_level)

    def _write_labels(self, transaction: Transaction, labels: npt.NDArray[np.int32]) -> list[ChunkPlace]:
        dataset = h5py.h5d.open(transaction.h5.id, LABELS.name.encode())
        n_rows = self.layout.chunk_rows(LABELS)
        places = []
        for start in range(0, len(labels), n_rows):
            stop = start + n_rows
            # The first commit writes all of them, seen or not: readers trust no chunk that is not there.
            if self.n_epochs == 0 or not np.array_equal(labels[start:stop], self.labels[start:stop]):
                block = np.full(n_rows, LABELS.unseen, LABELS.dtype)
                block[: len(labels[start:stop])] = labels[start:stop]
                chunk = encode_chunk(block, gzip_level=None)
                places.append(_write_chunk(transaction, dataset, (start,), start, chunk))
        return places

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._encoder.shutdown()
        self._journal.close()


def _write_chunk(
    transaction: Transaction, dataset: Any, at: tuple[int, ...], start: int, chunk: EncodedChunk
) -> ChunkPlace:
    offset = transaction.write_chunk(dataset, at, chunk.parts)
    return start, offset, chunk.n_bytes, chunk.checksum


def _move_into_place(fresh: str, name: str, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(fresh, name)
    else:
        try:
            os.link(fresh, name)  # unlike a rename, fails where somebody was faster
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            os.rename(fresh, name)
    if os.name == "posix":
        folder = os.open(os.path.dirname(name) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class TrainingDynamicsStore:
    """A recording, read-only, as of its last committed epoch; a context manager.

    It may be opened while a training is recording into the file: it takes no lock, never makes the training
    wait, and shows the epochs that were committed when it was opened.

    Args:
        path: an HDF5 file that `TrainingDynamicsCallback` or `TrainingDynamicsRecorder` made.

    Attributes:
        path: as given.
        layout: `n_samples`, `n_classes`, `keep`, `dtype`, `mode`, `gzip_level`.
        n_samples: size of the data set.
        n_classes: number of classes.
        n_epochs: committed epochs.
        keep: "all", "given" or the number of classes kept.
        mode: "train" or "eval".
        class_names: list of str, or None.
        dropped_epochs: epochs that could not be written; they read as unseen.
        created: when the recording began, ISO 8601, UTC.
        versions: of this package, Paddle, h5py and numpy at that time.
        label_checksum: CRC-32 of the labels.

    Raises:
        StoreNotFoundError: there is no such file.
        StoreError: no HDF5 file, a truncated one, not a recording, or one of a newer schema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.RLock()
        self._labels: npt.NDArray[np.int32] | None = None
        self._snapshot: Snapshot | None = None
        self._snapshot = self._open()
        try:
            self._consistently(self._read_facts)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TrainingDynamicsStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    def __repr__(self) -> str:
        return (
            f"<TrainingDynamicsStore '{self.path}': {self.n_samples} samples, {self.n_classes} classes, "
            f"{self.n_epochs} epochs, keep={self.keep!r}, mode={self.mode!r}>"
        )

    @functools.cached_property
    def sample_ids(self) -> list[str] | None:
        """`[sample]` names, None where samples are known by their indices only."""
        ids = self._consistently(self._read_sample_ids)
        return None if ids is None else [_text(one) for one in ids]

    def _read_sample_ids(self, h5: h5py.File) -> npt.NDArray[np.bytes_] | None:
        if SAMPLE_IDS not in h5:
            return None
        dataset = h5[SAMPLE_IDS]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "S":
            raise StoreError(f"'{self.path}' is damaged: '{SAMPLE_IDS}' is no dataset of strings")
        expanded = dataset.dtype.itemsize * self.n_samples
        if (
            dataset.shape != (self.n_samples,)
            or expanded > _DEFLATE_MAX_RATIO * dataset.id.get_storage_size()
        ):
            raise StoreError(f"'{self.path}' is damaged: '{SAMPLE_IDS}' has shape {dataset.shape}")
        return np.asarray(dataset[:])

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The given labels, `[sample]` int32, -1 = never seen.

        Raises:
            StoreError: nothing is recorded yet, and the data set is so large that nothing much is to be made of it.
        """
        if self._labels is None:
            if self.n_samples > _MAX_EMPTY_SAMPLES:
                raise StoreError(
                    f"'{self.path}' holds no committed epoch of its {self.n_samples} samples yet; an epoch counts "
                    "once it has ended, so try again then"
                )
            self._labels = np.full(self.n_samples, LABELS.unseen, LABELS.dtype)
        return self._labels

    def given_probabilities(self, samples: Samples = None) -> npt.NDArray[np.float32]:
        """Softmax probability of the given label, `[sample, epoch]` float32, NaN = unseen.

        Args:
            samples: None for all, a slice, or an array of sample indices.

        Raises:
            IndexError: an index outside the data set.
            StoreError: a damaged chunk.
        """
        return self._rows(EPOCH_FIELDS[0], samples)

    def margins(self, samples: Samples = None) -> npt.NDArray[np.float32]:
        """Logit of the given label minus the largest other logit, `[sample, epoch]` float32, NaN = unseen.

        Args and errors as for `given_probabilities`.
        """
        return self._rows(EPOCH_FIELDS[1], samples)

    def predictions(self, samples: Samples = None) -> npt.NDArray[np.int32]:
        """Class with the largest logit, `[sample, epoch]` int32, -1 = unseen.

        Args and errors as for `given_probabilities`.
        """
        return self._rows(EPOCH_FIELDS[2], samples)

    def n_presentations(self, samples: Samples = None) -> npt.NDArray[np.uint8]:
        """How often a sample was seen in each epoch, `[sample, epoch]` uint8 (the last time is what is stored).

        Args and errors as for `given_probabilities`.
        """
        return self._rows(EPOCH_FIELDS[3], samples)

    def probabilities(self, samples: Samples = None) -> npt.NDArray[Any]:
        """Softmax over all classes, `[sample, epoch, class]` in the dtype they were stored in, NaN = unseen.

        Args and errors as for `given_probabilities`; besides, StoreError where not all classes were kept.
        """
        if self.keep != "all":
            raise StoreError(
                f"'{self.path}' was recorded with keep={self.keep!r}, so it does not hold the probabilities of "
                "all classes; record with keep='all'"
            )
        return self._rows(self.layout.fields[-1], samples)

    def top(self, samples: Samples = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """The k most probable classes and their probabilities, both `[sample, epoch, k]`, largest first.

        Args and errors as for `given_probabilities`; besides, StoreError where `keep` is not a number.
        """
        if not isinstance(self.keep, int):
            raise StoreError(f"'{self.path}' was recorded with keep={self.keep!r}, not with keep=k")
        return self._rows(self.layout.fields[-2], samples), self._rows(self.layout.fields[-1], samples)

    def read_epoch_rows(self, epoch: int, samples: slice) -> dict[str, npt.NDArray[Any]]:
        """All fields of one epoch, each `[sample]`, `[sample, class]` or `[sample, k]`.

        Raises:
            StoreError: a damaged chunk.
        """
        return self._consistently(
            lambda h5: {field.name: h5[field.name][epoch, samples] for field in self.layout.fields}
        )

    def tiles(self, max_bytes: int = 1 << 26, *, wide: bool = False) -> Iterator[slice]:
        """Slices over all samples, each a whole number of chunks, to stream through what does not fit in memory.

        Args:
            max_bytes: how much one read of a tile may take, at least one chunk.
            wide: whether `probabilities` or `top` are to be read too, not only numbers per sample.
        """
        fields = self.layout.fields if wide else EPOCH_FIELDS
        rows = max(self.layout.chunk_rows(f) for f in EPOCH_FIELDS)
        if wide:
            rows = min(self.layout.chunk_rows(f) for f in fields)
        row_bytes = self.layout.epoch_bytes // self.n_samples if wide else 13
        step = max(1, max_bytes // (rows * row_bytes * max(1, self.n_epochs))) * rows
        return (slice(start, min(start + step, self.n_samples)) for start in range(0, self.n_samples, step))

    def _open(self) -> Snapshot:
        try:
            return Snapshot(self.path)
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"'{self.path}': there is no such file") from error
        except NotSealedError as error:
            raise StoreError(
                f"'{self.path}' {error}; give a file that TrainingDynamicsCallback or "
                "TrainingDynamicsRecorder made"
            ) from error
        except DamagedError as error:
            raise self._damaged(error) from error
        except OSError as error:
            if os.path.isdir(self.path):
                raise StoreError(
                    f"'{self.path}' is a folder; give the path of the recording in it"
                ) from error
            raise StoreError(f"'{self.path}' cannot be read: {error.strerror or error}") from error

    def _damaged(self, error: BaseException) -> StoreError:
        return StoreError(f"'{self.path}' is damaged: {_one_line(error)}{HINT}")

    def _consistently(self, read: Callable[[h5py.File], _T]) -> _T:
        """Read as of the last commit known; if a newer one changed the file under the read, read as of that."""
        with self._lock:
            if self._snapshot is None:
                raise ValueError(f"'{self.path}' is closed")
            while True:
                try:
                    try:
                        result = read(self._snapshot.h5)
                    finally:  # an error in reading may be but a consequence
                        self._snapshot.check()
                    return result
                except DamagedError as error:
                    if self._snapshot.is_current:
                        raise self._damaged(error) from error
                except (IndexError, StoreError, MemoryError):
                    raise
                except Exception as error:  # whatever h5py says of a file that is not as it should be
                    raise self._damaged(error) from error
                try:
                    self._snapshot.refresh()
                except (DamagedError, NotSealedError) as error:
                    raise self._damaged(error) from error

    def _read_facts(self, h5: h5py.File) -> None:
        attributes = h5.attrs
        if _text(attributes.get("format")) != FORMAT:
            raise StoreError(
                f"'{self.path}' is an HDF5 file, but no recording of training dynamics: its 'format' attribute "
                f"is {_text(attributes.get('format'))[:60]!r}, wanted {FORMAT!r}"
            )
        version = int(attributes["schema_version"])
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"'{self.path}': schema {version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade paddle_td_callback"
            )
        keep = _text(attributes["keep"])
        try:
            self.layout = Layout(
                n_samples=int(attributes["n_samples"]),
                n_classes=int(attributes["n_classes"]),
                keep=int(keep) if keep.isdigit() else keep,  # type: ignore[arg-type]
                dtype=_text(attributes["dtype"]),
                mode=_text(attributes["mode"]),
                gzip_level=int(attributes["gzip_level"]) or None,
            )
        except ValueError as error:
            raise StoreError(f"'{self.path}' is damaged: {error}") from error
        self.n_epochs = int(attributes["committed_epochs"])
        self.dropped_epochs = [int(epoch) for epoch in attributes["dropped_epochs"]]
        self.created = _text(attributes["created"])
        self.versions = _text(attributes["versions"])
        self.label_checksum = _text(attributes["label_checksum"])
        self.n_samples, self.n_classes = self.layout.n_samples, self.layout.n_classes
        self.keep, self.mode = self.layout.keep, self.layout.mode
        self._check_shapes(h5)
        if self.n_epochs:
            self._labels = h5[LABELS.name][:].astype(np.int32, copy=False)
        self.class_names = (
            [_text(name) for name in h5["class_names"][: self.n_classes]] if "class_names" in h5 else None
        )

    def _check_shapes(self, h5: h5py.File) -> None:
        """Trust no shape that the bytes on disk cannot back: a forged one would fill the memory."""
        assert self._snapshot is not None
        file_bytes = self._snapshot.size
        labels_shape = (self.n_samples,)
        written = self.n_epochs - len(self.dropped_epochs)
        for field in (*self.layout.fields, LABELS):
            dataset = h5[field.name]
            if field is LABELS:
                wanted: tuple[int, ...] = labels_shape
                least = 0 if self.n_epochs == 0 else math.prod(wanted) * 4
            else:
                wanted = (self.n_epochs, *self.layout.epoch_shape(field))
                ratio = _DEFLATE_MAX_RATIO if self.layout.gzip_level else 1
                item_bytes = np.dtype(field.dtype).itemsize
                least = max(0, written) * math.prod(wanted[1:]) * item_bytes // ratio
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.dtype(field.dtype):
                raise StoreError(f"'{self.path}' is damaged: '{field.name}' is no dataset of {field.dtype}")
            if dataset.shape != wanted:
                raise StoreError(
                    f"'{self.path}' is damaged: '{field.name}' has shape {dataset.shape}, "
                    f"its attributes say {wanted}"
                )
            if min(dataset.id.get_storage_size(), file_bytes) < least:
                raise StoreError(
                    f"'{self.path}' is damaged: '{field.name}' holds {dataset.id.get_storage_size()} bytes, "
                    f"too few for its shape {wanted}"
                )

    def _rows(self, field: Field, samples: Samples) -> npt.NDArray[Any]:
        chosen = self._normalise(samples)
        return self._consistently(lambda h5: self._read_rows(h5[field.name], field, chosen))

    def _normalise(self, samples: Samples) -> slice | npt.NDArray[np.intp]:
        if samples is None:
            return slice(0, self.n_samples)
        if isinstance(samples, slice):
            start, stop, step = samples.indices(self.n_samples)
            return slice(start, stop) if step == 1 else np.arange(start, stop, step)
        indices = np.asarray(samples)
        if indices.dtype == bool:
            if indices.shape != (self.n_samples,):
                raise IndexError(
                    f"a mask of samples must have shape ({self.n_samples},), got {indices.shape}"
                )
            return np.flatnonzero(indices)
        if indices.size == 0:
            return np.zeros(0, np.intp)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise TypeError(
                f"samples must be a slice or a 1-d array of integers, got {indices.dtype} {indices.shape}"
            )
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.n_samples:
            outside = low if low < 0 else high
            raise IndexError(f"sample {outside} is outside the {self.n_samples} samples of '{self.path}'")
        return indices.astype(np.intp)

    def _read_rows(
        self, dataset: Any, field: Field, chosen: slice | npt.NDArray[np.intp]
    ) -> npt.NDArray[Any]:
        if isinstance(chosen, slice):
            block = dataset[: self.n_epochs, chosen]
            return np.ascontiguousarray(np.swapaxes(block, 0, 1))
        shape = (len(chosen), self.n_epochs, *self.layout.epoch_shape(field)[1:])
        out = np.empty(shape, field.dtype)
        # h5py's own fancy indexing is slow; whole chunks are read anyway, so read and pick.
        chunk_of = chosen // self.layout.chunk_rows(field)
        for chunk in np.unique(chunk_of):
            start = int(chunk) * self.layout.chunk_rows(field)
            block = dataset[: self.n_epochs, start : start + self.layout.chunk_rows(field)]
            here = np.flatnonzero(chunk_of == chunk)
            out[here] = np.swapaxes(block[:, chosen[here] - start], 0, 1)
        return out


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
