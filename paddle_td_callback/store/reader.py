"""A recording, read-only."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError, StoreNotFoundError
from ..messages import warn
from .chunks import read_chunk
from .commits import Commit, DamagedError, NotARecordingError, RawFile, commits, open_file
from .metadata import MAX_EMPTY_SAMPLES, Chunks, NewerSchemaError, State
from .schema import CLASS_NAMES, EPOCH_FIELDS, LABELS, SAMPLE_IDS, Field, label_checksum
from .writer import HINT

Samples = slice | npt.ArrayLike | None


def open_recording(path: str | os.PathLike[str]) -> RawFile:
    """Open a file for reading.

    Raises:
        StoreNotFoundError: there is no such file.
        StoreError: it may not be read, or is a folder, a device or a pipe.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise StoreError(f"'{name}' is a folder; give the path of the recording in it")
    if os.path.exists(name) and not os.path.isfile(name):
        raise StoreError(f"'{name}' is a device or a pipe; give the path of a recording")
    try:
        return open_file(name, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"'{name}': there is no such file; give the path of a recording") from error
    except OSError as error:
        raise StoreError(
            f"'{name}' cannot be read: {error.strerror or error}; give a recording that can be read"
        ) from error


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
        self._labels: npt.NDArray[np.int32] | None = None
        self._chunks: dict[str, Chunks] = {}
        self._file = open_recording(path)
        try:
            with self._saying_what_is_damaged():
                self._commit, self._state = self._newest()
                self._dropped = self._state.read_dropped(self._file)
        except BaseException:
            self._file.close()
            raise
        self.layout = layout = self._state.head.layout
        self.n_samples, self.n_classes, self.n_epochs = (
            layout.n_samples,
            layout.n_classes,
            self._state.n_epochs,
        )
        self.keep, self.mode = layout.keep, layout.mode
        self.dropped_epochs = self._dropped.tolist()
        self.created, self.versions = self._state.head.created, self._state.head.versions
        self.label_checksum = self._state.label_checksum

    def __enter__(self) -> TrainingDynamicsStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._file.close()

    def __repr__(self) -> str:
        return (
            f"<TrainingDynamicsStore '{self.path}': {self.n_samples} samples, {self.n_classes} classes, "
            f"{self.n_epochs} epochs, keep={self.keep!r}, mode={self.mode!r}>"
        )

    @functools.cached_property
    def sample_ids(self) -> list[str] | None:
        """`[sample]` names, None where samples are known by their indices only."""
        return self._names(SAMPLE_IDS)

    @functools.cached_property
    def class_names(self) -> list[str] | None:
        """`[class]` names, None where classes are known by their numbers only."""
        return self._names(CLASS_NAMES)

    def _names(self, kind: str) -> list[str] | None:
        with self._saying_what_is_damaged():
            return self._state.read_names(self._file, kind)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The given labels, `[sample]` int32, -1 = never seen.

        Raises:
            StoreError: nothing is recorded yet, and the data set is so large that nothing much is to be made of it.
        """
        if self._labels is None:
            if self.n_epochs == 0 and self.n_samples > MAX_EMPTY_SAMPLES:
                raise StoreError(
                    f"'{self.path}' holds no committed epoch of its {self.n_samples} samples yet; an epoch counts "
                    "once it has ended, so try again then"
                )
            labels = np.full(self.n_samples, LABELS.unseen, LABELS.dtype)
            n_rows = self.layout.chunk_rows(LABELS)
            with self._saying_what_is_damaged():
                for number in range(self._chunks_of(LABELS).n_a_epoch):
                    part = labels[number * n_rows : (number + 1) * n_rows]
                    part[:] = self._chunk(LABELS, number)[: len(part)]
                if label_checksum(labels) != self.label_checksum:
                    raise DamagedError(f"the labels do not match their checksum {self.label_checksum}")
            self._labels = labels
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
            raise StoreError(
                f"'{self.path}' was recorded with keep={self.keep!r}, not with keep=k; record with a number as keep="
            )
        return self._rows(self.layout.fields[-2], samples), self._rows(self.layout.fields[-1], samples)

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

    def _newest(self) -> tuple[Commit, State]:
        """The newest state that is whole."""
        wrong: DamagedError | None = None
        try:
            for commit in commits(self._file):
                try:
                    state = State.read(self._file, commit)
                except DamagedError as error:
                    wrong = wrong or error
                    continue
                if wrong is not None:
                    warn(
                        f"'{self.path}': its newest commit is damaged ({wrong}); these are the {state.n_epochs} epochs "
                        "of the commit before; another program may have changed the file, see `paddle-td verify`",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                return commit, state
        except NotARecordingError as error:
            raise StoreError(
                f"'{self.path}' {error}; give a file that TrainingDynamicsCallback or TrainingDynamicsRecorder made"
            ) from error
        except NewerSchemaError as error:
            raise StoreError(f"'{self.path}' has {error}; upgrade paddle_td_callback") from error
        assert wrong is not None
        raise wrong

    @contextlib.contextmanager
    def _saying_what_is_damaged(self) -> Iterator[None]:
        if self._file.fd < 0:
            raise ValueError(f"'{self.path}' is closed; open it anew with TrainingDynamicsStore(path)")
        try:
            yield
        except DamagedError as error:
            raise StoreError(f"'{self.path}' is damaged: {error}{HINT}") from error

    def _chunks_of(self, one: Field) -> Chunks:
        if one.name not in self._chunks:
            self._chunks[one.name] = Chunks(self._file, self._state, self._commit.at, one)
        return self._chunks[one.name]

    def _chunk(self, one: Field, number: int) -> npt.NDArray[Any]:
        chunks = self._chunks_of(one)
        at = int(chunks.at[number])
        rows = read_chunk(self._file, at, int(chunks.n_bytes[number]), self.layout, one)
        if one.dtype == "int32" and not -1 <= rows.min() <= rows.max() < self.n_classes:
            raise DamagedError(f"the chunk of '{one.name}' at byte {at} holds numbers outside the classes")
        return rows

    def _rows(self, one: Field, samples: Samples) -> npt.NDArray[Any]:
        chosen, n_rows = self._normalise(samples), self.layout.chunk_rows(one)
        n_chosen = chosen.stop - chosen.start if isinstance(chosen, slice) else len(chosen)
        out = np.empty((max(0, n_chosen), self.n_epochs, *self.layout.epoch_shape(one)[1:]), one.dtype)
        if out.size == 0:  # no bytes back the size of a recording without epochs
            return out
        with self._saying_what_is_damaged():
            a_epoch = self._chunks_of(one).n_a_epoch
            for number, place, rows in _by_chunk(chosen, n_rows):
                part = out[place]
                # Epoch by epoch as they are stored, then turned as a whole: far fewer cache misses.
                block = np.empty((self.n_epochs, *part.shape[:1], *part.shape[2:]), one.dtype)
                for epoch in range(self.n_epochs):
                    block[epoch] = self._chunk(one, epoch * a_epoch + number)[rows]
                out[place] = np.swapaxes(block, 0, 1)
        return out

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


def _by_chunk(chosen: slice | npt.NDArray[np.intp], n_rows: int) -> Iterator[tuple[int, Any, Any]]:
    """The chunks in which samples are: number, places among the chosen ones, rows of the chunk."""
    if isinstance(chosen, slice):
        for start in range(chosen.start - chosen.start % n_rows, chosen.stop, n_rows):
            low, high = max(chosen.start, start), min(chosen.stop, start + n_rows)
            yield (
                start // n_rows,
                slice(low - chosen.start, high - chosen.start),
                slice(low - start, high - start),
            )
        return
    numbers = chosen // n_rows
    for number in np.unique(numbers).tolist():
        here = np.flatnonzero(numbers == number)
        yield number, here, chosen[here] - number * n_rows
