"""Checking a recording down to the last byte, and saving what is good of a damaged one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..messages import escape
from .chunks import read_chunk
from .commits import (
    CHUNK,
    FRAME_BYTES,
    HEAD,
    METADATA,
    RECORDS_AT,
    SECTOR_BYTES,
    SHARED,
    START,
    STATE,
    Commit,
    DamagedError,
    Frame,
    NotARecordingError,
    blocks,
    commits,
    read_block,
    record_at,
)
from .hdf5_format import END_AT, ROOT_AT, SLACK_BYTES, superblock
from .metadata import Chunks, Head, NewerSchemaError, State, unpack_facts, whole
from .reader import open_recording
from .schema import CLASS_NAMES, LABELS, SAMPLE_IDS, Field, Layout, label_checksum
from .writer import LABELS_FIELD, StoreWriter

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

    The file is read block by block as its writer appended them, which needs no index. If all is right, it is read once
    more by h5py, which must give the same.

    Args:
        path: a recording; it may be one that is being written.

    Returns:
        A report; `print` it.

    Raises:
        StoreError: there is no such file, it may not be read, or it is no recording of training dynamics.
    """
    with contextlib.closing(_Examined(path)) as examined:
        return examined.check()


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
    with contextlib.closing(_Examined(path)) as examined:
        report = examined.check()
        if examined.layout is None or not report.good_epochs:
            raise StoreError(
                f"'{examined.path}' holds no good epoch, so there is nothing to salvage; record the training again"
            )
        writer = StoreWriter.create(out, examined.layout, **examined.names)
        try:
            for epoch in report.good_epochs:
                rows = {
                    one.name: examined.rows(epoch, one, 0, examined.layout.n_samples)
                    for one in examined.layout.fields
                }
                writer.commit_epoch(epoch, rows, examined.labels)
        except OSError as error:
            raise StoreError(f"'{os.fspath(out)}' cannot be written: {error}; give another path") from error
        finally:
            writer.close()
        return report


class _LostError(Exception):
    """Rows from `sample` on cannot be read."""

    def __init__(self, sample: int, message: str) -> None:
        super().__init__(message)
        self.sample = sample


class _Examined:
    """A recording read by the frames of its blocks, however damaged it is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.layout: Layout | None = None
        self.labels: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.names: dict[str, Any] = {}
        self._report = Report(self.path)
        self._chunks: dict[
            int, dict[tuple[int, int], tuple[int, int]]
        ] = {}  # epoch: field, number: address, bytes
        self._label_chunks: dict[tuple[int, int], tuple[int, int]] = {}
        self._label_checksum = ""
        self._seen_by_others = (
            False  # whether HDF5 will find the newest state, and nothing that is not checked
        )
        self._last: tuple[int, int, npt.NDArray[Any]] | None = None
        self._file = open_recording(path)
        try:
            self._examine()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _examine(self) -> None:
        report, newest, why = self._report, None, ""
        try:
            newest = commits(self._file)[0]
        except (NotARecordingError, DamagedError) as error:
            why = str(error)
        first = START if newest is None else newest.at - FRAME_BYTES
        frame = Frame.read(self._file, first) or next(
            filter(None, (f for _, f in blocks(self._file, self._file.n_bytes))), None
        )
        self._file.run = None if frame is None else frame.run
        report.n_bytes = self._file.n_bytes if newest is None else min(newest.end, self._file.n_bytes)
        self._follow(report.n_bytes, newest)
        if self.layout is None:
            raise StoreError(
                f"'{self.path}' {why or 'holds no block that says what was recorded; give the path of a recording'}"
            )
        if why:
            report.add(f"it {why}")
        for at in RECORDS_AT:
            # A power cut may leave one that is cut off, which costs nothing.
            if record_at(self._file, at) is None and any(self._file.read(at, SECTOR_BYTES)):
                report.add(f"the commit record at byte {at} is damaged")
        if newest is not None:
            self._check_state(newest)
        if self._chunks and 4 * self.layout.n_samples > report.n_bytes:
            report.add(f"{self.layout.n_samples} samples, but too few bytes for their labels")
            self.layout = None
        elif self._chunks:
            self._read_labels(self.layout)

    def _follow(self, end: int, newest: Commit | None) -> None:
        """Go through the log as its writer did: chunks count from the state that commits them."""
        waiting: list[tuple[int, Frame]] = []
        for at, frame in blocks(self._file, end):
            if frame is None:
                self._report.add(f"from byte {at} on something stands that is no block")
            elif frame.kind == CHUNK:
                waiting.append((at + FRAME_BYTES, frame))
            else:
                try:
                    body = read_block(self._file, at + FRAME_BYTES, frame.kind)
                    if frame.kind == HEAD:
                        self.layout = Head.read(self._file, at + FRAME_BYTES).layout
                    elif frame.kind == STATE:
                        facts = unpack_facts(body)
                        self._take(waiting, whole(facts["n_epochs"], 0, (1 << 32) - 1))
                        self._label_checksum, waiting = escape(facts["label_checksum"], limit=20), []
                except (DamagedError, NewerSchemaError, ValueError, KeyError) as error:
                    what = (
                        "another program has changed the metadata for HDF5: "
                        if frame.kind == METADATA
                        else ""
                    )
                    self._report.add(f"{what}{error}")
        if newest is None or self._report.n_problems:  # the state that commits these may be what is damaged
            self._take(waiting, 1 << 32)

    def _take(self, waiting: list[tuple[int, Frame]], n_epochs: int) -> None:
        for at, frame in waiting:
            if frame.number == SHARED:  # of epochs that were never written
                continue
            if (
                8 * frame.epoch > self._file.n_bytes
            ):  # an epoch takes more, and so does the note that it was dropped
                self._report.add(f"the chunk at byte {at} claims to be of epoch {frame.epoch}")
                continue
            labels = frame.field == LABELS_FIELD
            chunks = self._label_chunks if labels else self._chunks.setdefault(frame.epoch, {})
            chunks[frame.field, frame.number] = at, frame.n_bytes
        self._chunks = {epoch: chunks for epoch, chunks in self._chunks.items() if epoch < n_epochs}
        self._report.n_epochs = max(self._chunks, default=-1) + 1

    def _check_state(self, newest: Commit) -> None:
        """The newest state, and the metadata that it and the head hold for other HDF5 readers."""
        report = self._report
        if newest.end > self._file.n_bytes:
            report.add(f"it is cut off: {self._file.n_bytes} bytes of {newest.end}")
        try:
            state = State.read(self._file, newest)
            dropped = state.read_dropped(self._file)
            report.n_epochs, report.dropped_epochs = state.n_epochs, dropped.tolist()
            for kind in (CLASS_NAMES, SAMPLE_IDS):
                self.names[kind] = state.read_names(self._file, kind)
            if report.ok:
                state.check_metadata(self._file, newest)
                for number, one in enumerate((*state.head.layout.fields, LABELS)):
                    self._check_index(Chunks(self._file, state, newest.at, one), number, one)
                self._check_superblock(state, newest)
        except DamagedError as error:
            report.add(str(error))
        except NewerSchemaError as error:
            raise StoreError(f"'{self.path}' has {error}; upgrade paddle_td_callback") from error

    def _check_index(self, chunks: Chunks, number: int, one: Field) -> None:
        """Whether the index of a dataset leads to the chunks that the log holds."""
        found = np.stack([chunks.at, chunks.n_bytes], axis=1)
        if one is LABELS:
            known = [self._label_chunks[key] for key in sorted(self._label_chunks)]
        else:
            dropped = self._report.dropped_epochs
            is_written = ~np.isin(np.arange(self._report.n_epochs), dropped)
            found = found[np.repeat(is_written, chunks.n_a_epoch)]
            known = [
                place
                for epoch in sorted(set(self._chunks).difference(dropped))
                for (field, _), place in sorted(self._chunks[epoch].items())
                if field == number
            ]
        if known != list(map(tuple, found.tolist())):
            self._report.add(
                f"the chunk index of '{one.name}' leads to other chunks than those of its epochs"
            )

    def _check_superblock(self, state: State, newest: Commit) -> None:
        """Whether other programs are led to the metadata just checked, and to nothing else."""
        found, root = self._file.read(0, 96), state.metadata_at(newest)
        end = int.from_bytes(found[END_AT : END_AT + 8], "little")
        is_inside = newest.end + SLACK_BYTES <= end <= self._file.n_bytes
        self._seen_by_others = is_inside and found == superblock(root, end)
        there = int.from_bytes(found[ROOT_AT : ROOT_AT + 8], "little")
        frame = Frame.read(self._file, there - FRAME_BYTES)
        # A process that was killed in a commit leaves it one epoch behind, and a live one moves it on.
        if frame is None or frame.kind != METADATA:
            self._report.add("its superblock leads other programs to what is no metadata")

    def _read_labels(self, layout: Layout) -> None:
        self.labels = np.full(layout.n_samples, -1, np.int32)
        n_rows = layout.chunk_rows(LABELS)
        for number in range(layout.n_chunks(LABELS)):
            start = number * n_rows
            try:
                block = self._chunk(self._label_chunks, LABELS, LABELS_FIELD, number)
            except _LostError as error:
                self._report.add(str(error), sample=start)
                continue
            self.labels[start : start + n_rows] = block[: layout.n_samples - start]
        if self._label_checksum and label_checksum(self.labels) != self._label_checksum:
            self._report.add(f"the labels do not match their checksum {self._label_checksum}")
        outside = np.flatnonzero((self.labels < -1) | (self.labels >= layout.n_classes))
        if len(outside):
            sample = int(outside[0])
            self._report.add(f"label {self.labels[sample]} is outside the classes", sample=sample)

    def _chunk(
        self, chunks: dict[tuple[int, int], tuple[int, int]], one: Field, of_field: int, number: int
    ) -> npt.NDArray[Any]:
        assert self.layout is not None
        start = number * self.layout.chunk_rows(one)
        if (of_field, number) not in chunks:
            raise _LostError(start, f"'{one.name}' from here on is missing")
        self._report.n_chunks += 1
        try:
            return read_chunk(self._file, *chunks[of_field, number], self.layout, one)
        except DamagedError as error:
            raise _LostError(start, f"'{one.name}' from here on is lost, {error}") from error

    def rows(self, epoch: int, one: Field, start: int, stop: int) -> npt.NDArray[Any]:
        """Some rows of one epoch, `[sample]`, `[sample, class]` or `[sample, k]`."""
        assert self.layout is not None
        n_rows, of_field = self.layout.chunk_rows(one), self.layout.fields.index(one)
        parts = []
        for number in range(start // n_rows, -(-stop // n_rows)):
            block = self._chunk(self._chunks[epoch], one, of_field, number)
            parts.append(block[max(0, start - number * n_rows) : stop - number * n_rows])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def check(self) -> Report:
        """Check every epoch."""
        report, layout = self._report, self.layout
        if layout is None:
            return report
        for epoch in sorted({*range(report.n_epochs)}.difference(report.dropped_epochs)):
            before = report.n_problems
            if epoch not in self._chunks:
                report.add("nothing is known of where it is", epoch)
            else:
                try:
                    for start, rows in self._tiles(epoch, layout):
                        self._check_rows(layout, epoch, start, rows)
                except _LostError as error:
                    report.add(str(error), epoch, error.sample)
            if report.n_problems == before:
                report.good_epochs.append(epoch)
        n_chunks = report.n_chunks
        if report.ok and self._seen_by_others:
            self._compare_with_h5py(layout)
        return replace(report, n_chunks=n_chunks)

    def _tiles(self, epoch: int, layout: Layout) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """Rows of all fields, by the chunks of the narrow ones, so that each chunk is read once or nearly so."""
        step = layout.chunk_rows(layout.fields[0])
        if 32 * step * layout.epoch_bytes > layout.n_samples * (1 << 30):  # wide rows: by their own chunks
            step = min(layout.chunk_rows(one) for one in layout.fields)
        for start in range(0, layout.n_samples, step):
            stop = min(start + step, layout.n_samples)
            yield start, {one.name: self.rows(epoch, one, start, stop) for one in layout.fields}

    def _check_rows(self, layout: Layout, epoch: int, start: int, rows: dict[str, npt.NDArray[Any]]) -> None:
        labels = self.labels[start : start + len(rows["predicted"])]
        for message, wrong in _contradictions(layout, labels, rows):
            found = np.flatnonzero(wrong)
            if len(found):
                more = f" (and {len(found) - 1} more near it)" if len(found) > 1 else ""
                self._report.add(message + more, epoch, start + int(found[0]))

    def _compare_with_h5py(self, layout: Layout) -> None:
        """Whether other programs read the same; called when the file holds what this package writes and no more."""
        try:
            with h5py.File(self.path) as h5:
                for epoch in self._report.good_epochs:
                    for start, rows in self._tiles(epoch, layout):
                        for name, values in rows.items():
                            there = h5[name][epoch, start : start + len(values)]
                            if there.tobytes() != values.tobytes():
                                self._report.add(f"h5py reads another '{name}'", epoch, start)
        except (OSError, KeyError, IndexError, ValueError, RuntimeError) as error:
            if len(commits(self._file)) > 0 and commits(self._file)[0].end == self._report.n_bytes:
                self._report.add(f"h5py cannot read it: {error}")


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
        at = np.clip(labels, 0, layout.n_classes - 1)[:, np.newaxis]
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
