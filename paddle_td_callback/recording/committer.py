"""The epoch under way: its buffer, the labels of its samples, and its commit beside the training."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError, StoreError
from ..messages import warn
from ..store.border import RecordingWriter
from ..store.schema import Layout
from .memory_limit import default_memory_limit_bytes
from .spill import Spill

Indices = npt.NDArray[np.int64]
EpochArrays = dict[str, npt.NDArray[Any]]
_N_BUFFERS = 2
_MAX_PRESENTATIONS = 255
_WAYS_OUT = (
    "a recording holds one given label for each sample: where labels were corrected, record to another path or with "
    "overwrite=True; where the loss gets other labels than the given ones, pass the given ones as labels="
)


@dataclass(frozen=True)
class Rows:
    """What is stored of some rows, in the order in which they came.

    Attributes:
        indices: `[row]`, the samples' places in the data set.
        labels: `[row]` int64, the given labels.
        steps: `[row]` int64, the step of the epoch that each row came in.
        values: of every field but `n_presentations`, `[row, ...]`.
    """

    indices: Indices
    labels: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    values: dict[str, npt.NDArray[Any]]

    def only(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """The rows that are kept, `[row]`."""
        values = {name: value[kept] for name, value in self.values.items()}
        return Rows(self.indices[kept], self.labels[kept], self.steps[kept], values)


class LocalSink:
    """Rows go into the epoch buffer of this process's committer.

    Args:
        writer: the store's writer; closed by `close`.
        on_error: as for `Committer`.
        memory_limit_bytes: as for `Committer`.

    Attributes:
        labels: `[sample]` int32, the given labels seen so far, -1 = not yet.
        gathered_bytes: bytes taken from other ranks so far.
    """

    def __init__(
        self, writer: RecordingWriter, *, on_error: str, memory_limit_bytes: int | None = None
    ) -> None:
        self._labels = GivenLabels(writer.labels.copy(), writer.path)
        self._committer = Committer(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)
        self.labels = self._labels.labels
        self.gathered_bytes = 0

    @property
    def n_changed(self) -> int:
        """Rows left out so far, since their label was not the sample's first one."""
        return self._labels.n_changed

    @property
    def n_epochs(self) -> int:
        """Epochs recorded so far, those of a resumed file included."""
        return self._committer.next_index

    @property
    def blocked_seconds(self) -> float:
        """Seconds for which the calling thread waited for commits."""
        return self._committer.blocked_seconds

    def put(self, rows: Rows) -> None:
        """Scatter rows into the epoch; a sample that comes again replaces its earlier row."""
        self._scatter(rows)

    def _scatter(self, rows: Rows) -> Rows:
        """Returns the rows that count."""
        rows = self._labels.take(rows)
        epoch = self._committer.buffer
        for name, value in rows.values.items():
            epoch[name][rows.indices] = value
        samples, times = np.unique(rows.indices, return_counts=True)
        add_presentations(epoch["n_presentations"], samples, times)
        return rows

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Commit the epoch in the background.

        Raises:
            CaptureError: most labels are not those that their samples had before; nothing of the epoch is kept.
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        if failed:
            self._drop_epoch()
            return
        try:
            self._labels.end_epoch()
        except CaptureError:
            self._drop_epoch()
            raise
        if count_once:
            counts = self._committer.buffer["n_presentations"]
            np.minimum(counts, 1, out=counts)
        self._committer.submit(self.labels)
        self._labels.warn()  # after the commit: a filter may turn the warning into an error

    def _drop_epoch(self) -> None:
        """Drop the epoch, so that nothing of it reaches the next one."""
        self._labels.drop_epoch()
        self._committer.buffer["n_presentations"].fill(0)

    def flush(self) -> None:
        """Wait until every ended epoch is on disk."""
        self._committer.flush()

    def close(self) -> None:
        """Commit what has ended and release the file."""
        self._committer.close()


def add_presentations(counts: npt.NDArray[np.uint8], at: Indices, times: npt.NDArray[Any]) -> None:
    """Add to counts that stop at 255; `at` holds no place twice."""
    counts[at] = np.minimum(counts[at].astype(np.int64) + times, _MAX_PRESENTATIONS)


class GivenLabels:
    """Keeps the first label of each sample; a row with another one costs that row.

    Args:
        labels: `[sample]` int32, those known so far, -1 = not yet; changed in place.
        name: of the recording, for warnings.

    Attributes:
        n_changed: rows with another label than the sample's first in the epochs that ended.
    """

    def __init__(self, labels: npt.NDArray[np.int32], name: str) -> None:
        self.labels = labels
        self.n_changed = 0
        self._name = name
        self._example = ""
        self._has_warned = False
        self._n_kept_in_epoch = 0
        self._n_changed_in_epoch = 0

    def take(self, rows: Rows) -> Rows:
        """Note labels that are new, and return the rows whose label is the sample's first one."""
        known = self.labels[rows.indices]
        new = known < 0
        if new.any():
            samples, labels = rows.indices[new], rows.labels[new]
            self.labels[samples[::-1]] = labels[::-1]  # of a sample that comes twice, the first
            known = self.labels[rows.indices]
        same = known == rows.labels
        n_kept = int(same.sum())
        self._n_kept_in_epoch += n_kept
        if n_kept == len(same):
            return rows
        self._note_changed(rows, known, ~same)
        return rows.only(same)

    def _note_changed(self, rows: Rows, known: npt.NDArray[np.int32], changed: npt.NDArray[np.bool_]) -> None:
        row = np.flatnonzero(changed)[0]
        self._example = (
            f"the label of sample {rows.indices[row]} was {known[row]}, now it is {rows.labels[row]}"
        )
        self._n_changed_in_epoch += int(changed.sum())

    def end_epoch(self) -> None:
        """Count what was left out, and reset the counts of the epoch.

        Raises:
            CaptureError: more than half of its rows have another label than their sample had before: they are not
                the samples that they are taken for. They are not counted.
        """
        n_changed, n_rows = self._n_changed_in_epoch, self._n_changed_in_epoch + self._n_kept_in_epoch
        self.drop_epoch()
        if 2 * n_changed > n_rows:
            raise CaptureError(
                f"{n_changed} of {n_rows} rows of this epoch have another label than their sample had before: "
                f"{self._example}; {_WAYS_OUT}; where the rows of a batch are not in the order of the sampler's "
                "indices, no epoch of this recording is right"
            )
        self.n_changed += n_changed

    def drop_epoch(self) -> None:
        """Reset the counts of the epoch."""
        self._n_kept_in_epoch = self._n_changed_in_epoch = 0

    def warn(self) -> None:
        """Warn once of what was left out."""
        if self.n_changed and not self._has_warned:
            self._has_warned = True
            warn(
                f"'{self._name}': {self._example}; rows with another label than their sample had before are recorded "
                f"as unseen ({self.n_changed} so far) and counted in skipped_rows, and this is said once; {_WAYS_OUT}",
                RuntimeWarning,
                stacklevel=6,
            )


@dataclass
class _Job:
    index: int
    arrays: EpochArrays
    labels: npt.NDArray[np.int32]


class Committer:
    """Hands epochs to a thread that commits them, in order; where the system gives none, commits them itself.

    The caller fills `buffer` and calls `submit`, which returns once the commit before has ended and leaves an
    empty `buffer` to fill. An epoch that could not be written stays in memory and is tried again with the next
    one; while it waits, epochs that end are dropped, since a third buffer is not promised.

    A buffer's `n_presentations` say which of its rows count: where they are 0, the other arrays are arbitrary.

    Args:
        writer: the store's writer; closed by `close`.
        on_error: "warn" to say once what went wrong and go on, "raise" to raise it from `submit`, `flush` or
            `close`.
        memory_limit_bytes: where two epochs are larger, they are kept in a file beside the store; None = a
            quarter of the memory that this process may use.

    Raises:
        StoreError: the disk has no room for that file.
    """

    def __init__(
        self, writer: RecordingWriter, *, on_error: str = "warn", memory_limit_bytes: int | None = None
    ) -> None:
        self._writer = writer
        self._on_error = on_error
        self._spill = _make_spill(writer, memory_limit_bytes)
        self._free = [self._make_buffer()]
        self.buffer = self._make_buffer()
        self._pool = _one_thread()
        self._running: Future[Exception | None] | None = None
        self._waiting: _Job | None = None
        self._failing = False
        self.next_index = writer.n_epochs
        self.dropped: list[int] = []
        self.blocked_seconds = 0.0

    def _make_buffer(self) -> EpochArrays:
        layout = self._writer.layout
        arrays = {}
        for field in layout.fields:
            shape = field.shape
            # Only what grows with the classes goes into the file: the rest is 13 bytes a sample.
            spilled = self._spill is not None and field.last_axis is not None
            arrays[field.name] = (
                self._spill.empty(shape, field.dtype)
                if spilled and self._spill is not None
                else np.zeros(shape, field.dtype)
            )
        return arrays

    @property
    def is_busy(self) -> bool:
        """Whether a commit is under way, so that `submit` would wait for it."""
        return self._running is not None and not self._running.done()

    def submit(self, labels: npt.NDArray[np.int32]) -> None:
        """Commit `buffer` as the next epoch.

        Args:
            labels: `[sample]` int32, -1 = not seen so far; copied.

        Raises:
            OSError: with `on_error="raise"`, the disk refused this or the epoch before.
        """
        started = time.perf_counter()
        self._settle()
        if self._waiting is not None:  # the epoch before is still here: try it first
            self._start(self._waiting)
            self._settle()
        index, self.next_index = self.next_index, self.next_index + 1
        if self._waiting is not None:
            self.dropped.append(index)
            self._reset(self.buffer)
        else:
            job = _Job(index, self.buffer, labels.copy())
            self.buffer = self._free.pop()
            self._start(job)
        self.blocked_seconds += time.perf_counter() - started

    def flush(self) -> None:
        """Wait until every epoch that was submitted is durable, or its last try has failed."""
        self._settle()
        if self._waiting is not None:
            self._start(self._waiting)
            self._settle()

    def close(self) -> None:
        """Flush and close the store. Closing twice is fine."""
        try:
            self.flush()
            if self._waiting is not None:
                self.dropped.insert(0, self._waiting.index)
                self._waiting = None
            if self.dropped:
                warn(
                    f"'{self._writer.path}': epochs {self.dropped} could not be written and are missing; "
                    "make room, and train again if you need them",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self.dropped = []
        finally:
            self._pool.shutdown()
            self._writer.close()
            self._free.clear()
            self.buffer = {}
            if self._spill is not None:
                self._spill.close()

    def _start(self, job: _Job) -> None:
        self._waiting = job
        self._running = _run_beside(self._pool, self._commit, job)

    def _commit(self, job: _Job) -> Exception | None:
        try:
            self._writer.commit_epoch(job.index, job.arrays, job.labels)
        except Exception as error:  # no error of any kind may end the training
            return error
        self._reset(job.arrays)
        return None

    def _reset(self, arrays: EpochArrays) -> None:
        arrays["n_presentations"].fill(0)  # which makes every row unseen

    def _settle(self) -> None:
        """Wait for the commit under way and take its outcome."""
        if self._running is None:
            return
        running, self._running = self._running, None
        error = running.result()
        if error is None:
            assert self._waiting is not None
            self._free.append(self._waiting.arrays)
            self._waiting = None
            self._failing = False
            return
        if self._on_error == "raise":
            raise error
        if not self._failing:
            self._failing = True
            warn(
                f"'{self._writer.path}': epoch {self._waiting.index if self._waiting else '?'} cannot be written "
                f"({error}); training goes on, {self._writer.n_epochs} committed epochs stay, and the write is "
                "tried again at the end of the next epoch",
                RuntimeWarning,
                stacklevel=3,
            )


def spill_bytes(layout: Layout, memory_limit_bytes: int | None) -> int:
    """Size of the file that the buffers need beside the store; 0 where they stay in memory."""
    limit = default_memory_limit_bytes() if memory_limit_bytes is None else memory_limit_bytes
    if _N_BUFFERS * layout.epoch_bytes <= limit:
        return 0
    sizes = (field.n_bytes for field in layout.fields if field.last_axis is not None)
    return _N_BUFFERS * sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)


def _make_spill(writer: RecordingWriter, memory_limit_bytes: int | None) -> Spill | None:
    n_bytes = spill_bytes(writer.layout, memory_limit_bytes)
    if n_bytes == 0:
        return None
    folder = os.path.dirname(writer.path) or "."
    try:
        return Spill(folder, n_bytes)
    except OSError as error:
        raise StoreError(
            f"'{writer.path}': two epochs of {writer.layout.epoch_bytes} bytes pass the memory limit, and the file "
            f"for them in '{folder}' cannot be made ({error}); raise memory_limit_bytes, make room, or keep less "
            "than keep=" + repr(writer.layout.keep)
        ) from error


def _one_thread() -> Executor:
    """An executor of one thread, which is there already; where the system gives none, an executor that takes no work.

    An executor that starts its thread with the first work keeps that work in its queue where the thread cannot be
    started, although it raises, so that the work would be done now and once more later. And of a thread that Ctrl-C
    met while it started it knows nothing, starts another, and two would write into the file at once.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paddle_td_callback")
    try:
        executor.submit(int).result()
    except RuntimeError:
        executor.shutdown()
    return executor


def _run_beside(
    executor: Executor, work: Callable[[_Job], Exception | None], job: _Job
) -> Future[Exception | None]:
    """Have `executor`, made by `_one_thread`, do the work; where it takes none any more, do it now.

    A script that dies of an exception ends while its last epoch is being written: Python then waits for the threads
    that it has, but no executor accepts anything new.
    """
    try:
        return executor.submit(work, job)
    except RuntimeError:
        future: Future[Exception | None] = Future()
        future.set_result(work(job))
        return future
