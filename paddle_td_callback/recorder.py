"""One epoch in memory: rows come in by sample index, a whole epoch goes out to the store."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .committer import Committer
from .errors import CaptureError
from .store import Keep, Layout, StoreWriter

_open_recorders: weakref.WeakSet[TrainingDynamicsRecorder] = weakref.WeakSet()


class TrainingDynamicsRecorder:
    """Records the outputs of a training loop of one's own; `TrainingDynamicsCallback` is built on it.

    Example:
        ::

            with TrainingDynamicsRecorder("run.h5", n_samples=len(dataset), n_classes=10) as recorder:
                for epoch in range(epochs):
                    for indices, images, labels in loader:
                        logits = network(images)
                        ...
                        recorder.update(indices, logits, labels)
                    recorder.end_epoch()

    Args:
        path: the HDF5 file to make.
        n_samples: size of the data set; sample indices are in `[0, n_samples)`.
        n_classes: number of classes, at least 2.
        keep: "all" classes' probabilities, the `k` largest of them, or only that of the "given" label.
        mode: "train" for outputs of training steps, "eval" for those of a pass in evaluation mode.
        class_names: one for each class, or None.
        dtype: of the stored probabilities of all or the largest classes, "float16" or "float32".
        compression: "gzip" or None.
        resume: continue an existing file after its last committed epoch.
        overwrite: replace an existing file.
        on_error: what to do when an epoch cannot be written: "warn" once and go on, or "raise".

    Attributes:
        path: of the file.
        layout: its fixed facts.
        labels: `[sample]` int32, the given labels seen so far, -1 = not yet.
        n_nonfinite: rows with NaN or infinite outputs so far; they are recorded as unseen.

    Raises:
        ValueError: an argument out of range.
        StoreError: the path exists, cannot be written, or holds another recording than the one to resume.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_samples: int,
        n_classes: int,
        keep: Keep = "all",
        mode: str = "train",
        class_names: Sequence[str] | None = None,
        dtype: str = "float16",
        compression: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        on_error: str = "warn",
    ) -> None:
        check_on_error(on_error)
        self.layout = Layout(
            n_samples=int(n_samples),
            n_classes=int(n_classes),
            keep=keep,
            dtype=dtype,
            mode=mode,
            gzip_level=gzip_level_of(compression),
        )
        self.path = os.fspath(path)
        if resume and os.path.exists(self.path):
            writer = StoreWriter.resume(self.path, self.layout)
        else:
            writer = StoreWriter.create(self.path, self.layout, class_names=class_names, overwrite=overwrite)
        self.labels = writer.labels.copy()
        self.n_nonfinite = 0
        self._committer = Committer(writer, on_error=on_error)
        self._n_rows = 0
        self._closed = False
        _open_recorders.add(self)

    def __enter__(self) -> TrainingDynamicsRecorder:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *exception: object) -> None:
        if exception_type is None and self._n_rows:
            warnings.warn(
                f"'{self.path}': {self._n_rows} rows came after the last end_epoch() and are not recorded",
                RuntimeWarning,
                stacklevel=2,
            )
        self.close()

    @property
    def n_epochs(self) -> int:
        """Epochs ended so far, those of a resumed file included."""
        return self._committer.next_index

    @property
    def blocked_seconds(self) -> float:
        """Seconds for which the calling thread waited for commits so far."""
        return self._committer.blocked_seconds

    def update(
        self,
        indices: npt.ArrayLike,
        logits: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        *,
        probabilities: npt.ArrayLike | None = None,
    ) -> None:
        """Record one batch of the current epoch. A sample that comes again replaces its earlier row.

        Args:
            indices: `[row]` integers, the samples' places in the data set.
            logits: `[row, class]`, the network's outputs before the softmax.
            labels: `[row]` or `[row, 1]` integers, the given labels.
            probabilities: `[row, class]`, the softmax of the logits where it is known; alone, logits are taken
                as its logarithm.

        Raises:
            TypeError: labels or indices that are no integers.
            ValueError: shapes that disagree, an index outside the data set, a label outside the classes.
            CaptureError: the label of a sample is not the one it had before.
        """
        if self._closed:
            raise ValueError(f"the recorder of '{self.path}' is closed")
        rows = as_integers(indices, "indices")
        given = as_integers(labels, "labels")
        scores, softmax = self._outputs(logits, probabilities, len(rows))
        if len(given) != len(rows):
            raise ValueError(f"{self._where}: {len(given)} labels for {len(rows)} indices")
        _check_range(
            rows, self.layout.n_samples, lambda i: f"index {rows[i]} in row {i}", "indices", self._where
        )
        _check_range(
            given,
            self.layout.n_classes,
            lambda i: f"{given[i]} for sample {rows[i]}",
            "labels",
            self._where,
        )
        finite = np.isfinite(scores).all(axis=1) & np.isfinite(softmax).all(axis=1)
        if not finite.all():
            self._note_nonfinite(rows[~finite])
            rows, given, scores, softmax = rows[finite], given[finite], scores[finite], softmax[finite]
        self._remember_labels(rows, given)
        self._scatter(rows, given, scores, softmax)
        self._n_rows += len(rows)

    def end_epoch(self) -> None:
        """End the epoch and commit it in the background; samples not seen in it are stored as unseen.

        Raises:
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        if self._closed:
            raise ValueError(f"the recorder of '{self.path}' is closed")
        self._committer.submit(self.labels)
        self._n_rows = 0

    def flush(self) -> None:
        """Wait until every ended epoch is on disk."""
        self._committer.flush()

    def close(self) -> None:
        """Commit what has ended, forget an epoch that has not, release the file. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            _open_recorders.discard(self)
            self._committer.close()

    @property
    def _where(self) -> str:
        return f"epoch {self.n_epochs}"

    def _outputs(
        self, logits: npt.ArrayLike | None, probabilities: npt.ArrayLike | None, n_rows: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        if logits is None and probabilities is None:
            raise ValueError("update() needs logits or probabilities")
        softmax = None if probabilities is None else self._matrix(probabilities, "probabilities", n_rows)
        if logits is None:
            assert softmax is not None
            with np.errstate(divide="ignore", invalid="ignore"):
                scores = np.log(np.maximum(softmax, np.finfo(np.float32).tiny))
            return scores, softmax
        scores = self._matrix(logits, "logits", n_rows)
        if softmax is None:
            with np.errstate(invalid="ignore", over="ignore"):
                softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
                softmax /= softmax.sum(axis=1, keepdims=True)
        return scores, softmax

    def _matrix(self, values: npt.ArrayLike, name: str, n_rows: int) -> npt.NDArray[np.float32]:
        array = as_array(values)
        if array.shape != (n_rows, self.layout.n_classes):
            raise ValueError(
                f"{self._where}: {name} must have shape ({n_rows}, {self.layout.n_classes}) [row, class], "
                f"got {array.shape}"
            )
        if array.dtype.kind != "f":
            raise TypeError(f"{self._where}: {name} must be floating point, got {array.dtype}")
        return array.astype(np.float32, copy=False)

    def _note_nonfinite(self, rows: npt.NDArray[np.int64]) -> None:
        if self.n_nonfinite == 0:
            warnings.warn(
                f"{self._where}: the network's output for sample {rows[0]} is NaN or infinite; such rows are "
                "recorded as unseen and counted, and this is said once",
                RuntimeWarning,
                stacklevel=3,
            )
        self.n_nonfinite += len(rows)

    def _remember_labels(self, rows: npt.NDArray[np.int64], given: npt.NDArray[np.int64]) -> None:
        known = self.labels[rows]
        fresh = known == -1
        self.labels[rows[fresh]] = given[fresh]
        changed = np.flatnonzero(self.labels[rows] != given)
        if len(changed):
            sample, new = rows[changed[0]], given[changed[0]]
            old = self.labels[sample]
            self.labels[rows[fresh]] = -1
            raise CaptureError(
                f"{self._where}: the label of sample {sample} was {old}, now it is {new}; a recording needs "
                "one given label for each sample, so pass them as labels=, or check that the indices belong "
                "to the rows"
            )

    def _scatter(
        self,
        rows: npt.NDArray[np.int64],
        given: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        softmax: npt.NDArray[np.float32],
    ) -> None:
        epoch = self._committer.buffer
        at = (np.arange(len(rows)), given)
        others = scores.copy()
        others[at] = -np.inf
        epoch["given_probability"][rows] = softmax[at]
        largest = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            epoch["margin"][rows] = np.clip(scores[at] - others.max(axis=1), -largest, largest)
        epoch["predicted"][rows] = scores.argmax(axis=1)
        seen, times = np.unique(rows, return_counts=True)
        counts = epoch["n_presentations"]
        counts[seen] = np.minimum(counts[seen].astype(np.int64) + times, 255)
        if self.layout.keep == "all":
            epoch["probabilities"][rows] = softmax
        elif isinstance(self.layout.keep, int):
            top = np.argsort(-softmax, axis=1, kind="stable")[:, : self.layout.keep]
            epoch["top_classes"][rows] = top
            epoch["top_probabilities"][rows] = np.take_along_axis(softmax, top, axis=1)


def wait_for_commits(path: str | os.PathLike[str]) -> None:
    """Make every epoch that an open recorder of this process has ended in `path` durable."""
    for recorder in list(_open_recorders):
        if os.path.abspath(recorder.path) == os.path.abspath(path):
            recorder.flush()


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless `on_error` is "warn" or "raise"."""
    if on_error not in ("warn", "raise"):
        raise ValueError(f"on_error must be 'warn' or 'raise', got {on_error!r}")


def gzip_level_of(compression: str | None) -> int | None:
    """The gzip level that a `compression=` argument means.

    Raises:
        ValueError: neither "gzip" nor None.
    """
    if compression not in (None, "gzip"):
        raise ValueError(f"compression must be 'gzip' or None, got {compression!r}")
    return 1 if compression == "gzip" else None


def as_array(values: Any) -> npt.NDArray[Any]:
    """A NumPy array of whatever was given; bfloat16 tensors, for which NumPy has no type, as float32."""
    if "bfloat16" in str(getattr(values, "dtype", "")).lower() and hasattr(values, "astype"):
        values = values.astype("float32")
    return np.asarray(values)


def as_integers(values: Any, name: str) -> npt.NDArray[np.int64]:
    """`[row]` or `[row, 1]` integers as `[row]` int64.

    Raises:
        TypeError: something else than integers.
        ValueError: another shape.
    """
    array = as_array(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape [row] or [row, 1], got {array.shape}")
    return array.astype(np.int64)


def _check_range(values: npt.NDArray[np.int64], stop: int, describe: Any, name: str, where: str) -> None:
    outside = np.flatnonzero((values < 0) | (values >= stop))
    if len(outside):
        raise ValueError(f"{where}: {name} must be in [0, {stop}), got {describe(int(outside[0]))}")
