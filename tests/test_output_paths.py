"""Every file that is written: odd paths are refused at once by an error of ours, and nothing is left behind."""

from __future__ import annotations

import io
import os
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training import Points, Witness, model_of

from paddle_td_callback import (
    LabelIssuesCallback,
    NoiseDetector,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.export.cartography import import_cartography, write_cartography
from paddle_td_callback.export.fiftyone import write_fiftyone
from paddle_td_callback.export.import_arrays import import_npz
from paddle_td_callback.export.interpretdl_npz import import_interpretdl, write_interpretdl
from paddle_td_callback.export.label_studio import write_label_studio
from paddle_td_callback.export.marks import read_marks
from paddle_td_callback.store.verify import salvage, verify


def record(path: str) -> None:
    with TrainingDynamicsRecorder(path, n_samples=6, n_classes=3, sample_ids=list("abcdef")) as recorder:
        for epoch in range(3):
            logits = epoch * np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
            recorder.update(np.arange(6), logits, [0, 1, 2, 0, 2, 1])
            recorder.end_epoch()


def with_store(write: Callable[[TrainingDynamicsStore, Any], Any], run: str, out: Any) -> None:
    with TrainingDynamicsStore(run) as store:
        write(store, out)


def issues(run: str) -> Any:
    return find_label_issues(run, method="aum", progress=False)


OUTPUTS: dict[str, Callable[[str, Any], Any]] = {
    "csv": lambda run, out: issues(run).to_csv(out),
    "report": lambda run, out: issues(run).report(run, out),
    "interpretdl": lambda run, out: with_store(write_interpretdl, run, out),
    "cartography": lambda run, out: with_store(write_cartography, run, out),
    "fiftyone": lambda run, out: write_fiftyone(issues(run), out),
    "label studio": lambda run, out: write_label_studio(issues(run), out),
    "salvage": salvage,
    "detector": lambda _run, out: NoiseDetector.pretrained().save(out),
    "recording": lambda _run, out: TrainingDynamicsRecorder(out, n_samples=2, n_classes=2).close(),
    "resumed recording": lambda _run, out: TrainingDynamicsRecorder(
        out, n_samples=2, n_classes=2, resume=True
    ).close(),
}
ODD = ["fifo", "link to the fifo", "loop", "file/below", "new/", "file/", "x" * 300, "nul\0"]
STREAMED = ["csv", "report", "interpretdl", "fiftyone", "label studio"]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "odd", ODD, ids=["fifo", "link", "loop", "below-a-file", "new-slash", "slash", "long", "nul"]
)
def test_odd_paths_are_refused(name: str, odd: str, tmp_path: Path) -> None:
    run, place = str(tmp_path / "run.h5"), tmp_path / "here"
    record(run)
    place.mkdir()
    os.mkfifo(place / "fifo")
    os.symlink("fifo", place / "link to the fifo")
    os.symlink("loop", place / "loop")
    (place / "file").write_text("")
    before = sorted(place.iterdir())
    if (name, odd) == ("cartography", "new/"):
        return  # the one output that is a folder
    with pytest.raises((TrainingDynamicsError, ValueError)) as raised:
        OUTPUTS[name](run, os.path.join(place, odd))
    assert "give" in str(raised.value) or "create it first" in str(raised.value)
    assert str(raised.value).isprintable()
    assert sorted(place.iterdir()) == before
    assert (place / "file").read_text() == ""


INPUTS: dict[str, Callable[[Any], Any]] = {
    "recording to read": TrainingDynamicsStore,
    "recordings": lambda path: find_label_issues([path, path]),
    "verify": verify,
    "detector to read": NoiseDetector.load,
    "pdparams": NoiseDetector.load_interpretdl,
    "marks": lambda path: read_marks(path, issues("run.h5")),
    "npz": lambda path: import_npz(path, "out.h5"),
    "interpretdl to read": lambda path: import_interpretdl(path, "out.h5"),
    "cartography to read": lambda path: import_cartography(path, "out.h5"),
    "recording to rank": lambda path: LabelIssuesCallback(path),
    "csv to write": lambda path: LabelIssuesCallback("run.h5", csv=path),
    "report to write": lambda path: LabelIssuesCallback("run.h5", report=path),
    "recording to make": TrainingDynamicsCallback,
}


@pytest.mark.parametrize("name", [*OUTPUTS, *INPUTS])
def test_what_is_no_path_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record("run.h5")
    use = INPUTS.get(name, lambda path: OUTPUTS[name]("run.h5", path))
    for wrong in (True, 7, 2.5, io.StringIO(), ["a"]):
        with pytest.raises(TypeError, match=r"must be a path, got .*; give a string or a pathlib"):
            use(wrong)
    with pytest.raises(TrainingDynamicsError, match="holds a NUL, which no file name may; give another path"):
        use("a\0b")
    if name in INPUTS and "to write" not in name and "to make" not in name and "to rank" not in name:
        with pytest.raises((TrainingDynamicsError, FileNotFoundError), match=r"'missing.*give "):
            INPUTS[name]("missing")
    assert [one.name for one in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("name", STREAMED)
def test_a_pipe_with_a_reader_and_the_null_device_are_written(name: str, tmp_path: Path) -> None:
    run, fifo = str(tmp_path / "run.h5"), tmp_path / "fifo"
    record(run)
    OUTPUTS[name](run, tmp_path / "file")
    OUTPUTS[name](run, os.devnull)
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

        def read() -> bytes:
            select.select([reader], [], [])
            os.set_blocking(reader, True)
            with open(reader, "rb") as file:
                return file.read()

        found = pool.submit(read)
        OUTPUTS[name](run, fifo)
        assert len(found.result(30)) == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("name", OUTPUTS)
def test_paths_may_be_bytes(name: str, tmp_path: Path) -> None:
    run, out = str(tmp_path / "run.h5"), tmp_path / "out"
    record(run)
    OUTPUTS[name](run, os.fsencode(out))
    assert out.exists() or "recording" in name  # of which there is no file before its first epoch


@pytest.mark.parametrize("name", sorted(set(OUTPUTS) - {"cartography", "resumed recording"}))
@pytest.mark.parametrize("file", ["猫" * 85, "\x1b[2J", "\udc80"], ids=["longest", "escape", "surrogate"])
def test_odd_names_are_names(name: str, file: str, tmp_path: Path) -> None:
    """A name of 255 bytes leaves no room for a longer one beside it."""
    run, place = str(tmp_path / "run.h5"), tmp_path / "here"
    record(run)
    place.mkdir()
    OUTPUTS[name](run, os.path.join(place, file))
    assert {one.name for one in place.iterdir()} <= {file, f"{file}.xml"}


@pytest.mark.parametrize("output", ["csv", "report"])
def test_fit_never_waits_for_the_reader_of_a_pipe(output: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    recorder = TrainingDynamicsCallback(tmp_path / "run.h5")
    finder = LabelIssuesCallback(recorder, method="aum", **{output: tmp_path / "fifo"})
    with pytest.raises(StoreError, match="fifo' is a device or a pipe; give the path of a regular file"):
        model_of(Witness()).fit(Points(), epochs=1, batch_size=10, verbose=0, callbacks=[recorder, finder])
    assert sorted(os.listdir(tmp_path)) == ["fifo"]


def test_no_error_carries_an_escape_sequence_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(TrainingDynamicsError) as raised:
        TrainingDynamicsStore(tmp_path / "\x1b[2J\nforged line")
    assert "\\x1b[2J\\nforged line" in str(raised.value)
    assert str(raised.value).isprintable()
