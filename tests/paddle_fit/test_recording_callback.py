"""Law 1 and the life of the callbacks: training is never changed, nothing is left behind, every death survived."""

import _thread
import contextlib
import gc
import multiprocessing
import random
import re
import subprocess
import sys
import threading
import time
import traceback
import warnings
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
    N_SAMPLES,
    Bell,
    Points,
    Witness,
    assert_same,
    assert_untapped,
    expected,
    model_of,
    read,
    seed_all,
)

from paddle_td_callback import (
    CaptureError,
    LabelIssuesCallback,
    NoiseDetector,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
)
from paddle_td_callback.paddle_fit.taps import StepTap
from paddle_td_callback.recording.open_recorders import wait_for_commits

BATCH = 8


@pytest.fixture(scope="module")
def detector() -> NoiseDetector:
    """A small detector, fitted on made-up trajectories."""
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.3
    given = np.clip(np.where(wrong, 0.1, 0.8)[:, np.newaxis] + rng.normal(0, 0.1, (200, 6)), 0, 1)
    raw = np.stack([given, 1 - given, given > 0.5], axis=-1).astype(np.float32)
    return NoiseDetector(n_steps=4, hidden_size=4, n_layers=1).fit(raw, wrong, epochs=2, seed=1)


def fit(model: paddle.Model, data: Any = None, **options: Any) -> None:
    options = {"epochs": 3, "batch_size": BATCH, "verbose": 0, **options}
    model.fit(Points() if data is None else data, **options)


def eventually_n_epochs(path: str, wanted: int) -> int:
    """Committed epochs, once the commit under way in this process has ended."""
    deadline = time.monotonic() + 10
    while True:
        with TrainingDynamicsStore(path) as store:
            if store.n_epochs >= wanted or time.monotonic() > deadline:
                return store.n_epochs
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------
# Law 1: training is never changed.


class Augmented(Points):
    """Draws from all three global streams for every sample."""

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        noise = np.random.rand() + random.random()  # noqa: NPY002
        return np.append(features[:-1], np.float32(features[-1] + noise)), label


class Diary(paddle.callbacks.Callback):
    """Everything that fit tells its callbacks when something ends; what begins still has the logs of the fit before."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(*arguments: Any) -> None:
            if name.endswith("_end"):
                self.pages.append((name, *(dict(a) if isinstance(a, dict) else a for a in arguments)))

        return note


class HalfPrecise(Witness):
    """What mixed precision makes of the forward pass, where hapi's own AMP does nothing on a CPU."""

    def logits(self, x: Any) -> Any:
        with paddle.amp.auto_cast(dtype="bfloat16", level="O1"):
            return super().logits(x)


class OnFloat32(nn.Layer):
    def forward(self, logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits.astype("float32"), labels)


def shuffled(**options: Any) -> Callable[[], Any]:
    return lambda: paddle.io.DataLoader(Points(), batch_size=BATCH, shuffle=True, **options)


TRAININGS: dict[str, dict[str, Any]] = {
    "dataset": {},
    "workers": {"num_workers": 2},
    "loader": {"data": shuffled()},
    "persistent_workers": {"data": shuffled(num_workers=2, persistent_workers=True)},
    "augmented": {"data": Augmented},
    "drop_last-accumulate": {"drop_last": True, "accumulate_grad_batches": 2},
    "num_iters": {"num_iters": 10},
    "evaluation": {"eval_data": Points(20)},
    "function-loss": {"loss": lambda: F.cross_entropy},
    "amp-O1": {"amp": "O1"},
    "amp-O2": {"amp": {"level": "O2"}},
    "bfloat16": {"network": HalfPrecise, "loss": OnFloat32},
}


@pytest.mark.filterwarnings("ignore:.*can only be enabled on CUDAPlace:UserWarning")
@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
def test_training_is_the_same_to_the_last_bit(
    options: dict[str, Any], path: str, tmp_path: Path, detector: NoiseDetector
) -> None:
    options = {"data": Points, "network": Witness, "loss": nn.CrossEntropyLoss, "amp": None, **options}
    make_data, make_network, make_loss, amp = (options.pop(k) for k in ("data", "network", "loss", "amp"))

    def train(*callbacks: Any) -> dict[str, Any]:
        seed_all(11)
        with paddle.utils.unique_name.guard():
            network = make_network(dropout=0.3, exact=False)
            model = model_of(
                network, make_loss(), learning_rate=0.02, metrics=paddle.metric.Accuracy(), amp=amp
            )
            diary = Diary()
            fit(model, make_data(), callbacks=[*callbacks, diary], **options)
            fresh = nn.Linear(3, 2)
        return {
            "weights": [p.numpy() for p in network.parameters()],
            "optimizer": {k: np.asarray(v) for k, v in model._optimizer.state_dict().items()},
            "diary": diary.pages,
            "names after": [p.name for p in fresh.parameters()],
            "states after": [np.random.get_state(), random.getstate()],  # noqa: NPY002
            "draws after": [paddle.rand([3]).numpy(), np.random.rand(3), random.random()],  # noqa: NPY002
            "settings": (paddle.get_default_dtype(), paddle.get_device(), paddle.is_grad_enabled()),
        }

    without = train()
    with_callbacks = train(
        LabelIssuesCallback(path, detector=detector),
        LabelIssuesCallback(path),
        TrainingDynamicsCallback(path),
        LabelIssuesCallback(path, method="aum", csv=tmp_path / "issues.csv"),
    )
    np.testing.assert_equal(with_callbacks, without)
    assert (tmp_path / "issues.csv").exists()


def test_a_finder_before_its_recorder_knows_that_training_is_over(path: str, tmp_path: Path) -> None:
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(path, method="aum", progress=False)
    fit(model_of(Witness()), callbacks=[finder, recorder])
    assert finder.issues is not None
    assert not finder.issues.is_recording


def test_one_path_for_two_outputs_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"csv and report are both .*; give each a path of its own"):
        LabelIssuesCallback(path, csv="out", report="./out")


def test_a_path_through_a_link_is_that_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    recorder = TrainingDynamicsCallback(tmp_path / "link" / ".." / "run.h5")
    finder = LabelIssuesCallback(tmp_path / "real" / "run.h5", method="aum", progress=False)
    fit(model_of(Witness()), callbacks=[recorder, finder])
    assert (tmp_path / "real" / "run.h5").exists()
    assert finder.issues is not None


def test_a_link_that_is_turned_while_it_trains_changes_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")

    class Turns(paddle.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                link.unlink()
                link.symlink_to(tmp_path / "two")

    path = str(link / "run.h5")
    finder = LabelIssuesCallback(path, method="aum", csv=link / "issues.csv", progress=False)
    fit(model_of(Witness()), callbacks=[Turns(), TrainingDynamicsCallback(path), finder])
    assert sorted(one.name for one in (tmp_path / "one").iterdir()) == ["issues.csv", "run.h5"]
    assert list((tmp_path / "two").iterdir()) == []


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match="the working folder is gone; give a path from the root"):
        TrainingDynamicsCallback("run.h5")


def test_a_report_on_a_stream_has_no_pictures_and_is_written(path: str, tmp_path: Path) -> None:
    class Endless(paddle.io.IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Any:
            return ((*Points()[i], np.int64(i)) for i in range(N_SAMPLES))

    recorder = TrainingDynamicsCallback(path, index_field=-1, n_samples=N_SAMPLES)
    finder = LabelIssuesCallback(recorder, method="aum", report=tmp_path / "r.html", progress=False)
    fit(model_of(Witness()), paddle.io.DataLoader(Endless(), batch_size=BATCH), callbacks=[recorder, finder])
    assert (tmp_path / "r.html").exists()


def test_a_report_of_a_data_set_that_may_still_grow(path: str, tmp_path: Path) -> None:
    recorder = TrainingDynamicsCallback(path, n_samples=N_SAMPLES + 20)
    finder = LabelIssuesCallback(recorder, method="aum", report=tmp_path / "r.html", progress=False)
    fit(model_of(Witness()), callbacks=[recorder, finder])
    assert (tmp_path / "r.html").exists()


def test_issues_may_go_to_standard_output(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    finder = LabelIssuesCallback(path, method="aum", csv="-", progress=False)
    fit(model_of(Witness()), callbacks=[TrainingDynamicsCallback(path), finder])
    assert capsys.readouterr().out.startswith("sample,rank")


def test_a_thumbnail_that_is_no_function_is_refused(path: str) -> None:
    with pytest.raises(
        TypeError, match=r"thumbnail must be a function of one sample .*, got a str; pass one"
    ):
        LabelIssuesCallback(path, report="report.html", thumbnail="image")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------
# Every death: no hook left, all finished epochs there, and the next training records.


class Dies(Exception):
    pass


class Trap(paddle.callbacks.Callback):
    """Raises at one event of epoch 2 (from 0)."""

    def __init__(self, event: str, error: type[BaseException]) -> None:
        super().__init__()
        self._event, self._error = event, error
        self._epoch = -1
        self.armed = True

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(*arguments: Any) -> None:
            if name == "on_epoch_begin":
                self._epoch = arguments[0]
            once = name in ("on_train_begin", "on_train_end")
            late = "batch" not in name or arguments[0] == 2
            if self.armed and name == self._event and (once or (self._epoch == 2 and late)):
                raise self._error

        return event


class LossTrap:
    """Raises in the third step of epoch 2."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.armed = True

    def __call__(self, logits: Any, labels: Any) -> Any:
        self.n_calls += 1
        if self.armed and self.n_calls == 2 * 7 + 3:
            raise Dies
        return F.cross_entropy(logits, labels)


class LayerTrap(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.trap = LossTrap()

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.trap(logits, labels)


class PointsTrap(Points):
    """Calls `spring` when sample 30 is asked for the third time."""

    def __init__(self, spring: Callable[[], Any]) -> None:
        super().__init__()
        self._spring = spring
        self.n_asked = 0
        self.armed = True

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        self.n_asked += i == 30
        if self.armed and i == 30 and self.n_asked == 3:
            self._spring()
        return super().__getitem__(i)


class PlainLoader:
    """A loader in plain Python, which raises where `for` stands."""

    num_workers = 0

    def __init__(self, dataset: Points) -> None:
        self.dataset = dataset
        self.batch_sampler = paddle.io.BatchSampler(dataset, batch_size=BATCH)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batch_sampler:
            features, labels = zip(*(self.dataset[i] for i in batch), strict=True)
            yield paddle.to_tensor(np.stack(features)), paddle.to_tensor(np.stack(labels))


def die() -> None:
    raise Dies


def interrupt() -> None:
    raise KeyboardInterrupt


def record_until_death(
    path: str,
    *,
    loss: Any = None,
    data: Any = None,
    traps: tuple[list[Any], list[Any]] = ([], []),
    dies: Any = Dies,
    **options: Any,
) -> tuple[paddle.Model, TrainingDynamicsCallback, Any, Any]:
    """A fit that ends by an exception, which stays referred to, as a notebook does (not with workers, see below)."""
    network = Witness()
    model = model_of(network, loss)
    recorder = TrainingDynamicsCallback(path, dtype="float32")
    data = Points() if data is None else data
    if isinstance(data, paddle.io.Dataset):
        data = paddle.io.DataLoader(data, batch_size=BATCH, num_workers=options.pop("num_workers", 0))
    sampler = data.batch_sampler
    with pytest.raises(dies) as death:
        fit(model, data, epochs=4, callbacks=[Bell(), *traps[0], recorder, *traps[1]], **options)
    if data.num_workers:
        # Paddle waits for ever for workers whose iterator is freed in a cycle, as excinfo and this frame are one.
        traceback.clear_frames(death.tb)
    assert_untapped(model, data, sampler)
    return model, recorder, data, death


def assert_recording_goes_on(
    model: paddle.Model, recorder: TrainingDynamicsCallback, data: Any, n: int
) -> None:
    """The finished epochs are there; the same callback continues, and so does another with `resume=True`."""
    path, network = recorder.path, model.network
    assert eventually_n_epochs(path, n) == n
    labels = Points().classes
    network.epochs = network.epochs[:n]
    assert_same(read(path), expected(network.epochs, labels))
    sampler = data.batch_sampler
    fit(model, data, epochs=1, callbacks=[Bell(), recorder])
    assert_untapped(model, data, sampler)
    resuming = TrainingDynamicsCallback(path, dtype="float32", resume=True)
    fit(model, data, epochs=1, callbacks=[resuming, Bell()])
    assert_untapped(model, data, sampler)
    assert_same(read(path), expected(network.epochs, labels))
    assert read(path).given.shape == (N_SAMPLES, n + 2)


@pytest.mark.parametrize("loss", [LossTrap, LayerTrap], ids=["object", "layer"])
def test_an_exception_in_the_loss(loss: Callable[[], Any], path: str) -> None:
    trap = loss()
    model, recorder, data, _ = record_until_death(path, loss=trap)
    assert model._loss is trap
    assert_recording_goes_on(model, recorder, data, 2)


class PointsInWorkers(Points):
    """Raises in a worker, which is forked again each epoch and cannot count epochs."""

    armed = False

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        if i == 30 and self.armed:
            die()
        return super().__getitem__(i)


class Arms(paddle.callbacks.Callback):
    def __init__(self, points: PointsInWorkers) -> None:
        super().__init__()
        self._points = points

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._points.armed = epoch == 2


@pytest.fixture
def _quiet_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's reader thread dies of a worker's exception; pytest would keep it and all that it refers to."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


# Paddle itself waits for ever when a data set raises in its reader thread (num_workers=0).
@pytest.mark.usefixtures("_quiet_threads")
def test_an_exception_in_the_data_set_of_a_worker(path: str) -> None:
    points = PointsInWorkers()
    model, recorder, data, _ = record_until_death(
        path, data=points, num_workers=2, traps=([Arms(points)], []), dies=SystemError
    )
    points.armed = False
    assert_recording_goes_on(model, recorder, data, 2)


@pytest.mark.usefixtures("_quiet_threads")
def test_a_dead_fit_and_its_workers_are_freed_without_the_garbage_collector(path: str) -> None:
    """For workers that the collector frees, Paddle waits for ever."""
    gc.collect()
    before = set(multiprocessing.active_children())
    points = PointsInWorkers()
    gc.disable()
    try:
        with contextlib.suppress(SystemError):
            fit(
                model_of(Witness()),
                points,
                num_workers=2,
                callbacks=[TrainingDynamicsCallback(path), Arms(points)],
            )
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("spring", "dies"), [(die, Dies), (interrupt, KeyboardInterrupt)], ids=["Exception", "Ctrl-C"]
)
def test_an_exception_in_a_loader(spring: Callable[[], Any], dies: Any, path: str) -> None:
    points = PointsTrap(spring)
    model, recorder, data, _ = record_until_death(path, data=PlainLoader(points), dies=dies)
    points.armed = False
    assert_recording_goes_on(model, recorder, data, 2)


def test_ctrl_c_while_the_data_set_is_read(path: str) -> None:
    """As it really comes: into the main thread, at any moment, while the reader thread reads."""
    points = PointsTrap(_thread.interrupt_main)
    model, recorder, data, _ = record_until_death(path, data=points, dies=KeyboardInterrupt)
    points.armed = False
    n = len(model.network.epochs) - 1
    assert n in (1, 2)  # the reader thread is ahead by a few batches
    assert_recording_goes_on(model, recorder, data, n)


@pytest.mark.parametrize("error", [Dies, KeyboardInterrupt], ids=["Exception", "Ctrl-C"])
@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
@pytest.mark.parametrize(
    ("event", "n_epochs"),
    [
        ("on_train_batch_begin", 2),
        ("on_train_batch_end", 2),
        ("on_epoch_end", None),
        ("on_eval_begin", 3),
        ("on_eval_batch_end", 3),
        ("on_eval_end", 3),
    ],
)
def test_another_callback_dies(event: str, n_epochs: int | None, first: bool, error: Any, path: str) -> None:
    trap = Trap(event, error)
    model, recorder, data, _ = record_until_death(
        path, traps=([trap], []) if first else ([], [trap]), dies=error, eval_data=Points(20)
    )
    if n_epochs is None:
        n_epochs = 2 if first else 3  # the epoch counts once its end was told to the recording
    assert_recording_goes_on(model, recorder, data, n_epochs)


@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
def test_another_callback_dies_when_training_ends(first: bool, path: str) -> None:
    trap = Trap("on_train_end", KeyboardInterrupt)
    model, recorder, data, _ = record_until_death(
        path, traps=([trap], []) if first else ([], [trap]), dies=KeyboardInterrupt
    )
    assert_recording_goes_on(model, recorder, data, 4)


@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
def test_another_callback_dies_when_training_begins(first: bool, path: str) -> None:
    trap = Trap("on_train_begin", KeyboardInterrupt)
    model, recorder, data, _ = record_until_death(
        path, traps=([trap], []) if first else ([], [trap]), dies=KeyboardInterrupt
    )
    assert not Path(path).exists()
    fit(model, data, epochs=1, callbacks=[recorder])
    assert read(path).given.shape == (N_SAMPLES, 1)


def test_another_callback_dies_when_an_epoch_begins_before_ours(path: str) -> None:
    model, recorder, data, _ = record_until_death(
        path, traps=([Trap("on_epoch_begin", KeyboardInterrupt)], []), dies=KeyboardInterrupt
    )
    assert_recording_goes_on(model, recorder, data, 2)


@pytest.mark.parametrize(
    "next_call", ["evaluate", "predict", "fit-without", "fit-with-both", "fit-with-the-first"]
)
def test_another_callback_dies_when_an_epoch_begins_after_ours(
    next_call: str, path: str, tmp_path: Path
) -> None:
    """The one place where fit gives no sign: what waited for the epoch goes with the next call, unused."""
    network, other = Witness(), TrainingDynamicsCallback(tmp_path / "other.h5", dtype="float32")
    model = model_of(network)
    recorder = TrainingDynamicsCallback(path, dtype="float32")
    data = PlainLoader(Points())
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callbacks=[Bell(), recorder, other, Trap("on_epoch_begin", KeyboardInterrupt)])
    network.epochs.pop()
    network.listening = False
    if next_call == "evaluate":
        model.evaluate(Points(20), verbose=0)
    elif next_call == "predict":
        model.predict(Points(20), verbose=0)
    elif next_call == "fit-without":
        fit(model, data, epochs=1)
    else:
        fit(
            model,
            data,
            epochs=1,
            callbacks=[Bell(), *([other] if next_call == "fit-with-both" else []), recorder],
        )
    assert_untapped(model, data, data.batch_sampler)
    n = len(network.epochs)
    for recording, epochs in ((path, n), (other.path, 2 if next_call == "fit-with-the-first" else n)):
        assert eventually_n_epochs(recording, epochs) == epochs
        assert_same(read(recording), expected(network.epochs[:epochs], Points().classes))
    fit(model, data, epochs=1, callbacks=[Bell(), recorder])
    assert_untapped(model, data, data.batch_sampler)
    assert n + 1 == eventually_n_epochs(path, n + 1)
    assert_same(read(path), expected(network.epochs, Points().classes))


def test_a_recording_that_cannot_be_closed_does_not_hide_what_fit_died_of(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = TrainingDynamicsRecorder.close

    def fails(recorder: TrainingDynamicsRecorder) -> None:
        close(recorder)
        raise OSError("no space left")

    monkeypatch.setattr(TrainingDynamicsRecorder, "close", fails)
    with pytest.warns(RuntimeWarning, match="no space left"):
        record_until_death(path, loss=LossTrap())
    assert eventually_n_epochs(path, 2) == 2


def test_a_death_in_the_first_epoch_leaves_no_file_in_the_way(path: str) -> None:
    class Early(Trap):
        def __init__(self) -> None:
            super().__init__("on_train_batch_end", KeyboardInterrupt)
            self._epoch = 2  # now

        def __getattribute__(self, name: str) -> Any:
            return (lambda *_: None) if name == "on_epoch_begin" else super().__getattribute__(name)

    early = Early()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(model_of(Witness()), callbacks=[TrainingDynamicsCallback(path), early])
        assert not Path(path).exists()
    recorder = TrainingDynamicsCallback(path)
    for armed in (True, False):
        early.armed = armed
        try:
            fit(model_of(Witness()), callbacks=[recorder, early])
        except KeyboardInterrupt:
            assert armed
    assert eventually_n_epochs(path, 3) == 3


@pytest.mark.parametrize("rounds", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_moment(rounds: int, path: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from support import interrupts; "
    code += f"interrupts.main({path!r}, {rounds}, 1)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60 + rounds, check=False)
    said = re.fullmatch(r"survived (\d+) interruptions\n", child.stdout)
    assert said, child.stderr[-3000:]
    assert int(said[1]) > rounds // 3


def test_a_script_that_ends_between_epochs_keeps_them_all(path: str) -> None:
    """Ctrl-C while the model is evaluated, in a script that does not care: the last commit is still under way."""
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_recording_callback import *
trap = Trap("on_eval_begin", KeyboardInterrupt)
fit(model_of(Witness()), epochs=4, eval_data=Points(20), callbacks=[TrainingDynamicsCallback({path!r}), trap])
"""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 3


def test_an_abandoned_recording_lets_go_of_its_file(path: str) -> None:
    """A fit that died between epochs and whose callback is forgotten: another may record there at once."""
    model, recorder, data, death = record_until_death(path, traps=([], [Trap("on_epoch_end", Dies)]))
    again = TrainingDynamicsCallback(path, overwrite=True)
    fit(model, data, epochs=1, callbacks=[again])
    assert eventually_n_epochs(path, 1) == 1
    del model, recorder, data, death, again
    with TrainingDynamicsRecorder(path, n_samples=N_SAMPLES, n_classes=N_CLASSES, resume=True) as one_more:
        one_more.end_epoch()
    assert eventually_n_epochs(path, 2) == 2


# ---------------------------------------------------------------------------------------------------------------
# Several callbacks, several fits.


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss, lambda: F.cross_entropy, lambda: F.binary_cross_entropy],
    ids=["layer", "function", "binary_cross_entropy"],
)
def test_three_recordings_of_one_fit(loss: Callable[[], Any], tmp_path: Path) -> None:
    binary = loss() is F.binary_cross_entropy
    points = Points(n_classes=2, label_shape=(1,), label_dtype="float32") if binary else Points()
    network = Witness(1, activation=F.sigmoid) if binary else Witness()
    n_classes, kind = (2, "probabilities") if binary else (N_CLASSES, "logits")
    paths = [str(tmp_path / f"{i}.h5") for i in range(3)]
    keeps = ["all", "given", 2]
    recorders = [
        TrainingDynamicsCallback(p, dtype="float32", keep=k) for p, k in zip(paths, keeps, strict=True)
    ]
    model = model_of(network, loss())
    batches = paddle.io.DataLoader(points, batch_size=BATCH, shuffle=True)
    sampler = batches.batch_sampler
    fit(model, batches, callbacks=[recorders[0], Bell(), *recorders[1:]], eval_data=points)
    assert_untapped(model, batches, sampler)
    want = expected(network.epochs, points.classes, n_classes=n_classes, kind=kind)
    assert_same(read(paths[0]), want)
    for path in paths[1:]:
        with TrainingDynamicsStore(path) as store:
            np.testing.assert_array_equal(store.given_probabilities(), want.given)
            np.testing.assert_array_equal(store.margins(), want.margins)
            np.testing.assert_array_equal(store.predictions(), want.predicted)
    with TrainingDynamicsStore(paths[2]) as store:
        classes, top = store.top()
        np.testing.assert_array_equal(top, -np.sort(-want.probabilities, axis=-1)[..., :2])
        np.testing.assert_array_equal(np.take_along_axis(want.probabilities, classes, axis=-1), top)


def test_two_recordings_into_one_file_are_refused(path: str) -> None:
    model = model_of(Witness())
    callbacks = [TrainingDynamicsCallback(path, overwrite=True) for _ in range(2)]
    with pytest.raises(CaptureError, match="another callback of this fit; give each a path of its own"):
        fit(model, callbacks=callbacks)
    assert_untapped(model)


def test_a_second_fit_continues_the_file_even_with_overwrite(path: str) -> None:
    TrainingDynamicsRecorder(path, n_samples=3, n_classes=2).close()
    network = Witness()
    recorder = TrainingDynamicsCallback(path, dtype="float32", overwrite=True)
    model = model_of(network)
    fit(model, epochs=2, callbacks=[Bell(), recorder])
    fit(model, epochs=1, callbacks=[Bell(), recorder])
    assert_same(read(path), expected(network.epochs, Points().classes))
    assert len(network.epochs) == 3


def test_a_second_fit_on_other_data_is_refused(path: str) -> None:
    recorder = TrainingDynamicsCallback(path)
    model = model_of(Witness())
    fit(model, epochs=2, callbacks=[recorder])
    with pytest.raises(StoreError, match="n_samples=50, this training has 40; resume needs the same"):
        fit(model, Points(40), callbacks=[recorder])
    assert_untapped(model)
    assert eventually_n_epochs(path, 2) == 2


# ---------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": "some"}, "keep must be 'all', 'given' or a number of classes"),
        ({"keep": 0}, "at least 1, got 0"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', got 'test'"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise', got 'ignore'"),
        (
            {"outputs": "softmax"},
            r"outputs must be one of \('auto', 'logits', 'probabilities'\), got 'softmax'",
        ),
        ({"compression": "lzf"}, "compression must be 'gzip' or None, got 'lzf'"),
        (
            {"labels": np.zeros((3, 2), int)},
            r"labels must have shape \[row\] or \[row, 1\], .*got \(3, 2\)",
        ),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], match: str, path: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainingDynamicsCallback(path, **options)


def test_labels_that_are_no_integers(path: str) -> None:
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        TrainingDynamicsCallback(path, labels=[0.5, 0.5])


def refuse_to_begin(path: Any, error: type[Exception], match: str, **options: Any) -> None:
    """fit raises before it runs a step."""
    network = Witness()
    model = model_of(network)
    with pytest.raises(error, match=match):
        fit(model, callbacks=[Bell(), TrainingDynamicsCallback(path, **options)])
    assert not network.epochs
    assert_untapped(model)


def test_an_existing_file(path: str) -> None:
    Path(path).write_text("precious")
    refuse_to_begin(
        path, FileExistsError, "run.h5' exists already; resume=True continues it, overwrite=True replaces"
    )
    assert Path(path).read_text() == "precious"


def test_resume_and_overwrite_contradict(path: str) -> None:
    refuse_to_begin(
        path, ValueError, "resume=True and overwrite=True contradict", resume=True, overwrite=True
    )


def test_a_missing_folder(tmp_path: Path) -> None:
    refuse_to_begin(
        tmp_path / "no" / "run.h5", FileNotFoundError, "there is no folder '.*no'; create it first"
    )


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuse_to_begin(tmp_path / "file" / "run.h5", FileNotFoundError, "there is no folder '.*file'")


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    refuse_to_begin(tmp_path, StoreError, "is a folder; give the path of a file in it, such as 'run.h5'")


def test_a_folder_that_may_not_be_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr("os.access", lambda *_args, **_kwargs: False)
    refuse_to_begin(path, StoreError, "the folder '.*' may not be written; give a path in another folder")


def test_no_epochs(path: str) -> None:
    model = model_of(Witness())
    with pytest.raises(CaptureError, match="fit was called with epochs=0: there is nothing to record"):
        fit(model, epochs=0, callbacks=[TrainingDynamicsCallback(path)])


def test_no_steps(path: str) -> None:
    with pytest.warns(RuntimeWarning, match="no training step was seen, so nothing is recorded"):
        fit(model_of(Witness()), Points(5), drop_last=True, callbacks=[TrainingDynamicsCallback(path)])
    assert not Path(path).exists()


def test_a_paddle_with_another_epoch_loop(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.Model, "_run_one_epoch", lambda self, loader, callbacks, mode, state: None)
    match = r"Model._run_one_epoch of Paddle [\d.]+ takes \['loader', .*'state'\], wanted .*TrainingDynamicsRecorder"
    refuse_to_begin(path, CaptureError, match)


def test_a_paddle_without_an_epoch_loop(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(paddle.Model, "_run_one_epoch")
    refuse_to_begin(path, CaptureError, "_run_one_epoch of Paddle .* takes None, wanted .*not known")


def test_static_graph_mode(path: str) -> None:
    code = f"""
import paddle_td_callback, paddle, numpy
paddle.enable_static()
inputs = [paddle.static.InputSpec([None, 4], "float32", "x")]
labels = [paddle.static.InputSpec([None, 1], "int64", "y")]
model = paddle.Model(paddle.nn.Linear(4, 3), inputs, labels)
model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), paddle.nn.CrossEntropyLoss())
class Zeros(paddle.io.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return numpy.zeros(4, "float32"), numpy.zeros(1, "int64")
try:
    model.fit(Zeros(), epochs=1, verbose=0, callbacks=[paddle_td_callback.TrainingDynamicsCallback({path!r})])
except paddle_td_callback.CaptureError as error:
    print(error)
"""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Paddle is in static-graph mode" in child.stdout, child.stderr
    assert "paddle.disable_static()" in child.stdout
    assert not Path(path).exists()


def refuse_first_step(path: str, data: Any, error: type[Exception], match: str, **options: Any) -> None:
    """fit raises before its first step has ended, and leaves neither hook nor file."""
    model = model_of(Witness(), in_range)
    recorder = TrainingDynamicsCallback(path, **options)
    with pytest.raises(error, match=match):
        fit(model, data, shuffle=False, callbacks=[recorder])
    assert_untapped(model)
    assert not Path(path).exists()


def in_range(logits: Any, labels: Any) -> Any:
    """A loss that takes any label."""
    return F.cross_entropy(logits, labels.astype("int64").clip(0, N_CLASSES - 1))


@pytest.mark.parametrize("label", [4, -1])
@pytest.mark.parametrize(("mode", "whose"), [("train", "for sample 0"), ("eval", "in row 0")])
def test_no_label_of_the_first_step_is_a_class(label: int, mode: str, whose: str, path: str) -> None:
    points = Points()
    points.labels[:] = label
    match = rf"first step: labels must be in \[0, 4\), got {label} {whose}; pass ignore_label= .* labels="
    refuse_first_step(path, points, ValueError, match, mode=mode)


@pytest.mark.parametrize("label", [4, -1])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_label_outside_the_classes_costs_its_row(label: int, mode: str, path: str) -> None:
    points = Points()
    points.labels[[5, 30]] = label
    callback = TrainingDynamicsCallback(path, mode=mode)
    with pytest.warns(RuntimeWarning) as said:
        fit(model_of(Witness(), in_range), points, shuffle=False, callbacks=[callback])
    first, last = (str(one.message) for one in said if one.category is RuntimeWarning)
    assert f"labels must be in [0, 4), got {label} for sample 5; pass ignore_label=" in first
    n_lost = 2 * 3
    assert f"{n_lost} rows in all could not be recorded" in last
    assert callback.n_skipped == n_lost
    with TrainingDynamicsStore(path) as store:
        seen = store.predictions() >= 0
    assert np.flatnonzero(~seen.all(axis=1)).tolist() == [5, 30]
    assert not seen[[5, 30]].any()


def test_ignored_labels_may_be_said(path: str) -> None:
    points = Points()
    points.labels[5] = 7
    callback = TrainingDynamicsCallback(path, ignore_label=7)
    fit(model_of(Witness(), in_range), points, shuffle=False, callbacks=[callback])
    assert callback.n_skipped == 0
    with TrainingDynamicsStore(path) as store:
        assert np.flatnonzero(store.labels < 0).tolist() == [5]


def test_a_refused_first_step_does_not_cost_the_file_to_replace(path: str) -> None:
    with TrainingDynamicsRecorder(path, n_samples=3, n_classes=2) as old:
        old.end_epoch()
    points = Points()
    points.labels[:BATCH] = 9
    with pytest.raises(ValueError, match="got 9 for sample 0"):
        fit(
            model_of(Witness(), in_range),
            points,
            shuffle=False,
            callbacks=[TrainingDynamicsCallback(path, overwrite=True)],
        )
    assert eventually_n_epochs(path, 1) == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"labels": [0] * 49}, CaptureError, "labels= has 49 entries for a data set of 50 samples"),
        ({"labels": [0] * 49 + [4]}, ValueError, r"labels=: labels must be in \[0, 4\), got 4 for sample 49"),
        ({"n_samples": 4}, ValueError, r"indices must be in \[0, 4\), got index 4; pass"),
        ({"class_names": ["a", "b"]}, ValueError, "class_names must have 4 names, got 2"),
        ({"keep": 5}, ValueError, "keep=5 is more than the 4 classes; say keep='all'"),
    ],
)
def test_arguments_that_do_not_fit_the_data(
    options: dict[str, Any], error: Any, match: str, path: str
) -> None:
    refuse_first_step(path, Points(), error, match, **options)


def test_one_sample_twice_in_the_first_batch_under_two_labels(path: str) -> None:
    class Twice(Points):
        n_asked = 0

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            self.n_asked += 1
            return super().__getitem__(i)[0], np.int64(self.n_asked % 2)

    batches = paddle.io.DataLoader(Twice(), batch_sampler=[[3, 3, 4, 4]] * 2)
    with pytest.warns(RuntimeWarning, match=r"the label of sample 3 was 1, now it is 0"):
        fit(model_of(Witness()), batches, callbacks=[TrainingDynamicsCallback(path)])
    with TrainingDynamicsStore(path) as store:
        assert store.labels[[3, 4]].tolist() == [1, 1]
        assert store.n_presentations([3, 4])[:, 0].tolist() == [2, 2]


def test_a_data_set_of_unknown_size(path: str) -> None:
    class Sizeless(Points):
        def __len__(self) -> int:
            raise TypeError("who knows")

    points = Sizeless()
    batches = paddle.io.DataLoader(points, batch_sampler=[[i, i + 1] for i in range(0, N_SAMPLES, 2)])
    model = model_of(Witness())
    with pytest.raises(
        CaptureError, match=r"size of the training data is unknown \(who knows\); pass n_samples="
    ):
        fit(model, batches, callbacks=[TrainingDynamicsCallback(path)])
    fit(model, batches, callbacks=[TrainingDynamicsCallback(path, n_samples=N_SAMPLES)])
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(store.labels, points.classes)


class Relabels(Points):
    """From epoch 2 on (from 0), some labels are others."""

    def __init__(self, changed: range) -> None:
        super().__init__()
        self.changed = changed
        self.n_asked = 0

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        self.n_asked += 1
        is_changed = i in self.changed and self.n_asked > 2 * len(self)
        return features, (label + is_changed) % N_CLASSES


def test_one_changing_label_costs_that_sample(path: str) -> None:
    network = Witness()
    old = int(Points().classes[17])
    match = f"label of sample 17 was {old}, now it is {(old + 1) % 4}; .*unseen .*labels="
    callbacks = [Bell(), TrainingDynamicsCallback(path, dtype="float32")]
    with pytest.warns(RuntimeWarning, match=match) as said:
        fit(model_of(network), Relabels(range(17, 18)), epochs=4, callbacks=callbacks)
    assert len([one for one in said if one.category is RuntimeWarning]) == 1
    want, recorded = expected(network.epochs, Points().classes), read(path)
    assert np.isnan(recorded.margins[17, 2:]).all()
    for ours, theirs in zip(recorded, want, strict=True):
        np.testing.assert_array_equal(np.delete(ours, 17, 0), np.delete(theirs, 17, 0))


def test_changing_labels_end_the_recording_but_not_the_training(path: str) -> None:
    network = Witness()
    model = model_of(network)
    old = int(Points().classes[0])
    match = (
        f"label of sample 0 was {old}, now it is {(old + 1) % 4}; .*labels=.*recording ends here, committed"
    )
    callbacks = [Bell(), TrainingDynamicsCallback(path, dtype="float32")]
    with pytest.warns(RuntimeWarning, match=match) as said:
        fit(model, Relabels(range(N_SAMPLES)), epochs=4, shuffle=False, callbacks=callbacks)
    assert len([one for one in said if one.category is RuntimeWarning]) == 1
    assert len(network.epochs) == 4
    assert_untapped(model)
    assert_same(read(path), expected(network.epochs[:2], Points().classes))


def test_changing_labels_raise_where_that_is_wanted(path: str) -> None:
    network = Witness()
    model = model_of(network)
    recorder = TrainingDynamicsCallback(path, dtype="float32", on_error="raise")
    with pytest.raises(CaptureError, match=r"label of sample \d+ was"):
        fit(model, Relabels(range(N_SAMPLES)), epochs=4, callbacks=[Bell(), recorder])
    assert len(network.epochs) == 3
    assert_untapped(model)
    wait_for_commits(path)
    assert_same(read(path), expected(network.epochs[:2], Points().classes))


class ShortBatch:
    """A collate function that loses a row in the third batch of every epoch."""

    def __call__(self, batch: list[Any]) -> Any:
        if batch[0][0][0] == 2 * BATCH:
            batch = batch[1:]
        features, labels = zip(*batch, strict=True)
        return np.stack(features), np.stack(labels)


def test_rows_without_indices_are_left_out_and_counted(path: str) -> None:
    network = Witness()
    batches = paddle.io.DataLoader(Points(), batch_size=BATCH, collate_fn=ShortBatch())
    with pytest.warns(RuntimeWarning) as said:
        fit(model_of(network), batches, callbacks=[Bell(), TrainingDynamicsCallback(path, dtype="float32")])
    messages = [str(warning.message) for warning in said]
    assert len(messages) == 2
    assert "step 2: the loss saw 7 rows and 7 labels, but the batch sampler gave 8 indices" in messages[0]
    assert "3 batches in all could not be recorded" in messages[1]
    epochs = [steps[:2] + steps[3:] for steps in network.epochs]
    assert_same(read(path), expected(epochs, Points().classes))


def test_rows_without_indices_raise_where_that_is_wanted(path: str) -> None:
    batches = paddle.io.DataLoader(Points(), batch_size=BATCH, collate_fn=ShortBatch())
    model = model_of(Witness())
    with pytest.raises(CaptureError, match="gave 8 indices"):
        fit(model, batches, callbacks=[TrainingDynamicsCallback(path, on_error="raise")])
    assert_untapped(model)


@pytest.mark.parametrize(
    "activation", [F.softmax, lambda z: F.softmax(z).astype("bfloat16").astype("float32")]
)
def test_probabilities_that_the_loss_takes_for_logits_are_warned_of_once(activation: Any, path: str) -> None:
    network = Witness(activation=activation)
    with pytest.warns(RuntimeWarning, match="each row sums to 1 like probabilities; pass outputs=") as said:
        fit(model_of(network), callbacks=[Bell(), TrainingDynamicsCallback(path, dtype="float32")])
    assert len(said) == 1
    assert_same(read(path), expected(network.epochs, Points().classes))


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_outputs_given_by_the_user_give_no_warning(outputs: str, path: str) -> None:
    network = Witness(activation=F.softmax)
    fit(
        model_of(network),
        callbacks=[Bell(), TrainingDynamicsCallback(path, dtype="float32", outputs=outputs)],
    )
    assert_same(read(path), expected(network.epochs, Points().classes, kind=outputs))


def test_an_unforeseen_failure_of_ours_never_kills_the_training(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    update = TrainingDynamicsRecorder.update

    def fails_later(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # all steps of an epoch but the first come in one call
            raise MemoryError("no room")
        update(self, *args, **kwargs)

    monkeypatch.setattr(TrainingDynamicsRecorder, "update", fails_later)
    network = Witness()
    with pytest.warns(
        RuntimeWarning, match="no room; recording ends here, committed epochs stay, training goes on"
    ):
        fit(model_of(network), callbacks=[Bell(), TrainingDynamicsCallback(path)])
    assert len(network.epochs) == 3
    assert eventually_n_epochs(path, 1) == 1


# ---------------------------------------------------------------------------------------------------------------
# LabelIssuesCallback.


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_issues_are_found_when_training_ends(
    first: bool, path: str, tmp_path: Path, detector: NoiseDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "issues.csv"
    finder = LabelIssuesCallback(path, detector=detector, csv=csv)
    recorder = TrainingDynamicsCallback(path, class_names=["ant", "bee", "cat", "dog"])
    callbacks = [finder, recorder] if first else [recorder, finder]
    assert finder.issues is None
    model = model_of(Witness())
    fit(model, callbacks=callbacks)
    assert len(finder.issues) == N_SAMPLES
    assert finder.issues.n_epochs_seen.tolist() == [3] * N_SAMPLES
    assert len(csv.read_text().splitlines()) == N_SAMPLES + 1
    assert not capsys.readouterr().out
    fit(model, epochs=1, callbacks=callbacks, verbose=1)
    assert finder.issues.n_epochs_seen.tolist() == [4] * N_SAMPLES
    printed = capsys.readouterr()
    assert "LabelIssues by lstm" in printed.out
    assert not printed.err  # a progress bar is for terminals


def test_progress_is_as_said(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    finder = LabelIssuesCallback(path, method="aum", progress=False)
    fit(model_of(Witness()), callbacks=[TrainingDynamicsCallback(path), finder], verbose=2)
    printed = capsys.readouterr()
    assert "LabelIssues" not in printed.out
    assert "label issues" not in printed.err


def test_failing_to_find_issues_does_not_cost_the_training(path: str) -> None:
    network = Witness()
    finder = LabelIssuesCallback(path, method="el2n")
    recorder = TrainingDynamicsCallback(path, keep="given")
    with pytest.warns(RuntimeWarning, match=r"were not found: .*keep='all'.*`paddle-td detect .*run.h5`"):
        fit(model_of(network), callbacks=[Bell(), recorder, finder])
    assert finder.issues is None
    assert len(network.epochs) == 3


def test_a_finder_alone_says_so_before_training(path: str) -> None:
    network, finder = Witness(), LabelIssuesCallback(path, method="aum")
    with pytest.warns(
        RuntimeWarning, match=r"run.h5': nothing is recorded in this fit, so none .*LabelIssuesCallback\(rec"
    ):
        fit(model_of(network), callbacks=[finder])
    assert finder.issues is None


def test_bad_arguments_of_the_finder_are_refused_before_training(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method must be one of lstm, .*got 'magic'"):
        LabelIssuesCallback(path, method="magic")
    with pytest.raises(ValueError, match="detector= goes with method='lstm', got 'aum'"):
        LabelIssuesCallback(path, method="aum", detector=object())
    network = Witness()
    finder = LabelIssuesCallback(path, method="aum", csv=tmp_path / "no" / "issues.csv")
    with pytest.raises(StoreError, match="there is no folder"):
        fit(model_of(network), callbacks=[Bell(), finder])
    assert not network.epochs


def test_a_quiet_training_says_nothing(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(
            model_of(Witness()),
            callbacks=[TrainingDynamicsCallback(path), LabelIssuesCallback(path, method="aum")],
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_third_epoch_is_recorded(mode: str, path: str) -> None:
    everything, network = f"{path}.all", Witness()
    callbacks = [
        TrainingDynamicsCallback(everything, mode=mode),
        TrainingDynamicsCallback(path, mode=mode, every=3),
    ]
    fit(model_of(network), epochs=5, callbacks=callbacks)
    assert callbacks[1].n_recorded == 2
    for whole, thinned in zip(read(everything)[:5], read(path)[:5], strict=True):
        np.testing.assert_array_equal(thinned, whole[:, ::3])


def test_an_epoch_that_is_not_recorded_is_not_tapped(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = StepTap.take
    monkeypatch.setattr(StepTap, "take", lambda tap: taken.append(tap) or take(tap))
    fit(model_of(Witness()), epochs=4, callbacks=[TrainingDynamicsCallback(path, every=4)])
    n_taken, n_steps = len(taken), -(-N_SAMPLES // BATCH)
    assert n_taken == n_steps


def test_every_must_be_a_number_of_epochs(path: str) -> None:
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        TrainingDynamicsCallback(path, every=0)
