"""Several ranks, one store: the rows of an epoch go to rank 0 at its end, by Paddle's own collectives.

Every rank keeps the rows of the samples that it saw. When the epoch ends, all ranks tell each other how they are
(one small `all_gather`); if all are well, rank 0 gathers their rows in tiles of a few megabytes for all together.
Then rank 0 tells whether it took them. Nothing
else is exchanged while training runs. All of it happens between two training steps, in the process group
that training uses, since its connections stand: making a second one of four gloo ranks sometimes failed or hung.

A rank that dies is noticed by the others as Paddle notices it: gloo and NCCL raise, or time out as they are set to.
Where ranks may be apart for longer, they wait for each other elsewhere: see `meeting`.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.distributed as dist

from ..errors import CaptureError
from ..recording.sinks import (
    LocalSink,
    RowBuffer,
    Rows,
    Values,
    add_presentations,
    remember_labels,
    row_dtype,
    tile_rows,
)
from ..store import StoreWriter
from ..store.schema import Layout
from .rendezvous import Lookout, Session, connect, first_line

_PROTOCOL = 2
_GLOO_SECONDS = 30.0  # its own default, which Paddle leaves as it is
_LOST = "committed epochs stay; start again with resume=True, with any number of ranks"


class RanksEndedError(CaptureError):
    """The ranks record no more together, and all of them know."""


class RanksLostError(RanksEndedError):
    """The ranks cannot reach each other any more."""


class RankGroup:
    """All ranks of a data-parallel training. Every rank makes it, and calls its methods in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank = int(dist.get_rank())
        self.size = int(dist.get_world_size())
        store = connect()
        self._lookout = None if store is None else Lookout(store, self.rank, self.size, _patience_seconds())
        self._holds = self.session("hold")
        self._n_holds = 0

    def session(self, kind: str) -> Session:
        """The next one of its kind, which every rank opens in the same order."""
        return Session(None, kind) if self._lookout is None else self._lookout.session(kind)

    def hold(self) -> int:
        """On rank 0, a number for the others to `wait_for`; 0 if they cannot."""
        self._n_holds += self._lookout is not None
        return self._n_holds

    def release(self, number: int) -> None:
        """On rank 0, let those go on who wait for a number."""
        self._holds.come(f"{self._holds.name}/{number}")

    def wait_for(self, number: int) -> None:
        """Wait until rank 0 releases a number, as long as it lives.

        Raises:
            CaptureError: it ended.
        """
        try:
            self._holds.wait(f"{self._holds.name}/{number}", [0])
        except CaptureError as error:
            raise RanksLostError(f"the ranks lost each other ({error}); {_LOST}") from error

    def all_gather(self, values: Sequence[int]) -> npt.NDArray[np.int64]:
        """The same few integers of every rank, `[rank, value]`.

        Raises:
            CaptureError: another rank ended.
        """
        gathered: list[Any] = []
        with self._lost_ranks(), paddle.no_grad():
            mine = paddle.to_tensor(np.asarray(values, np.int64))
            dist.all_gather(gathered, mine)
            return np.stack([tensor.numpy() for tensor in gathered])

    def gather(self, tile: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Arrays of one shape and dtype of all ranks, on rank 0; nothing elsewhere.

        Sends and receives between two ranks would be less to carry, but gloo counts the operations of a group on
        each rank, and pairs those of equal number: every rank must take part in every one.

        Raises:
            CaptureError: another rank ended.
        """
        gathered: list[Any] | None = [] if self.rank == 0 else None
        with self._lost_ranks(), paddle.no_grad():
            mine = paddle.to_tensor(tile.view(np.uint8).reshape(-1))
            dist.gather(mine, gathered, dst=0)
            return [tensor.numpy().view(tile.dtype) for tensor in gathered or []]

    @contextlib.contextmanager
    def _lost_ranks(self) -> Iterator[None]:
        """What Paddle raises when a rank is gone, in our words."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            known = "" if self._lookout is None else self._lookout.gone()
            cause = f"{first_line(error)}; {known}".removesuffix("; ")
            raise RanksLostError(f"the ranks lost each other ({cause}); {_LOST}") from error


def _patience_seconds() -> float:
    """How long a collective of Paddle's waits for a rank that does not come."""
    if "gloo" in str(dist.get_backend()).lower():
        return _GLOO_SECONDS
    return int(os.getenv("PADDLE_PG_TIMEOUT", "1800000")) / 1000


_group: RankGroup | None = None


def current_ranks() -> RankGroup | None:
    """All ranks of the parallel environment that Paddle is in; None where this process is alone."""
    global _group
    if not dist.is_initialized() or dist.get_world_size() < 2:
        return None
    if _group is None:
        _group = RankGroup()
    return _group


class _Exchange:
    """The end of an epoch, as all ranks agree on it.

    Args:
        ranks: all of them.
        layout: of the recording.
        sample_ids: of all its samples, None = this rank does without.
    """

    def __init__(self, ranks: RankGroup, layout: Layout, sample_ids: Sequence[Any] | None) -> None:
        self._ranks = ranks
        facts = (layout.n_samples, layout.n_classes, layout.keep, layout.dtype, layout.mode)
        names = None if sample_ids is None else [str(one) for one in sample_ids]
        ids = 0 if names is None else 1 + zlib.crc32(repr(names).encode())
        self._facts = [_PROTOCOL, zlib.crc32(repr(facts).encode()), ids]

    def conclude(self, refusal: Exception | None) -> None:
        """What rank 0 made of the epoch, on all ranks.

        Args:
            refusal: on rank 0, why it is not taken.

        Raises:
            CaptureError: on the other ranks, rank 0 did not take it.
        """
        refused = self._ranks.all_gather([int(refusal is not None)])[0, 0]
        if refused and self._ranks.rank > 0:
            raise CaptureError("rank 0 did not take the epoch, as its own log says")

    def agree(self, n_rows: int, *, failed: bool, is_busy: bool = False) -> tuple[npt.NDArray[np.int64], int]:
        """Rows that each rank has for rank 0, `[rank]`, and what the others must wait for before they send them.

        Args:
            n_rows: of this rank.
            failed: whether it cannot go on.
            is_busy: on rank 0, whether it must do something first that may take longer than a collective's patience.

        Raises:
            CaptureError: on all ranks alike, if one of them cannot go on or records something else.
        """
        hold = self._ranks.hold() if is_busy else 0
        headers = self._ranks.all_gather([*self._facts, int(failed), n_rows, hold])
        broken = np.flatnonzero(headers[:, 3])
        if len(broken):
            raise RanksEndedError(
                f"ranks {broken.tolist()} of {self._ranks.size} could not record, as their own logs say, so none does"
            )
        odd = np.flatnonzero((headers[:, :2] != headers[0, :2]).any(axis=1))
        if len(odd):
            raise RanksEndedError(
                f"ranks {odd.tolist()} record something else than rank 0 (samples, classes, keep, dtype or mode "
                "differ); give every rank the same arguments and data set"
            )
        ids = headers[:, 2]  # in a loop of one's own only rank 0, which writes them, needs them
        odd = np.flatnonzero((ids != ids[0]) & (ids != 0) & (ids[0] != 0))
        if len(odd):
            raise RanksEndedError(
                f"ranks {odd.tolist()} have other sample_ids than rank 0, or in another order, so a place stands for "
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
    """

    def __init__(
        self,
        writer: StoreWriter,
        ranks: RankGroup,
        *,
        on_error: str,
        memory_limit_bytes: int | None = None,
        sample_ids: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)
        self._ranks = ranks
        self._exchange = _Exchange(ranks, writer.layout, sample_ids)
        self._tile_rows = tile_rows(writer.layout, ranks.size)
        self._nothing = np.zeros(self._tile_rows, row_dtype(writer.layout))
        self._fields = [field.name for field in writer.layout.fields if field.name != "n_presentations"]
        self._last = np.full(writer.layout.n_samples, -1, np.int64)  # who gave each row: step * ranks + rank
        self._step = 0
        self._gathered_bytes = 0

    @property
    def gathered_bytes(self) -> int:  # type: ignore[override]
        """Bytes taken from the other ranks so far."""
        return self._gathered_bytes

    def put(self, rows: Rows, given: npt.NDArray[np.int64], values: Values) -> None:
        """Scatter a batch into the epoch."""
        super().put(rows, given, values)
        self._step += 1
        self._last[rows] = self._step * self._ranks.size

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Take the rows of all ranks and commit the epoch in the background.

        Of a sample that several ranks saw, the row of the latest step stays, at the same step that of the highest
        rank.

        Args:
            failed: tell the others that this rank cannot record.
            count_once: a sample that came more than once is padding, and counts once.

        Raises:
            CaptureError: a rank failed or was lost, or two ranks disagree about a label; nothing is taken then.
            OSError: with `on_error="raise"`, this or the epoch before cannot be written.
        """
        try:
            n_rows, hold = self._exchange.agree(0, failed=failed, is_busy=self._committer.is_busy)
            refusal: Exception | None = self._settle(hold) if hold else None
            refusal = self._take(n_rows) or refusal
            if refusal is None:
                try:
                    super().end_epoch(count_once=count_once)
                except Exception as error:  # of the disk
                    refusal = error
            self._exchange.conclude(refusal)
            if refusal is not None:
                raise refusal
        except BaseException:
            self._committer.buffer["n_presentations"].fill(0)  # nothing of it may come up in the next epoch
            raise
        finally:
            self._last.fill(-1)
            self._step = 0

    def _settle(self, hold: int) -> Exception | None:
        """Wait for the disk while the others wait for this rank; returns why it refuses the epoch before."""
        try:
            self._committer.flush()
        except Exception as error:
            return error
        finally:
            self._ranks.release(hold)
        return None

    def _take(self, n_rows: npt.NDArray[np.int64]) -> CaptureError | None:
        """Merge the rows of the other ranks, `[rank]` many; returns why they cannot be merged."""
        refusal: CaptureError | None = None
        for start in range(0, int(n_rows.max()), self._tile_rows):
            n_tile = min(self._tile_rows, int(n_rows.max()) - start)
            for rank, tile in enumerate(self._ranks.gather(self._nothing[:n_tile])):
                if rank == 0:
                    continue
                self._gathered_bytes += tile.nbytes
                try:
                    self._merge(tile[: max(0, int(n_rows[rank]) - start)], rank)
                except CaptureError as error:  # the others go on sending, so go on receiving
                    refusal = refusal or error
        return refusal

    def _merge(self, tile: npt.NDArray[np.void], rank: int) -> None:
        rows = tile["sample"]
        remember_labels(
            self.labels, rows, tile["label"].astype(np.int64), f"epoch {self.n_epochs}, rank {rank}"
        )
        epoch = self._committer.buffer
        add_presentations(epoch["n_presentations"], rows, tile["n_presentations"])
        given_by = tile["step"].astype(np.int64) * self._ranks.size + rank
        later = given_by > self._last[rows]
        if not later.all():
            rows, tile, given_by = rows[later], tile[later], given_by[later]
        self._last[rows] = given_by
        for name in self._fields:
            epoch[name][rows] = tile[name]


class SendingSink:
    """Rows of another rank than 0 wait in memory until the epoch ends.

    Args:
        layout: of the recording.
        ranks: all of them.
        memory_limit_bytes: what passes it waits in a nameless file instead; None = a quarter of the machine's memory.
        folder: for that file.
        sample_ids: of all samples, None = this rank does without.
    """

    def __init__(
        self,
        layout: Layout,
        ranks: RankGroup,
        *,
        memory_limit_bytes: int | None = None,
        folder: str = "",
        sample_ids: Sequence[Any] | None = None,
    ) -> None:
        self.labels = np.full(layout.n_samples, -1, np.int32)
        self.n_epochs = 0
        self.blocked_seconds = 0.0
        self.gathered_bytes = 0
        self._ranks = ranks
        self._exchange = _Exchange(ranks, layout, sample_ids)
        self._tile_rows = tile_rows(layout, ranks.size)
        self._buffer = RowBuffer(
            layout, self._tile_rows, memory_limit_bytes=memory_limit_bytes, folder=folder
        )
        self._step = 0

    def put(self, rows: Rows, given: npt.NDArray[np.int64], values: Values) -> None:
        """Take a batch."""
        remember_labels(
            self.labels, rows, given, f"rank {self._ranks.rank}, epoch {self.n_epochs} of this run"
        )
        self._step += 1
        self._buffer.put(rows, given, values, self._step)

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Send this rank's rows to rank 0.

        Raises:
            CaptureError: a rank failed or was lost, or rank 0 did not take the epoch.
        """
        started = time.perf_counter()
        try:
            n_rows, hold = self._exchange.agree(self._buffer.n_rows, failed=failed)
            if hold:
                self._ranks.wait_for(hold)
            for number, start in enumerate(range(0, int(n_rows.max()), self._tile_rows)):
                tile = self._buffer.tile(number)[: int(n_rows.max()) - start]
                self._ranks.gather(tile)
                self.gathered_bytes += tile.nbytes
            self._exchange.conclude(None)
        finally:
            self._buffer.clear()
            self._step = 0
        self.n_epochs += 1
        self.blocked_seconds += time.perf_counter() - started

    def flush(self) -> None:
        """Nothing is written here."""

    def close(self) -> None:
        """Release what is held."""
        self._buffer.close()
