"""Where the rows of an epoch go: into this process's store, or to another rank that has it (see `gathering`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..store.border import RecordingWriter
from .batches import Indices, Rows
from .committer import Committer
from .labels import GivenLabels

_MAX_PRESENTATIONS = 255


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
        """Nothing of this epoch may come up in the next one."""
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
