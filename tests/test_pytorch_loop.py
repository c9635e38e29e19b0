"""The PyTorch loop of docs/own-loops.md, run as it stands where PyTorch is installed; Paddle need not be."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import paddle_td_callback

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.pytorch

PAGE = Path(__file__).parent.parent / "docs" / "own-loops.md"
DIGITS = Path(paddle_td_callback.__file__).parent / "data" / "digits.npz"


def test_the_loop_of_the_page_records_and_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with np.load(DIGITS, allow_pickle=False) as arrays:
        images = torch.tensor(arrays["images"].reshape(-1, 64) / 16, dtype=torch.float32)
        labels = arrays["labels"].astype(np.int64)
    is_changed = rng.random(len(labels)) < 0.2
    labels = np.where(is_changed, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    names = {"dataset": torch.utils.data.TensorDataset(images, torch.tensor(labels))}

    (snippet,) = re.findall(
        r"```python\n(# pytorch\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    exec(compile(snippet, PAGE.name, "exec"), names)  # the page is ours

    with h5py.File("torch.h5") as file:
        assert file.attrs["committed_epochs"] == 5
        assert (file["labels"][:] == labels).all()
        assert (file["n_presentations"][:] == 1).all()
        network = names["network"]
        last = torch.softmax(network(images), dim=1).detach().numpy()
        recorded = file["probabilities"][-1]
    # Recorded before each update of the last epoch, so near what the trained network says, and not for other samples.
    assert np.abs(recorded - last).mean() < 0.02
    assert np.abs(recorded - np.roll(last, 1, axis=0)).mean() > 0.05
    found = is_changed[names["issues"].ranking[:100]].mean()
    assert found > 0.8  # a fifth by chance
