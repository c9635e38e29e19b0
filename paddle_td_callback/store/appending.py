"""What is appended: on its way to the disk early, and checksummed as it passes by.

HDF5 calls `Appender.write` with h5py's lock held, so nothing in there waits for a thread or starts work for one: a
thread may need that lock at any moment, for Python frees what h5py left behind in whichever thread it likes. Work
is started by `proceed` and waited for by `settle`, both called when HDF5 has returned.
"""

from __future__ import annotations

import io
import zlib
from concurrent.futures import Executor, Future, wait

from ..threads import run_beside
from . import disk
from .seals import UNIT_BYTES

_UNKNOWN = -1
_CHECKSUM_BATCH_BYTES = 2 << 20
_EARLY_SYNC_BYTES = 4 << 20  # appended since the disk was last asked to write


class WriteBehind:
    """Has the disk write what is appended while more is appended, and remembers what it said.

    Args:
        file: to which it is appended.
        executor: of one thread, which waits for the disk; None = leave it to the system when to write.
    """

    def __init__(self, file: io.FileIO, executor: Executor | None) -> None:
        self._file = file
        self._executor = executor
        self._n_bytes = 0
        self._running: Future[None] | None = None

    def add(self, n_bytes: int) -> None:
        """Note that so many bytes were appended."""
        self._n_bytes += n_bytes

    def proceed(self) -> None:
        """Ask the disk to write, if there is enough to do.

        Raises:
            OSError: it refused earlier bytes.
        """
        if self._executor is None or self._n_bytes < _EARLY_SYNC_BYTES:
            return
        if self._running is None or self._running.done():
            self.settle()
            self._n_bytes = 0
            self._running = run_beside(self._executor, disk.fsync_early, self._file)

    def settle(self) -> None:
        """Wait until the disk is idle.

        Raises:
            OSError: it refused. The system says so only once, so this must not be lost.
        """
        if self._running is not None:
            wait([self._running])  # if Ctrl-C ends it, the next call waits again
            running, self._running = self._running, None
            running.result()


class AppendedChecksums:
    """CRC-32 of the units that are written from front to back, taken of what passes by.

    Chunks of data are nearly all there is, and are appended in order. Of a unit that is written in any other
    way nothing is known here.

    Args:
        executor: what computes them, some megabytes at a time and one such batch after the other; None = all at
            the end.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._units: dict[int, tuple[int, int]] = {}  # unit: up to which byte of the file, CRC so far
        self._batch: list[tuple[int, memoryview | bytes | None]] = []
        self._n_bytes = 0
        self._running: Future[None] | None = None

    def add(self, offset: int, data: memoryview | bytes) -> None:
        """Take note of bytes that are written, and that stay as they are until `settle`."""
        self._batch.append((offset, data))
        self._n_bytes += len(data)

    def forget(self, offset: int) -> None:
        """Nothing is known any more of what lies behind a byte."""
        self._batch.append((offset, None))

    def proceed(self) -> None:
        """Have a batch computed, if there is a whole one and the one before is done."""
        if self._n_bytes >= _CHECKSUM_BATCH_BYTES and (self._running is None or self._running.done()):
            self._take_outcome()
            self._start()

    def settle(self) -> None:
        """Wait until all that was added is computed."""
        self._take_outcome()
        if self._batch:
            self._start()
        self._take_outcome()

    def _take_outcome(self) -> None:
        if self._running is not None:
            wait([self._running])
            running, self._running = self._running, None
            running.result()  # an error must not be lost: what it left out would count as known

    def _start(self) -> None:
        batch, self._batch, self._n_bytes = self._batch, [], 0
        if self._executor is None:
            self._compute(batch)
        else:
            self._running = run_beside(self._executor, self._compute, batch)

    def _compute(self, batch: list[tuple[int, memoryview | bytes | None]]) -> None:
        for offset, data in batch:
            if data is not None:
                self._add(offset, memoryview(data))
                continue
            for unit in self._units:
                if (unit + 1) * UNIT_BYTES > offset:
                    self._units[unit] = _UNKNOWN, 0

    def _add(self, offset: int, view: memoryview) -> None:
        stop = offset + len(view)
        position = offset
        while position < stop:
            unit = position // UNIT_BYTES
            end = min(stop, (unit + 1) * UNIT_BYTES)
            so_far, crc = self._units.get(unit, (unit * UNIT_BYTES, 0))
            if so_far == position:
                self._units[unit] = end, zlib.crc32(view[position - offset : end - offset], crc)
            else:
                self._units[unit] = _UNKNOWN, 0
            position = end

    def get(self, unit: int, stop: int) -> int | None:
        """CRC-32 of a unit that ends at byte `stop`, None where it is not known; `settle` first."""
        so_far, crc = self._units.get(unit, (_UNKNOWN, 0))
        return crc if so_far == stop else None


class Appender:
    """Writes past the end of the last commit, where nothing refers to yet.

    Args:
        file: the file.
        syncer: see `WriteBehind`.
        checksummer: see `AppendedChecksums`.
    """

    def __init__(
        self, file: io.FileIO, syncer: Executor | None = None, checksummer: Executor | None = None
    ) -> None:
        self._file = file
        self._behind = WriteBehind(file, syncer)
        self.checksums = AppendedChecksums(checksummer)

    def write(self, offset: int, view: memoryview, *, stays: bool) -> None:
        """Write bytes, of which is known whether they stay as they are until the commit.

        Raises:
            OSError: the disk refused them.
        """
        disk.write_all(self._file, offset, view)
        self.checksums.add(offset, view if stays else bytes(view))
        self._behind.add(len(view))

    def truncate(self, size: int, old_size: int) -> None:
        """Cut the file off, or make it longer by zeros."""
        self.checksums.forget(min(size, old_size))
        self._file.truncate(size)

    def proceed(self) -> None:
        """Start what is due.

        Raises:
            OSError: the disk refused earlier bytes.
        """
        self.checksums.proceed()
        self._behind.proceed()

    def settle(self) -> None:
        """Wait until nothing is under way any more.

        Raises:
            OSError: the disk refused something.
        """
        try:
            self.checksums.settle()
        finally:
            self._behind.settle()
