"""Checking a recording down to the last byte, and saving what is good of a damaged one."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError, StoreNotFoundError
from .chunks import decode_chunk, stored_checksum
from .disk import DamagedError, NotSealedError, read_overlaid
from .redo import USER_BLOCK_BYTES, Record, headers, read_newest_record
from .schema import LABELS, Field, Layout, label_checksum
from .seals import UNIT_BYTES, Seal, SealedFile, Seals, find_seals
from .store import HINT, ChunkPlace, ChunkPlaces, StoreWriter, TrainingDynamicsStore, unpack_note

_MAX_PROBLEMS = 20  # are printed, the rest only counted
# How far probabilities may be from what they should be: the softmax was taken in single precision, and each
# class was rounded to the stored dtype.
_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
_SMALLEST = {"float16": 2.0**-25, "float32": 0.0}


@dataclass(frozen=True)
class Problem:
    """Something wrong: `epoch` and `sample` where they are known, else None."""

    message: str
    epoch: int | None = None
    sample: int | None = None

    def __str__(self) -> str:
        places = [f"epoch {self.epoch}"] if self.epoch is not None else []
        places += [f"sample {self.sample}"] if self.sample is not None else []
        return f"{', '.join(places)}: {self.message}" if places else self.message


@dataclass
class Report:
    """What `verify` found.

    Attributes:
        path: of the file.
        n_epochs: committed epochs, as far as they are known.
        n_chunks: chunks read.
        n_bytes: bytes of the file that were checked.
        good_epochs: epochs of which everything is right.
        dropped_epochs: epochs that were never written; they read as unseen.
        problems: what is wrong, the first of each kind.
        n_problems: how many there are in all.
    """

    path: str
    n_epochs: int = 0
    n_chunks: int = 0
    n_bytes: int = 0
    good_epochs: list[int] = attribute(default_factory=list)
    dropped_epochs: list[int] = attribute(default_factory=list)
    problems: list[Problem] = attribute(default_factory=list)
    n_problems: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.n_problems == 0

    def add(self, message: str, epoch: int | None = None, sample: int | None = None) -> None:
        """Note a problem."""
        self.n_problems += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(message, epoch, sample))

    def __str__(self) -> str:
        checked = f"{self.n_epochs} epochs, {self.n_chunks} chunks, {self.n_bytes / 1e6:.1f} MB checked"
        dropped = (
            [f"  epochs {self.dropped_epochs} were never written and read as unseen"]
            if self.dropped_epochs
            else []
        )
        if self.ok:
            return "\n".join([f"'{self.path}' is good: {checked}", *dropped])
        lines = [f"'{self.path}' is damaged: {self.n_problems} problems; {checked}", *dropped]
        lines += [f"  {problem}" for problem in self.problems]
        if self.n_problems > len(self.problems):
            lines.append(f"  and {self.n_problems - len(self.problems)} more")
        n_good = len(self.good_epochs)
        what = (
            f"{n_good} of {self.n_epochs} epochs are good and can be written to a new file: "
            f"paddle-td verify --salvage OUT {self.path}"
            if n_good
            else "nothing can be salvaged"
        )
        return "\n".join([*lines, f"  {what}"])


def verify(path: str | os.PathLike[str]) -> Report:
    """Check every byte of a recording and what the numbers say of each other.

    The file is read twice over: chunk by chunk from where its writer noted them, and through HDF5, which must
    give the same. The first way needs nothing of HDF5, so it also works where HDF5's own structure is damaged.

    Args:
        path: a recording; it may be one that is being written.

    Returns:
        A report; `print` it.

    Raises:
        StoreError: there is no such file, it may not be read, or it is no recording of training dynamics.
    """
    while True:
        examined = _Examined(path)
        try:
            report = examined.check()
            # A commit that came between has changed the labels under us: look again.
            if report.ok or examined.is_current:
                return report
        finally:
            examined.close()


def salvage(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Report:
    """Write the good epochs of a damaged recording to a new file.

    They keep their numbers: an epoch that is not good is listed as dropped there and reads as unseen, as far as
    a good one follows.

    Args:
        path: the damaged recording.
        out: the file to make.

    Returns:
        The report on the damaged one.

    Raises:
        StoreError: `out` exists or cannot be written, or there is nothing to salvage in `path`.
    """
    examined = _Examined(path)
    try:
        report = examined.check()
        if examined.layout is None or not report.good_epochs:
            raise StoreError(f"'{examined.path}' holds no good epoch, so there is nothing to salvage")
        writer = StoreWriter.create(
            out, examined.layout, class_names=examined.class_names, sample_ids=examined.sample_ids
        )
        try:
            for epoch in report.good_epochs:
                writer.commit_epoch(epoch, examined.read_epoch(epoch), examined.labels)
        except OSError as error:
            raise StoreError(f"'{os.fspath(out)}' cannot be written: {error}") from error
        finally:
            writer.close()
        return report
    finally:
        examined.close()


class _Examined:
    """A recording read by the notes of its commits, without HDF5, however damaged it is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.report = Report(self.path)
        self.layout: Layout | None = None
        self.labels: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.class_names: list[str] | None = None
        self.sample_ids: list[str] | None = None
        self._chunks: dict[int, ChunkPlaces] = {}
        self._label_chunks: dict[int, ChunkPlace] = {}
        self._label_checksum = ""
        self._damaged_units = False
        self._store: TrainingDynamicsStore | None = None
        try:
            self._file = io.FileIO(self.path)
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"'{self.path}': there is no such file") from error
        except OSError as error:
            raise StoreError(f"'{self.path}' cannot be read: {error.strerror}") from error
        try:
            self._examine()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self._store is not None:
            self._store.close()

    @property
    def is_current(self) -> bool:
        """Whether no commit happened since."""
        return headers(self._file) == self._headers

    def _examine(self) -> None:
        self._headers = headers(self._file)
        record = self._read_record()
        self._pages = {} if record is None else record.pages
        seals = {seal.place.offset: seal for seal in find_seals(self._file)}
        if record is not None:
            seals = {offset: seal for offset, seal in seals.items() if offset < record.seal.offset}
            newest = Seal.read(self._file, record.seal.offset, record.pages)
            seals.update({} if newest is None else {record.seal.offset: newest})
        for offset, seal in seals.items():
            self._take_note(seal.note)
            self.report.n_bytes = offset + seal.place.length
        if record is None and not self._chunks and self.layout is None:
            raise StoreError(f"'{self.path}' {self._why_no_record}")
        if record is not None:
            self.report.n_bytes = min(record.committed_bytes, os.fstat(self._file.fileno()).st_size)
            self._check_units(record)
        try:
            self._store = TrainingDynamicsStore(self.path)
        except StoreError as error:
            message = str(error).removesuffix(HINT)
            for prefix in (f"'{self.path}' ", f"'{self.path}': ", "is damaged: "):
                message = message.removeprefix(prefix)
            if all(problem.message not in message for problem in self.report.problems):
                self.report.add(message)
        else:
            self.layout = self.layout or self._store.layout
            self.class_names, self.sample_ids = self._store.class_names, self._store.sample_ids
            self.report.n_epochs = self._store.n_epochs
            self.report.dropped_epochs = self._store.dropped_epochs
        if self.layout is not None and 4 * self.layout.n_samples * bool(self._chunks) > self.report.n_bytes:
            self.report.add(f"{self.layout.n_samples} samples, but too few bytes for their labels")
            self.layout = None
        if self.layout is not None and self._chunks:
            self._read_labels(self.layout)

    def _read_record(self) -> Record | None:
        try:
            return read_newest_record(self._file)
        except DamagedError as error:
            self.report.add(str(error))
            return read_newest_record(self._file, strict=False)
        except NotSealedError as error:
            self._why_no_record = str(error)
            self.report.add(str(error))
            return None

    def _take_note(self, packed: bytes) -> None:
        try:
            note = unpack_note(packed)
        except (ValueError, zlib.error):
            return
        if "layout" in note:
            self.layout = Layout(**note["layout"])
            self.class_names = note.get("class_names", self.class_names)
        if "epoch" in note:
            chunks = {name: [tuple(place) for place in places] for name, places in note["chunks"].items()}
            self._label_chunks.update({place[0]: place for place in chunks.pop(LABELS.name)})
            self._label_checksum = note["label_checksum"]
            self._chunks[note["epoch"]] = chunks
            self.report.n_epochs = max(self.report.n_epochs, note["epoch"] + 1)
            self.report.dropped_epochs += note["dropped"]

    def _check_units(self, record: Record) -> None:
        """Every byte against the checksums by which the reader goes."""
        try:
            sealed = SealedFile(self._file, Seals.read(self._file, record), record.pages)
        except DamagedError as error:
            self.report.add(str(error))
            return
        first = USER_BLOCK_BYTES // UNIT_BYTES
        for unit in range(first, len(sealed.seals.crcs)):
            if not sealed.is_sound(unit):
                self._damaged_units = True
                start, stop = unit * UNIT_BYTES, min((unit + 1) * UNIT_BYTES, sealed.seals.data_end)
                self.report.add(f"bytes {start} to {stop} are not what was committed")

    def _read_labels(self, layout: Layout) -> None:
        self.labels = np.full(layout.n_samples, -1, np.int32)
        for start, place in sorted(self._label_chunks.items()):
            try:
                n_rows = min(layout.n_samples, layout.chunk_rows(LABELS))
                block = self._read_chunk(place, (n_rows,), LABELS.dtype, None)
            except ValueError as error:
                self.report.add(f"the labels from here on are lost, {error}", sample=start)
                continue
            self.labels[start : start + n_rows] = block[: layout.n_samples - start]
        if self._label_checksum and label_checksum(self.labels) != self._label_checksum:
            self.report.add(f"the labels do not match their checksum {self._label_checksum}")
        outside = np.flatnonzero((self.labels < -1) | (self.labels >= layout.n_classes))
        if len(outside):
            sample = int(outside[0])
            self.report.add(f"label {self.labels[sample]} is outside the classes", sample=sample)

    def _read_chunk(
        self, place: ChunkPlace, shape: tuple[int, ...], dtype: str, gzip_level: int | None
    ) -> npt.NDArray[Any]:
        _, offset, length, checksum = place
        stored = read_overlaid(self._file, self._pages, offset, length)
        self.report.n_chunks += 1
        if len(stored) < length or stored_checksum(stored) != checksum:
            raise ValueError(f"the {length} bytes at byte {offset} are damaged")
        return decode_chunk(stored, shape, np.dtype(dtype).newbyteorder("<"), gzip_level=gzip_level)

    def check(self) -> Report:
        """Check every epoch."""
        report = self.report
        for epoch in range(report.n_epochs):
            if epoch in report.dropped_epochs:
                continue
            before = report.n_problems
            if epoch not in self._chunks:
                report.add("nothing is known of where it is", epoch)
            elif self.layout is not None:
                for start, rows in self._tiles(epoch, self.layout):
                    self._check_rows(self.layout, epoch, start, rows)
            if report.n_problems == before:
                report.good_epochs.append(epoch)
        return replace(report)  # what `read_epoch` reads again is not counted in it

    def read_epoch(self, epoch: int) -> dict[str, npt.NDArray[Any]]:
        """An epoch that `check` found good, as the writer takes it."""
        assert self.layout is not None
        arrays = self.layout.unseen_epoch()
        for field in self.layout.fields:
            for start, block in self._blocks(epoch, self.layout, field):
                arrays[field.name][start : start + len(block)] = block
        return arrays

    def _blocks(self, epoch: int, layout: Layout, field: Field) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The chunks of a field in order, without what fills up the last one.

        Raises:
            _LostError: one is missing or damaged.
        """
        n_rows = layout.chunk_rows(field)
        places = {place[0]: place for place in self._chunks[epoch].get(field.name, [])}
        for start in range(0, layout.n_samples, n_rows):
            shape = (n_rows, *layout.epoch_shape(field)[1:])
            try:
                block = self._read_chunk(places[start], shape, field.dtype, layout.gzip_level)
            except KeyError:
                raise _LostError(start, f"'{field.name}' from here on is missing") from None
            except ValueError as error:
                raise _LostError(start, f"'{field.name}' from here on is lost, {error}") from error
            yield start, block[: layout.n_samples - start]

    def _tiles(self, epoch: int, layout: Layout) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """Rows of all fields, by the chunks of the widest, as far as they can be read."""
        step = min(layout.chunk_rows(field) for field in layout.fields)
        streams = {field: _Stream(self._blocks(epoch, layout, field)) for field in layout.fields}
        for start in range(0, layout.n_samples, step):
            stop = min(start + step, layout.n_samples)
            try:
                rows = {field.name: stream.rows(start, stop) for field, stream in streams.items()}
            except _LostError as error:
                self.report.add(str(error), epoch, error.sample)
                return
            yield start, rows

    def _check_rows(self, layout: Layout, epoch: int, start: int, rows: dict[str, npt.NDArray[Any]]) -> None:
        labels = self.labels[start : start + len(rows["predicted"])]
        for message, wrong in _contradictions(layout, labels, rows):
            found = np.flatnonzero(wrong)
            if len(found):
                more = f" (and {len(found) - 1} more near it)" if len(found) > 1 else ""
                self.report.add(message + more, epoch, start + int(found[0]))
        if self._store is not None:
            try:
                through_hdf5 = self._store.read_epoch_rows(epoch, slice(start, start + len(labels)))
            except StoreError as error:
                if not self._damaged_units:  # else it is the neighbourhood that is damaged, and that is said
                    self.report.add(f"HDF5 cannot read it: {error}", epoch, start)
                return
            for name, values in through_hdf5.items():
                if values.tobytes() != rows[name].tobytes():
                    self.report.add(f"HDF5 reads another '{name}'", epoch, start)


class _LostError(Exception):
    """Rows from `sample` on cannot be read."""

    def __init__(self, sample: int, message: str) -> None:
        super().__init__(message)
        self.sample = sample


class _Stream:
    """Consecutive rows out of blocks of another length."""

    def __init__(self, blocks: Iterator[tuple[int, npt.NDArray[Any]]]) -> None:
        self._blocks = blocks
        self._start = 0
        self._block: npt.NDArray[Any] | None = None

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows from `start` to `stop`, which continue those before."""
        parts = []
        while start < stop:
            if self._block is None or start >= self._start + len(self._block):
                self._start, self._block = next(self._blocks)
            part = self._block[start - self._start : stop - self._start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _contradictions(
    layout: Layout, labels: npt.NDArray[np.int32], rows: dict[str, npt.NDArray[Any]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What cannot be, and `[sample]` where it is so."""
    given, margin = rows["given_probability"], rows["margin"]
    predicted, seen = rows["predicted"], rows["n_presentations"] > 0
    yield "it was seen, but has no label", seen & (labels < 0)
    yield "it was not seen, but has a prediction", ~seen & (predicted != -1)
    yield "it was not seen, but has numbers", ~seen & ~(np.isnan(given) & np.isnan(margin))
    yield (
        "the predicted class is outside the classes",
        seen & ((predicted < 0) | (predicted >= layout.n_classes)),
    )
    yield "the probability of the given label is not in [0, 1]", seen & ~((given >= 0) & (given <= 1))
    yield "the margin is no number", seen & np.isnan(margin)
    right = predicted == labels
    yield (
        "the margin contradicts the predicted class",
        seen & (((margin > 0) & ~right) | ((margin < 0) & right)),
    )
    if layout.keep == "given":
        return
    wide = rows["probabilities" if layout.keep == "all" else "top_probabilities"]
    yield "it was not seen, but has probabilities", ~seen & ~np.isnan(wide).all(axis=1)
    yield "a probability is not in [0, 1]", seen & ~((wide >= 0) & (wide <= 1)).all(axis=1)
    # In float32; what rounding to the stored dtype does to each class adds up.
    exact = wide.astype(np.float32)
    tolerance = _TOLERANCE[layout.dtype] + wide.shape[1] * _SMALLEST[layout.dtype]
    total = exact.sum(axis=1)
    if layout.keep == "all":
        yield "the probabilities do not sum to 1", seen & ~(np.abs(total - 1) <= tolerance)
        at = np.clip(labels, 0, None)[:, np.newaxis]
        stored = np.take_along_axis(exact, at, axis=1)[:, 0]
        off = np.abs(stored - given) > tolerance
        yield "the probability of the given label is not what is stored for that class", seen & off
        top = np.take_along_axis(exact, np.clip(predicted, 0, layout.n_classes - 1)[:, np.newaxis], axis=1)[
            :, 0
        ]
        yield (
            "another class has a larger probability than the predicted",
            seen & (top < exact.max(axis=1) - tolerance),
        )
    else:
        classes = rows["top_classes"]
        inside = ((classes >= 0) & (classes < layout.n_classes)).all(axis=1)
        yield "one of the largest classes is outside the classes", seen & ~inside
        yield "it was not seen, but has classes", ~seen & (classes != -1).any(axis=1)
        yield "the largest probabilities sum to more than 1", seen & ~(total <= 1 + tolerance)
        yield "the largest probabilities are not in order", seen & (np.diff(exact, axis=1) > 0).any(axis=1)
