"""Messages that users meet seldom: each is raised by what a user can do, and names the way out."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.noisy_recording import record

import paddle_td_callback
from paddle_td_callback import (
    NoiseDetector,
    StoreError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.errors import DetectorError
from paddle_td_callback.export.cartography import import_cartography
from paddle_td_callback.export.import_arrays import import_arrays, import_npz
from paddle_td_callback.export.interpretdl_npz import import_interpretdl, write_interpretdl
from paddle_td_callback.export.label_studio import write_label_studio
from paddle_td_callback.export.tables import write_parquet
from paddle_td_callback.export.thumbnails import of_file
from paddle_td_callback.export.trackers import log_issues
from paddle_td_callback.messages import standard_output
from paddle_td_callback.store.verify import salvage

SHIPPED = Path(paddle_td_callback.__file__).parent / "data" / "noise_detector.weights"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    record(tmp_path / "run.h5")
    return tmp_path / "run.h5"


def says(error: type[Exception], parts: list[str], call: Callable[[], Any]) -> None:
    with pytest.raises(error) as raised:
        call()
    missing = [part for part in parts if part not in str(raised.value)]
    assert not missing, f"{raised.value} lacks {missing}"


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """As if a module were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


def fails_to_open(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if the disk failed where one file is opened."""
    opened = open

    def failing(path: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and os.path.basename(path) == name:
            raise OSError(5, "Input/output error")
        return opened(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", failing)
    monkeypatch.setattr("io.open", failing)


def test_libraries_that_are_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issues = find_label_issues(run, method="aum", progress=False)
    without(monkeypatch, "pyarrow")
    says(
        ImportError,
        ["Parquet", "pip install pyarrow"],
        lambda: write_parquet(issues, run.with_name("a.parquet")),
    )
    without(monkeypatch, "matplotlib.figure")
    says(ImportError, ["plot()", "pip install matplotlib"], lambda: issues.plot(run))
    assert not run.with_name("a.parquet").exists()


def test_a_picture_too_large_to_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "PIL")
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1_000_000))
    says(ValueError, ["large.png", "too large", "install pillow"], lambda: of_file(str(path)))
    path.write_bytes(b"no picture")
    says(ValueError, ["no PNG", "give a picture"], lambda: of_file(str(path)))


def test_detector_files_that_the_disk_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = NoiseDetector.load(SHIPPED)
    detector.save(tmp_path / "a.weights")
    fails_to_open(monkeypatch, "a.weights")
    says(DetectorError, ["a.weights", "cannot be read"], lambda: NoiseDetector.load(tmp_path / "a.weights"))
    says(DetectorError, ["a.weights", "another path"], lambda: detector.save(tmp_path / "a.weights"))


def test_weights_of_interpretdl_that_the_disk_does_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pdparams"
    path.write_bytes(b"\x80\x04.")
    fails_to_open(monkeypatch, "a.pdparams")
    says(
        DetectorError,
        ["a.pdparams", "cannot be read", "give"],
        lambda: NoiseDetector.load_interpretdl(path),
    )


def weights(**changes: Any) -> dict[Any, Any]:
    """What a one-layer LSTM of InterpretDL saves."""
    rng = np.random.default_rng(0)
    shapes = {
        "lstm.weight_ih_l0": (16, 1),
        "lstm.weight_hh_l0": (16, 4),
        "lstm.bias_ih_l0": (16,),
        "lstm.bias_hh_l0": (16,),
        "fc.weight": (4, 2),
        "fc.bias": (2,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({7: np.zeros(2, np.float32)}, ["key", "int", "wanted a string"]),
        ({"a": np.zeros((2, 2), ">f4")}, []),
        ({"a": [np.zeros(3, np.float32)] * 2}, []),
        ({"a": np.array([None])}, []),
        ({}, []),
        ([1, 2], []),
        ("text", []),
    ],
)
def test_pickles_that_hold_no_lstm(tmp_path: Path, content: Any, parts: list[str]) -> None:
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=4))
    says(
        DetectorError,
        ["a.pdparams", "InterpretDL serves", *parts],
        lambda: NoiseDetector.load_interpretdl(path),
    )


def test_tables_of_another_number_of_recordings() -> None:
    detector = NoiseDetector.load(SHIPPED)
    trajectories = np.zeros((4, 3, 3), np.float32)
    says(
        ValueError,
        ["2 recordings", "0 tables", "dataset_features", "give one for each"],
        lambda: detector.fit([trajectories] * 2, [np.zeros(4, bool)] * 2, dataset_features=[]),
    )


def test_runs_that_differ(run: Path) -> None:
    named, numbered = run.with_name("named.h5"), run.with_name("numbered.h5")
    record(named, class_names=["cat", "dog", "owl", "fox"])
    record(numbered, sample_ids=[f"no {i}" for i in range(300)])
    says(
        ValueError,
        ["named.h5", "other class names", "give runs"],
        lambda: find_label_issues([run, named], method="aum", progress=False),
    )
    says(
        ValueError,
        ["numbered.h5", "other sample ids", "give runs"],
        lambda: find_label_issues([run, numbered], method="aum", progress=False),
    )


@pytest.mark.parametrize(
    ("second", "parts"),
    [
        ([("a", [0.1, 0.2], 0), ("a", [0.1, 0.2], 0)], ["line 2", "'a' comes twice"]),
        ([("z", [0.1, 0.2], 0)], ["'z'", "not in the first epoch", "one training"]),
        ([("a", [0.1, 0.2], 1)], ["'a'", "another label", "one training"]),
        ([("a", [0.1, 0.2, 0.3], 0)], ["3 logits", "has 2", "one logit for each class"]),
    ],
)
def test_lines_of_cartography_that_do_not_fit(tmp_path: Path, second: Any, parts: list[str]) -> None:
    for number, lines in enumerate([[("a", [0.1, 0.2], 0), ("b", [0.2, 0.1], 1)], second]):
        text = "".join(
            json.dumps({"guid": guid, f"logits_epoch_{number}": logits, "gold": gold}) + "\n"
            for guid, logits, gold in lines
        )
        (tmp_path / f"dynamics_epoch_{number}.jsonl").write_text(text)
    says(
        ValueError,
        ["dynamics_epoch_1.jsonl", *parts],
        lambda: import_cartography(tmp_path, tmp_path / "run.h5"),
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}  # no half of a recording


def test_an_import_that_fails_keeps_the_recording_that_it_would_replace(run: Path) -> None:
    before = run.read_bytes()
    epochs = [SOME, SOME[:, :1]]
    with pytest.raises(ValueError, match="sample 0: its values"):
        import_arrays(run, epochs, np.array([0, 1, 0, 1]), overwrite=True)
    assert run.read_bytes() == before
    assert [path.name for path in run.parent.iterdir()] == ["run.h5"]


def test_an_import_does_not_replace_what_is_being_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with TrainingDynamicsRecorder(path, n_samples=4, n_classes=2) as recorder:
        recorder.update([0, 1, 2, 3], SOME, [0, 1, 0, 1])
        recorder.end_epoch()
        with pytest.raises(StoreError, match="record"):
            import_arrays(path, [SOME], np.array([0, 1, 0, 1]), overwrite=True)


def test_a_guid_that_comes_twice(tmp_path: Path) -> None:
    line = json.dumps({"guid": "a", "logits_epoch_0": [0.1, 0.2], "gold": 0}) + "\n"
    (tmp_path / "dynamics_epoch_0.jsonl").write_text(line * 2)
    says(ValueError, ["'a' comes twice"], lambda: import_cartography(tmp_path, tmp_path / "run.h5"))


SOME = np.full((4, 2), 0.5, np.float32)


@pytest.mark.parametrize(
    ("epochs", "error", "parts"),
    [
        ([], ValueError, ["no epochs", "at least one"]),
        ([(np.array([0.0, 1.0]), SOME[:2])], TypeError, ["indices must be integers", "float64"]),
        ([(np.arange(2), SOME[:2].astype(int))], TypeError, ["floating point", "int64"]),
        ([(np.array([0, 9]), SOME[:2])], ValueError, ["[0, 4)", "0 to 9"]),
    ],
)
def test_arrays_that_are_no_epochs(
    tmp_path: Path, epochs: Any, error: type[Exception], parts: list[str]
) -> None:
    says(error, parts, lambda: import_arrays(tmp_path / "run.h5", epochs, np.array([0, 1, 0, 1])))
    assert not (tmp_path / "run.h5").exists()


def test_names_that_are_no_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path, probabilities=np.full((2, 4, 2), 0.5, np.float32), labels=[0, 1, 0, 1], class_names=[1.0, 2]
    )
    says(
        ValueError,
        ["class_names", "array of strings or integers", "float64", "save it as one"],
        lambda: import_npz(path, tmp_path / "run.h5"),
    )


def test_names_that_are_objects_are_not_left_out_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"probabilities": np.full((2, 4, 2), 0.5, np.float32), "labels": np.array([0, 1, 0, 1])}
    np.savez(path, class_names=np.array(["a", "b"], object), **arrays)
    says(
        ValueError,
        ["class_names is an array of objects", "numpy.array(class_names, str)"],
        lambda: import_npz(path, tmp_path / "run.h5"),
    )
    np.savez(path, class_names=np.array(["a", "b"]), sample_ids=np.array([7, 8, 9, 10]), **arrays)
    import_npz(path, tmp_path / "run.h5")
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        assert (store.class_names, store.sample_ids) == (["a", "b"], ["7", "8", "9", "10"])


def test_interpretdl_arrays_that_do_not_fit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.with_name("a.npz")
    order = np.tile(np.arange(2, dtype=np.int16), (4, 1))
    np.savez(path, td=np.zeros((4, 3, 2), np.int32), labels=order)
    says(
        ValueError,
        ["a.npz", "floating point", "int32"],
        lambda: import_interpretdl(path, run.with_name("b.h5")),
    )
    with TrainingDynamicsStore(run) as store:
        says(
            ValueError,
            ["label_flip", "each of 300", "(2,)"],
            lambda: write_interpretdl(store, path, label_flip=np.zeros(2, bool)),
        )
        monkeypatch.setattr("paddle_td_callback.export.interpretdl_npz.MAX_CLASSES", 3)
        says(ValueError, ["4 classes", "int16", "another format"], lambda: write_interpretdl(store, path))


def test_what_is_exported_must_fit(run: Path) -> None:
    issues = find_label_issues(run, method="aum", progress=False)
    says(
        ValueError,
        ["1 texts", "300 samples", "one for each"],
        lambda: write_label_studio(issues, run.with_name("tasks.json"), texts=["a"]),
    )
    says(TypeError, ["LogWriter", "wandb", "got a list"], lambda: log_issues(issues, run, []))


def test_standard_output_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)

        def write() -> None:
            with standard_output() as file:
                file.write("text")

        says(OSError, ["standard output cannot be written", "give it room"], write)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left goes somewhere


def test_an_empty_path(run: Path) -> None:
    issues = find_label_issues(run, method="aum", progress=False)
    says(
        StoreError,
        ["path is empty", "give the path"],
        lambda: write_label_studio(issues, "", paths=["a"] * 300),
    )


def test_a_folder_that_takes_no_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: Any, **_named: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paddle_td_callback.store.writer.make_beside", failing)
    new = run.with_name("new.h5")
    says(
        StoreError,
        ["new.h5", "cannot be created", "No space left", "another path"],
        lambda: TrainingDynamicsRecorder(new, n_samples=4, n_classes=2),
    )
    says(StoreError, ["new.h5", "cannot be", "another path"], lambda: salvage(run, new))
    assert not new.exists()
