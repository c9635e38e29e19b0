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
from . import hdf5_format as h5
from .blocks import CHUNK, LABELS, METADATA, SHARED, STATE, DamagedError, Frame, Root, read_block, scan
from .chunks import read_chunk
from .disk import RawFile, open_recording
from .paths import path_text
from .schema import TEXTS, Field, Layout
from .state import State, StoredTree, newest_state
from .writer import StoreWriter

_MAX_PROBLEMS = 20  # are printed, the rest only counted
_TILE_BYTES = 32 << 20
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
        numbers = {"epoch": self.epoch, "sample": self.sample}
        places = ", ".join(f"{name} {at}" for name, at in numbers.items() if at is not None)
        return f"{places}: {self.message}" if places else self.message


@dataclass
class Report:
    """What `verify` found."""

    path: str
    n_epochs: int = 0  # committed epochs, as far as they are known
    n_chunks: int = 0  # chunks read
    n_bytes: int = 0  # bytes of the file that were checked
    good_epochs: list[int] = attribute(default_factory=list)  # of which everything is right
    dropped_epochs: list[int] = attribute(default_factory=list)  # never written; they read as unseen
    problems: list[Problem] = attribute(default_factory=list)  # the first of them
    n_problems: int = 0  # in all

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
        what = "good: " if self.ok else f"damaged: {self.n_problems} problems; "
        checked = f"{self.n_epochs} epochs, {self.n_chunks} chunks, {self.n_bytes / 1e6:.1f} MB checked"
        lines = [f"'{self.path}' is {what}{checked}"]
        if self.dropped_epochs:
            lines.append(f"  epochs {self.dropped_epochs} were never written and read as unseen")
        lines += [f"  {problem}" for problem in self.problems]
        if self.n_problems > len(self.problems):
            lines.append(f"  and {self.n_problems - len(self.problems)} more")
        if self.good_epochs and not self.ok:
            good = f"{len(self.good_epochs)} of {self.n_epochs} epochs are good"
            way = f"can be written to a new file: paddle-td verify --salvage OUT {self.path}"
            lines.append(f"  {good} and {way}")
        elif not self.ok:
            lines.append("  nothing can be salvaged")
        return "\n".join(lines)


def verify(path: str | os.PathLike[str]) -> Report:
    """Check every byte of a recording and what the numbers say of each other.

    If all is right, it is read once more by h5py, which must give the same. It may be one that is being written.

    Raises:
        StoreError: there is no such file, it may not be read, or it is no recording of training dynamics.
    """
    with contextlib.closing(open_recording(path)) as file:
        return _Examined(file).check()


def salvage(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Report:
    """Write the good epochs of a damaged recording to a new file.

    They keep their numbers: an epoch that is not good is listed as dropped there and reads as unseen, as far as
    a good one follows.

    Args:
        path: the damaged recording; the report is on this.
        out: the file to make.

    Raises:
        StoreError: `out` exists or cannot be written, or there is nothing to salvage in `path`.
    """
    with contextlib.closing(open_recording(path)) as file:
        examined = _Examined(file)
        report, layout = examined.check(), examined.layout
        if not report.good_epochs:
            raise StoreError(
                f"'{report.path}' holds no good epoch, so there is nothing to salvage; record the training again"
            )
        writer = StoreWriter.create(out, layout, **examined.names)
        try:
            for epoch in report.good_epochs:
                rows = {one.name: examined.rows(epoch, one, 0, layout.n_samples) for one in layout.fields}
                writer.commit_epoch(epoch, rows, examined.labels)
        except OSError as error:
            raise StoreError(f"'{path_text(out)}' cannot be written: {error}; give another path") from error
        finally:
            writer.close()
        return report


class _Examined:
    """A recording whose blocks were read one after the other, however damaged it is."""

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self.names: dict[str, Any] = {}
        self._report = Report(file.name)
        self._chunks: dict[tuple[int, int, int], tuple[int, int]] = {}  # epoch, field, number: address, bytes
        self._trees: list[StoredTree] = []  # where no block is damaged
        self._is_for_others = False  # whether HDF5 finds the newest state, and nothing that is not checked
        report, newest = self._report, None
        why: StoreError | None
        try:
            root, newest, why = newest_state(file)
        except StoreError as error:
            why = error
        newest = newest if why is None else None
        report.n_bytes = file.n_bytes if newest is None else root.end
        state = self._follow(report.n_bytes, newest)
        if state is None:
            raise why or StoreError(f"'{report.path}' holds no whole state; record the training again")
        if why is not None:
            report.add(why.what if isinstance(why, DamagedError) else "its first sector is damaged")
        self.layout, self.labels = state.layout, np.full(state.layout.n_samples, -1, np.int32)
        try:
            self.labels = state.read_labels(file)
            self.names = {kind: state.read_names(file, kind) for kind in TEXTS}
            if newest is not None:
                report.dropped_epochs = newest.read_dropped(file)
            if report.ok and newest is not None:
                newest.check_metadata(file, root)
                self._trees = newest.trees(file)
                found = file.read(0, h5.BEFORE_AT)
                end = int.from_bytes(found[h5.END_AT : h5.END_AT + 8], "little")
                is_inside = root.end + h5.SLACK_BYTES <= end <= file.n_bytes
                self._is_for_others = is_inside and found == h5.superblock(root.at, end, 0)[: h5.BEFORE_AT]
        except DamagedError as error:
            report.add(error.what)
        outside = np.flatnonzero((self.labels < -1) | (self.labels >= self.layout.n_classes))
        for sample in outside[:1].tolist():
            report.add(f"label {self.labels[sample]} is outside the classes", sample=sample)

    def _follow(self, end: int, newest: State | None) -> State | None:
        """Go through the log as its writer did: chunks count from the state that commits them. Returns the last."""
        report, file, state = self._report, self._file, newest
        waiting: list[tuple[int, Frame]] = []
        for at, frame in scan(file, end):
            if frame is None:
                report.add(f"from byte {at} on something stands that is no block")
                continue
            file.run = frame.run if file.run is None else file.run
            try:
                if frame.kind != CHUNK:
                    read_block(file, at, frame.kind)
                if frame.kind == STATE:
                    state = State.read(file, Root(at, 0, at + frame.n_bytes))
                    self._take(waiting, state.n_epochs)
                    waiting = []
                elif frame.kind in (CHUNK, LABELS):
                    waiting.append((at, frame))
            except DamagedError as error:
                changed = "another program has changed the metadata for HDF5: " * (frame.kind == METADATA)
                report.add(changed + error.what)
        if newest is not None:
            report.n_epochs = newest.n_epochs
            return newest
        self._take(waiting, 1 << 32)  # the state that commits these may be what is damaged
        report.n_epochs = max(self._chunks, default=(-1,))[0] + 1
        labels = [(at, frame.checksum) for at, frame in waiting if frame.kind == LABELS]
        return replace(state, labels=labels[-1]) if labels and state is not None else state

    def _take(self, waiting: list[tuple[int, Frame]], n_epochs: int) -> None:
        """Count chunks as those of the first epochs."""
        for at, frame in waiting:
            if 8 * frame.epoch > self._file.n_bytes:  # less than an epoch takes, written or dropped
                self._report.add(f"the chunk at byte {at} claims to be of epoch {frame.epoch}")
            elif frame.kind == CHUNK and frame.number != SHARED:  # of epochs that were never written
                self._chunks[frame.epoch, frame.field, frame.number] = at, frame.n_bytes
        if n_epochs < self._report.n_epochs:  # a recording that was taken up from an earlier epoch
            self._chunks = {key: place for key, place in self._chunks.items() if key[0] < n_epochs}
        self._report.n_epochs = n_epochs

    def rows(self, epoch: int, one: Field, start: int, stop: int) -> npt.NDArray[Any]:
        """Some rows of one epoch, `[sample]`, `[sample, class]` or `[sample, k]`."""
        parts, n_rows, field = [], one.chunk_rows, one.number
        for number in range(start // n_rows, -(-stop // n_rows)):
            try:
                place = self._chunks.get((epoch, field, number), (0, 0))
                if self._trees:
                    place = self._trees[field].find(epoch, number)
                block = read_chunk(self._file, self.layout, one, epoch, number, *place)
            except DamagedError as error:
                self._report.add(f"'{one.name}' from here on is lost: {error.what}", epoch, number * n_rows)
                raise
            self._report.n_chunks += 1
            parts.append(block[max(0, start - number * n_rows) : stop - number * n_rows])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def check(self) -> Report:
        """Check every epoch."""
        report, dropped = self._report, set(self._report.dropped_epochs)
        for epoch in range(report.n_epochs):
            before = report.n_problems
            with contextlib.suppress(DamagedError):  # it is noted
                if epoch in dropped and self._trees:  # all its chunks are one
                    _ = [self.rows(epoch, one, 0, 1) for one in self.layout.fields]
                for start, rows in self._tiles(epoch) if epoch not in dropped else ():
                    labels = self.labels[start : start + len(rows["predicted"])]
                    for message, wrong in _contradictions(self.layout, labels, rows):
                        found = np.flatnonzero(wrong)
                        if len(found):
                            more = f" (and {len(found) - 1} more near it)" if len(found) > 1 else ""
                            report.add(message + more, epoch, start + int(found[0]))
            if report.n_problems == before and epoch not in dropped:
                report.good_epochs.append(epoch)
        n_chunks = report.n_chunks
        if report.ok and self._is_for_others:
            self._compare_with_h5py()
        return replace(report, n_chunks=n_chunks)

    def _tiles(self, epoch: int) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """Rows of all fields, by the chunks of the narrow ones, so that each chunk is read once or nearly so."""
        layout, step = self.layout, self.layout.fields[0].chunk_rows
        if step * layout.epoch_bytes > layout.n_samples * _TILE_BYTES:  # wide rows: by their own chunks
            step = layout.fields[-1].chunk_rows
        for start in range(0, layout.n_samples, step):
            stop = min(start + step, layout.n_samples)
            yield start, {one.name: self.rows(epoch, one, start, stop) for one in layout.fields}

    def _compare_with_h5py(self) -> None:
        """Whether other programs read the same; called when the file holds what this package writes and no more."""
        try:
            with h5py.File(self._report.path) as file:
                if file["labels"][:].tobytes() != self.labels.tobytes():
                    self._report.add("h5py reads other labels")
                for epoch in self._report.good_epochs:
                    for start, rows in self._tiles(epoch):
                        for name, values in rows.items():
                            if file[name][epoch, start : start + len(values)].tobytes() != values.tobytes():
                                self._report.add(f"h5py reads another '{name}'", epoch, start)
        except (OSError, KeyError, IndexError, ValueError, RuntimeError) as error:
            if newest_state(self._file)[0].end == self._report.n_bytes:  # no writer has gone on meanwhile
                self._report.add(f"h5py cannot read it: {error}")


def _contradictions(
    layout: Layout, labels: npt.NDArray[np.int32], rows: dict[str, npt.NDArray[Any]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What cannot be, and `[sample]` where it is so."""
    given, margin, predicted = rows["given_probability"], rows["margin"], rows["predicted"]
    seen, right = rows["n_presentations"] > 0, predicted == labels
    outside = (predicted < 0) | (predicted >= layout.n_classes)
    yield "it was seen, but has no label", seen & (labels < 0)
    yield "it was not seen, but has a prediction", ~seen & (predicted != -1)
    yield "it was not seen, but has numbers", ~seen & ~(np.isnan(given) & np.isnan(margin))
    yield "the predicted class is outside the classes", seen & outside
    yield "the probability of the given label is not in [0, 1]", seen & ~((given >= 0) & (given <= 1))
    yield "the margin is no number", seen & np.isnan(margin)
    yield "the margin contradicts the predicted class", seen & np.where(right, margin < 0, margin > 0)
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
        samples, last = np.arange(len(exact)), layout.n_classes - 1
        off = np.abs(exact[samples, np.clip(labels, 0, last)] - given) > tolerance
        is_less = exact[samples, np.clip(predicted, 0, last)] < exact.max(axis=1) - tolerance
        yield "the probabilities do not sum to 1", seen & ~(np.abs(total - 1) <= tolerance)
        yield "the probability of the given label is not what is stored for that class", seen & off
        yield "another class has a larger probability than the predicted", seen & is_less
    else:
        classes = rows["top_classes"]
        inside = ((classes >= 0) & (classes < layout.n_classes)).all(axis=1)
        yield "one of the largest classes is outside the classes", seen & ~inside
        yield "it was not seen, but has classes", ~seen & (classes != -1).any(axis=1)
        yield "the largest probabilities sum to more than 1", seen & ~(total <= 1 + tolerance)
        yield "the largest probabilities are not in order", seen & (np.diff(exact, axis=1) > 0).any(axis=1)
