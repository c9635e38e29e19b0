"""The recorder: rows come in by sample index, a whole epoch goes out to the store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError, StoreError, StoreNotFoundError
from ..messages import warn
from ..names import ordered_names
from ..store import StoreWriter, TrainingDynamicsStore
from ..store.paths import absolute, check_space
from ..store.schema import Keep, Layout, is_whole
from .arguments import check_on_error, check_resume, gzip_level_of
from .batches import Block, Softmax, as_integers, as_matrix, check_indices
from .committer import LocalSink, spill_bytes
from .gathering import Ranks, RankZeroSink, SendingSink, Session
from .open_recorders import close_abandoned, register, unregister


def no_ranks() -> Ranks | None:
    """For a process that is alone."""
    return None


# A framework's ranks are found by a function that is put here; `paddle_td_callback/__init__.py` does so for Paddle.
find_ranks: Callable[[], Ranks | None] = no_ranks


class TrainingDynamicsRecorder:
    """Records the outputs of any training loop; `TrainingDynamicsCallback` is built on it.

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
        class_names: one for each class, in a list or a mapping from class to name, or None.
        sample_ids: `[sample]` strings or integers that name the samples in every output, in a list or a mapping from
            index to name, or None.
        label_shifts: `[sample]` integers in `[0, n_classes)`, by how many classes each label was moved on purpose, 0 =
            not, or None; `find_label_issues` takes the label before for the given one.
        dtype: of the stored probabilities of all or the largest classes, "float16" or "float32".
        compression: "gzip" or None.
        expected_epochs: how many epochs are to come, to refuse at once what the disk has no room for.
        memory_limit_bytes: where two epochs are larger, they are kept in a nameless file beside the store
            instead of in memory; None = a quarter of the memory that this process may use. On ranks above 0, what is
            larger of their share of one epoch.
        resume: True continues an existing file after its last committed epoch, or begins it. A number N keeps its
            first N epochs and continues after them, for a training that continues from an older checkpoint.
        overwrite: replace an existing file.
        on_error: what to do when an epoch cannot be written: "warn" once and go on, or "raise".
        distributed: whether all ranks of Paddle's parallel environment record into this one file, which rank 0
            writes; every rank then makes a recorder, waits for the others here, and calls `end_epoch` equally often.
            None: if there are several ranks. False: this process records alone. An object
            with the methods of `Ranks`: the same, but the ranks do not wait for each other here or in `barrier`.
        every: record every n-th epoch, beginning with the first; the others cost nothing and are not stored at all.
            Epoch `e` of the file is then epoch `e * every` of the training.
        softmax: of float32 logits `[row, class]`, as the network's own framework computes it, so that the recorded
            probabilities are the network's own to the last bit; None = NumPy's.

    Attributes:
        path: of the file, absolute.
        layout: its fixed facts.

    Raises:
        TypeError: names that have no order, such as a set.
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
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        sample_ids: Sequence[Any] | Mapping[int, Any] | None = None,
        label_shifts: npt.ArrayLike | None = None,
        dtype: str = "float16",
        compression: str | None = None,
        expected_epochs: int | None = None,
        memory_limit_bytes: int | None = None,
        resume: bool | int = False,
        overwrite: bool = False,
        on_error: str = "warn",
        distributed: bool | Ranks | None = None,
        every: int = 1,
        softmax: Softmax | None = None,
    ) -> None:
        check_on_error(on_error)
        check_resume(resume)
        if resume and overwrite:
            raise ValueError("resume and overwrite=True contradict each other; give one of them")
        for name, value in (("n_samples", n_samples), ("n_classes", n_classes), ("every", every)):
            if not is_whole(value):
                raise ValueError(f"{name} must be a whole number, got {value!r}; pass an int")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}; every=2 records each second epoch")
        self.layout = Layout(
            n_samples=int(n_samples),
            n_classes=int(n_classes),
            keep=keep,
            dtype=dtype,
            mode=mode,
            gzip_level=gzip_level_of(compression),
        )
        names = ordered_names(class_names, "class_names", self.layout.n_classes)
        ids = ordered_names(sample_ids, "sample_ids", self.layout.n_samples)
        shifts = None if label_shifts is None else _shifts(label_shifts, self.layout)
        self.path = absolute(path)  # the training may change the working folder
        close_abandoned()
        ranks = _chosen_ranks(distributed)
        self._every = int(every)
        self._epoch = 0  # of the training, as far as this recorder saw it
        self._step = 0
        self._n_rows = 0
        self._closed = False

        def open_sink() -> LocalSink | SendingSink:
            limit = memory_limit_bytes
            if ranks is not None and ranks.rank > 0:
                folder = os.path.dirname(self.path)
                return SendingSink(
                    self.layout, ranks, memory_limit_bytes=limit, folder=folder, sample_ids=ids, every=every
                )
            if expected_epochs is not None:
                buffer_bytes = spill_bytes(self.layout, limit)
                check_space(self.path, self.layout, -(-expected_epochs // every), buffer_bytes=buffer_bytes)
            if resume and _is_there(self.path, resume):
                _check_names(self.path, ids, names, shifts)
                n_kept = None if resume is True else int(resume)
                writer = StoreWriter.resume(self.path, self.layout, n_epochs=n_kept)
            else:
                writer = StoreWriter.create(
                    self.path,
                    self.layout,
                    class_names=names,
                    sample_ids=ids,
                    label_shifts=shifts,
                    overwrite=overwrite,
                )
            try:
                if ranks is None:
                    return LocalSink(writer, on_error=on_error, memory_limit_bytes=limit)
                return RankZeroSink(
                    writer, ranks, on_error=on_error, memory_limit_bytes=limit, sample_ids=ids, every=every
                )
            except BaseException:  # Ctrl-C too must not leave the file locked
                writer.close()
                raise

        self._session: Session | None = None
        if ranks is None or ranks is distributed:
            self._sink = open_sink()
        else:
            self._session = ranks.session("recorder")
            self._sink = _open_together(self._session, open_sink)
        try:
            self._finalizer = register(self, self._sink)
            self._block = Block(self.layout, self._sink.put, softmax=softmax, name=self.path)
        except BaseException:
            self._sink.close()
            raise

    def __enter__(self) -> TrainingDynamicsRecorder:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *exception: object) -> None:
        if exception_type is None and self._n_rows:
            warn(
                f"'{self.path}': {self._n_rows} rows came after the last end_epoch() and are not "
                "recorded; call it after each epoch",
                RuntimeWarning,
                stacklevel=2,
            )
        try:
            if exception_type is None:
                self.barrier()
            elif self._session is not None:
                self._session.leave(f"its training ended by {exception_type.__name__}: {exception[0]}")
        finally:
            self.close()

    @property
    def n_epochs(self) -> int:
        """Epochs recorded so far; on the rank that writes the file, those of a resumed one included."""
        return self._sink.n_epochs

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """`[sample]`, the given labels that were recorded so far, on ranks above 0 those seen there; -1 = not yet."""
        return self._sink.labels

    @property
    def n_nonfinite(self) -> int:
        """Rows with NaN or infinite outputs so far; they are recorded as unseen."""
        return self._block.n_nonfinite

    @property
    def skipped_rows(self) -> int:
        """Rows recorded as unseen so far, since their label is no class, or not the one that the sample had before.

        With several ranks, the latter are counted on rank 0.
        """
        return self._block.n_outside + self._sink.n_changed

    @property
    def records_epoch(self) -> bool:
        """Whether the epoch under way is recorded, by `every`."""
        return self._epoch % self._every == 0

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
        steps: npt.ArrayLike | None = None,
    ) -> None:
        """Record one batch of the current epoch. A sample that comes again replaces its earlier row.

        The batch is copied; the work on it is done for many batches at once, at the latest in `end_epoch`.
        A row with a label that is no class, or that is not the first one of its sample, is left out and counted in
        `skipped_rows`; a row with NaN or infinite outputs in `n_nonfinite`. Each kind warns once.

        Args:
            indices: `[row]` integers, the samples' places in the data set.
            logits: `[row, class]`, the network's outputs before the softmax.
            labels: `[row]` or `[row, 1]` integers, the given labels.
            probabilities: `[row, class]`, the softmax of the logits where it is known; alone, logits are taken
                as its logarithm.
            steps: `[row]` integers, the step of the epoch that each row comes from, where the rows of several steps
                come at once; rising. None: each call is a step.

        Raises:
            TypeError: labels or indices that are no integers.
            ValueError: shapes that disagree, an index outside the data set.
        """
        self._check_open()
        if not self.records_epoch:
            return
        samples, given = as_integers(indices, "indices"), as_integers(labels, "labels")
        where = f"epoch {self.n_epochs}"
        if len(given) != len(samples):
            raise ValueError(f"{where}: {len(given)} labels for {len(samples)} indices; give one for each")
        if logits is None and probabilities is None:
            raise ValueError(f"{where}: update() needs logits or probabilities, got neither; pass logits=")
        shape = (len(samples), self.layout.n_classes)
        scores = None if logits is None else as_matrix(logits, "logits", shape, where)
        softmax = None if probabilities is None else as_matrix(probabilities, "probabilities", shape, where)
        check_indices(samples, self.layout.n_samples, where)
        self._step += 1
        numbers = self._step if steps is None else as_integers(steps, "steps")
        self._block.add(samples, given, scores, softmax, numbers)
        self._n_rows += len(samples)

    def end_epoch(self, *, count_once: bool = False) -> None:
        """End the epoch and commit it in the background; samples not seen in it are stored as unseen.

        With several ranks, all of them call it; their rows go to rank 0. If a sample appears on several ranks, the
        row of its latest step is kept. Ties go to the highest rank.

        Args:
            count_once: a sample that came more than once was padding, which `paddle.io.DistributedBatchSampler` adds
                to fill the last batch, and counts as seen once.

        Raises:
            CaptureError: a rank could not record, or is lost, or more than half of the rows have another label than
                before; all ranks raise, and nothing of this epoch is kept.
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        self.agree_on_epoch(count_once=count_once)

    def agree_on_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """As `end_epoch`, for callers that know more.

        Args:
            failed: this rank cannot record; the others are told and raise, and nothing is committed.
            count_once: as for `end_epoch`.
        """
        self._check_open()
        is_recorded = self.records_epoch
        self._epoch += 1
        self._n_rows = self._step = 0
        if not is_recorded:
            return
        try:
            self._block.flush()
        except Exception:
            with contextlib.suppress(CaptureError):  # the other ranks must not wait for this one
                self._sink.end_epoch(failed=True, count_once=count_once)
            raise
        self._sink.end_epoch(failed=failed, count_once=count_once)

    def flush(self) -> None:
        """Wait until every ended epoch is on disk, as far as this rank writes it."""
        self._sink.flush()

    def barrier(self) -> None:
        """Wait until every ended epoch of all ranks is on disk. With several ranks, all of them call it."""
        self._sink.flush()
        if self._session is not None:
            self._session.barrier()

    def close(self) -> None:
        """Commit what has ended, forget an epoch that has not, release the file. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            unregister(self, self._finalizer)
            self._sink.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the recorder of '{self.path}' is closed; make another one with resume=True")


def _chosen_ranks(distributed: bool | Ranks | None) -> Ranks | None:
    if distributed is False:
        return None
    if not isinstance(distributed, bool) and distributed is not None:
        return distributed
    ranks = find_ranks()
    if distributed and ranks is None:
        raise ValueError(
            "distributed=True, but Paddle is in no parallel environment of several ranks; call "
            "paddle.distributed.init_parallel_env() first, or pass distributed=None"
        )
    return ranks


def _is_there(path: str, resume: bool | int) -> bool:
    """Whether there is a recording to resume.

    Raises:
        StoreNotFoundError: there is none to keep epochs of.
    """
    is_there = os.path.exists(path)
    if not is_there and resume is not True:
        raise StoreNotFoundError(
            f"'{path}': there is no recording to keep the first {resume} epochs of; give the path of one, or "
            "resume=True to begin one"
        )
    return is_there


def _shifts(label_shifts: npt.ArrayLike, layout: Layout) -> list[str]:
    """What the file holds of them.

    Raises:
        ValueError: they are not one class number for each sample.
    """
    shifts = as_integers(label_shifts, "label_shifts")
    if shifts.shape != (layout.n_samples,) or shifts.min() < 0 or shifts.max() >= layout.n_classes:
        raise ValueError(
            f"label_shifts must be [sample] ({layout.n_samples},) integers in [0, {layout.n_classes}), got shape "
            f"{shifts.shape}, {shifts.min(initial=0)} to {shifts.max(initial=0)}"
        )
    return [str(one) for one in shifts.tolist()]


def _check_names(
    path: str,
    sample_ids: Sequence[Any] | None,
    class_names: Sequence[str] | None,
    label_shifts: list[str] | None,
) -> None:
    """Refuse to resume a recording whose samples or classes have other names, or other labels moved on purpose.

    Raises:
        StoreError: they have.
    """
    with TrainingDynamicsStore(path) as store:
        there, classes, moved = store.sample_ids, store.class_names, store.label_shifts
    if label_shifts != (None if moved is None else [str(one) for one in moved.tolist()]):
        raise StoreError(
            f"'{path}' was recorded with other label_shifts (labels moved on purpose); resume needs the same fraction "
            "and seed of PlantedLabelErrors, so record to another path"
        )
    wanted = None if sample_ids is None else [str(one) for one in sample_ids]
    if there != wanted:
        what, way = ("with other", "give those")
        if there is None:
            what, way = "without", "pass sample_ids=False to the callback"
        raise StoreError(
            f"'{path}' was recorded {what} sample_ids; resume needs the same, so {way}, or record to another path"
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


def _open_together(
    session: Session, open_sink: Callable[[], LocalSink | SendingSink]
) -> LocalSink | SendingSink:
    """Open on all ranks or on none.

    Raises:
        CaptureError: another rank cannot, or does not arrive.
    """
    try:
        sink = open_sink()
    except Exception as error:
        session.barrier(error)
        raise
    try:
        session.barrier(hint="every rank must make a TrainingDynamicsRecorder")
    except BaseException:
        sink.close()
        raise
    return sink
