"""Paddle's collectives, as `recording.gathering` asks for them: the only file that knows them.

They run in the process group of the training, whose connections exist already: making a second one of four gloo ranks
sometimes failed or hung. If a rank dies, gloo and NCCL raise
in the others, or time out. Where ranks may be later than that, they wait at the TCP store: see `rendezvous`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.distributed as dist

from ..errors import CaptureError
from ..recording.gathering import RanksLostError
from .rendezvous import RankMonitor, Session, connect, first_line

_GLOO_SECONDS = 30.0  # gloo's default, which Paddle does not change
_LOST = "committed epochs stay; start again with resume=True, with any number of ranks"


class RankGroup:
    """All ranks of a data-parallel training. Every rank makes it, and calls its methods in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank = int(dist.get_rank())
        self.size = int(dist.get_world_size())
        self._monitor = RankMonitor(connect(), self.rank, self.size, _patience_seconds())
        self._holds = self.session("hold")
        self._n_holds = 0

    def session(self, kind: str) -> Session:
        """The next one of its kind, which every rank opens in the same order."""
        return self._monitor.session(kind)

    def hold(self) -> int:
        """On rank 0, a number for the others to `wait_for`."""
        self._n_holds += 1
        return self._n_holds

    def release(self, number: int) -> None:
        """On rank 0, end the wait of the others for a number."""
        self._holds.arrive(f"{self._holds.name}/{number}")

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

        Sends between two ranks would carry less, but gloo numbers the operations of a group on each rank and pairs
        equal numbers, so every rank must take part in every one.

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
        """Turn what Paddle raises when a rank is lost into `RanksLostError`."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            cause = f"{first_line(error)}; {self._monitor.describe_lost()}".removesuffix("; ")
            raise RanksLostError(f"the ranks lost each other ({cause}); {_LOST}") from error


def _patience_seconds() -> float:
    """How long a collective of Paddle's waits for a rank that does not arrive."""
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
