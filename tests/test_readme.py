"""The README against the code: its snippets run, its tables are those of the code."""

import inspect
import re
from pathlib import Path

import h5py
import numpy as np
import paddle
import pytest

import paddle_td_callback
from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsRecorder
from paddle_td_callback.cli import _parser
from paddle_td_callback.demo import Digits
from paddle_td_callback.detection.find_issues import METHODS
from paddle_td_callback.store.schema import ALL_FIELDS, EPOCH_FIELDS, LABELS, TOP_FIELDS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def table_after(heading):
    """Rows of the first table behind a line, as lists of cells, code marks taken off."""
    lines = README[README.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


@pytest.fixture(scope="module")
def training():
    """What a reader has before the first snippet: a prepared model and data."""
    digits = Digits()
    network = paddle.nn.Sequential(paddle.nn.Linear(64, 32), paddle.nn.ReLU(), paddle.nn.Linear(32, 10))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    loader = [
        (rows, paddle.to_tensor(digits.images[rows]), paddle.to_tensor(digits.labels[rows]))
        for rows in np.array_split(np.arange(len(digits)), 20)
    ]
    return {
        "model": model,
        "train_data": digits,
        "dataset": digits,
        "network": network,
        "loader": loader,
        "epochs": 2,
        "is_mislabeled": digits.is_changed,
    }


def test_snippets_run_in_order_as_written(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 4
    for snippet in snippets:
        if "TrainingDynamicsRecorder(" in snippet:
            Path("run.h5").unlink()
        exec(compile(snippet, "README.md", "exec"), training)  # the README is ours
    assert len(training["suspects"]) == 100
    assert len(training["frame"]) == len(training["dataset"])


def test_the_schema_is_as_documented():
    wanted = [[LABELS.name, "[sample]", LABELS.dtype, LABELS.meaning]]
    for field in (*EPOCH_FIELDS, *ALL_FIELDS, *TOP_FIELDS):
        axes = "[epoch, sample" + (f", {field.last_axis}]" if field.last_axis else "]")
        wanted.append([field.name, axes, field.dtype, field.meaning])
    assert [row[:4] for row in table_after("## The file")][: len(wanted)] == wanted


def test_the_attributes_are_as_documented(tmp_path):
    with TrainingDynamicsRecorder(tmp_path / "run.h5", n_samples=2, n_classes=2) as recorder:
        recorder.update([0, 1], np.eye(2, dtype=np.float32), [0, 1])
        recorder.end_epoch()
    with h5py.File(tmp_path / "run.h5") as file:
        assert sorted(row[0] for row in table_after("Attributes of the file")) == sorted(file.attrs)


def test_every_public_name_method_command_and_argument_is_mentioned():
    names = [name for name in paddle_td_callback.__all__ if not name.endswith(("Error", "__"))]
    names += METHODS
    names += _parser()._subparsers._group_actions[0].choices
    names += [f"{name}=" for name in inspect.signature(TrainingDynamicsCallback).parameters if name != "path"]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}", README)]
    assert not missing


def test_the_install_commands_are_the_two_that_ci_runs():
    commands = [line for line in README.splitlines() if line.startswith("pip install") and "&&" in line]
    assert commands == ['pip install -e ".[cpu]" && paddle-td demo', 'pip install -e ".[cpu,test]" && pytest']
    assert "slow" in README
