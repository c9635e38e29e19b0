"""What a fit agrees on with other ranks, which here do as this process does: `test_ranks` has real ones."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest
from support.training import Bell, Points, Witness, model_of

from paddle_td_callback import CaptureError, TrainingDynamicsCallback, TrainingDynamicsStore
from paddle_td_callback.paddle_fit.evaluation_pass import EvaluationPass
from paddle_td_callback.paddle_fit.fit_ranks import FitRanks
from paddle_td_callback.recording.gathering import RanksLostError


class Meeting:
    """As `Session`."""

    name = "fit1"
    ranks = (0, 2)

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def barrier(self, error: Exception | None = None, *, hint: str = "") -> None:
        self.heard.append(error)

    def leave(self, reason: str) -> None:
        self.heard.append(reason)


class Echo:
    """As `RankGroup` on rank 0 of 2: rank 1 has no rows and otherwise says what this rank says."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.meeting = Meeting()
        self.said: list[list[int]] = []
        self.lost_from = 1 << 30  # the number of the exchange in which rank 1 is gone
        self.n_classes_of_other = 0

    def session(self, kind: str) -> Meeting:
        return self.meeting

    def all_gather(self, values: Any) -> npt.NDArray[np.int64]:
        self.said.append(list(values))
        if len(self.said) > self.lost_from:
            raise RanksLostError("the ranks lost each other")
        other = [self.n_classes_of_other, 0] if len(values) == 2 and self.n_classes_of_other else values
        return np.array([values, other], np.int64)

    def gather(self, tile: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [tile, tile]

    def hold(self) -> int:
        return 1

    def release(self, number: int) -> None:
        pass


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr("paddle_td_callback.paddle_fit.fit_ranks.current_ranks", lambda: echo)
    return echo


def fit(path: str, data: Any = None, *, epochs: int = 2, **options: Any) -> Witness:
    network = Witness()
    callbacks = [Bell(), TrainingDynamicsCallback(path, **options)]
    data = Points(20) if data is None else data
    model_of(network).fit(data, batch_size=5, epochs=epochs, verbose=0, callbacks=callbacks)
    return network


def test_ranks_lost_in_an_evaluation_pass_are_asked_no_more(echo: Echo, path: str) -> None:
    echo.lost_from = 5  # two steps of the first pass, three exchanges at the end of its epoch
    with pytest.warns(RuntimeWarning, match="the ranks lost each other; recording ends here") as said:
        network = fit(path, mode="eval", epochs=4)
    assert sum("lost each other" in str(one.message) for one in said) == 1
    assert len(network.epochs) == 4
    assert len(echo.said) == 6
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1


@pytest.mark.parametrize("is_resumed", [False, True])
def test_what_ends_a_recording_on_one_rank_is_raised_where_all_ranks_meet(
    is_resumed: bool, echo: Echo, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(path, mode="eval", epochs=1)
    run, fails = EvaluationPass.run, CaptureError("the data set has shrunk")
    before = len(echo.said)

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise fails

    monkeypatch.setattr(EvaluationPass, "run", fail)
    if is_resumed:  # the others have to hear of it first
        with pytest.raises(CaptureError, match="the data set has shrunk"):
            fit(path, mode="eval", epochs=2, resume=True)
    else:
        with pytest.warns(RuntimeWarning, match="the data set has shrunk; recording ends here"):
            fit(path, mode="eval", epochs=2, overwrite=True)
    headers = [said for said in echo.said[before:] if len(said) == 6]
    assert [said[3] for said in headers] == [1]
    monkeypatch.setattr(EvaluationPass, "run", run)


class Late(paddle.io.BatchSampler):  # type: ignore[misc]
    """Gives nothing in its first passes."""

    def __init__(self, dataset: Any, n_empty: int) -> None:
        super().__init__(dataset, batch_size=5)
        self.n_empty = n_empty

    def __iter__(self) -> Any:
        self.n_empty -= 1
        return super().__iter__() if self.n_empty < 0 else iter([])


def late(n_empty: int) -> Any:
    return paddle.io.DataLoader(Points(20), batch_sampler=Late(Points(20), n_empty))


def test_an_epoch_in_which_no_rank_made_a_step_is_none(echo: Echo, path: str) -> None:
    fit(path, late(1), epochs=3)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2
        assert (store.predictions() >= 0).all()


def test_a_rank_that_made_no_step_takes_the_rows_of_the_others(echo: Echo, path: str) -> None:
    echo.n_classes_of_other = 4
    fit(path, late(1), epochs=1)
    with TrainingDynamicsStore(path) as store:
        assert (store.n_epochs, store.n_classes) == (1, 4)
        assert (store.predictions() == -1).all()


def test_a_fit_that_ran_no_epoch_waits_for_the_others_and_owes_them_nothing(echo: Echo) -> None:
    ranks = FitRanks()
    ranks.begin(lambda: None)
    ranks.end()
    gc.collect()
    assert echo.meeting.heard == [None, None]


def test_a_callback_that_never_began_costs_nothing(path: str, tmp_path: Any) -> None:
    callback = TrainingDynamicsCallback(path)  # of a list of callbacks that hands on some of the calls only
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(0)
    callback.on_epoch_end(0)
    callback.on_train_end()
    assert (callback.n_recorded, callback.n_skipped, callback.n_nonfinite) == (0, 0, 0)
    assert not list(tmp_path.iterdir())


def test_a_recording_that_cannot_even_be_prepared_ends_the_fit(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise MemoryError("no room for a session")

    monkeypatch.setattr("paddle_td_callback.paddle_fit.recording_callback.FitSession", fail)
    with pytest.raises(MemoryError, match="no room for a session"):
        fit(path)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_epoch_whose_steps_nobody_hands_on_is_said_to_be_none(mode: str, path: str) -> None:
    class Some(paddle.callbacks.Callback):  # type: ignore[misc]
        """Hands on that a fit and an epoch begin and end, and does not let the epoch be recorded."""

        def __init__(self) -> None:
            super().__init__()
            self.callback = TrainingDynamicsCallback(path, mode=mode)

        def set_model(self, model: Any) -> None:
            self.callback.set_model(model)

        def set_params(self, params: Any) -> None:
            self.callback.set_params(params)

        def on_train_begin(self, logs: Any = None) -> None:
            self.callback.on_train_begin(logs)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.callback.on_epoch_end(epoch, logs)

        def on_train_end(self, logs: Any = None) -> None:
            self.callback.on_train_end(logs)

    with pytest.warns(
        RuntimeWarning, match=r"no training step was seen, so nothing is recorded; .*must hand on"
    ):
        model_of(Witness()).fit(Points(20), batch_size=5, verbose=0, callbacks=[Some()])
