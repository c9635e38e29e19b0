"""One epoch in memory: rows come in by sample index, a whole epoch goes out to the store."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..store import StoreWriter, TrainingDynamicsStore
from ..store.paths import check_space
from ..store.schema import Keep, Layout, is_whole
from .committer import spill_bytes
from .sinks import LocalSink, Sink

if TYPE_CHECKING:
    from ..paddle_fit.ranks import RankGroup
    from ..paddle_fit.rendezvous import Session

_open_recorders: weakref.WeakSet[TrainingDynamicsRecorder] = weakref.WeakSet()
# Of recorders that nobody closed and that are gone, as where `fit` died between two epochs. The garbage collector may
# run anywhere, even inside h5py with the lock that a commit needs, so it must not wait for one: closed later on.
_orphans: list[Sink] = []


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
        sample_ids: `[sample]` strings or integers that name the samples in every output, or None.
        dtype: of the stored probabilities of all or the largest classes, "float16" or "float32".
        compression: "gzip" or None.
        expected_epochs: how many epochs are to come, to refuse at once what the disk has no room for.
        memory_limit_bytes: where two epochs are larger, they are kept in a nameless file beside the store
            instead of in memory; None = a quarter of the machine's memory. On ranks above 0, what is larger of their
            share of one epoch.
        resume: continue an existing file after its last committed epoch.
        overwrite: replace an existing file.
        on_error: what to do when an epoch cannot be written: "warn" once and go on, or "raise".
        distributed: whether all ranks of Paddle's parallel environment record into this one file, which rank 0
            writes; every rank then makes a recorder, waits for the others here, and calls `end_epoch` equally often.
            None: if there are several ranks. False: this process records alone. A `RankGroup` is that of a caller
            who lets the ranks meet by itself.

    Attributes:
        path: of the file, absolute.
        layout: its fixed facts.
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
        sample_ids: Sequence[Any] | None = None,
        dtype: str = "float16",
        compression: str | None = None,
        expected_epochs: int | None = None,
        memory_limit_bytes: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        on_error: str = "warn",
        distributed: bool | RankGroup | None = None,
    ) -> None:
        check_on_error(on_error)
        if resume and overwrite:
            raise ValueError("resume=True and overwrite=True contradict each other")
        for name, value in (("n_samples", n_samples), ("n_classes", n_classes)):
            if not is_whole(value):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        self.layout = Layout(
            n_samples=int(n_samples),
            n_classes=int(n_classes),
            keep=keep,
            dtype=dtype,
            mode=mode,
            gzip_level=gzip_level_of(compression),
        )
        self.path = os.path.abspath(path)  # the training may change the working folder
        _close_orphans()
        ranks = None if distributed is False else _ranks()
        if distributed and ranks is None:
            raise ValueError(
                "distributed=True, but Paddle is in no parallel environment of several ranks; call "
                "paddle.distributed.init_parallel_env() first"
            )

        def open_sink() -> Sink:
            if ranks is not None and ranks.rank > 0:
                from ..paddle_fit.ranks import SendingSink

                return SendingSink(
                    self.layout,
                    ranks,
                    memory_limit_bytes=memory_limit_bytes,
                    folder=os.path.dirname(self.path),
                    sample_ids=sample_ids,
                )
            if expected_epochs is not None:
                buffer_bytes = spill_bytes(self.layout, memory_limit_bytes)
                check_space(self.path, self.layout, expected_epochs, buffer_bytes=buffer_bytes)
            if resume and os.path.exists(self.path):
                _check_names(self.path, sample_ids, class_names)
                writer = StoreWriter.resume(self.path, self.layout)
            else:
                writer = StoreWriter.create(
                    self.path,
                    self.layout,
                    class_names=class_names,
                    sample_ids=sample_ids,
                    overwrite=overwrite,
                )
            if ranks is None:
                return LocalSink(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)
            from ..paddle_fit.ranks import RankZeroSink

            return RankZeroSink(
                writer,
                ranks,
                on_error=on_error,
                memory_limit_bytes=memory_limit_bytes,
                sample_ids=sample_ids,
            )

        self._session: Session | None = None
        if ranks is None or distributed is ranks:
            self._sink = open_sink()
        else:
            self._session = ranks.session("recorder")
            self._sink = _open_together(self._session, open_sink)
        self.n_nonfinite = 0
        self._n_rows = 0
        self._closed = False
        _open_recorders.add(self)
        self._release = weakref.finalize(self, _orphans.append, self._sink)
        self._release.atexit = False

    def __enter__(self) -> TrainingDynamicsRecorder:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *exception: object) -> None:
        if exception_type is None and self._n_rows:
            warnings.warn(
                f"'{self.path}': {self._n_rows} rows came after the last end_epoch() and are not recorded",
                RuntimeWarning,
                stacklevel=2,
            )
        try:
            if exception_type is None:
                self.meet()
            elif self._session is not None:
                self._session.leave(f"its training ended by {exception_type.__name__}: {exception[0]}")
        finally:
            self.close()

    @property
    def n_epochs(self) -> int:
        """Epochs ended so far; on the rank that writes the file, those of a resumed one included."""
        return self._sink.n_epochs

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """`[sample]`, the given labels that this rank has seen so far, -1 = not yet."""
        return self._sink.labels

    @property
    def gathered_bytes(self) -> int:
        """Bytes that rank 0 took from the other ranks, or that this one sent there, so far."""
        return self._sink.gathered_bytes

    @property
    def blocked_seconds(self) -> float:
        """Seconds for which the calling thread waited for commits so far."""
        return self._sink.blocked_seconds

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
        check_rows(rows, given, self.layout.n_samples, self.layout.n_classes, self._where)
        finite = np.isfinite(scores).all(axis=1) & np.isfinite(softmax).all(axis=1)
        if not finite.all():
            self._note_nonfinite(rows[~finite])
            rows, given, scores, softmax = rows[finite], given[finite], scores[finite], softmax[finite]
        self._sink.put(rows, given, self._values(given, scores, softmax))
        self._n_rows += len(rows)

    def end_epoch(self, *, count_once: bool = False) -> None:
        """End the epoch and commit it in the background; samples not seen in it are stored as unseen.

        With several ranks, all of them call it; their rows go to rank 0. Of a sample that several ranks saw, the row
        of the latest step stays, of equal steps that of the highest rank.

        Args:
            count_once: a sample that came more than once was padding, as `paddle.io.DistributedBatchSampler` deals it
                to fill up the last batch, and counts as seen once.

        Raises:
            CaptureError: a rank could not record, or is gone, or two of them saw different labels of a sample; all
                ranks raise, and nothing of this epoch is kept.
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        self.agree_on_epoch(count_once=count_once)

    def agree_on_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """As `end_epoch`, for callers that know more.

        Args:
            failed: this rank cannot record; says so to the others, which raise, and commits nothing.
            count_once: as for `end_epoch`.
        """
        if self._closed:
            raise ValueError(f"the recorder of '{self.path}' is closed")
        self._n_rows = 0
        self._sink.end_epoch(failed=failed, count_once=count_once)

    def flush(self) -> None:
        """Wait until every ended epoch is on disk, as far as this rank writes it."""
        self._sink.flush()

    def meet(self) -> None:
        """Wait until every ended epoch of all ranks is on disk. With several ranks, all of them call it."""
        self._sink.flush()
        if self._session is not None:
            self._session.meet()

    def close(self) -> None:
        """Commit what has ended, forget an epoch that has not, release the file. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            _open_recorders.discard(self)
            self._release.detach()
            self._sink.close()

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
                f"'{self.path}', {self._where}: the network's output for sample {rows[0]} is NaN or infinite; such "
                "rows are recorded as unseen and counted, and this is said once",
                RuntimeWarning,
                stacklevel=3,
            )
        self.n_nonfinite += len(rows)

    def _values(
        self,
        given: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        softmax: npt.NDArray[np.float32],
    ) -> dict[str, npt.NDArray[Any]]:
        """What is stored of each row, by field."""
        at = (np.arange(len(given)), given)
        others = scores.copy()
        others[at] = -np.inf
        largest = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            margin = np.clip(scores[at] - others.max(axis=1), -largest, largest)
        values: dict[str, npt.NDArray[Any]] = {
            "given_probability": softmax[at],
            "margin": margin,
            "predicted": scores.argmax(axis=1),
        }
        if self.layout.keep == "all":
            values["probabilities"] = softmax
        elif isinstance(self.layout.keep, int):
            top = np.argsort(-softmax, axis=1, kind="stable")[:, : self.layout.keep]
            values["top_classes"] = top
            values["top_probabilities"] = np.take_along_axis(softmax, top, axis=1)
        return values


def _check_names(path: str, sample_ids: Sequence[Any] | None, class_names: Sequence[str] | None) -> None:
    """Refuse to resume a recording whose samples or classes have other names.

    Raises:
        StoreError: they have.
    """
    with TrainingDynamicsStore(path) as store:
        there, classes = store.sample_ids, store.class_names
    wanted = None if sample_ids is None else [str(one) for one in sample_ids]
    if there != wanted:
        raise StoreError(
            f"'{path}' was recorded {'without' if there is None else 'with other'} sample_ids; resume needs the same, "
            "so record to another path"
        )
    # None is no other name: the file's own stay.
    if class_names is not None and [str(one) for one in class_names] != classes:
        known = "without class_names" if classes is None else f"with class_names {_shortened(classes)}"
        raise StoreError(
            f"'{path}' was recorded {known}, got {_shortened(class_names)}; resume "
            "keeps those of the file, so leave class_names out, or record to another path"
        )


def _shortened(names: Sequence[str]) -> str:
    text = ", ".join(repr(str(name)) for name in names[:5])
    return f"[{text}]" if len(names) <= 5 else f"[{text}, ...]"


def _ranks() -> RankGroup | None:
    """All ranks of Paddle's parallel environment; None without one, or without Paddle."""
    if "paddle.distributed" not in sys.modules:
        return None
    from ..paddle_fit.ranks import current_ranks

    return current_ranks()


def _open_together(session: Session, open_sink: Callable[[], Sink]) -> Sink:
    """Open on all ranks or on none.

    Raises:
        CaptureError: another rank cannot, or does not come.
    """
    try:
        sink = open_sink()
    except Exception as error:
        session.meet(error)
        raise
    try:
        session.meet(hint="every rank must make a TrainingDynamicsRecorder")
    except BaseException:
        sink.close()
        raise
    return sink


def _close_orphans() -> None:
    while _orphans:
        sink = _orphans.pop()
        try:
            sink.close()
        except Exception as error:  # of a training long gone; must not stop the one that begins
            warnings.warn(
                f"an abandoned recording could not be closed: {error}", RuntimeWarning, stacklevel=3
            )


def _open_recorders_of(path: str | os.PathLike[str]) -> list[TrainingDynamicsRecorder]:
    wanted = os.path.abspath(path)
    return [recorder for recorder in list(_open_recorders) if recorder.path == wanted]


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether this process has a recorder of `path` that is not closed."""
    return bool(_open_recorders_of(path))


def close_abandoned(path: str | os.PathLike[str]) -> None:
    """Close what a training that died between two epochs left open, so that `path` can be recorded into again."""
    _close_orphans()
    for recorder in _open_recorders_of(path):
        recorder.close()


def wait_for_commits(path: str | os.PathLike[str]) -> None:
    """Make every epoch that a recorder of this process has ended in `path` durable."""
    _close_orphans()
    for recorder in _open_recorders_of(path):
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


def check_indices(rows: npt.NDArray[np.int64], n_samples: int, where: str) -> None:
    """Raise ValueError unless all indices `[row]` are in range."""
    outside = np.flatnonzero((rows < 0) | (rows >= n_samples))
    if len(outside):
        raise ValueError(
            f"{where}: indices must be in [0, {n_samples}), got index {rows[outside[0]]} in row {outside[0]}"
        )


def check_rows(
    rows: npt.NDArray[np.int64], given: npt.NDArray[np.int64], n_samples: int, n_classes: int, where: str
) -> None:
    """Raise ValueError unless all indices and labels, both `[row]`, are in range."""
    check_indices(rows, n_samples, where)
    check_labels(given, n_classes, where, rows)


def check_labels(
    given: npt.NDArray[np.int64], n_classes: int, where: str, rows: npt.NDArray[np.int64] | None = None
) -> None:
    """Raise ValueError unless all labels `[row]` are in range; `rows` `[row]` are their samples, where known."""
    outside = np.flatnonzero((given < 0) | (given >= n_classes))
    if len(outside):
        row = outside[0]
        whose = f"in row {row}" if rows is None else f"for sample {rows[row]}"
        raise ValueError(f"{where}: labels must be in [0, {n_classes}), got {given[row]} {whose}")
