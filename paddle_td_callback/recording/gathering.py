"""Several ranks, one store: plain NumPy over the `Ranks` protocol, which each framework can implement.

Every rank keeps the rows of the samples that it saw. At the end of an epoch, all ranks exchange their state (one
small `all_gather`). If all can go on, rank 0 gathers their rows in tiles of a few megabytes for all ranks together,
and tells the others whether it took them. Nothing else is exchanged while training runs.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..store.border import RecordingWriter
from ..store.schema import Layout
from .committer import Indices, LocalSink, Rows, add_presentations
from .memory_limit import default_memory_limit_bytes
from .spill import Spill

TILE_BYTES = 8 << 20  # of all ranks together
_LEAST_SPILLED = 4
_PROTOCOL = 3


class RanksEndedError(CaptureError):
    """The ranks record no more together, and all of them know."""


class RanksLostError(RanksEndedError):
    """The ranks cannot reach each other any more."""


class Session(Protocol):
    """What all ranks do together, waiting for each other as long as it takes."""

    def barrier(self, error: Exception | None = None, *, hint: str = "") -> None:
        """Wait until every rank is here.

        Args:
            error: what is wrong on this rank; every rank raises then.
            hint: what may be wrong if a rank does not arrive.

        Raises:
            CaptureError: something is wrong on another rank, or one will not arrive.
        """

    def leave(self, reason: str) -> None:
        """Tell the others not to wait for this rank. Returns at once."""


class Ranks(Protocol):
    """All processes of a data-parallel training. Every rank calls these methods in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    def session(self, kind: str) -> Session:
        """The next one of its kind, which every rank opens in the same order."""

    def all_gather(self, values: Sequence[int]) -> npt.NDArray[np.int64]:
        """The same few integers of every rank, `[rank, value]`."""

    def gather(self, tile: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Arrays of one shape and dtype of all ranks, on rank 0; nothing elsewhere."""

    def hold(self) -> int:
        """On rank 0, a number for the others to `wait_for`; 0 if they cannot."""

    def release(self, number: int) -> None:
        """On rank 0, end the wait of the others for a number."""

    def wait_for(self, number: int) -> None:
        """Wait until rank 0 releases a number, as long as it lives."""


def row_dtype(layout: Layout) -> np.dtype[np.void]:
    """One packed row of an epoch as it travels between ranks, so that a tile of rows is a run of bytes."""
    facts: list[Any] = [("sample", "<i8"), ("step", "<u4"), ("label", "<i4")]
    fields = [(f.name, np.dtype(f.dtype).newbyteorder("<"), f.shape[1:]) for f in layout.fields]
    return np.dtype(facts + fields)


def _checksum(names: Sequence[str] | None) -> int:
    """Of names in their order; 0 for none."""
    if names is None:
        return 0
    checksum = 0
    for name in names:
        checksum = zlib.crc32(name.encode("utf-8", "surrogatepass") + b"\0", checksum)
    return 1 + checksum


def tile_rows(layout: Layout, n_ranks: int) -> int:
    """Rows of each rank that travel at once."""
    return max(1, TILE_BYTES // n_ranks // row_dtype(layout).itemsize)


class _EpochEnd:
    """The end of an epoch, as all ranks agree on it.

    Args:
        ranks: all of them.
        layout: of the recording.
        sample_ids: of all its samples, None = not given on this rank.
        every: how many epochs there are from one that is recorded to the next.
    """

    def __init__(self, ranks: Ranks, layout: Layout, sample_ids: Sequence[str] | None, every: int) -> None:
        self._ranks = ranks
        facts = (every, layout.n_samples, layout.n_classes, layout.keep, layout.dtype, layout.mode)
        self._facts = [_PROTOCOL, zlib.crc32(repr(facts).encode()), _checksum(sample_ids)]

    def conclude(self, refusal: Exception | None) -> None:
        """What rank 0 made of the epoch, on all ranks.

        Args:
            refusal: on rank 0, why it is not taken.

        Raises:
            CaptureError: on the other ranks, rank 0 did not take it.
        """
        refused = self._ranks.all_gather([int(refusal is not None)])[0, 0]
        if refused and self._ranks.rank > 0:
            raise CaptureError("rank 0 did not take the epoch; see its own log")

    def agree(self, n_rows: int, *, failed: bool, is_busy: bool = False) -> tuple[npt.NDArray[np.int64], int]:
        """Rows that each rank has for rank 0, `[rank]`, and what the others must wait for before they send them.

        Args:
            n_rows: of this rank.
            failed: whether it cannot go on.
            is_busy: on rank 0, whether it must do something first that may take longer than a collective's patience.

        Raises:
            CaptureError: on all ranks, if one of them cannot go on or records something else.
        """
        hold = self._ranks.hold() if is_busy else 0
        headers = self._ranks.all_gather([*self._facts, int(failed), n_rows, hold])
        broken = np.flatnonzero(headers[:, 3])
        if len(broken):
            raise RanksEndedError(
                f"ranks {broken.tolist()} of {self._ranks.size} could not record, so none does; see their own logs"
            )
        odd = np.flatnonzero((headers[:, :2] != headers[0, :2]).any(axis=1))
        if len(odd):
            raise RanksEndedError(
                f"ranks {odd.tolist()} record something else than rank 0 (samples, classes, keep, dtype, mode or every "
                "differ); give every rank the same arguments and data set"
            )
        ids = headers[:, 2]  # only rank 0, which writes them, needs them
        odd = np.flatnonzero((ids != ids[0]) & (ids != 0) & (ids[0] != 0))
        if len(odd):
            raise RanksEndedError(
                f"ranks {odd.tolist()} have other sample_ids than rank 0, or in another order, so an index means "
                "different samples; give every rank the ids of all ranks' samples, in one order"
            )
        return np.asarray(headers[:, 4]), int(headers[0, 5])


class RankZeroSink(LocalSink):
    """Rows of rank 0 go into its store, those of the other ranks join them when the epoch ends.

    Args:
        writer: the store's writer; closed by `close`.
        ranks: all of them.
        on_error: as for `Committer`.
        memory_limit_bytes: as for `Committer`.
        sample_ids: of all samples, None = they have none.
        every: how many epochs there are from one that is recorded to the next.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        ranks: Ranks,
        *,
        on_error: str,
        memory_limit_bytes: int | None = None,
        sample_ids: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)
        self._ranks = ranks
        self._agreement = _EpochEnd(ranks, writer.layout, sample_ids, every)
        self._tile_rows = tile_rows(writer.layout, ranks.size)
        self._nothing = np.zeros(self._tile_rows, row_dtype(writer.layout))
        self._fields = [field.name for field in writer.layout.fields if field.name != "n_presentations"]
        self._last = np.full(writer.layout.n_samples, -1, np.int64)  # who gave each row: step * ranks + rank

    def put(self, rows: Rows) -> None:
        """Scatter rows into the epoch; a sample that comes again replaces its earlier row."""
        rows = self._scatter(rows)
        self._last[rows.indices] = rows.steps * self._ranks.size

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Take the rows of all ranks and commit the epoch in the background.

        If several ranks saw a sample, the row of its latest step is kept. Ties go to the highest rank.

        Args:
            failed: tell the others that this rank cannot record.
            count_once: a sample that came more than once is padding, and counts once.

        Raises:
            CaptureError: a rank failed or was lost, or most labels are not those that their
                samples had before; nothing is taken then.
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        try:
            n_rows, hold = self._agreement.agree(0, failed=failed, is_busy=self._committer.is_busy)
            refusal: Exception | None = self._settle(hold) if hold else None
            self._take(n_rows)
            if refusal is None:
                try:
                    super().end_epoch(count_once=count_once)
                except Exception as error:  # of the disk or the labels
                    refusal = error
            self._agreement.conclude(refusal)
            if refusal is not None:
                raise refusal
        except BaseException:
            self._drop_epoch()
            raise
        finally:
            self._last.fill(-1)

    def _settle(self, hold: int) -> Exception | None:
        """Wait for the disk while the others wait for this rank; returns why it refuses the epoch before."""
        try:
            self._committer.flush()
        except Exception as error:
            return error
        finally:
            self._ranks.release(hold)
        return None

    def _take(self, n_rows: npt.NDArray[np.int64]) -> None:
        """Merge the rows of the other ranks, `[rank]` many."""
        for start in range(0, int(n_rows.max()), self._tile_rows):
            n_tile = min(self._tile_rows, int(n_rows.max()) - start)
            for rank, tile in enumerate(self._ranks.gather(self._nothing[:n_tile])):
                if rank > 0:
                    self.gathered_bytes += tile.nbytes
                    self._merge(tile[: max(0, int(n_rows[rank]) - start)], rank)

    def _merge(self, tile: npt.NDArray[np.void], rank: int) -> None:
        """Scatter one row a sample of another rank, but for those where this rank has a later row."""
        counts = self._committer.buffer["n_presentations"]
        values = {name: tile[name] for name in (*self._fields, "n_presentations")}
        labels, steps = tile["label"].astype(np.int64), tile["step"].astype(np.int64)
        rows = self._labels.take(Rows(tile["sample"].astype(np.int64), labels, steps, values))
        add_presentations(counts, rows.indices, rows.values["n_presentations"])
        given_by = rows.steps * self._ranks.size + rank
        later = given_by > self._last[rows.indices]
        if not later.all():
            rows, given_by = rows.only(later), given_by[later]
        self._last[rows.indices] = given_by
        for name in self._fields:
            self._committer.buffer[name][rows.indices] = rows.values[name]


class SendingSink:
    """As `LocalSink` for another rank than 0: rows wait in memory until the epoch ends, and go to rank 0.

    Args:
        layout: of the recording.
        ranks: all of them.
        memory_limit_bytes: what passes it waits in a nameless file instead; None = a quarter of the memory.
        folder: for that file.
        sample_ids: of all samples, None = not given on this rank.
        every: how many epochs there are from one that is recorded to the next.
    """

    def __init__(
        self,
        layout: Layout,
        ranks: Ranks,
        *,
        memory_limit_bytes: int | None = None,
        folder: str = "",
        sample_ids: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        self.labels = np.full(layout.n_samples, -1, np.int32)
        self.n_changed = 0  # counted on rank 0
        self.n_epochs = 0
        self.blocked_seconds = 0.0
        self.gathered_bytes = 0
        self._ranks = ranks
        self._agreement = _EpochEnd(ranks, layout, sample_ids, every)
        self._tile_rows = tile_rows(layout, ranks.size)
        self._buffer = RowBuffer(
            layout, self._tile_rows, memory_limit_bytes=memory_limit_bytes, folder=folder
        )

    def put(self, rows: Rows) -> None:
        """Take rows; a sample that comes again replaces its earlier row."""
        self.labels[rows.indices] = rows.labels
        self._buffer.put(rows)

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Send this rank's rows to rank 0.

        Raises:
            CaptureError: a rank failed or was lost, or rank 0 did not take the epoch.
        """
        started = time.perf_counter()
        try:
            n_rows, hold = self._agreement.agree(self._buffer.n_rows, failed=failed)
            if hold:
                self._ranks.wait_for(hold)
            for number, start in enumerate(range(0, int(n_rows.max()), self._tile_rows)):
                tile = self._buffer.tile(number)[: int(n_rows.max()) - start]
                self._ranks.gather(tile)
                self.gathered_bytes += tile.nbytes
            self._agreement.conclude(None)
        finally:
            self._buffer.clear()
        self.n_epochs += 1
        self.blocked_seconds += time.perf_counter() - started

    def flush(self) -> None:
        """Nothing is written here."""

    def close(self) -> None:
        """Release what is held."""
        self._buffer.close()


class RowBuffer:
    """The rows of the samples that this rank saw in the epoch, one a sample, in tiles.

    Memory grows with the samples seen here, not with how often; it is kept from epoch to epoch.

    Args:
        layout: of the recording.
        n_tile_rows: rows of a tile.
        memory_limit_bytes: tiles beyond it go into nameless files; None = a quarter of the memory.
        folder: for these files; if it does not exist, as on another host, the folder for temporary files.
    """

    def __init__(
        self, layout: Layout, n_tile_rows: int, *, memory_limit_bytes: int | None = None, folder: str = ""
    ) -> None:
        limit = default_memory_limit_bytes() if memory_limit_bytes is None else memory_limit_bytes
        self._n_in_memory = limit // (n_tile_rows * row_dtype(layout).itemsize)
        self._folder = folder if os.path.isdir(folder) else tempfile.gettempdir()
        self._spills: list[Spill] = []
        self._n_spillable = 0  # tiles for which the last of these files has room
        self._dtype = row_dtype(layout)
        self._tile_rows = n_tile_rows
        self._place = np.full(layout.n_samples, -1, np.int64)
        self._tiles: list[npt.NDArray[np.void]] = []
        self.n_rows = 0

    def put(self, rows: Rows) -> None:
        """Take rows; a sample that comes again replaces its earlier row."""
        samples, times = np.unique(rows.indices, return_counts=True)
        new = samples[self._place[samples] < 0]
        self._place[new] = np.arange(self.n_rows, self.n_rows + len(new))
        self.n_rows += len(new)
        while len(self._tiles) * self._tile_rows < self.n_rows:
            self._add_tile()
        for tile, at, chosen in self._by_tile(new):
            tile["sample"][at] = new[chosen]
            tile["n_presentations"][at] = 0
        for tile, at, chosen in self._by_tile(samples):
            add_presentations(tile["n_presentations"], at, times[chosen])
        for tile, at, chosen in self._by_tile(rows.indices):
            tile["step"][at] = rows.steps[chosen]
            tile["label"][at] = rows.labels[chosen]
            for name, value in rows.values.items():
                tile[name][at] = value[chosen]

    def _by_tile(self, samples: Indices) -> list[tuple[npt.NDArray[np.void], Indices, Indices]]:
        """Tile, places in it and which of `samples` they are, for each tile concerned."""
        places = self._place[samples]
        numbers = places // self._tile_rows
        parts = []
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            parts.append((self._tiles[number], places[chosen] - number * self._tile_rows, chosen))
        return parts

    def tile(self, number: int) -> npt.NDArray[np.void]:
        """A whole tile; its contents after the last row are arbitrary."""
        while len(self._tiles) <= number:
            self._add_tile()
        return self._tiles[number]

    def _add_tile(self) -> None:
        if len(self._tiles) < self._n_in_memory:
            self._tiles.append(np.zeros(self._tile_rows, self._dtype))
            return
        if self._n_spillable == 0:
            # Each as large as all earlier ones together, so that there are few.
            self._n_spillable = max(_LEAST_SPILLED, len(self._tiles) - self._n_in_memory)
            page = mmap.PAGESIZE
            tile_bytes = -(-self._tile_rows * self._dtype.itemsize // page) * page
            self._spills.append(Spill(self._folder, self._n_spillable * tile_bytes))
        self._n_spillable -= 1
        self._tiles.append(self._spills[-1].empty((self._tile_rows,), self._dtype))

    def close(self) -> None:
        """Release memory and files."""
        self._tiles.clear()
        for spill in self._spills:
            spill.close()
        self._spills.clear()

    def clear(self) -> None:
        """Forget the epoch."""
        self._place.fill(-1)
        self.n_rows = 0
