"""What is wrong from the start raises, what goes wrong later costs a row, a batch, or the recording, never the fit."""

from __future__ import annotations

import ast
import copy
import functools
import io
import itertools
import os
import random
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from support.training import (
    N_CLASSES,
    N_FEATURES,
    N_SAMPLES,
    Bell,
    Points,
    Witness,
    assert_same,
    assert_untapped,
    expected,
    model_of,
    read,
)

import paddle_td_callback
from paddle_td_callback import (
    CaptureError,
    LabelIssuesCallback,
    PlantedLabelErrors,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    train_several_runs,
)
from paddle_td_callback.paddle_fit.fit_session import FitSession
from paddle_td_callback.paddle_fit.index_field import IndexField
from paddle_td_callback.paddle_fit.internals import check_model
from paddle_td_callback.paddle_fit.losses import ignored_labels, takes_probabilities
from paddle_td_callback.paddle_fit.outputs import Batch
from paddle_td_callback.paddle_fit.plausibility import Plausibility, _losses
from paddle_td_callback.paddle_fit.taps import StepTap
from paddle_td_callback.recording.open_recorders import close_abandoned, wait_for_commits
from paddle_td_callback.store.verify import verify

BATCH = 8


def fit(data: Any, callbacks: Any, *, network: Any = None, loss: Any = None, **options: Any) -> Any:
    """One short training; the model."""
    model = model_of(Witness() if network is None else network, loss)
    options = {"epochs": 3, "batch_size": BATCH, "verbose": 0, **options}
    model.fit(data, callbacks=callbacks, **options)
    return model


def seen(path: str) -> list[int]:
    """How many samples each epoch of a recording holds."""
    with TrainingDynamicsStore(path) as store:
        return (store.predictions() >= 0).sum(axis=0).tolist()


class On(paddle.callbacks.Callback):
    """Does something at one event of some epochs."""

    def __init__(self, event: str, act: Callable[[Any], None], epochs: Any = range(100)) -> None:
        super().__init__()
        self._epochs, self._epoch = epochs, -1
        self._act, self._event = act, event

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        self._at("epoch_begin")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._at("epoch_end")

    def on_train_end(self, logs: Any = None) -> None:
        self._at("train_end")

    def _at(self, event: str) -> None:
        if event == self._event and self._epoch in self._epochs:
            self._act(self.model)


# ---------------------------------------------------------------------------------------------------------------
# A. Nothing of ours raises out of the last hooks.


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[], Any]] = {
    "ascii": ascii_stream,
    "closed": closed_stream,
    "none": lambda: None,
    "full": lambda: Refusing(OSError(28, "No space left on device")),
    "broken-pipe": lambda: Refusing(BrokenPipeError()),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "names", [["猫", "犬", "鳥", "魚"], ["\ud800", "\x1b[2J", "a\nb", "\u202ex"]], ids=["cjk", "bad"]
)
def test_what_stdout_cannot_take_costs_nothing(
    stream: str, names: list[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = (
        TrainingDynamicsCallback(path)
        if names[0] == "\ud800"
        else TrainingDynamicsCallback(path, class_names=names)
    )
    finder = LabelIssuesCallback(ours, method="aum", progress=True)
    out = STREAMS[stream]()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    fit(Points(), [ours, finder])
    assert finder.issues is not None
    if stream == "ascii":
        out.seek(0)
        printed = out.read()
        assert "LabelIssues by aum" in printed
        assert "\x1b" not in printed


@pytest.mark.parametrize("stream", ["closed", "none", "full", "broken-pipe"])
def test_what_stderr_cannot_take_costs_nothing(
    stream: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = TrainingDynamicsCallback(path, mode="eval")
    finder = LabelIssuesCallback(ours, method="aum", progress=False)
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    fit(Points(), [ours, finder], verbose=1)
    assert finder.issues is not None


class OnlyWrites:
    """A standard output as some editors have: no encoding, no flush, no buffer."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def test_a_standard_output_that_only_writes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = LabelIssuesCallback(path, method="aum", progress=True)
    monkeypatch.setattr(sys, "stdout", OnlyWrites())
    fit(Points(), [TrainingDynamicsCallback(path), finder])
    assert finder.issues is not None


def test_a_folder_that_goes_while_it_trains_costs_the_csv(path: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    finder = LabelIssuesCallback(path, method="aum", csv=tmp_path / "out" / "issues.csv", progress=False)
    go = On("epoch_end", lambda _: (tmp_path / "out").rmdir(), [1])
    with pytest.warns(RuntimeWarning, match="were not written: .*there is no folder"):
        fit(Points(), [TrainingDynamicsCallback(path), finder, go])
    assert finder.issues is not None


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("event", ["epoch_end", "epoch_begin"])
def test_paddles_own_bar_ends_a_fit_as_without_us(
    recorded: bool, event: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded by then is whole, and nothing is left."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    model = model_of(Witness())
    callbacks = [On(event, lambda _: out.close(), [1])]
    ours = TrainingDynamicsCallback(path)
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        model.fit(
            Points(),
            epochs=4,
            batch_size=BATCH,
            verbose=1,
            callbacks=[ours, *callbacks] if recorded else callbacks,
        )
    monkeypatch.undo()
    assert_untapped(model)
    if recorded:
        del ours, callbacks
        close_abandoned(path)  # what another thread still commits is there then
        with TrainingDynamicsStore(path) as store:
            assert store.n_epochs >= 1
        assert verify(path).ok
        # A new callback goes on in it.
        model.fit(
            Points(),
            epochs=1,
            batch_size=BATCH,
            verbose=0,
            callbacks=[TrainingDynamicsCallback(path, resume=True)],
        )
        assert len(seen(path)) >= 2


@pytest.mark.expects_unraised
def test_warnings_that_are_errors_cost_nothing(path: str) -> None:
    callbacks = [
        TrainingDynamicsCallback(path, mode="eval"),
        On("epoch_end", lambda _: os.unlink(path), epochs=[1]),
        LabelIssuesCallback(path, method="aum"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(Points(), callbacks, epochs=4)


@pytest.mark.expects_unraised
@pytest.mark.parametrize("first", [0, 4])
def test_a_warning_that_is_an_error_costs_no_more_than_what_it_is_about(first: int, path: str) -> None:
    def of_numbers(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(paddle.nan_to_num(logits), labels)

    class Spoilt(Witness):
        n = 0

        def logits(self, x: Any) -> Any:
            self.n += 1
            return super().logits(x) + (float("nan") if self.n == first + 1 else 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(Points(), TrainingDynamicsCallback(path), network=Spoilt(), loss=of_numbers, shuffle=False)
    assert seen(path) == [N_SAMPLES - BATCH, N_SAMPLES, N_SAMPLES]


@pytest.mark.parametrize("how", ["a backup is put back", "another process records there"])
def test_a_fit_that_dies_leaves_another_file_at_its_path(how: str, path: str, tmp_path: Path) -> None:
    script = f"""
import numpy as np
from paddle_td_callback import TrainingDynamicsRecorder
with TrainingDynamicsRecorder({path!r} + ".other", n_samples=4, n_classes=2) as recorder:
    for _ in range(5):
        recorder.update(np.arange(4), np.zeros((4, 2), np.float32), np.arange(4) % 2)
        recorder.end_epoch()
"""
    if how != "a backup is put back":
        script = script.replace('.other"', '"').replace("n_classes=2", "n_classes=2, overwrite=True")

    class Other(paddle.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            if step == 1:
                if how == "a backup is put back":
                    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
                    os.replace(path + ".other", path)
                else:
                    os.unlink(path)  # the other process's own file, since ours would be locked
                    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Points(), [TrainingDynamicsCallback(path), Other()])
    with TrainingDynamicsStore(path) as store:
        assert (store.n_epochs, store.n_samples) == (5, 4)


def test_a_planted_link_is_not_followed(path: str, tmp_path: Path) -> None:
    """Names that a temporary file might have lead to a file that must stay as it is."""
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    outputs = ["issues.csv", "report.html"]
    endings = [f".{os.getpid()}.new", ".partial", ".new", ".tmp", "~"]
    for output in [*outputs, "run.h5"]:
        for ending in endings:
            os.symlink(precious, tmp_path / f"{output}{ending}")
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(
        recorder, method="aum", csv=tmp_path / "issues.csv", report=tmp_path / "report.html"
    )
    fit(Points(), [recorder, finder])
    assert precious.read_text() == "precious"
    for output in [*outputs, "run.h5"]:
        assert (tmp_path / output).is_file()
        assert not (tmp_path / output).is_symlink()
        assert all((tmp_path / f"{output}{ending}").is_symlink() for ending in endings)


def test_a_failing_close_costs_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    close = TrainingDynamicsRecorder.close

    def fails(recorder: TrainingDynamicsRecorder) -> None:
        close(recorder)
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(TrainingDynamicsRecorder, "close", fails)
    with pytest.warns(RuntimeWarning, match="Disk quota exceeded; committed epochs stay"):
        model = fit(Points(), TrainingDynamicsCallback(path))
    assert_untapped(model)
    with pytest.raises(OSError, match="Disk quota"):
        fit(Points(), TrainingDynamicsCallback(path, overwrite=True, on_error="raise"))


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), RecursionError("too deep"), AssertionError("never")]
)
def test_an_error_of_any_kind_while_issues_are_found(
    error: Exception, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("paddle_td_callback.paddle_fit.issues_callback.find_label_issues", fails)
    with pytest.warns(RuntimeWarning, match=f"label issues of .* were not found: {error}"):
        fit(Points(), [TrainingDynamicsCallback(path), LabelIssuesCallback(path)])


@pytest.mark.parametrize("hook", ["end_step", "end_epoch", "begin_epoch", "end", "arm", "take"])
def test_an_error_of_any_kind_in_any_hook(hook: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = StepTap if hook in ("arm", "take") else FitSession
    real, n_calls = getattr(kind, hook), 0

    def fails_later(self: Any, *arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > (hook != "end"):
            raise KeyError("never thought of")
        return real(self, *arguments)

    monkeypatch.setattr(kind, hook, fails_later)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = fit(Points(), TrainingDynamicsCallback(path))
    assert any("never thought of" in str(one.message) for one in said)
    monkeypatch.undo()
    assert_untapped(model)


def test_ctrl_c_is_never_swallowed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupts(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paddle_td_callback.paddle_fit.issues_callback.find_label_issues", interrupts)
    with pytest.raises(KeyboardInterrupt):
        fit(Points(), [TrainingDynamicsCallback(path), LabelIssuesCallback(path)])


# ---------------------------------------------------------------------------------------------------------------
# B. What other callbacks run in between costs no epoch.


def evaluates(model: Any) -> None:
    model.evaluate(Points(20), batch_size=BATCH, verbose=0)


def predicts(model: Any) -> None:
    model.predict(Points(20), batch_size=BATCH, verbose=0)


def evaluates_in_a_thread(model: Any) -> None:
    thread = threading.Thread(target=evaluates, args=(model,))
    thread.start()
    thread.join()


def trains_within(model: Any) -> None:
    model.network.listening = False
    model.fit(Points(20), epochs=1, batch_size=BATCH, verbose=0)
    model.num_iters = None
    model.network.listening = True


@pytest.mark.parametrize("act", [evaluates, predicts, evaluates_in_a_thread, trains_within])
@pytest.mark.parametrize("epochs", [[0, 2], [1]])
@pytest.mark.parametrize("first", [True, False])
def test_what_runs_when_an_epoch_begins_costs_no_epoch(act: Any, epochs: Any, first: bool, path: str) -> None:
    network, on = Witness(), On("epoch_begin", act, epochs)
    ours = [TrainingDynamicsCallback(path, dtype="float32"), Bell()]
    model = fit(Points(), [on, *ours] if first else [*ours, on], network=network)
    assert_same(read(path), expected(network.epochs, Points().classes))
    assert_untapped(model)


def test_a_recorded_fit_within_a_recorded_fit(path: str) -> None:
    """Both recordings are whole."""
    networks = Witness(), Witness()

    def fits_another(_model: Any) -> None:
        inner = TrainingDynamicsCallback(path + ".inner", overwrite=True, dtype="float32")
        networks[1].epochs.clear()
        fit(Points(), [Bell(), inner], network=networks[1], epochs=2)

    ours = TrainingDynamicsCallback(path, dtype="float32")
    model = fit(Points(), [Bell(), ours, On("epoch_begin", fits_another)], network=networks[0])
    assert_same(read(path), expected(networks[0].epochs, Points().classes))
    assert_same(read(path + ".inner"), expected(networks[1].epochs, Points().classes))
    assert_untapped(model)


def test_training_that_is_stopped_within_an_epoch(path: str) -> None:
    class Stops(paddle.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            self.model.stop_training = step == 2

    fit(Points(), [TrainingDynamicsCallback(path), Stops()])
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == len(seen(path)) >= 1
    assert verify(path).ok


class SkipsEpoch(paddle.Model):
    """Does nothing in epoch 1."""

    n = -1

    def _run_one_epoch(self, data_loader: Any, callbacks: Any, mode: str, logs: Any = {}) -> Any:  # noqa: B006
        self.n += 1
        return super()._run_one_epoch([] if self.n == 1 else data_loader, callbacks, mode, logs)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_epoch_without_a_step_is_said(mode: str, path: str) -> None:
    model = model_of(Witness(), model_class=SkipsEpoch)
    callbacks = [TrainingDynamicsCallback(path, mode=mode)]
    if mode == "eval":  # the pass sees every sample all the same
        model.fit(Points(), epochs=3, batch_size=BATCH, verbose=0, callbacks=callbacks)
        assert seen(path) == [N_SAMPLES] * 3
        return
    with pytest.warns(
        RuntimeWarning, match="epoch 1: no training step was seen; the recording has no such epoch"
    ):
        model.fit(Points(), epochs=3, batch_size=BATCH, verbose=0, callbacks=callbacks)
    assert seen(path) == [N_SAMPLES] * 2


def test_an_epoch_of_which_no_row_can_be_recorded_is_said(path: str) -> None:
    points = Points()

    def hide(_model: Any) -> None:
        points.labels[:] = -100

    with pytest.warns(
        RuntimeWarning, match="epoch 2: none of its rows could be recorded; the recording has no"
    ):
        fit(points, [TrainingDynamicsCallback(path), On("epoch_end", hide, [1])], loss=lambda z, y: z.mean())
    assert seen(path) == [N_SAMPLES] * 2


# ---------------------------------------------------------------------------------------------------------------
# C. A data set that gets another size.


class Sized(Points):
    """As many of the points as wanted."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __len__(self) -> int:
        return self.n


def resize(data: Sized, n: int) -> Callable[[Any], None]:
    return lambda _model: setattr(data, "n", n)


@pytest.mark.parametrize(("before", "after"), [(40, 50), (50, 49)], ids=["grows", "shrinks"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_data_set_of_another_size_ends_the_recording(before: int, after: int, mode: str, path: str) -> None:
    data = Sized(before)
    loader = paddle.io.DataLoader(data, batch_size=10)
    match = rf"had {before} samples .* has {after} now.*pass n_samples= .*index_field=-1; recording ends here"
    with pytest.warns(RuntimeWarning, match=match):
        fit(loader, [TrainingDynamicsCallback(path, mode=mode), On("epoch_end", resize(data, after), [0])])
    assert seen(path) == [before]


def test_a_data_set_that_grows_as_was_said(path: str) -> None:
    data = Sized(40)
    callbacks = [TrainingDynamicsCallback(path, n_samples=50), On("epoch_end", resize(data, 50), [0])]
    fit(paddle.io.DataLoader(data, batch_size=10), callbacks)
    assert seen(path) == [40, 50, 50]


def test_a_data_set_that_shrinks_although_its_size_was_said(path: str) -> None:
    data = Sized(50)
    callbacks = [TrainingDynamicsCallback(path, n_samples=50), On("epoch_end", resize(data, 40), [0])]
    with pytest.warns(
        RuntimeWarning, match="had 50 samples .* has 40 now; rows are right only if every sample kept"
    ):
        fit(paddle.io.DataLoader(data, batch_size=10), callbacks)
    assert seen(path) == [50, 40, 40]


def test_labels_that_the_caller_changes_later(path: str) -> None:
    given = Points().classes.copy()
    callback = TrainingDynamicsCallback(path, labels=given)
    fit(Points(), [callback, On("epoch_end", lambda _: given.fill(77), [0])])
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(store.labels, Points().classes)
    assert seen(path) == [N_SAMPLES] * 3


def test_a_data_set_that_grows_beyond_its_ids(path: str) -> None:
    data = Sized(40)
    callback = TrainingDynamicsCallback(path, sample_ids=[f"s{i}" for i in range(40)])
    with pytest.warns(RuntimeWarning) as said:
        fit(paddle.io.DataLoader(data, batch_size=10), [callback, On("epoch_end", resize(data, 50), [0])])
    first, last = (str(one.message) for one in said)
    assert "must be in [0, 40), got index 40" in first
    assert "20 rows in all could not be recorded" in last
    assert seen(path) == [40, 40, 40]
    assert callback.n_skipped == 20


def test_a_data_set_that_grows_while_it_is_read(path: str) -> None:
    """The sampler yields indices that were not there when the epoch began."""

    class Grows(paddle.io.BatchSampler):
        epoch = -1

        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[list[int]]:
            self.epoch += 1
            return iter([list(range(k, k + 10)) for k in range(0, 50 if self.epoch else 40, 10)])

        def __len__(self) -> int:
            return 4

    callback = TrainingDynamicsCallback(path, n_samples=45)
    with pytest.warns(RuntimeWarning) as said:
        fit(paddle.io.DataLoader(Points(), batch_sampler=Grows()), callback)
    first, last = (str(one.message) for one in said)
    assert "must be in [0, 45), got index 45; pass n_samples=" in first
    assert "10 rows in all could not be recorded" in last
    assert seen(path) == [40, 45, 45]
    assert callback.n_skipped == 10


def planted(data: Any) -> Any:
    return PlantedLabelErrors(data, N_CLASSES, 0.1)


@pytest.mark.parametrize(
    "around",
    [
        lambda subset: subset,
        lambda subset: paddle.io.Subset(subset, list(range(20))),
        planted,
        lambda subset: paddle.io.Subset(planted(subset), list(range(20))),
    ],
    ids=["nothing", "subset", "moved-labels", "subset-of-moved-labels"],
)
def test_a_subset_that_chooses_anew_ends_the_recording(path: str, around: Any) -> None:
    subset = paddle.io.Subset(Points(), list(range(20)))
    data = around(subset)

    def choose(_: Any) -> None:
        subset.indices = list(range(20, 40))

    with pytest.warns(RuntimeWarning, match="holds other samples than in the epoch before.*index_field="):
        fit(data, [On("epoch_begin", choose, [1]), TrainingDynamicsCallback(path)])
    assert seen(path) == [20]


def test_a_subset_that_grows_as_was_said_is_recorded(path: str) -> None:
    subset = paddle.io.Subset(Points(), list(range(20)))

    def grow(_: Any) -> None:
        subset.indices = [*subset.indices, 30, 31]

    sampler = paddle.io.BatchSampler(subset, batch_size=BATCH)
    data = paddle.io.DataLoader(subset, batch_sampler=sampler)
    fit(data, [On("epoch_begin", grow, [1]), TrainingDynamicsCallback(path, n_samples=22)])
    assert seen(path) == [20, 22, 22]


def test_a_copy_of_the_model_evaluates_itself(path: str) -> None:
    copies = []

    def take(model: Any) -> None:
        twin = copy.copy(model)
        twin.network = Witness(exact=False)
        twin._adapter = type(model._adapter)(twin)  # which a copy shares with the original otherwise
        twin.prepare(loss=nn.CrossEntropyLoss())
        copies.append((twin, paddle.Model(twin.network)))

    fit(Points(), [TrainingDynamicsCallback(path), On("epoch_begin", take, [0])])
    twin, alone = copies[0]
    alone.prepare(loss=nn.CrossEntropyLoss())
    wanted = alone.evaluate(Points(), batch_size=BATCH, verbose=0)
    assert twin.evaluate(Points(), batch_size=BATCH, verbose=0) == wanted


def test_another_network_in_the_same_fit_ends_the_recording(path: str) -> None:
    def exchange(model: Any) -> None:
        model.network = Witness()
        optimizer = paddle.optimizer.SGD(0.1, parameters=model.network.parameters())
        model.prepare(optimizer, nn.CrossEntropyLoss())

    with pytest.warns(RuntimeWarning, match="the model has got another network.*a path of its own"):
        fit(Points(), [On("epoch_begin", exchange, [1]), TrainingDynamicsCallback(path)])
    assert seen(path) == [N_SAMPLES]


def test_a_file_that_another_program_cuts_off_is_noticed(path: str) -> None:
    def cut(_: Any) -> None:
        wait_for_commits(path)
        os.truncate(path, 1000)

    with pytest.warns(RuntimeWarning) as said:
        fit(Points(), [On("epoch_begin", cut, [2]), TrainingDynamicsCallback(path)])
    assert any("was cut off by another program; save its good epochs by" in str(one.message) for one in said)


@pytest.mark.parametrize("n_ids", [N_SAMPLES - 1, N_SAMPLES + 1])
def test_as_many_ids_as_samples_are_wanted(n_ids: int, path: str) -> None:
    with pytest.raises(
        ValueError, match=f"{n_ids} ids for a data set of {N_SAMPLES} samples; give one for each"
    ):
        fit(Points(), TrainingDynamicsCallback(path, sample_ids=range(n_ids)))
    assert not os.path.exists(path)


class Handing(paddle.io.DataLoader):  # type: ignore[misc]
    """A loader that hands on Paddle's batches in its own way."""

    def __init__(self, hand: Any) -> None:
        super().__init__(Points(), batch_size=BATCH)
        self.hand = hand

    def __iter__(self) -> Any:
        return self.hand(super().__iter__())


class Zipped:
    """A loader in plain Python that leaves out its sampler's second batch."""

    def __init__(self) -> None:
        self.batch_sampler = paddle.io.BatchSampler(Points(), batch_size=BATCH)
        self.dataset = Points()

    def __len__(self) -> int:
        return len(self.batch_sampler) - 1

    def __iter__(self) -> Any:
        for number, batch in enumerate(self.batch_sampler):
            if number != 1:
                yield [paddle.to_tensor(part) for part in collate([self.dataset[i] for i in batch])]


HANDS: dict[str, Any] = {
    "skips": lambda batches: itertools.islice(batches, 1, None),
    "chooses": lambda batches: (batch for batch in batches if batch[1].numpy().min() == 0),
    "reverses": lambda batches: reversed(list(batches)),
    "maps": lambda batches: map(list, batches),
}


@pytest.mark.parametrize("name", HANDS)
def test_no_batch_of_a_loader_that_chooses_is_taken_for_another(name: str, path: str) -> None:
    with pytest.raises(CaptureError, match=r"may skip, choose or reorder them.*index_field="):
        fit(Handing(HANDS[name]), TrainingDynamicsCallback(path))
    assert not os.path.exists(path)


class ReadsAhead(paddle.Model):  # type: ignore[misc]
    """A loop that fetches the next batch before the step."""

    def _run_one_epoch(self, loader: Any, cbs: Any, kind: str, logs: Any = {}) -> Any:  # noqa: B006
        batches = iter(loader)
        ahead = next(batches)
        for step in itertools.count():
            batch, ahead = ahead, next(batches, None)
            cbs.on_batch_begin(kind, step, logs)
            self.train_batch(batch[:1], batch[1:])
            cbs.on_batch_end(kind, step, logs)
            if ahead is None:
                return logs
        return logs


class LeavesOut(paddle.Model):  # type: ignore[misc]
    """A loop that makes no step of each second batch."""

    def _run_one_epoch(self, loader: Any, cbs: Any, kind: str, logs: Any = {}) -> Any:  # noqa: B006
        for step, batch in enumerate(loader):
            if step % 2:
                cbs.on_batch_begin(kind, step, logs)
                self.train_batch(batch[:1], batch[1:])
                cbs.on_batch_end(kind, step, logs)
        return logs


def test_a_loop_that_leaves_out_batches_is_recorded(path: str) -> None:
    model = model_of(Witness(), model_class=LeavesOut)
    callback = TrainingDynamicsCallback(path)
    model.fit(Points(), epochs=2, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[callback])
    with TrainingDynamicsStore(path) as store:
        was_seen = store.n_presentations()[:, 0] > 0
        assert was_seen.tolist() == [i // BATCH % 2 == 1 for i in range(N_SAMPLES)]
        np.testing.assert_array_equal(store.labels[was_seen], Points().classes[was_seen])


def test_a_loop_that_reads_ahead_is_refused(path: str) -> None:
    model = model_of(Witness(), model_class=ReadsAhead)
    with pytest.raises(CaptureError, match=r"reads a batch before it has ended the step.*index_field="):
        model.fit(Points(), epochs=2, batch_size=BATCH, verbose=0, callbacks=[TrainingDynamicsCallback(path)])


def test_batches_that_are_missing_are_noticed_where_fit_ends_early(path: str) -> None:
    with pytest.warns(RuntimeWarning, match=r"1 batches fewer than it drew from its batch sampler"):
        fit(Zipped(), TrainingDynamicsCallback(path), epochs=1, num_iters=3)


def test_an_epoch_of_which_batches_are_missing_is_not_committed(path: str) -> None:
    with pytest.warns(
        RuntimeWarning, match="1 batches fewer than it drew from its batch sampler.*index_field="
    ):
        fit(Zipped(), TrainingDynamicsCallback(path))
    assert not os.path.exists(path)


# ---------------------------------------------------------------------------------------------------------------
# D. Which labels the loss ignores, and labels that are none.


class Holds(nn.Layer):
    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.inner = loss

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.inner(logits, labels)


class Plain:
    """A callable that is no layer."""

    def __init__(self, loss: Any) -> None:
        self.criterion = loss

    def __call__(self, logits: Any, labels: Any) -> Any:
        return self.criterion(logits, labels)

    def method(self, logits: Any, labels: Any) -> Any:
        return self.criterion(logits, labels)


def own(logits: Any, labels: Any, ignore_index: int = 255) -> Any:
    return F.cross_entropy(logits, labels, ignore_index=ignore_index)


CE = nn.CrossEntropyLoss(ignore_index=255)
IGNORED = 255


def by_name(logits: Any, labels: Any, reduction: str = "mean") -> Any:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


class ByName(nn.Layer):
    def forward(self, logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels, soft_label=False, ignore_index=255, reduction="mean")


class Trainer:
    """No callable itself; its loss is a method."""

    def __init__(self, loss: Any) -> None:
        self.criteria = {"main": [loss]}

    def loss(self, logits: Any, labels: Any) -> Any:
        return self.criteria["main"][0](logits, labels)

    def global_loss(self, logits: Any, labels: Any) -> Any:
        return CE(logits, labels)

    @staticmethod
    def static_loss(logits: Any, labels: Any) -> Any:
        return CE(logits, labels)

    @property
    def ignore_index(self) -> int:
        raise RuntimeError("not yet")


class CallsGlobal(nn.Layer):
    def forward(self, logits: Any, labels: Any) -> Any:
        return CE(logits, labels)


class Weighted(nn.Layer):
    """Losses in a plain list, which Paddle does not take for sublayers."""

    def __init__(self, *losses: Any) -> None:
        super().__init__()
        self.losses = list(losses)

    def forward(self, logits: Any, labels: Any) -> Any:
        return sum(loss(logits, labels) for loss in self.losses)


def with_default(logits: Any, labels: Any, *, criterion: Any = CE) -> Any:
    return criterion(logits, labels)


LOSSES: dict[str, Any] = {
    "layer": CE,
    "nll": nn.NLLLoss(ignore_index=255),
    "layer-in-a-layer": Holds(CE),
    "layer-in-two-layers": Holds(Holds(CE)),
    "partial": functools.partial(F.cross_entropy, ignore_index=255),
    "partial-of-a-partial": functools.partial(
        functools.partial(F.cross_entropy, ignore_index=255), reduction="mean"
    ),
    "partial-in-a-layer": Holds(functools.partial(F.cross_entropy, ignore_index=255)),
    "object": Plain(CE),
    "method": Plain(CE).method,
    "function": own,
    "function-with-a-loss-as-default": with_default,
    "method-of-what-is-not-callable": Trainer(CE).loss,
    "method-over-a-global": Trainer(None).global_loss,
    "static-method": Trainer.static_loss,
    "layer-over-a-global": CallsGlobal(),
    "list-in-a-layer": Weighted(CE, nn.NLLLoss(ignore_index=255)),
    "partial-with-a-loss": functools.partial(with_default, criterion=Holds(CE)),
    "jitted": paddle.jit.to_static(with_default),
    "lambda-over-a-global": lambda z, y: CE(z, y),
    "lambda-with-a-number": lambda z, y: 2 * F.cross_entropy(z, y, ignore_index=255),
    "function-with-a-global-number": by_name,
    "function-with-a-local-number": (lambda k: lambda z, y: F.cross_entropy(z, y, ignore_index=k))(255),
    "layer-with-a-number": ByName(),
    "lambda-over-a-local": (lambda ce: lambda z, y: ce(z, y) * 2)(nn.CrossEntropyLoss(ignore_index=255)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_a_loss_ignores_are_found(name: str, path: str) -> None:
    points, loss = Points(), LOSSES[name]
    points.labels[30:33] = 255
    assert ignored_labels(loss, N_CLASSES) == [-100, 255]
    if name in ("nll", "list-in-a-layer", "jitted"):
        # Paddle's own: the kernel of NLLLoss dies of ignored labels now and then, and compiling warns.
        return
    fit(points, TrainingDynamicsCallback(path), loss=loss)
    assert seen(path) == [N_SAMPLES - 3] * 3


def test_a_loss_that_holds_foreign_objects_is_looked_through(path: str) -> None:
    network = Witness()

    class Regularised(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.network = weakref.proxy(network)  # has no hash
            self.inner = CE

        def forward(self, logits: Any, labels: Any) -> Any:
            return self.inner(logits, labels) + 0 * self.network.parameters()[0].sum()

    fit(Points(), TrainingDynamicsCallback(path), network=network, loss=Regularised())
    assert seen(path) == [N_SAMPLES] * 3


def test_losses_that_disagree_on_a_class() -> None:
    both = nn.LayerList([nn.CrossEntropyLoss(ignore_index=1), nn.CrossEntropyLoss()])
    assert ignored_labels(both, N_CLASSES) == [-100]
    assert ignored_labels(nn.CrossEntropyLoss(ignore_index=1), N_CLASSES) == [-100, 1]
    assert ignored_labels(lambda z, y: z, N_CLASSES) == [-100]
    assert ignored_labels(lambda z, y: F.cross_entropy(z, y, ignore_index=1), N_CLASSES) == [-100, 1]
    assert ignored_labels(
        lambda z, y: F.cross_entropy(z, y) + F.cross_entropy(z, y, ignore_index=1), N_CLASSES
    ) == [-100]
    assert ignored_labels(nn.CrossEntropyLoss(ignore_index=False), N_CLASSES) == [-100]


def test_a_loss_with_a_foreign_signature_is_let_alone(path: str) -> None:
    def loss(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels)

    loss.__signature__ = "none"  # type: ignore[attr-defined]
    loss.__wrapped__ = loss  # type: ignore[attr-defined]
    fit(Points(), TrainingDynamicsCallback(path), loss=loss)
    assert seen(path) == [N_SAMPLES] * 3


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (nn.BCELoss(), True),
        (Holds(nn.BCELoss()), True),
        (nn.CrossEntropyLoss(use_softmax=False), True),
        (Holds(nn.CrossEntropyLoss(use_softmax=False)), True),
        (functools.partial(F.cross_entropy, use_softmax=False), True),
        (F.cross_entropy, False),
        (nn.CrossEntropyLoss(), False),
        (nn.BCEWithLogitsLoss(), False),
        (lambda z, y: F.cross_entropy(z, y, use_softmax=False), True),
        (lambda z, y: z.mean(), False),
    ],
)
def test_what_a_loss_takes(loss: Any, wanted: bool) -> None:
    assert takes_probabilities(loss) is wanted


def clipped(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits, labels.clip(0, N_CLASSES - 1))


def test_labels_that_are_no_class_raise_where_that_is_wanted(path: str) -> None:
    points = Points()
    points.labels[30] = 9
    with pytest.raises(CaptureError, match="got 9 for sample 30; pass ignore_label="):
        fit(points, TrainingDynamicsCallback(path, on_error="raise"), loss=clipped, shuffle=False)


def test_a_sample_that_is_replaced_by_others_costs_that_sample(path: str) -> None:
    """As data sets do with an image that they cannot read."""

    class Repaired(Points):
        n = 0

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            self.n += i == 7
            return super().__getitem__((7 + self.n) % len(self) if i == 7 else i)

    with pytest.warns(RuntimeWarning, match="label of sample 7 was ., now it is"):
        fit(Repaired(), TrainingDynamicsCallback(path), epochs=6)
    with TrainingDynamicsStore(path) as store:
        there = store.predictions() >= 0
    assert there.shape == (N_SAMPLES, 6)
    assert np.flatnonzero(~there.all(axis=1)).tolist() == [7]


# ---------------------------------------------------------------------------------------------------------------
# E. Doubts after the first epoch.


class Separable(Points):
    """Classes that a linear network learns within an epoch."""

    def __init__(self, n_classes: int = N_CLASSES, n: int = 400) -> None:
        super().__init__(n)
        rng = np.random.default_rng(0)
        self.classes = np.arange(n) % n_classes
        self.labels = self.classes.astype(np.int64)
        centres = rng.normal(0, 3, (n_classes, N_FEATURES))
        self.features[:, 1:] = centres[self.classes] + rng.normal(size=(n, N_FEATURES))


class Cosine(nn.Layer):
    """Metric learning: the loss holds the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.create_parameter([16, N_CLASSES])

    def forward(self, features: Any, labels: Any) -> Any:
        cosines = paddle.matmul(F.normalize(features, axis=1), F.normalize(self.weight, axis=0))
        return F.cross_entropy(8 * cosines, labels)


def warnings_of(path: str, network: Any, loss: Any = None, data: Any = None, **options: Any) -> list[str]:
    model = model_of(network, loss, learning_rate=0.05)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callback = TrainingDynamicsCallback(path, **options)
        model.fit(data or Separable(), epochs=3, batch_size=BATCH, verbose=0, callbacks=[callback])
    return [str(one.message) for one in said if one.category is RuntimeWarning]


def test_features_that_are_no_logits_are_warned_of(path: str) -> None:
    (warning,) = warnings_of(path, Witness(16, exact=False), Cosine())
    assert "16 columns, but the labels are 4 classes" in warning
    assert "pass logits=" in warning


def test_cosines_that_the_loss_scales_are_warned_of(path: str) -> None:
    def scales(cosines: Any, labels: Any) -> Any:
        return F.cross_entropy(10 * cosines, labels)

    network = Witness(exact=False, dress=lambda z: F.normalize(z, axis=1))
    (warning,) = warnings_of(path, network, scales)
    assert "stayed in [-1, 1]" in warning
    assert "pass logits= (a function of the outputs that scales them" in warning
    assert warnings_of(path, network, scales, outputs="logits", overwrite=True) == []


@pytest.mark.parametrize("shift", [1, -1, 2])
def test_labels_that_the_loss_shifts_are_warned_of(shift: int, path: str) -> None:
    data = Separable()
    data.labels += 2

    def shifts(logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels + shift)

    messages = warnings_of(path, Witness(N_CLASSES + 4, exact=False), shifts, data)
    assert len(messages) == 1
    assert f"of the predictions are the label {shift:+d}: " in messages[0]
    assert "pass labels=" in messages[0]


def test_labels_that_the_loss_permutes_are_warned_of(path: str) -> None:
    others = paddle.to_tensor([2, 0, 3, 1])
    messages = warnings_of(path, Witness(exact=False), lambda z, y: F.cross_entropy(z, others[y]))
    assert len(messages) == 1
    assert "fewer than by chance" in messages[0]
    assert "pass labels=, label= or logits=" in messages[0]


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_binary_labels_that_the_loss_flips_are_warned_of(n_outputs: int, path: str) -> None:
    data = Separable(n_classes=2)

    def flips(logits: Any, labels: Any) -> Any:
        if n_outputs == 2:
            return F.cross_entropy(logits, 1 - labels)
        return F.binary_cross_entropy_with_logits(logits[:, 0], 1 - labels.astype("float32"))

    messages = warnings_of(path, Witness(n_outputs, exact=False), flips, data)
    assert len(messages) == 1
    assert "fewer than by chance" in messages[0]
    assert "pass labels=, label= or logits=" in messages[0]


@pytest.mark.parametrize("learning_rate", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_classes", [2, 4])
def test_slow_trainings_on_separate_classes_give_no_warning(
    n_classes: int, seed: int, learning_rate: float, path: str
) -> None:
    """An untrained network takes each cluster for one class, which may be wrong for all of them."""
    paddle.seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(N_FEATURES + 1, 16), nn.Tanh(), nn.Linear(16, n_classes))
    model = model_of(network, learning_rate=learning_rate)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callback = TrainingDynamicsCallback(path)
        model.fit(Separable(n_classes), epochs=1, batch_size=BATCH, verbose=0, callbacks=[callback])
    assert [str(one.message) for one in said if one.category is RuntimeWarning] == []


def test_a_logit_that_begins_at_a_prior_gives_no_warning(path: str) -> None:
    network = nn.Linear(N_FEATURES + 1, 1)
    network.weight.set_value(paddle.zeros_like(network.weight))
    network.bias.set_value(paddle.full_like(network.bias, 0.4))
    model = model_of(network, nn.BCEWithLogitsLoss(), learning_rate=1e-4)

    class Binary(Points):
        def __getitem__(self, i: int) -> Any:
            features, label = super().__getitem__(i)
            return features / 10, np.float32([label > 0])

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(Binary(), epochs=1, batch_size=BATCH, verbose=0, callbacks=[TrainingDynamicsCallback(path)])
    assert [str(one.message) for one in said if one.category is RuntimeWarning] == []


@pytest.mark.parametrize("n_outputs", [N_CLASSES, 3 * N_CLASSES], ids=["all", "spare-columns"])
def test_a_plausible_recording_gives_no_warning(n_outputs: int, path: str) -> None:
    assert warnings_of(path, Witness(n_outputs, exact=False)) == []


def batch_of(predicted: Any, labels: Any, n_classes: int) -> Any:
    outputs = -np.ones((len(labels), n_classes), np.float32)
    outputs[np.arange(len(labels)), predicted] = 1
    return Batch(outputs, np.asarray(labels), False, False)


@pytest.mark.parametrize("constant", range(4))
@pytest.mark.parametrize("weights", [[0.25] * 4, [0.9, 0.05, 0.03, 0.02]], ids=["equal", "unequal"])
def test_a_network_that_has_learned_nothing_gives_no_warning(constant: int, weights: list[float]) -> None:
    rng = np.random.default_rng(constant)
    labels = rng.choice(4, 500, p=weights)
    for predicted in (np.full(500, constant), rng.integers(0, 4, 500), rng.permutation(labels)):
        plausibility = Plausibility("auto")
        assert plausibility.check_batch(batch_of(predicted, labels, 4)) is None
        assert plausibility.check_epoch(labels.astype(np.int32), 4) == []


class MakesProbabilities(nn.Layer):
    """A loss that takes logits, and probabilities inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BCELoss()

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.inner(F.sigmoid(logits[:, 0]), labels.astype("float32").reshape([-1]))


def test_logits_are_not_recorded_as_probabilities(path: str) -> None:
    data = Separable(n_classes=2)
    with pytest.raises(
        CaptureError, match=r"the loss takes probabilities, but .* reach from .*pass outputs='logits'"
    ):
        fit(data, TrainingDynamicsCallback(path), network=Witness(1), loss=MakesProbabilities())
    fit(data, TrainingDynamicsCallback(path, outputs="logits"), network=Witness(1), loss=MakesProbabilities())
    with TrainingDynamicsStore(path) as store:
        assert store.probabilities().min() >= 0


@pytest.mark.parametrize("cells", [1 << 16, 0], ids=["all", "32-rows-of-each-batch"])
def test_only_the_last_rows_of_the_first_epoch_are_judged(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddle_td_callback.paddle_fit.plausibility._N_ROWS", 200)
    monkeypatch.setattr("paddle_td_callback.paddle_fit.plausibility._BATCH_CELLS", cells)
    labels = np.arange(100) % 4
    for n_right, is_odd in ((0, True), (2, False)):
        plausibility = Plausibility("logits")
        for number in range(10):
            predicted = labels if number >= 10 - n_right else (labels + 1) % 4
            plausibility.check_batch(batch_of(predicted, labels, 4))
        assert bool(plausibility.check_epoch(labels.astype(np.int32), 4)) == is_odd


@pytest.mark.parametrize("n_rows", [1, 5, 32, 33, 300])
def test_few_rows_of_many_classes_are_checked(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    softmaxed = []

    def noted(batch: Batch) -> Any:
        softmaxed.append(batch.outputs.shape)
        return _losses(batch)

    monkeypatch.setattr("paddle_td_callback.paddle_fit.plausibility._losses", noted)
    rng = np.random.default_rng(0)
    for shift, is_odd in ((0, False), (1, True)):
        checks, labels = Plausibility("logits"), rng.integers(0, 3000, (-(-60 // n_rows), n_rows))
        for batch in labels:
            checks.check_batch(batch_of((batch + shift) % 3000, batch, 3000))
        assert bool(checks.check_epoch(labels.reshape(-1).astype(np.int32), 3000)) == is_odd
    assert set(softmaxed) == {(min(n_rows, 32), 3000)}


# ---------------------------------------------------------------------------------------------------------------
# F. Names have an order.


@pytest.mark.parametrize("argument", ["class_names", "sample_ids"])
@pytest.mark.parametrize(
    "kind", [set, frozenset, iter, "".join, lambda n: {name: i for i, name in enumerate(n)}]
)
def test_names_without_an_order_are_refused(argument: str, kind: Any, path: str) -> None:
    with pytest.raises(TypeError, match=f"{argument} (must be a list|is a mapping from names)"):
        TrainingDynamicsCallback(path, **{argument: kind(["a", "b", "c", "d"])})


def test_names_by_index(path: str) -> None:
    names = {3: "dog", 1: "bee", 0: "ant", 2: "cat"}
    ids = {i: f"s{i:02}" for i in reversed(range(N_SAMPLES))}
    fit(Points(), TrainingDynamicsCallback(path, class_names=names, sample_ids=ids))
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["ant", "bee", "cat", "dog"]
        assert list(store.sample_ids or [])[:3] == ["s00", "s01", "s02"]


# ---------------------------------------------------------------------------------------------------------------
# G. What is seen is this model's own step.


class Slow(nn.Layer):
    """A loss that lets other threads run in its midst."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss()

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.inner(logits, labels)


@pytest.mark.parametrize("loss", [Slow, lambda: F.cross_entropy, nn.CrossEntropyLoss])
def test_two_fits_in_two_threads_share_a_loss(loss: Any, tmp_path: Path) -> None:
    shared, failures = loss(), []
    networks = [Witness(), Witness()]
    for parameter in networks[1].parameters():
        parameter.set_value(-parameter)

    def run(k: int) -> None:
        try:
            callback = TrainingDynamicsCallback(tmp_path / f"{k}.h5", dtype="float32")
            fit(Points(), [Bell(), callback], network=networks[k], loss=shared, epochs=6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for k in range(2):
        assert_same(read(str(tmp_path / f"{k}.h5")), expected(networks[k].epochs, Points().classes))


def test_two_fits_in_two_threads_share_a_loader(tmp_path: Path) -> None:
    loader, failures = paddle.io.DataLoader(Points(), batch_size=BATCH, shuffle=True), []
    sampler = loader.batch_sampler
    networks = [Witness(), Witness()]

    def run(k: int) -> None:
        try:
            callback = TrainingDynamicsCallback(tmp_path / f"{k}.h5", dtype="float32")
            fit(loader, [Bell(), callback], network=networks[k], epochs=6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert loader.batch_sampler is sampler
    for k in range(2):
        assert_same(read(str(tmp_path / f"{k}.h5")), expected(networks[k].epochs, Points().classes))


def test_what_another_callback_puts_back_after_fit_is_harmless(path: str) -> None:
    """It found our replacement, and puts it back when all is over."""
    found: list[Any] = []
    network = Witness()
    ours = TrainingDynamicsCallback(path, dtype="float32")
    spy = On("epoch_begin", lambda model: found.append(model._run_one_epoch), [0])
    model = fit(Points(), [Bell(), ours, spy], network=network)
    assert_untapped(model)
    model._run_one_epoch = found[0]
    model.evaluate(Points(), verbose=0)
    model.fit(Points(), epochs=1, batch_size=BATCH, verbose=0, callbacks=[Bell()])
    assert len(network.epochs) == 4
    model.fit(Points(), epochs=1, batch_size=BATCH, verbose=0, callbacks=[Bell(), ours])
    assert_untapped(model)
    want = expected([*network.epochs[:3], network.epochs[4]], Points().classes)
    assert_same(read(path), want)


class Lazy:
    """A batch that draws its samples when it is iterated."""

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(N_SAMPLES) for _ in range(9))

    def __len__(self) -> int:
        return 9


def test_lazy_batches_are_drawn_once(path: str) -> None:
    class Deals(paddle.io.BatchSampler):
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            return (Lazy() for _ in range(6))

        def __len__(self) -> int:
            return 6

    network = Witness()
    loader = paddle.io.DataLoader(Points(), batch_sampler=Deals())
    fit(loader, [Bell(), TrainingDynamicsCallback(path, dtype="float32")], network=network)
    want = expected(network.epochs, Points().classes)
    np.testing.assert_array_equal(read(path).n_presentations, want.n_presentations)
    np.testing.assert_array_equal(read(path).margins, want.margins)
    loader = paddle.io.DataLoader(Points(), batch_sampler=Deals(), num_workers=1)
    with pytest.raises(
        CaptureError, match=r"gave a Lazy, which a worker reads; yield lists .*index_field=-1"
    ):
        fit(loader, TrainingDynamicsCallback(path, overwrite=True))


def test_a_loader_whose_sampler_cannot_be_replaced_is_refused(path: str) -> None:
    class Fixed:
        dataset = Points()

        @property
        def batch_sampler(self) -> Any:
            return paddle.io.BatchSampler(self.dataset, batch_size=BATCH)

        def __len__(self) -> int:
            return 7

        def __iter__(self) -> Iterator[Any]:
            for batch in self.batch_sampler:
                rows = [self.dataset[i] for i in batch]
                yield [paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True)]

    with pytest.raises(CaptureError, match=r"more batches than its batch sampler; .*index_field=-1"):
        fit(Fixed(), TrainingDynamicsCallback(path))


# ---------------------------------------------------------------------------------------------------------------
# L. Every refusal names the argument that solves it.


@pytest.mark.parametrize("n_outputs", [1, N_CLASSES])
@pytest.mark.parametrize("squeezes_labels", [True, False])
def test_a_squeezed_batch_of_one_is_one_row(n_outputs: int, squeezes_labels: bool, path: str) -> None:
    n = 17  # two batches of 8, one of 1
    points = Points(n, n_classes=2 if n_outputs == 1 else N_CLASSES)
    if n_outputs == 1:
        points.labels = points.labels.astype(np.float32)

    def loss(logits: Any, labels: Any) -> Any:
        if n_outputs == 1:
            return F.binary_cross_entropy_with_logits(logits.reshape([-1]), labels.reshape([-1]))
        return F.cross_entropy(logits.reshape([-1, n_outputs]), labels.reshape([-1]))

    network = Witness(n_outputs, dress=lambda z: z.squeeze())
    ours = TrainingDynamicsCallback(path, dtype="float32")
    fit(points, [Bell(), ours], network=network, loss=loss, epochs=2)
    assert_same(read(path), expected(network.epochs, points.classes, n_classes=max(2, n_outputs)))


REFUSALS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "tuples": ("index_field=-1", {}, "tuples"),
    "dropped-rows": ("index_field=-1", {}, "dropped"),
    "labels-with-ignored-rows": ("ignore_label=", {"labels": [0] * 49 + [-1]}, None),
    "regression": ("regression is not supported.*labels=", {}, "regression"),
    "whole-numbers": (
        "labels must be 0 or 1, got .*regression is not supported.*labels=",
        {},
        "whole numbers",
    ),
    "memory": ("memory_limit_bytes must be a whole number.*got '1G'", {"memory_limit_bytes": "1G"}, None),
    "logits": ("logits must be a place, a key or a function.*got None", {"logits": None}, None),
    "label": ("label must be a place among the loss's labels, got 'y'", {"label": "y"}, None),
    "outputs": ("outputs must be one of", {"outputs": np.zeros(2)}, None),
    "too-small": ("n_samples=", {"n_samples": 4}, None),
    "strings": ("sample_ids=", {"index_field": -1}, "strings"),
    "empty-ids": ("sample_ids is empty; give one id for each", {"sample_ids": []}, None),
    "fractions": ("must hold integers, got float32.*index_field=", {"index_field": -1}, "fractions"),
    "ragged": ("holds no indices.*index_field=", {"index_field": -1}, "ragged"),
    "fewer-labels": ("rows and .* labels; pass logits= and label=.*or labels=", {}, "fewer labels"),
    "no-field": ("index_field=", {"index_field": 7}, None),
    "no-key": (
        r"a batch of the data is a dictionary with keys \['a', 'b'\]; pass",
        {"index_field": "c"},
        "keys",
    ),
    "unknown-id": ("sample_ids=", {"index_field": -1, "sample_ids": ["a", "b"]}, "strings"),
}


class Odd(Points):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, i: Any) -> Any:
        if self.kind == "tuples":
            return super().__getitem__(i[1])
        features, label = super().__getitem__(i)
        if self.kind == "keys":
            return {"a": features, "b": label}
        if self.kind == "whole numbers":
            return features, np.int64([label - 2])
        if self.kind == "regression":
            return features, np.float32([label * 0.3])
        extra = {"strings": (f"id-{i}",), "fractions": (np.float32(i),), "ragged": ([i] * (i % 3),)}
        return features, label, *extra.get(self.kind, ())


def collate(batch: list[Any]) -> Any:
    columns = list(zip(*batch, strict=True))
    return [np.stack(columns[0]), np.stack(columns[1]), *map(list, columns[2:])]


def half(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits[: len(labels)], labels)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_argument_that_solves_them(name: str, path: str) -> None:
    match, options, kind = REFUSALS[name]
    data: Any = Points() if kind is None else Odd(kind)
    network, loss = Witness(), None
    if kind == "tuples":
        data = paddle.io.DataLoader(data, batch_sampler=[[(32, i) for i in range(8)]])
    elif kind == "dropped":
        data = paddle.io.DataLoader(data, batch_size=BATCH, collate_fn=lambda batch: collate(batch[1:]))
    elif kind in ("strings", "ragged"):
        data = paddle.io.DataLoader(data, batch_size=BATCH, collate_fn=collate)
    elif kind == "regression":
        network, loss = Witness(1), nn.MSELoss()
    elif kind == "whole numbers":
        network, loss = Witness(1), lambda z, y: F.mse_loss(z, y.astype("float32"))
    elif kind == "fewer labels":
        loss = half
        data = paddle.io.DataLoader(
            data,
            batch_size=BATCH,
            collate_fn=lambda batch: [
                part[: BATCH // 2 * (i + 1)] for i, part in enumerate(collate(batch)[::-1])
            ][::-1],
        )
    with pytest.raises((CaptureError, ValueError), match=match):
        fit(data, TrainingDynamicsCallback(path, **options), network=network, loss=loss)
    assert not os.path.exists(path)


def test_a_batch_that_has_no_fields_is_named_by_its_type() -> None:
    with pytest.raises(
        CaptureError, match="index_field=-1, but a batch of the data is ndarray; pass index_field="
    ):
        IndexField(-1).without(np.zeros(3))


# ---------------------------------------------------------------------------------------------------------------
# M. Resume from an older checkpoint.


@pytest.mark.parametrize("resume", [0, -1, 1.5, "2"])
def test_a_number_of_epochs_to_keep_is_checked(resume: Any, path: str) -> None:
    with pytest.raises(ValueError, match="resume must be True, False or the number of epochs to keep"):
        TrainingDynamicsCallback(path, resume=resume)


def test_resume_from_an_older_checkpoint(path: str) -> None:
    network, labels = Witness(), Points().classes
    fit(Points(), [Bell(), TrainingDynamicsCallback(path, dtype="float32")], network=network, epochs=4)
    callback = TrainingDynamicsCallback(path, dtype="float32", resume=2)
    model = fit(Points(), [Bell(), callback], network=network, epochs=1)
    assert_same(read(path), expected([*network.epochs[:2], network.epochs[4]], labels))
    # A second fit goes on in the file, it keeps no two epochs again.
    model.fit(Points(), epochs=1, batch_size=BATCH, verbose=0, callbacks=[Bell(), callback])
    assert_same(read(path), expected([*network.epochs[:2], *network.epochs[4:]], labels))


def test_a_refused_resume_leaves_all_epochs(path: str) -> None:
    fit(Points(), TrainingDynamicsCallback(path), epochs=5)
    others = Points()
    others.labels = (others.labels + 1) % N_CLASSES
    with pytest.raises(CaptureError, match="another label than their sample had before"):
        fit(others, TrainingDynamicsCallback(path, resume=2))
    assert seen(path) == [N_SAMPLES] * 5


def test_resume_with_more_epochs_than_there_are(path: str) -> None:
    fit(Points(), TrainingDynamicsCallback(path))
    with pytest.raises((StoreError, ValueError), match="3 epochs"):
        fit(Points(), TrainingDynamicsCallback(path, resume=5))
    assert seen(path) == [N_SAMPLES] * 3


# ---------------------------------------------------------------------------------------------------------------
# The house.


def test_private_names_of_paddle_stand_in_one_file() -> None:
    folder = Path(paddle_td_callback.__file__).parent / "paddle_fit"
    elsewhere = []
    for file in folder.glob("*.py"):
        if file.name in ("internals.py", "ranks.py", "rendezvous.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                is_ours = node.attr == "_judge" or node.attr.startswith("_td_")
                if owner not in ("self", "cls") and not is_ours:
                    elsewhere.append((file.name, node.lineno, node.attr))
    assert not elsewhere


def test_a_finder_takes_its_recorder(path: str) -> None:
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum")
    assert finder.path == recorder.path
    fit(Points(), [finder, recorder])
    assert finder.issues is not None


TWO_HUNDRED_FITS = """
import gc, os, sys, threading, warnings
sys.path.insert(0, {tests!r})
import paddle
from support.training import Points, Witness, model_of
from paddle_td_callback import LabelIssuesCallback, TrainingDynamicsCallback

def fit(record):
    callbacks = []
    if record:
        recorder = TrainingDynamicsCallback({path!r}, overwrite=True)
        callbacks = [recorder, LabelIssuesCallback(recorder, method="aum", progress=False)]
    model_of(Witness()).fit(Points(), epochs=2, batch_size=8, verbose=0, callbacks=callbacks)

def count():
    gc.collect()
    kilobytes = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
    return kilobytes, len(os.listdir("/proc/self/fd")), threading.active_count(), len(gc.get_objects())

def growth(record):
    for _ in range(150):  # memory pools of threads grow at first
        fit(record)
    before = count()
    for _ in range(200):
        fit(record)
    return [after - b for after, b in zip(count(), before)]

print(growth(False), growth(True))
"""


@pytest.mark.slow
def test_two_hundred_fits_leave_nothing(path: str) -> None:
    script = TWO_HUNDRED_FITS.format(tests=str(Path(__file__).parents[1]), path=path)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    without, ours = ast.literal_eval("[" + ran.stdout.replace("] [", "], [") + "]")
    assert ours[0] < max(0, without[0]) + 4096, (without, ours)  # KiB
    assert ours[1] <= max(0, without[1])
    assert ours[2] <= max(0, without[2])
    assert (
        ours[3] < max(0, without[3]) + 3 * 200
    )  # Paddle keeps a list for each call, as in the softmax of an epoch


def test_a_callback_made_of_others_that_keeps_the_model_to_itself(path: str) -> None:
    class Group(paddle.callbacks.Callback):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def set_params(self, params: Any) -> None:
            self.inner.set_params(params)

        def on_train_begin(self, logs: Any = None) -> None:
            self.inner.on_train_begin(logs)

    with pytest.raises(CaptureError, match=r"was given no model.*must hand on set_model"):
        fit(Points(), Group(TrainingDynamicsCallback(path)))


def test_a_static_graph_is_refused(path: str) -> None:
    model = model_of(Witness(), None)
    callback = TrainingDynamicsCallback(path)
    paddle.enable_static()
    try:
        with pytest.raises(CaptureError, match=r"static-graph.*disable_static\(\).*TrainingDynamicsRecorder"):
            check_model(model)
    finally:
        paddle.disable_static()
    model.fit(Points(), callbacks=callback, epochs=1, batch_size=BATCH, verbose=0)
    assert seen(path) == [N_SAMPLES]


def test_another_paddle_is_refused_before_the_first_step(path: str) -> None:
    model = model_of(Witness(), None)
    del model._loss
    with pytest.raises(CaptureError, match=r"no \['_loss'\].*not known.*TrainingDynamicsRecorder"):
        check_model(model)


def test_several_runs_on_several_ranks_are_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_td_callback.paddle_fit.train_several_runs.current_ranks", lambda: object())
    with pytest.raises(ValueError, match=r"one process.*call fit once for each run.*find_label_issues"):
        train_several_runs(lambda: model_of(Witness(), None), Points(), path, n_runs=2, epochs=1)


def test_an_evaluation_pass_that_gets_other_rows(path: str) -> None:
    data = paddle.io.DataLoader(Points(), batch_size=BATCH, collate_fn=lambda batch: collate(batch[1:]))
    with pytest.raises(CaptureError, match=r"evaluation pass asked for 8 samples.*7 rows.*mode='train'"):
        fit(data, TrainingDynamicsCallback(path, mode="eval", on_error="raise"))
