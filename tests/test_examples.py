"""The examples run, in short, in a folder of their own, and leave what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddle_td_callback.export.thumbnails import png

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "options", "modules"),
    [
        ("images_in_folders.py", ("pictures", "--epochs", "2", "--size", "16"), ("paddle", "PIL")),
        ("texts.py", ("--epochs", "3"), ("paddle",)),
        pytest.param("pytorch_loop.py", ("--epochs", "2"), ("torch",), marks=pytest.mark.pytorch),
    ],
)
def test_example_runs_twice(tmp_path, name, options, modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    for i in range(24):
        picture = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png(np.full((9, 9, 3), 120 * (i % 2) + i, np.uint8)))
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.endswith("report: report.html\n")
        assert (tmp_path / "report.html").stat().st_size > 50_000


def test_notebook_from_training_to_retraining(tmp_path, monkeypatch):
    pytest.importorskip("paddle")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "from_training_to_retraining.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)  # the notebook is ours
    accuracy = names["accuracy"]
    assert accuracy["reviewed"] > accuracy["as given"]
    assert (tmp_path / "report.html").exists()


def test_every_example_is_tried():
    tried = {"images_in_folders.py", "texts.py", "pytorch_loop.py"}
    assert {one.name for one in EXAMPLES.glob("*.py")} == tried
