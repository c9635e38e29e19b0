"""Commits beside training: one thread, two epoch buffers, and what happens when the disk says no."""

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

from ..errors import StoreError
from ..messages import warn
from ..store.border import RecordingWriter
from ..store.schema import Layout
from .memory_limit import default_memory_limit_bytes
from .spill import Spill

EpochArrays = dict[str, npt.NDArray[Any]]
_N_BUFFERS = 2


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

    A buffer's `n_presentations` say which of its rows count: where they are 0, the other arrays hold rubbish.

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
            shape = layout.epoch_shape(field)
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
                    f"'{self._writer.path}': epochs {self.dropped} could not be written and are missing",
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
        except Exception as error:  # whatever it is, the training must not die of it
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
    sizes = (layout.field_bytes(field) for field in layout.fields if field.last_axis is not None)
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
