"""Where the rows of an epoch go: into this process's store, or into a buffer from which rank 0 fetches them."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..store import StoreWriter
from ..store.schema import Layout
from .committer import Committer
from .spill import Spill, default_memory_limit_bytes

Rows = npt.NDArray[np.int64]
Values = Mapping[str, npt.NDArray[Any]]

TILE_BYTES = 8 << 20  # of all ranks together
_MAX_PRESENTATIONS = 255
_LEAST_SPILLED = 4


class Sink(Protocol):
    """What a recorder hands its rows to.

    Attributes:
        labels: `[sample]` int32, the given labels seen so far, -1 = not yet.
    """

    labels: npt.NDArray[np.int32]

    @property
    def n_epochs(self) -> int:
        """Epochs ended so far, those of a resumed file included."""

    @property
    def blocked_seconds(self) -> float:
        """Seconds for which the calling thread waited for commits."""

    @property
    def gathered_bytes(self) -> int:
        """Bytes that this rank sent to, or as rank 0 took from, the others."""

    def put(self, rows: Rows, given: npt.NDArray[np.int64], values: Values) -> None:
        """Take a batch: `given` labels and `values` of every field but `n_presentations`, all `[row, ...]`."""

    def end_epoch(self, *, failed: bool, count_once: bool) -> None:
        """Commit the epoch; with `failed` tell the other ranks that it cannot be.

        With `count_once`, a sample that came more than once was padding, and counts as seen once.
        """

    def flush(self) -> None:
        """Wait until every ended epoch is on disk."""

    def close(self) -> None:
        """Commit what has ended and release the file."""


class LocalSink:
    """Rows go into the epoch buffer of this process's committer.

    Args:
        writer: the store's writer; closed by `close`.
        on_error: as for `Committer`.
        memory_limit_bytes: as for `Committer`.
    """

    gathered_bytes = 0

    def __init__(self, writer: StoreWriter, *, on_error: str, memory_limit_bytes: int | None = None) -> None:
        self.labels = writer.labels.copy()
        self._committer = Committer(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)

    @property
    def n_epochs(self) -> int:
        """Epochs ended so far, those of a resumed file included."""
        return self._committer.next_index

    @property
    def blocked_seconds(self) -> float:
        """Seconds for which the calling thread waited for commits."""
        return self._committer.blocked_seconds

    def put(self, rows: Rows, given: npt.NDArray[np.int64], values: Values) -> None:
        """Scatter a batch into the epoch; a sample that comes again replaces its earlier row."""
        remember_labels(self.labels, rows, given, f"epoch {self.n_epochs}")
        epoch = self._committer.buffer
        for name, value in values.items():
            epoch[name][rows] = value
        seen, times = np.unique(rows, return_counts=True)
        add_presentations(epoch["n_presentations"], seen, times)

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Commit the epoch in the background.

        Raises:
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        if failed:
            return
        if count_once:
            counts = self._committer.buffer["n_presentations"]
            np.minimum(counts, 1, out=counts)
        self._committer.submit(self.labels)

    def flush(self) -> None:
        """Wait until every ended epoch is on disk."""
        self._committer.flush()

    def close(self) -> None:
        """Commit what has ended and release the file."""
        self._committer.close()


def remember_labels(
    labels: npt.NDArray[np.int32], rows: Rows, given: npt.NDArray[np.int64], where: str
) -> None:
    """Note labels seen for the first time.

    Raises:
        CaptureError: a sample had another label before; nothing is noted then.
    """
    known = labels[rows]
    fresh = known == -1
    labels[rows[fresh]] = given[fresh]
    changed = np.flatnonzero(labels[rows] != given)
    if len(changed):
        sample, new = rows[changed[0]], given[changed[0]]
        old = labels[sample]
        labels[rows[fresh]] = -1
        raise CaptureError(
            f"{where}: the label of sample {sample} was {old}, now it is {new}; a recording holds one given label for "
            "each sample: where labels were corrected, record to another path or with overwrite=True; where the loss "
            "gets other labels, pass the given ones as labels=; where the rows of a batch are not in the order in "
            "which the sampler dealt them, no epoch of this recording is right"
        )


def add_presentations(counts: npt.NDArray[np.uint8], at: Rows, times: npt.NDArray[Any]) -> None:
    """Add to counts that stop at 255; `at` holds no place twice."""
    counts[at] = np.minimum(counts[at].astype(np.int64) + times, _MAX_PRESENTATIONS)


def row_dtype(layout: Layout) -> np.dtype[np.void]:
    """One packed row of an epoch as it travels between ranks, so that a tile of rows is a run of bytes."""
    facts: list[Any] = [("sample", "<i8"), ("step", "<u4"), ("label", "<i4")]
    fields = [(f.name, np.dtype(f.dtype).newbyteorder("<"), layout.epoch_shape(f)[1:]) for f in layout.fields]
    return np.dtype(facts + fields)


def tile_rows(layout: Layout, n_ranks: int) -> int:
    """Rows of each rank that travel at once."""
    return max(1, TILE_BYTES // n_ranks // row_dtype(layout).itemsize)


class RowBuffer:
    """The rows of the samples that this rank saw in the epoch, one a sample, in tiles.

    Memory grows with the samples seen here, not with how often; it is kept from epoch to epoch.

    Args:
        layout: of the recording.
        n_tile_rows: rows of a tile.
        memory_limit_bytes: tiles beyond it go into nameless files; None = a quarter of the machine's memory.
        folder: for these files; where it is not there, as on another host, that for temporary files.
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

    def put(self, rows: Rows, given: npt.NDArray[np.int64], values: Values, step: int) -> None:
        """Take a batch; a sample that comes again replaces its earlier row."""
        seen, times = np.unique(rows, return_counts=True)
        fresh = seen[self._place[seen] < 0]
        self._place[fresh] = np.arange(self.n_rows, self.n_rows + len(fresh))
        self.n_rows += len(fresh)
        while len(self._tiles) * self._tile_rows < self.n_rows:
            self._add_tile()
        for tile, at, chosen in self._by_tile(fresh):
            tile["sample"][at] = fresh[chosen]
            tile["n_presentations"][at] = 0
        for tile, at, chosen in self._by_tile(seen):
            add_presentations(tile["n_presentations"], at, times[chosen])
        for tile, at, chosen in self._by_tile(rows):
            tile["step"][at] = step
            tile["label"][at] = given[chosen]
            for name, value in values.items():
                tile[name][at] = value[chosen]

    def _by_tile(self, rows: Rows) -> list[tuple[npt.NDArray[np.void], Rows, Rows]]:
        """Tile, places in it and which of `rows` they are, for each tile concerned."""
        places = self._place[rows]
        numbers = places // self._tile_rows
        parts = []
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            parts.append((self._tiles[number], places[chosen] - number * self._tile_rows, chosen))
        return parts

    def tile(self, number: int) -> npt.NDArray[np.void]:
        """A whole tile; behind the rows that there are it holds anything."""
        while len(self._tiles) <= number:
            self._add_tile()
        return self._tiles[number]

    def _add_tile(self) -> None:
        if len(self._tiles) < self._n_in_memory:
            self._tiles.append(np.zeros(self._tile_rows, self._dtype))
            return
        if self._n_spillable == 0:
            # Each as large as all before, so that there are few.
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
