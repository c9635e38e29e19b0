"""The demo, as the README promises it."""

import csv

import numpy as np
import pytest

from paddle_td_callback import LabelIssues, NoiseDetector
from paddle_td_callback.cli import main
from paddle_td_callback.demo import Digits, evaluate, run


def test_digits_have_a_fifth_of_their_labels_changed():
    digits = Digits()
    assert len(digits) == 1797
    assert digits.is_changed.sum() == 359
    assert ((digits.labels != digits.true_labels) == digits.is_changed).all()
    image, label = digits[0]
    assert image.shape == (64,)
    assert 0 <= image.min() < image.max() <= 1
    assert label == digits.labels[0]


def test_the_demo_finds_the_changed_labels(tmp_path, capsys):
    results = run(tmp_path, quiet=True)
    assert results["lstm"]["roc_auc"] >= 0.97
    assert results["aum"]["roc_auc"] >= 0.97
    out = capsys.readouterr().out
    assert "suggested" in out
    assert "average precision" in out
    with open(tmp_path / "issues.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    changed = Digits().is_changed
    assert np.mean([changed[int(row["sample"])] for row in rows[:100]]) > 0.95
    assert main(["info", str(tmp_path / "run.h5")]) == 0
    assert main(["detect", str(tmp_path / "run.h5"), "--quiet", "--csv", str(tmp_path / "again.csv")]) == 0
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "issues.csv").read_text()


def test_the_shipped_detector_has_not_seen_the_demos_data():
    seen = set(NoiseDetector.pretrained().provenance["trained on"])
    assert len(seen) > 5
    assert not seen & {"digits", "optdigits"}


def test_the_demo_overwrites_only_when_told(tmp_path, capsys):
    (tmp_path / "run.h5").write_text("precious")
    assert main(["demo", "--dir", str(tmp_path), "--quiet"]) == 0
    assert f"kept as '{tmp_path / 'run-1.h5'}'; --overwrite replaces it" in capsys.readouterr().out
    assert (tmp_path / "run-1.h5").read_text() == "precious"


def test_the_demo_raises_what_kept_its_label_issues_from_being_found(tmp_path, monkeypatch, capsys):
    def find(*_arguments, **_options):
        raise MemoryError("too little memory for label issues")

    for module in ("paddle_td_callback.demo", "paddle_td_callback.paddle_fit.issues_callback"):
        monkeypatch.setattr(f"{module}.find_label_issues", find)
    monkeypatch.setattr("paddle_td_callback.demo.N_EPOCHS", 1)
    with (
        pytest.warns(RuntimeWarning, match="too little memory"),
        pytest.raises(MemoryError, match="too little memory"),
    ):
        run(tmp_path, quiet=True)


def test_a_demo_that_is_not_quiet_prints_the_ranking_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paddle_td_callback.demo.N_EPOCHS", 2)
    run(tmp_path)
    out = capsys.readouterr().out
    assert out.count("labels look wrong") == 1
    assert "epoch 2/2" in out.lower()


@pytest.mark.parametrize(
    ("scores", "auc", "ap", "precision"),
    [
        ([0.9, 0.8, 0.1, 0.2], 1.0, 1.0, 1.0),
        ([0.1, 0.2, 0.9, 0.8], 0.0, (1 / 3 + 2 / 4) / 2, 0.0),
        ([0.9, 0.3, 0.5, 0.2], 0.75, (1 + 2 / 3) / 2, 0.5),
    ],
)
def test_metrics_by_hand(scores, auc, ap, precision):
    n = len(scores)
    zeros = np.zeros(n, np.int32)
    issues = LabelIssues("x", np.array(scores, np.float32), zeros, zeros, zeros.astype(np.float32), zeros)
    result = evaluate(issues, np.array([True, True, False, False]))
    assert result["roc_auc"] == pytest.approx(auc)
    assert result["average_precision"] == pytest.approx(ap)
    assert result["precision_at_noise_rate"] == pytest.approx(precision)
