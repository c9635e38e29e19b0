"""Several ranks, one store: the rows of an epoch go to rank 0 at its end, by Paddle's own collectives.

Every rank keeps the rows of the samples that it saw. When the epoch ends, all ranks tell each other how they are
(one small `all_gather`); if all are well, rank 0 gathers their rows in tiles of a few megabytes for all together.
Nothing else is exchanged while training runs. All of it happens between two training steps, in the process group
that training uses, since its connections stand: making a second one of four gloo ranks sometimes failed or hung.

A rank that dies is noticed by the others as Paddle notices it: gloo and NCCL raise, or time out as they are set to.

gloo gives up on a peer that is 30 seconds late. Where ranks may be apart for longer (before training, while rank 0
looks for label issues), they wait for each other at the TCP store with which Paddle's ranks found each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.distributed as dist
from paddle.distributed import collective

from .errors import CaptureError
from .label_issues import LabelIssues
from .sinks import (
    TILE_BYTES,
    LocalSink,
    RowBuffer,
    Rows,
    Values,
    add_presentations,
    remember_labels,
    row_dtype,
    tile_rows,
)
from .store import Layout, StoreWriter

_PROTOCOL = 1
_SAY_SECONDS = 20.0  # a rank without the callback meets gloo's 30 seconds first: say before what is wrong
_READ_SECONDS = 60.0
_LIMIT_SECONDS = 1800.0  # Paddle's own default for a process group
_POLL_SECONDS = 0.1
_LOST = "committed epochs stay; start again with resume=True, with any number of ranks"


class RanksEndedError(CaptureError):
    """The ranks record no more together, and all of them know."""


class RankGroup:
    """All ranks of a data-parallel training. Every rank makes it, and calls its methods in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank = int(dist.get_rank())
        self.size = int(dist.get_world_size())
        self._store: Any = getattr(collective, "_default_store", None)
        self._n_meetings = 0
        self.meet()

    def meet(self, error: Exception | None = None) -> None:
        """Wait until every rank is here, however late.

        Args:
            error: what is wrong on this rank; every rank raises then.

        Raises:
            CaptureError: something is wrong on another rank, or one did not come.
        """
        self._n_meetings += 1
        if self._store is None:
            if error is not None:
                raise error
            return
        key = f"paddle_td_callback/meeting{self._n_meetings}"
        try:
            self._store.set(f"{key}/rank{self.rank}", "" if error is None else str(error))
            self._store.add(key, 1)
            self._wait(lambda: int(self._store.add(key, 0)) >= self.size)
            errors = [self._store.get(f"{key}/rank{rank}").decode() for rank in range(self.size)]
        except (RuntimeError, ValueError) as failure:
            if error is not None:
                raise error from None
            raise CaptureError(f"another rank ended: {failure}") from failure
        if error is not None:
            raise error
        for rank, message in enumerate(errors):
            if message:
                raise CaptureError(f"rank {rank} of {self.size} cannot record: {message}")

    def _wait(self, arrived: Callable[[], bool], seconds: float = _LIMIT_SECONDS) -> None:
        begin, said = time.monotonic(), False
        while not arrived():
            waited = time.monotonic() - begin
            if waited > seconds:
                raise CaptureError(
                    f"rank {self.rank} waited {waited:.0f} s for the other {self.size - 1} ranks; "
                    "TrainingDynamicsCallback must be among the callbacks of every rank"
                )
            if waited > _SAY_SECONDS and not said:
                said = True
                warnings.warn(
                    f"rank {self.rank} still waits for the other {self.size - 1} ranks; "
                    "TrainingDynamicsCallback must be among the callbacks of every rank",
                    RuntimeWarning,
                    stacklevel=4,
                )
            time.sleep(_POLL_SECONDS)

    @property
    def n_meetings(self) -> int:
        """How often the ranks have met, the same on all of them."""
        return self._n_meetings

    def count(self, name: str, add: int) -> int:
        """Add to a counter that all ranks see, and read it, without waiting."""
        return 0 if self._store is None else int(self._store.add(f"paddle_td_callback/{name}", add))

    def publish(self, name: str, payload: bytes, *, readers: int) -> None:
        """Hand bytes to other ranks, and wait until so many have read them (a minute, then they are on their own)."""
        key = f"paddle_td_callback/{name}"
        parts = [payload[i : i + TILE_BYTES] for i in range(0, len(payload), TILE_BYTES)]
        for number, part in enumerate(parts):
            self._store.set(f"{key}/{number}", part)
        self._store.set(f"{key}/parts", str(len(parts)))
        self._store.add(key, 1)
        try:
            self._wait(lambda: int(self._store.add(f"{key}/read", 0)) >= readers, _READ_SECONDS)
        except CaptureError:
            return
        for number in range(len(parts)):  # the store would keep them as long as the process lives
            self._store.set(f"{key}/{number}", "")

    def fetch(self, name: str) -> bytes:
        """What rank 0 publishes under a name; waits for it.

        Raises:
            CaptureError: rank 0 ended.
        """
        key = f"paddle_td_callback/{name}"
        try:
            self._wait(lambda: int(self._store.add(key, 0)) > 0)
            n_parts = int(self._store.get(f"{key}/parts"))
            payload = b"".join(self._store.get(f"{key}/{number}") for number in range(n_parts))
            self._store.add(f"{key}/read", 1)
        except (RuntimeError, ValueError) as failure:
            raise CaptureError(f"rank 0 ended: {failure}") from failure
        return payload

    def all_gather(self, values: Sequence[int]) -> npt.NDArray[np.int64]:
        """The same few integers of every rank, `[rank, value]`.

        Raises:
            CaptureError: another rank ended.
        """
        gathered: list[Any] = []
        with _lost_ranks(), paddle.no_grad():
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
        with _lost_ranks(), paddle.no_grad():
            mine = paddle.to_tensor(tile.view(np.uint8).reshape(-1))
            dist.gather(mine, gathered, dst=0)
            return [tensor.numpy().view(tile.dtype) for tensor in gathered or []]


@contextlib.contextmanager
def _lost_ranks() -> Iterator[None]:
    """What Paddle raises when a rank is gone, in our words."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise RanksEndedError(f"the ranks lost each other ({_first_line(error)}); {_LOST}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class SharedResult:
    """What rank 0 finds for one callback, and the callbacks of other ranks want too.

    Every rank makes it in the first epoch of a fit, so that rank 0 knows at the end how many wait.

    Args:
        ranks: all of them.
        name: the same on all ranks, and of this callback and fit alone.

    Attributes:
        rank: of this process.
    """

    def __init__(self, ranks: RankGroup, name: str) -> None:
        self.rank = ranks.rank
        self._ranks = ranks
        self._name = f"result{name}"
        ranks.count(f"{self._name}/offers" if self.rank == 0 else f"{self._name}/asks", 1)

    def publish(self, payload: bytes) -> None:
        """Give it to the ranks that asked, and wait until they have it."""
        readers = self._ranks.count(f"{self._name}/asks", 0)
        if readers:
            self._ranks.publish(self._name, payload, readers=readers)

    def fetch(self) -> bytes:
        """What rank 0 published.

        Raises:
            CaptureError: rank 0 has no such callback, or ended.
        """
        if not self._ranks.count(f"{self._name}/offers", 0):
            raise CaptureError("rank 0 has no LabelIssuesCallback for this recording; give it to every rank")
        return self._ranks.fetch(self._name)


def pack_issues(issues: LabelIssues | None) -> bytes:
    """Label issues as bytes: arrays as NumPy writes them, the rest as JSON. Nothing where none were found."""
    if issues is None:
        return b""
    values = {field.name: getattr(issues, field.name) for field in dataclasses.fields(issues)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    arrays["plain"] = np.frombuffer(json.dumps(plain, default=_as_json).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot travel between ranks")


def unpack_issues(payload: bytes) -> LabelIssues:
    """The issues that `pack_issues` packed.

    Raises:
        CaptureError: rank 0 found none.
    """
    if not payload:
        raise CaptureError("rank 0 could not find them, as its own log says")
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    return LabelIssues(**json.loads(values.pop("plain").tobytes()), **values)


_group: RankGroup | None = None


def current_ranks() -> RankGroup | None:
    """All ranks of the parallel environment that Paddle is in; None where this process is alone.

    The first call waits for all ranks.
    """
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
    """

    def __init__(self, ranks: RankGroup, layout: Layout) -> None:
        self._ranks = ranks
        facts = (layout.n_samples, layout.n_classes, layout.keep, layout.dtype, layout.mode)
        self._facts = [_PROTOCOL, zlib.crc32(repr(facts).encode())]

    def agree(self, n_rows: int, *, failed: bool) -> npt.NDArray[np.int64]:
        """Rows that each rank has for rank 0, `[rank]`.

        Raises:
            CaptureError: on all ranks alike, if one of them cannot go on or records something else.
        """
        headers = self._ranks.all_gather([*self._facts, int(failed), n_rows])
        broken = np.flatnonzero(headers[:, 2])
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
        return np.asarray(headers[:, 3])


class RankZeroSink(LocalSink):
    """Rows of rank 0 go into its store, those of the other ranks join them when the epoch ends.

    Args:
        writer: the store's writer; closed by `close`.
        ranks: all of them.
        on_error: as for `Committer`.
        memory_limit_bytes: as for `Committer`.
    """

    def __init__(
        self,
        writer: StoreWriter,
        ranks: RankGroup,
        *,
        on_error: str,
        memory_limit_bytes: int | None = None,
    ) -> None:
        super().__init__(writer, on_error=on_error, memory_limit_bytes=memory_limit_bytes)
        self._ranks = ranks
        self._exchange = _Exchange(ranks, writer.layout)
        self._tile_rows = tile_rows(writer.layout, ranks.size)
        self._nothing = np.zeros(self._tile_rows, row_dtype(writer.layout))
        self._fields = [field.name for field in writer.layout.fields if field.name != "n_presentations"]
        self._last_step = np.zeros(writer.layout.n_samples, np.uint32)
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
        self._last_step[rows] = self._step

    def end_epoch(self, *, failed: bool = False, count_once: bool = False) -> None:
        """Take the rows of all ranks and commit the epoch in the background.

        Of a sample that several ranks saw, the row of the latest step stays, at the same step that of the highest
        rank.

        Args:
            failed: tell the others that this rank cannot record.
            count_once: a sample that came more than once is padding, and counts once.

        Raises:
            CaptureError: a rank failed or was lost, or two ranks disagree about a label.
        """
        n_rows = self._exchange.agree(0, failed=failed)
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
        if refusal is not None:
            raise refusal
        if count_once:
            counts = self._committer.buffer["n_presentations"]
            np.minimum(counts, 1, out=counts)
        self._last_step.fill(0)
        self._step = 0
        super().end_epoch()

    def _merge(self, tile: npt.NDArray[np.void], rank: int) -> None:
        rows = tile["sample"]
        remember_labels(
            self.labels, rows, tile["label"].astype(np.int64), f"epoch {self.n_epochs}, rank {rank}"
        )
        epoch = self._committer.buffer
        add_presentations(epoch["n_presentations"], rows, tile["n_presentations"])
        later = tile["step"] >= self._last_step[rows]
        if not later.all():
            rows, tile = rows[later], tile[later]
        self._last_step[rows] = tile["step"]
        for name in self._fields:
            epoch[name][rows] = tile[name]

    def meet(self) -> None:
        """Wait for the other ranks to come here too."""
        self._ranks.meet()


class SendingSink:
    """Rows of another rank than 0 wait in memory until the epoch ends.

    Args:
        layout: of the recording.
        ranks: all of them.
    """

    def __init__(self, layout: Layout, ranks: RankGroup) -> None:
        self.labels = np.full(layout.n_samples, -1, np.int32)
        self.n_epochs = 0
        self.blocked_seconds = 0.0
        self.gathered_bytes = 0
        self._ranks = ranks
        self._exchange = _Exchange(ranks, layout)
        self._tile_rows = tile_rows(layout, ranks.size)
        self._buffer = RowBuffer(layout, self._tile_rows)
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
            CaptureError: a rank failed or was lost.
        """
        started = time.perf_counter()
        n_rows = self._exchange.agree(self._buffer.n_rows, failed=failed)
        for number, start in enumerate(range(0, int(n_rows.max()), self._tile_rows)):
            tile = self._buffer.tile(number)[: int(n_rows.max()) - start]
            self._ranks.gather(tile)
            self.gathered_bytes += tile.nbytes
        self._buffer.clear()
        self._step = 0
        self.n_epochs += 1
        self.blocked_seconds += time.perf_counter() - started

    def flush(self) -> None:
        """Nothing is written here."""

    def meet(self) -> None:
        """Wait for the other ranks to come here too."""
        self._ranks.meet()

    def close(self) -> None:
        """Nothing is held here."""
