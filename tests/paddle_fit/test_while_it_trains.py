"""What a finder shows and logs while it trains, and that the training does not notice."""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from support.training import N_FEATURES, Points, model_of, seed_all

from paddle_td_callback import (
    LabelIssues,
    LabelIssuesCallback,
    TrainingDynamicsCallback,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.export.trackers import log_issues
from paddle_td_callback.paddle_fit.issues_callback import _copy_of

N = 30


class Pictures(paddle.io.Dataset):  # type: ignore[misc]
    """Small pictures, read with draws from all streams: those that are shared, and one of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.pixels = self.rng.random((N, 5, 5), np.float32)
        self.labels = np.arange(N) % 3
        self.n_read = [0]

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        self.n_read[0] += 1
        shared = random.random() + np.random.rand() + float(paddle.rand([]))  # noqa: NPY002
        return self.pixels[i] + np.float32(shared + self.rng.random()), self.labels[i]


class Writer:
    """As `visualdl.LogWriter`."""

    def __init__(self, *_: Any) -> None:
        self.said: list[tuple[str, str, Any]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.said.append(("scalar", tag, (step, value)))

    def add_image(self, tag: str, img: np.ndarray, step: int) -> None:
        assert (img.dtype, img.ndim, img.shape[2]) == (np.uint8, 3, 3)
        self.said.append(("image", tag, step))

    def add_text(self, tag: str, text_string: str, step: int) -> None:
        self.said.append(("text", tag, text_string))

    def close(self) -> None:
        self.said.append(("closed", "", None))


class Refusing(Writer):
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        raise OSError("no room for logs")


def fit(dataset: Any, callbacks: list[Any], *, epochs: int = 4, verbose: int = 0) -> Any:
    """Returns the network."""
    width = 25 if isinstance(dataset, Pictures) else N_FEATURES + 1
    with paddle.utils.unique_name.guard():
        network = paddle.nn.Sequential(
            paddle.nn.Flatten(),
            paddle.nn.Linear(width, 8),
            paddle.nn.ReLU(),
            # Paddle's loader reads in a thread of its own: draws of both from one stream would have no order.
            paddle.nn.Dropout(0.0 if isinstance(dataset, Pictures) else 0.3),
            paddle.nn.Linear(8, 4),
        )
        model = model_of(network, paddle.nn.CrossEntropyLoss(), learning_rate=0.02)
        model.fit(dataset, epochs=epochs, batch_size=8, verbose=verbose, callbacks=callbacks)
    return network


@pytest.mark.parametrize("method", ["aum", "lstm"])
def test_a_line_after_every_second_epoch(
    method: str, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[LabelIssues] = []
    find = find_label_issues

    def noting(*arguments: Any, **options: Any) -> LabelIssues:
        found.append(find(*arguments, **options))
        return found[-1]

    monkeypatch.setattr("paddle_td_callback.paddle_fit.issues_callback.find_label_issues", noting)
    recorder = TrainingDynamicsCallback(path, class_names=["ant", "bee", "cat", "dog"])
    finder = LabelIssuesCallback(recorder, method=method, every=2, progress=True)
    fit(Points(), [recorder, finder], epochs=5)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("label issues after")]
    assert [line.split(":")[0] for line in lines] == [
        "label issues after 2 epochs",
        "label issues after 4 epochs",
    ]
    assert [one.n_epochs for one in found] == [2, 4, 5]
    assert [one.is_recording for one in found] == [True, True, False]
    first = found[0].ranking[0]
    assert f"first sample {first}: {found[0].label_name(found[0].given_label[first])}, rather " in lines[0]
    if method == "lstm":
        assert f"{found[0].noise_rate:.1%} (" in lines[0]


def test_a_finder_before_its_recorder_is_an_epoch_behind(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", every=1, progress=True)
    fit(Points(), [finder, recorder], epochs=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("label issues after")]
    assert [line.split()[3] for line in lines] == ["1", "2"]


def test_without_every_there_are_no_lines(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = TrainingDynamicsCallback(path)
    fit(Points(), [recorder, LabelIssuesCallback(recorder, method="aum", progress=True)])
    assert "label issues after" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["aum", "lstm"])
def test_training_is_the_same_to_the_last_bit(method: str, path: str) -> None:
    pytest.importorskip("PIL.Image")

    def trained(record: bool) -> dict[str, Any]:
        seed_all(5)
        dataset, callbacks, writer = Pictures(), [], Writer()
        if record:
            recorder = TrainingDynamicsCallback(path)
            finder = LabelIssuesCallback(recorder, method=method, every=1, log_writer=writer, progress=False)
            callbacks = [recorder, finder]
        network = fit(dataset, callbacks)
        assert sum(tag.startswith("label_issues/suspect") for _, tag, _ in writer.said) == 8 * 4 * record
        return {
            "weights": [one.numpy() for one in network.state_dict().values()],
            "draws": [paddle.rand([3]).numpy(), np.random.rand(3), random.random()],  # noqa: NPY002
            "own": (dataset.rng.random(3), dataset.n_read),
        }

    np.testing.assert_equal(trained(True), trained(False))


def test_a_log_writer_gets_numbers_map_pictures_and_ranking(path: str) -> None:
    pytest.importorskip("PIL.Image")
    recorder, writer = TrainingDynamicsCallback(path), Writer()
    finder = LabelIssuesCallback(recorder, every=2, log_writer=writer, progress=False)
    fit(Pictures(), [recorder, finder])
    of_first = [(kind, tag) for kind, tag, _ in writer.said[: len(writer.said) // 2]]
    wanted = [("scalar", "share_that_looks_wrong"), ("scalar", "noise_rate")]
    if importlib.util.find_spec("matplotlib") is not None:
        wanted.append(("image", "data map"))
    wanted += [("image", f"suspect {number}") for number in range(1, 9)] + [("text", "ranking")]
    assert of_first == [(kind, f"label_issues/{tag}") for kind, tag in wanted]
    steps = [value[0] for kind, _, value in writer.said if kind == "scalar"]
    assert steps == [2, 2, 4, 4]
    assert "closed" not in [kind for kind, _, _ in writer.said]


def test_thumbnail_says_what_is_shown(path: str) -> None:
    recorder, writer, items = TrainingDynamicsCallback(path), Writer(), []

    def thumbnail(item: Any) -> str:
        items.append(item)
        return "a text is no picture"

    finder = LabelIssuesCallback(
        recorder, method="aum", every=4, log_writer=writer, thumbnail=thumbnail, progress=False
    )
    fit(Pictures(), [recorder, finder])
    assert len(items) == 8
    assert not [tag for _, tag, _ in writer.said if "suspect" in tag]


def test_what_cannot_be_copied_is_not_read(path: str) -> None:
    class Locked(Pictures):
        def __deepcopy__(self, _memo: Any) -> Any:
            raise TypeError("cannot be copied")

    recorder, writer, dataset = TrainingDynamicsCallback(path), Writer(), Locked()
    finder = LabelIssuesCallback(recorder, method="aum", every=1, log_writer=writer, progress=False)
    fit(dataset, [recorder, finder])
    assert dataset.n_read == [4 * N]
    assert writer.said


def test_paddles_own_visualdl_callback_is_written_to(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("visualdl")
    writers: list[Writer] = []

    def log_writer(folder: str) -> Writer:
        writers.append(Writer())
        return writers[-1]

    module.LogWriter = log_writer
    monkeypatch.setitem(sys.modules, "visualdl", module)
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", every=1, progress=False)
    fit(Points(), [paddle.callbacks.VisualDL("logs"), recorder, finder], epochs=2)
    assert len(writers) == 1
    ours = [tag for _, tag, _ in writers[0].said if tag.startswith("label_issues/")]
    assert ours.count("label_issues/share_that_looks_wrong") == 2
    assert writers[0].said[-1][0] == "closed"  # by Paddle


@pytest.mark.skipif(not hasattr(paddle.callbacks, "WandbCallback"), reason="this Paddle has none")
def test_the_run_of_paddles_own_wandb_callback_is_written_to(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    run = types.SimpleNamespace(log=logged.append, define_metric=lambda *_, **__: None, finish=lambda: None)
    module: Any = types.ModuleType("wandb")
    module.run, module.init = None, lambda **_: run
    module.Image = lambda pixels, caption=None: ("picture", pixels.shape[2], caption)
    monkeypatch.setitem(sys.modules, "wandb", module)
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", every=2, progress=False)
    fit(Pictures(), [paddle.callbacks.WandbCallback("project"), recorder, finder])
    ours = [one for one in logged if "label_issues/epoch" in one]
    assert [one["label_issues/epoch"] for one in ours] == [2, 4]
    assert 0 <= ours[0]["label_issues/share_that_looks_wrong"] <= 1
    suspects = ours[0]["label_issues/suspects"]
    assert len(suspects) == 8
    assert suspects[0][:2] == ("picture", 3)
    assert suspects[0][2].startswith("1: sample ")
    log_issues(finder.issues, path, run)  # without a data set, and so without pictures
    assert "label_issues/suspects" not in logged[-1]


def test_what_fails_is_said_once_and_costs_nothing(path: str) -> None:
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", every=1, log_writer=Refusing(), progress=False)
    with pytest.warns(
        RuntimeWarning, match=r"run.h5' so far were not shown: no room for logs; no more"
    ) as said:
        fit(Points(), [recorder, finder])
    assert len(said) == 1
    assert finder.issues is not None
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 4


def test_the_first_epoch_warns_of_nothing(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = TrainingDynamicsCallback(path)
    fit(Points(), [recorder, LabelIssuesCallback(recorder, method="aum", every=1, progress=True)], epochs=2)
    assert "label issues after 1 epoch:" in capsys.readouterr().out


def test_wrong_arguments_are_refused(path: str) -> None:
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every must be a whole number of at least 1"):
            LabelIssuesCallback(path, every=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="log_writer= is written to while fit runs; pass every=1"):
        LabelIssuesCallback(path, log_writer=Writer())
    with pytest.raises(TypeError, match=r"must be a visualdl.LogWriter, got a str"):
        LabelIssuesCallback(path, every=1, log_writer="logs")
    with pytest.raises(TypeError, match="must be a TrainingDynamicsCallback or a path, got a VisualDL"):
        LabelIssuesCallback(paddle.callbacks.VisualDL("logs"))


def test_a_second_run_keeps_the_recording_of_the_first(path: str, tmp_path: Path) -> None:
    def quickstart() -> LabelIssuesCallback:
        recorder = TrainingDynamicsCallback(path)
        finder = LabelIssuesCallback(path, method="aum", csv=tmp_path / "issues.csv", progress=False)
        fit(Points(), [recorder, finder], epochs=2)
        return finder

    quickstart()
    first = Path(path).read_bytes()
    for number in (1, 2):
        with pytest.warns(
            RuntimeWarning, match=rf"run.h5': the earlier recording there is kept as 'run-{number}.h5'"
        ):
            finder = quickstart()
        assert finder.issues is not None
        assert finder.issues.n_epochs == 2
    assert (tmp_path / "run-1.h5").read_bytes() == first
    assert sorted(one.name for one in tmp_path.iterdir()) == ["issues.csv", "run-1.h5", "run-2.h5", "run.h5"]


def test_a_second_run_that_cannot_be_recorded_leaves_the_first_where_it_is(path: str) -> None:
    fit(Points(), [TrainingDynamicsCallback(path)], epochs=2)
    first = Path(path).read_bytes()
    with pytest.raises(Exception, match="labels= has 3 entries for a data set of 50 samples"):
        fit(Points(), [TrainingDynamicsCallback(path, labels=[0, 1, 0])], epochs=2)
    assert Path(path).read_bytes() == first
    assert [one.name for one in Path(path).parent.iterdir()] == ["run.h5"]


def test_a_recording_that_is_being_written_is_refused(path: str) -> None:
    from paddle_td_callback import TrainingDynamicsRecorder

    with TrainingDynamicsRecorder(path, n_samples=3, n_classes=2) as other:
        other.path = "elsewhere"  # of another process, as far as the callback can see
        with pytest.raises(FileExistsError, match="exists already"):
            fit(Points(), [TrainingDynamicsCallback(path)])


@pytest.mark.parametrize("is_there", [False, True])
def test_a_finder_of_what_this_fit_does_not_record_says_so_before_training(
    is_there: bool, path: str, tmp_path: Path
) -> None:
    if is_there:
        fit(Points(), [TrainingDynamicsCallback(path)], epochs=2)
    steps = []

    class Watching(paddle.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
            steps.append(len(said))

    other = TrainingDynamicsCallback(tmp_path / "other.h5")
    finder = LabelIssuesCallback(path, method="aum", progress=False)
    so = "those of the older recording there" if is_there else "none will be found"
    with pytest.warns(
        RuntimeWarning, match=rf"run.h5': this fit records into '.*other.h5', so .*{so}"
    ) as said:
        fit(Points(), [other, finder, Watching()], epochs=2)
    assert steps[0] == 1
    assert (finder.issues is not None) == is_there


def test_a_writer_gets_what_can_be_shown_without_matplotlib_and_pillow(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, writer = TrainingDynamicsCallback(path), Writer()
    finder = LabelIssuesCallback(recorder, method="aum", every=4, log_writer=writer, progress=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "PIL", None)
    fit(Pictures(), [recorder, finder])
    assert [tag for _, tag, _ in writer.said] == [
        "label_issues/share_that_looks_wrong",
        "label_issues/ranking",
    ]


def test_without_a_reader_nothing_is_found_while_it_trains(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        "paddle_td_callback.paddle_fit.issues_callback.find_label_issues",
        lambda *arguments, **options: found.append(find_label_issues(*arguments, **options)) or found[-1],
    )
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", every=1, progress=False)
    fit(Points(), [recorder, finder])
    assert len(found) == 1  # at the end


class Shelf(Pictures):
    """A data set with what a copy should share, and what it should have by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"{i}.png" for i in range(2000)]
        self.nested: Any = []
        for _ in range(9):
            self.nested = [types.SimpleNamespace(inner=self.nested)]


def test_the_copy_that_pictures_are_read_from_shares_what_is_large() -> None:
    dataset = Shelf()
    copy = _copy_of(dataset)
    assert copy.pixels is dataset.pixels
    assert copy.names is dataset.names
    assert copy.n_read is not dataset.n_read
    assert copy.rng is not dataset.rng
    assert copy.nested[0] is not dataset.nested[0]


def finder_of(path: str, **of_rank: Any) -> LabelIssuesCallback:
    """As at the end of a fit of several ranks."""
    finder = LabelIssuesCallback(path, method="aum", progress=False)
    finder.set_params({})
    finder.share(types.SimpleNamespace(**of_rank))
    return finder


def test_ranks_hear_that_rank_0_found_nothing(path: str) -> None:
    sent: list[bytes] = []
    finder_of(path, rank=0, publish=sent.append).on_train_end()
    other = finder_of(path, rank=1, fetch=sent.pop)
    with pytest.warns(RuntimeWarning, match="rank 0 could not find them; see its own log"):
        other.on_train_end()
    assert other.issues is None


def test_what_rank_0_found_arrives_whole_or_is_said_not_to(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(Points(), [TrainingDynamicsCallback(path)])
    found = replace(find_label_issues(path, method="aum"), n_epochs=np.int64(4))
    module = "paddle_td_callback.paddle_fit.issues_callback"
    monkeypatch.setattr(f"{module}.find_label_issues", lambda *_, **__: found)
    sent: list[bytes] = []
    finder_of(path, rank=0, publish=sent.append).on_train_end()
    other = finder_of(path, rank=1, fetch=sent.pop)
    other.on_train_end()
    assert other.issues is not None
    assert other.issues.n_epochs == 4
    np.testing.assert_array_equal(other.issues.noise_score, found.noise_score)
    monkeypatch.setattr(f"{module}.find_label_issues", lambda *_, **__: replace(found, notes=(object(),)))
    with pytest.warns(
        RuntimeWarning,
        match="the other ranks did not get .*object cannot travel between ranks; call find_label",
    ):
        finder_of(path, rank=0, publish=sent.append).on_train_end()
