"""Commits beside training: one thread, two epoch buffers, and what happens when the disk says no."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .store import StoreWriter

EpochArrays = dict[str, npt.NDArray[Any]]


@dataclass
class _Job:
    index: int
    arrays: EpochArrays
    labels: npt.NDArray[np.int32]


class Committer:
    """Hands epochs to a thread that commits them, in order.

    The caller fills `buffer` and calls `submit`, which returns once the commit before has ended and leaves an
    empty `buffer` to fill. An epoch that could not be written stays in memory and is tried again with the next
    one; while it waits, epochs that end are dropped, since a third buffer is not promised.

    Args:
        writer: the store's writer; closed by `close`.
        on_error: "warn" to say once what went wrong and go on, "raise" to raise it from `submit`, `flush` or
            `close`.
    """

    def __init__(self, writer: StoreWriter, *, on_error: str = "warn") -> None:
        self._writer = writer
        self._on_error = on_error
        self._free = [writer.layout.unseen_epoch()]
        self.buffer = writer.layout.unseen_epoch()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paddle_td_callback")
        self._running: Future[OSError | None] | None = None
        self._waiting: _Job | None = None
        self._failing = False
        self.next_index = writer.n_epochs
        self.dropped: list[int] = []
        self.blocked_seconds = 0.0

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
                self.dropped.append(self._waiting.index)
                self._waiting = None
            if self.dropped:
                warnings.warn(
                    f"'{self._writer.path}': epochs {self.dropped} could not be written and are missing",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self.dropped = []
        finally:
            self._pool.shutdown()
            self._writer.close()

    def _start(self, job: _Job) -> None:
        self._waiting = job
        self._running = self._pool.submit(self._commit, job)

    def _commit(self, job: _Job) -> OSError | None:
        try:
            self._writer.commit_epoch(job.index, job.arrays, job.labels)
        except OSError as error:
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
            warnings.warn(
                f"'{self._writer.path}': epoch {self._waiting.index if self._waiting else '?'} cannot be written "
                f"({error}); training goes on, {self._writer.n_epochs} committed epochs stay, and the write is "
                "tried again at the end of the next epoch",
                RuntimeWarning,
                stacklevel=3,
            )
