"""The end of an epoch on several ranks, each a sink in a thread of this process; no framework."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from paddle_td_callback import CaptureError, TrainingDynamicsStore
from paddle_td_callback.recording import gathering
from paddle_td_callback.recording.batches import Rows
from paddle_td_callback.recording.gathering import RankZeroSink, SendingSink
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.schema import Layout

N_SAMPLES = 12
LAYOUT = Layout(N_SAMPLES, 2, keep="given")


class Together:
    """What the threads of all ranks share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.released: dict[int, threading.Event] = defaultdict(threading.Event)
        self.board: list[Any] = [None] * size


class Rank:
    """As `Ranks`."""

    def __init__(self, rank: int, together: Together) -> None:
        self.rank = rank
        self.size = together.size
        self._together = together

    def _share(self, value: Any) -> list[Any]:
        self._together.board[self.rank] = value
        self._together.barrier.wait()
        shared = list(self._together.board)
        self._together.barrier.wait()
        return shared

    def all_gather(self, values: Any) -> npt.NDArray[np.int64]:
        return np.stack([np.asarray(one, np.int64) for one in self._share(values)])

    def hold(self) -> int:
        return len(self._together.released) + 1

    def release(self, number: int) -> None:
        self._together.released[number].set()

    def wait_for(self, number: int) -> None:
        assert self._together.released[number].wait(30)

    def gather(self, tile: Any) -> list[Any]:
        tiles = self._share(tile.copy())
        return tiles if self.rank == 0 else []


class Sinks:
    """A recording of so many ranks; its file may be read once it is closed."""

    def __init__(
        self,
        path: Path,
        size: int,
        on_error: str = "warn",
        memory_limit_bytes: int | None = None,
        sample_ids: Any = (None,) * 4,
    ) -> None:
        together = Together(size)
        self.path = path
        self.writer = StoreWriter.create(path, LAYOUT, class_names=None, sample_ids=None, overwrite=True)
        ranks: list[Any] = [Rank(rank, together) for rank in range(size)]
        self.sinks: list[Any] = [
            RankZeroSink(self.writer, ranks[0], on_error=on_error, sample_ids=sample_ids[0])
        ]
        self.sinks += [
            SendingSink(
                LAYOUT,
                rank,
                memory_limit_bytes=memory_limit_bytes,
                folder=str(path.parent),
                sample_ids=sample_ids[rank.rank],
            )
            for rank in ranks[1:]
        ]
        self.steps = [0] * size
        self.together = together

    def put(self, rank: int, rows: Any, value: float, label: int = 0) -> None:
        n = len(rows)
        values = {
            "given_probability": np.full(n, value),
            "margin": np.full(n, value),
            "predicted": np.zeros(n),
        }
        self.steps[rank] += 1
        labels, steps = np.full(n, label, np.int64), np.full(n, self.steps[rank], np.int64)
        self.sinks[rank].put(Rows(np.asarray(rows, np.int64), labels, steps, values))

    def end_epoch(self, **options: Any) -> list[Exception | None]:
        """What each rank raised."""

        def end(sink: Any) -> Exception | None:
            try:
                sink.end_epoch(**options)
            except Exception as error:
                return error
            return None

        self.steps = [0] * len(self.sinks)
        with ThreadPoolExecutor(len(self.sinks)) as pool:
            return list(pool.map(end, self.sinks))

    def margins(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        self.sinks[0].flush()
        with TrainingDynamicsStore(self.path) as store:
            return store.margins(), store.n_presentations()

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gathering, "TILE_BYTES", 1)  # a row a tile
    made: list[Sinks] = []

    def make(size: int, **options: Any) -> Sinks:
        made.append(Sinks(tmp_path / "run.h5", size, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("count_once", [False, True])
@pytest.mark.parametrize("memory_limit_bytes", [None, 100])
def test_the_latest_step_and_then_the_highest_rank_stays(
    ranks: Callable[..., Sinks], size: int, count_once: bool, memory_limit_bytes: int | None
) -> None:
    rng = np.random.default_rng(size)
    together = ranks(size, memory_limit_bytes=memory_limit_bytes)
    n_epochs = 12
    want = np.full((N_SAMPLES, n_epochs), np.nan, np.float32)
    counts = np.zeros((N_SAMPLES, n_epochs), np.uint8)
    for epoch in range(n_epochs):
        steps = [
            (step, rank, rng.integers(0, N_SAMPLES, rng.integers(1, 6)))
            for rank in range(size)
            for step in range(rng.integers(0, 4))
        ]
        for step, rank, rows in steps:
            together.put(rank, rows, 10 * step + rank)
        for step, rank, rows in sorted(steps, key=lambda one: one[:2]):
            want[rows, epoch] = 10 * step + rank
            np.add.at(counts[:, epoch], rows, 1)
        assert together.end_epoch(count_once=count_once) == [None] * size
    margins, n_presentations = together.margins()
    np.testing.assert_array_equal(margins, want)
    np.testing.assert_array_equal(n_presentations, np.minimum(counts, 1) if count_once else counts)


def test_a_label_on_which_ranks_disagree_costs_that_row(ranks: Callable[..., Sinks]) -> None:
    together = ranks(3)
    together.put(0, [0, 1, 5], 1.0)
    together.put(1, [0, 6], 2.0, label=1)  # sample 0 has the label 0 on rank 0
    together.put(2, [6, 7], 3.0)  # sample 6 has the label 1 on rank 1, which comes in a later tile
    with pytest.warns(
        RuntimeWarning, match=r"label of sample 6 was 0, now it is 1; .*2 so far.*skipped_rows"
    ):
        assert together.end_epoch() == [None] * 3
    together.put(2, [0, 6], 4.0)
    assert together.end_epoch() == [None] * 3
    assert [sink.n_changed for sink in together.sinks] == [2, 0, 0]
    labels = together.sinks[0].labels
    margins, n_presentations = together.margins()
    assert labels[[0, 1, 5, 6, 7]].tolist() == [0] * 5
    assert margins[[0, 1, 5, 6, 7], 0].tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]
    assert n_presentations[[0, 1, 5, 6, 7], 0].tolist() == [1] * 5
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(margins[:, 1])), [0, 6])


def test_a_refused_epoch_is_refused_on_all_and_leaves_nothing(ranks: Callable[..., Sinks]) -> None:
    together = ranks(3)
    together.put(0, [0, 1], 1.0)
    together.put(1, [2], 1.0)
    assert together.end_epoch() == [None] * 3
    together.put(0, [1], 2.0)
    together.put(1, [0, 2], 2.0, label=1)  # which is 0 elsewhere
    errors = together.end_epoch()
    assert all(isinstance(error, CaptureError) for error in errors)
    assert "2 of 3 rows of this epoch have another label" in str(errors[0])
    assert "rank 0 did not take the epoch" in str(errors[1])
    assert [sink.n_epochs for sink in together.sinks] == [1] * 3
    together.put(2, [4], 3.0)
    assert together.end_epoch() == [None] * 3
    margins, n_presentations = together.margins()
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(margins[:, 0])), [0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(margins[:, 1])), [4])
    assert n_presentations[:, 1].sum() == 1


def test_a_rank_that_failed_leaves_nothing_in_the_next_epoch(ranks: Callable[..., Sinks]) -> None:
    together = ranks(2)
    together.put(0, [0], 1.0)
    together.put(1, [1], 1.0)
    assert all(isinstance(error, CaptureError) for error in together.end_epoch(failed=True))
    together.put(1, [2], 2.0)
    assert together.end_epoch() == [None] * 2
    margins, _ = together.margins()
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(margins[:, 0])), [2])


def test_ranks_with_other_sample_ids_or_another_order_are_refused(ranks: Callable[..., Sinks]) -> None:
    ids = [f"text-{i}" for i in range(N_SAMPLES)]
    together = ranks(3, sample_ids=(ids, ids[::-1], ids))
    together.put(1, [1], 1.0)
    for error in together.end_epoch():
        assert isinstance(error, CaptureError)
        assert "ranks [1] have other sample_ids than rank 0" in str(error)


def test_ranks_that_record_something_else_are_refused(ranks: Callable[..., Sinks]) -> None:
    together = ranks(3)
    group = together.sinks[2]._ranks
    together.sinks[2].close()
    together.sinks[2] = SendingSink(LAYOUT, group, every=2)
    for error in together.end_epoch():
        assert isinstance(error, gathering.RanksEndedError)
        assert "ranks [2] record something else than rank 0" in str(error)


def test_ranks_may_leave_sample_ids_to_rank_0(ranks: Callable[..., Sinks]) -> None:
    ids = [str(i) for i in range(N_SAMPLES)]
    together = ranks(3, sample_ids=(ids, None, list(ids)))
    assert together.end_epoch() == [None] * 3


def test_a_disk_that_refuses_raises_on_all_ranks_where_it_is_to_raise(
    ranks: Callable[..., Sinks], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ranks(2, on_error="raise")

    def refuse(*arguments: Any) -> None:
        raise OSError("disk full")

    together.put(0, [0], 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit_epoch", refuse)
        assert together.end_epoch() == [None] * 2  # it is written beside the training
        errors = together.end_epoch()
    assert isinstance(errors[0], OSError)
    assert isinstance(errors[1], CaptureError)


def test_a_disk_that_refuses_while_the_others_wait_for_it_raises_on_all_ranks(
    ranks: Callable[..., Sinks], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ranks(2, on_error="raise")

    def refuse_slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        raise OSError("disk full")

    together.put(0, [0], 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit_epoch", refuse_slowly)
        assert together.end_epoch() == [None] * 2
        together.put(1, [1], 2.0)
        errors = together.end_epoch()
    assert "disk full" in str(errors[0])
    assert isinstance(errors[1], CaptureError)
    together.put(1, [2], 3.0)
    assert together.end_epoch() == [None] * 2
    margins, _ = together.margins()
    assert np.flatnonzero(~np.isnan(margins[:, -1])).tolist() == [2]  # nothing of the refused epoch


def test_ranks_wait_outside_the_collectives_for_a_slow_disk(
    ranks: Callable[..., Sinks], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ranks(3)
    commit, gather = StoreWriter.commit_epoch, Rank.gather
    is_written = threading.Event()
    gathered: list[bool] = []

    def commit_slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        commit(*arguments)
        is_written.set()

    def gather_and_note(*arguments: Any) -> Any:
        gathered.append(is_written.is_set())
        return gather(*arguments)

    together.put(1, [1], 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit_epoch", commit_slowly)
        assert together.end_epoch() == [None] * 3
        patch.setattr(Rank, "gather", gather_and_note)
        together.put(2, [2], 2.0)
        assert together.end_epoch() == [None] * 3
    assert gathered == [True] * 3
    assert list(together.together.released) == [1]
    margins, _ = together.margins()
    assert (margins[1, 0], margins[2, 1]) == (1.0, 2.0)


def test_rows_beyond_the_memory_limit_wait_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(50_000, 100, dtype="float32")
    made: list[int] = []
    spill = gathering.Spill

    def note_and_spill(folder: str, n_bytes: int) -> Any:
        made.append(n_bytes)
        return spill(folder, n_bytes)

    monkeypatch.setattr(gathering, "Spill", note_and_spill)
    monkeypatch.setattr(gathering, "TILE_BYTES", 1 << 20)
    n_tile_rows = gathering.tile_rows(layout, 2)
    row_bytes = gathering.row_dtype(layout).itemsize
    buffer = gathering.RowBuffer(
        layout, n_tile_rows, memory_limit_bytes=2 << 20, folder=str(tmp_path / "not here")
    )
    rows = np.random.default_rng(0).permutation(50_000)
    for step, some in enumerate(np.array_split(rows, 100)):
        values = {
            "given_probability": some,
            "margin": some,
            "predicted": some % 100,
            "probabilities": np.broadcast_to(some[:, None], (len(some), 100)),
        }
        buffer.put(Rows(some, some % 7, np.full(len(some), step), values))
    assert 2 <= len(made) <= 6
    n_bytes = 50_000 * row_bytes
    assert n_bytes - (2 << 20) <= sum(made) <= 2 * n_bytes
    found = np.concatenate([buffer.tile(i) for i in range(-(-50_000 // n_tile_rows))])[:50_000]
    np.testing.assert_array_equal(np.sort(found["sample"]), np.arange(50_000))
    np.testing.assert_array_equal(found["probabilities"][:, 99], found["sample"].astype(np.float32))
    np.testing.assert_array_equal(found["label"], found["sample"] % 7)
    np.testing.assert_array_equal(found["step"], np.repeat(np.arange(100), 500))
    buffer.close()
