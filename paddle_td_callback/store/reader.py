"""A recording, read-only."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..messages import warn
from .blocks import DamagedError
from .chunks import read_chunk
from .disk import RawFile, open_recording
from .paths import path_text
from .schema import CLASS_NAMES, EPOCH_FIELDS, LABEL_SHIFTS, SAMPLE_IDS, Field
from .state import StoredTree, newest_state

Samples = slice | npt.ArrayLike | None


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
        self.path = path_text(path)
        self._file = open_recording(path)
        _, self._state, wrong = newest_state(self._file)
        self.dropped_epochs = self._state.read_dropped(self._file)
        if wrong is not None:
            warn(
                f"'{self.path}': its newest commit is damaged ({wrong.what}); these are the {self._state.n_epochs} "
                "epochs of the commit before; another program may have changed the file, see `paddle-td verify`",
                stacklevel=2,
            )
        self.layout, self.n_epochs = self._state.layout, self._state.n_epochs
        self.n_samples, self.n_classes = self.layout.n_samples, self.layout.n_classes
        self.keep, self.mode = self.layout.keep, self.layout.mode
        self.created, self.versions = self._state.created, self._state.versions
        self.label_checksum = f"{self._state.labels[1]:08x}"

    def __enter__(self) -> TrainingDynamicsStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._file.close()

    @property
    def _open_file(self) -> RawFile:
        if self._file.fd < 0:
            raise ValueError(f"'{self.path}' is closed; open it anew with TrainingDynamicsStore(path)")
        return self._file

    def __repr__(self) -> str:
        return (
            f"<TrainingDynamicsStore '{self.path}': {self.n_samples} samples, {self.n_classes} classes, "
            f"{self.n_epochs} epochs, keep={self.keep!r}, mode={self.mode!r}>"
        )

    @functools.cached_property
    def sample_ids(self) -> list[str] | None:
        """`[sample]` names, None where samples are known by their indices only."""
        return self._state.read_names(self._open_file, SAMPLE_IDS)

    @functools.cached_property
    def class_names(self) -> list[str] | None:
        """`[class]` names, None where classes are known by their numbers only."""
        return self._state.read_names(self._open_file, CLASS_NAMES)

    @functools.cached_property
    def label_shifts(self) -> npt.NDArray[np.int64] | None:
        """By how many classes each label was moved on purpose, `[sample]`, 0 = not; None where none was.

        The label before is `(labels - label_shifts) % n_classes`; see `PlantedLabelErrors`.
        """
        texts = self._state.read_names(self._open_file, LABEL_SHIFTS)
        if texts is None:
            return None
        if not all(text.isdecimal() and text.isascii() and len(text) < 11 for text in set(texts)):
            raise DamagedError(self._file, "label_shifts are no numbers")
        shifts = np.array([int(text) for text in texts], np.int64)
        if shifts.max() >= self.n_classes:
            raise DamagedError(self._file, f"label_shifts must be below {self.n_classes}, got {shifts.max()}")
        return shifts

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """The given labels, `[sample]` int32, -1 = never seen."""
        return self._state.read_labels(self._open_file)

    def given_probabilities(self, samples: Samples = None) -> npt.NDArray[np.float32]:
        """Softmax probability of the given label, `[sample, epoch]` float32, NaN = unseen.

        Args:
            samples: None for all, a slice, or an array of sample indices; the same for all numbers.

        Raises:
            IndexError: an index outside the data set.
            StoreError: a damaged chunk.
        """
        return self._rows(0, samples)

    def margins(self, samples: Samples = None) -> npt.NDArray[np.float32]:
        """Logit of the given label minus the largest other, `[sample, epoch]` float32, NaN = unseen."""
        return self._rows(1, samples)

    def predictions(self, samples: Samples = None) -> npt.NDArray[np.int32]:
        """Class with the largest logit, `[sample, epoch]` int32, -1 = unseen."""
        return self._rows(2, samples)

    def n_presentations(self, samples: Samples = None) -> npt.NDArray[np.uint8]:
        """How often a sample was seen (the last time is stored), `[sample, epoch]` uint8, 0 = unseen."""
        return self._rows(3, samples)

    def probabilities(self, samples: Samples = None) -> npt.NDArray[Any]:
        """Softmax over all classes, `[sample, epoch, class]` as stored, NaN = unseen; StoreError if not kept."""
        if self.keep != "all":
            raise StoreError(
                f"'{self.path}' was recorded with keep={self.keep!r}, so it does not hold the probabilities of "
                "all classes; record with keep='all'"
            )
        return self._rows(-1, samples)

    def top(self, samples: Samples = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """The k largest classes, and their probabilities, `[sample, epoch, k]`; StoreError if not kept."""
        if not isinstance(self.keep, int):
            raise StoreError(
                f"'{self.path}' was recorded with keep={self.keep!r}, not with keep=k; record with a number as keep="
            )
        return self._rows(-2, samples), self._rows(-1, samples)

    def tiles(self, max_bytes: int = 1 << 26, *, wide: bool = False) -> Iterator[slice]:
        """Slices over all samples, each a whole number of chunks, to stream through what does not fit in memory.

        Args:
            max_bytes: how much one read of a tile may take, at least one chunk.
            wide: whether `probabilities` or `top` are to be read too, not only numbers per sample.
        """
        fields = self.layout.fields[: None if wide else len(EPOCH_FIELDS)]
        rows = min(one.chunk_rows for one in fields)
        row_bytes = sum(one.n_bytes for one in fields) // self.n_samples
        step = max(1, max_bytes // (rows * row_bytes * max(1, self.n_epochs))) * rows
        return (slice(start, min(start + step, self.n_samples)) for start in range(0, self.n_samples, step))

    def pred_probs(self, epochs: Any = None) -> npt.NDArray[np.float32]:
        """Class probabilities for cleanlab's `find_label_issues(labels, pred_probs)` and `Datalab.find_issues`.

        cleanlab expects probabilities of samples that were not trained on. These were, so a network that fits its
        labels is sure of wrong ones too, and more so with every epoch. The mean over all epochs keeps the early ones,
        in which wrong labels are not fitted yet. For a network that fits everything soon, give the epochs before
        that, such as `range(5)`.

        Args:
            epochs: None for all, one number (-1 is the last), a slice, or several numbers.

        Returns:
            `[sample, class]` float32, rows sum to 1; NaN for samples that were not seen in these epochs.

        Raises:
            StoreError: the recording does not hold the probabilities of all classes.
            ValueError: no such epochs.
        """
        every = np.arange(self.n_epochs)
        try:
            wanted = slice(None) if epochs is None else epochs
            chosen = np.atleast_1d(every[wanted if isinstance(wanted, slice) else np.asarray(wanted)])
        except IndexError:
            chosen = every[:0]
        if not len(chosen):
            raise ValueError(
                f"epochs={epochs!r} names none of the {self.n_epochs} epochs of '{self.path}'; give some of them"
            )
        result = np.full((self.n_samples, self.n_classes), np.nan, np.float32)
        for tile in self.tiles(wide=True):
            probabilities = self.probabilities(tile)
            total = np.zeros((tile.stop - tile.start, self.n_classes), np.float32)
            for epoch in chosen:  # one at a time: float32 of all epochs would be twice what is read
                total += np.nan_to_num(probabilities[:, epoch].astype(np.float32))
            sums = total.sum(axis=1, keepdims=True)
            np.divide(total, sums, out=result[tile], where=sums > 0)
        return result

    @functools.cached_property
    def _trees(self) -> list[StoredTree]:
        return self._state.trees(self._open_file)

    def _chunk(self, one: Field, epoch: int, number: int) -> npt.NDArray[Any]:
        place = self._trees[one.number].find(epoch, number)
        rows = read_chunk(self._open_file, self.layout, one, epoch, number, *place)
        if one.dtype == "int32" and not -1 <= rows.min() <= rows.max() < self.n_classes:
            what = f"the chunk of '{one.name}' at byte {place[0]} holds numbers outside the classes"
            raise DamagedError(self._file, what)
        return rows

    def _rows(self, field: int, samples: Samples) -> npt.NDArray[Any]:
        chosen, one = self._normalise(samples), self.layout.fields[field]
        out = np.empty((len(chosen), self.n_epochs, *one.shape[1:]), one.dtype)
        if out.size == 0:  # no bytes back the size of a recording without epochs
            return out
        numbers = chosen // one.chunk_rows
        order = np.argsort(numbers, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            number = int(numbers[here[0]])
            place, rows = _as_slice(here), _as_slice(chosen[here] - number * one.chunk_rows)
            # Epoch by epoch as they are stored, then turned as a whole: far fewer cache misses.
            block = np.empty((self.n_epochs, len(here), *out.shape[2:]), one.dtype)
            for epoch in range(self.n_epochs):
                block[epoch] = self._chunk(one, epoch, number)[rows]
            out[place] = np.swapaxes(block, 0, 1)
        return out

    def _normalise(self, samples: Samples) -> npt.NDArray[np.intp]:
        if samples is None or isinstance(samples, slice):
            return np.arange(*(samples or slice(None)).indices(self.n_samples))
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
            got = f"{indices.dtype} {indices.shape}"
            raise TypeError(f"samples must be a slice or a 1-d array of integers, got {got}")
        for outside in indices[(indices < 0) | (indices >= self.n_samples)].tolist():
            raise IndexError(f"sample {outside} is outside the {self.n_samples} samples of '{self.path}'")
        return indices.astype(np.intp)


def _as_slice(indices: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    """A slice where the indices follow each other, for it is copied faster."""
    start, stop = int(indices[0]), int(indices[-1]) + 1
    is_run = stop - start == len(indices) and bool((np.diff(indices) == 1).all())
    return slice(start, stop) if is_run else indices
