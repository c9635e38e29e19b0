"""Ranks that wait for each other and notice each other's end, each a `RankMonitor` on one store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddle_td_callback import CaptureError
from paddle_td_callback.paddle_fit import ranks, rendezvous
from paddle_td_callback.paddle_fit.rendezvous import RankMonitor, Session, SharedResult
from paddle_td_callback.recording.gathering import RanksLostError

SIZE = 3


class Store:
    """As Paddle's `TCPStore`: bytes and counters by key; `get` waits for a key, and a dead one raises."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.error: Exception | None = None
        self.hangs = threading.Event()
        self.hangs.set()

    def _check(self) -> None:
        self.hangs.wait()
        if self.error is not None:
            raise self.error

    def add(self, key: str, value: int) -> int:
        self._check()
        with self.lock:
            total = int(self.values.get(key, b"0")) + value
            self.values[key] = str(total).encode()
            return total

    def set(self, key: str, value: Any) -> None:
        self._check()
        self.values[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        self._check()
        return self.values[key]  # a KeyError here would be a rank that waits for ever


@pytest.fixture
def store() -> Iterator[Store]:
    yield (store := Store())
    store.hangs.set()


@pytest.fixture
def monitors(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RankMonitor]]:
    monkeypatch.setattr(rendezvous, "_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(rendezvous, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_WARN_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous.atexit, "register", lambda end: None)
    made = [RankMonitor(store, rank, SIZE, patience_seconds=0.5) for rank in range(SIZE)]
    yield made
    for monitor in made:
        monitor._store.close()


def together(*calls: Any) -> list[Any]:
    """What each call returned or raised; all at the same time."""

    def outcome(call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def sessions(monitors: list[RankMonitor]) -> list[Session]:
    return [monitor.session("fit") for monitor in monitors]


def test_ranks_meet_however_late_one_is(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)
    arrived = []

    def late() -> None:
        time.sleep(0.3)
        arrived.append(third)
        third.barrier()

    for _ in range(2):
        assert together(first.barrier, second.barrier, late) == [None] * 3
    assert len(arrived) == 2


def test_rank_0_does_not_take_the_store_away_from_those_who_have_not_read_it(
    monitors: list[RankMonitor], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = sessions(monitors)
    monkeypatch.setattr(rendezvous, "_POLL_SECONDS", 0.4)  # the others look up late

    def barrier_and_end() -> None:
        time.sleep(0.5)
        first.barrier()
        store.error = ValueError("TCP connection reset by peer")

    assert together(barrier_and_end, second.barrier, third.barrier) == [None] * 3


def test_an_error_of_one_raises_on_all(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)
    cause = ValueError("path exists")
    outcomes = together(lambda: first.barrier(cause), second.barrier, third.barrier)
    assert outcomes[0] is cause
    for outcome in outcomes[1:]:
        assert isinstance(outcome, CaptureError)
        assert str(outcome) == "rank 0 of 3 cannot record: path exists"


def test_nobody_waits_for_one_that_left(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)
    third.leave("its fit ended by KeyError")
    for outcome in together(first.barrier, second.barrier):
        assert str(outcome) == "rank 2 of 3 did not arrive: its fit ended by KeyError"
    again = sessions(monitors)  # what is over does not count in the next fit
    assert together(*(one.barrier for one in again)) == [None] * 3


def test_one_that_came_before_it_left_is_not_missed(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)

    def come_and_end() -> None:
        third.barrier()
        monitors[2]._end()

    assert together(first.barrier, second.barrier, come_and_end) == [None] * 3
    for outcome in together(first.barrier, second.barrier):
        assert str(outcome) == "rank 2 of 3 did not arrive: its process ended"


def test_a_silent_rank_is_given_up_and_taken_back(monitors: list[RankMonitor]) -> None:
    first, second, _ = sessions(monitors)
    wake = threading.Event()
    monitors[2].ask(lambda store: None)
    monitors[2]._store.submit(lambda store: wake.wait(20))  # a call that keeps it from its beat
    for outcome in together(first.barrier, second.barrier):
        assert "rank 2 of 3 did not arrive: no sign of life for" in str(outcome)
    assert "rank 2: no sign of life" in monitors[1].describe_lost()
    wake.set()
    deadline = time.monotonic() + 10
    while monitors[1].describe_lost():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    again = sessions(monitors)
    assert together(*(one.barrier for one in again)) == [None] * 3


def test_one_that_never_showed_itself_is_waited_for_as_long_as_paddle_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous.atexit, "register", lambda end: None)
    monkeypatch.setattr(rendezvous, "_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(rendezvous, "_WARN_SECONDS", 0.1)
    monitor = RankMonitor(store, 0, 2, patience_seconds=0.4)
    began = time.monotonic()
    with (
        pytest.warns(RuntimeWarning, match=r"rank 0 still waits for ranks \[1\]; look there"),
        pytest.raises(CaptureError, match=r"rank 1 of 2 did not arrive: no sign of life ever.*look there"),
    ):
        monitor.session("fit").barrier(hint="look there")
    assert 0.4 < time.monotonic() - began < 5
    monitor._store.close()


def test_all_hear_at_once_when_the_store_is_gone(monitors: list[RankMonitor], store: Store) -> None:
    _, second, third = sessions(monitors)

    def cut() -> None:
        time.sleep(0.2)
        store.error = ValueError("(InvalidArgument) TCP connection reset by peer.\n  [Hint: a stack]")

    for outcome in together(second.barrier, third.barrier, cut)[:2]:
        assert isinstance(outcome, CaptureError)
        assert str(outcome) == (
            "rank 0's process ended ((InvalidArgument) TCP connection reset by peer.); see its own log, and start "
            "again with resume=True"
        )
    assert "rank 0's process ended" in monitors[1].describe_lost()


def test_a_store_that_does_not_answer_is_given_up(
    monitors: list[RankMonitor], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_EXIT_SECONDS", 0.1)
    _, second, _ = sessions(monitors)
    store.hangs.clear()
    with pytest.raises(CaptureError, match="rank 0 has not answered"):
        second.barrier()
    began = time.monotonic()
    monitors[1]._end()  # as Python does where the process ends
    assert time.monotonic() - began < 5


def test_a_result_goes_to_those_who_want_it(
    monitors: list[RankMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_PART_BYTES", 4)
    first, second, _ = sessions(monitors)
    finder, reader = SharedResult(first, "0"), SharedResult(second, "0")
    payload = b"a ranking in several parts"
    assert together(lambda: finder.publish(payload), reader.fetch) == [None, payload]
    assert not any(payload[:4] in value for value in monitors[0].ask(lambda store: store.values).values())


def test_no_reader_waits_for_a_finder_that_is_gone(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)
    reader = SharedResult(third, "0")
    with pytest.raises(CaptureError, match="rank 0 has no LabelIssuesCallback"):
        reader.fetch()
    SharedResult(first, "0")
    other = SharedResult(second, "0")
    first.leave("its fit ended by MemoryError")
    for outcome in together(reader.fetch, other.fetch):
        assert str(outcome) == "rank 0 of 3 did not arrive: its fit ended by MemoryError"


def test_an_error_of_ones_own_is_raised_although_another_is_gone(monitors: list[RankMonitor]) -> None:
    first, _, third = sessions(monitors)
    third.leave("its fit ended by KeyError")
    cause = ValueError("path exists")
    with pytest.raises(ValueError, match="path exists") as raised:
        first.barrier(cause)
    assert raised.value is cause


def test_a_rank_whose_rank_0_has_no_finder_meets_nobody(monitors: list[RankMonitor]) -> None:
    first, second, _ = sessions(monitors)
    reader = SharedResult(second, "0")
    reader.meet()
    with pytest.raises(CaptureError, match="rank 0 has no LabelIssuesCallback"):
        reader.fetch()
    SharedResult(first, "0").meet()


def test_a_forked_process_that_exits_says_nothing(
    monitors: list[RankMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous.os, "getpid", lambda: -1)
    monitors[2]._end()
    monkeypatch.undo()
    monitors[2].ask(lambda store: None)  # its thread serves on
    assert monitors[0].describe_lost() == ""


@pytest.fixture
def group(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[ranks.RankGroup]:
    """Rank 1 of 2, whose collectives fail as gloo's do."""

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("(External) Connection closed by peer.\n  [Hint: a stack]")

    monkeypatch.setattr(rendezvous.atexit, "register", lambda end: None)
    monkeypatch.setattr(ranks, "connect", lambda: store)
    monkeypatch.setattr(ranks.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "get_backend", lambda: "NCCL")
    monkeypatch.setattr(ranks.dist, "all_gather", fail)
    monkeypatch.setattr(ranks.dist, "gather", fail)
    yield (made := ranks.RankGroup())
    made._monitor._store.close()


def test_collectives_that_fail_say_which_rank_is_lost_and_the_way_out(
    group: ranks.RankGroup, store: Store
) -> None:
    lost = r"the ranks lost each other \(\(External\) Connection closed by peer\."
    way = r"committed epochs stay; start again with resume=True"
    with pytest.raises(RanksLostError, match=rf"{lost}\); {way}"):
        group.all_gather([1, 2])
    RankMonitor._write(SimpleNamespace(rank=0, _n_written=0), store, 0, None, "its process ended")  # type: ignore[arg-type]
    with pytest.raises(RanksLostError, match=rf"{lost}; rank 0: its process ended\); {way}"):
        group.gather(np.zeros(3, np.float32))
    with pytest.raises(
        RanksLostError, match=r"lost each other \(rank 0 of 2 did not arrive: its process ended\)"
    ):
        group.wait_for(1)


def test_other_backends_than_gloo_wait_for_as_long_as_their_setting_says(
    group: ranks.RankGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert group._monitor.patience_seconds == 1800
    monkeypatch.setenv("PADDLE_PG_TIMEOUT", "90000")
    assert ranks._patience_seconds() == 90


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"MASTER_ADDR": "host0", "MASTER_PORT": "70"}, ("host0", 70)),
        ({"PADDLE_MASTER": "host0:70"}, ("host0", 70)),
        ({"PADDLE_TRAINER_ENDPOINTS": "[::1]:70,host1:71"}, ("[::1]", 70)),
        ({}, None),
    ],
)
def test_the_store_is_where_the_environment_says_or_else_paddles_own_client_is_used(
    environment: dict[str, str], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous.paddle.base.core, "TCPStore", lambda *arguments: arguments)
    monkeypatch.setattr(rendezvous.collective, "_default_store", "shared")
    found = rendezvous.connect()
    assert found == "shared" if wanted is None else found[:2] == wanted


def test_a_finder_does_not_wait_for_a_reader_that_is_gone(monitors: list[RankMonitor]) -> None:
    first, second, third = sessions(monitors)
    finder = SharedResult(first, "0")
    SharedResult(second, "0")
    reader = SharedResult(third, "0")
    second.leave("its fit ended by KeyError")
    assert together(lambda: finder.publish(b"ranking"), reader.fetch) == [None, b"ranking"]
