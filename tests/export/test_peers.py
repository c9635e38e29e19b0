"""The peers' own code reads what we export; each test skips where its peer is not installed.

cartography is on no package index: `CARTOGRAPHY=folder of its checkout pytest tests/export/test_peers.py`.
"""

import argparse
import importlib.util
import json
import os
import sys
import types

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsStore, find_label_issues, scores
from paddle_td_callback.export.cartography import write_cartography
from paddle_td_callback.export.fiftyone import write_fiftyone
from paddle_td_callback.export.interpretdl_npz import import_interpretdl, write_interpretdl
from paddle_td_callback.export.label_studio import labeling_config, write_label_studio
from paddle_td_callback.export.thumbnails import png

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers, and of what they import


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.fixture
def recording(path):
    record(
        path, sample_ids=[f"c/{i}.png" for i in range(300)], class_names=["a", "b", "c", "d"], never_seen=0
    )
    with TrainingDynamicsStore(path) as store:
        yield store


@needs("cleanlab")
def test_cleanlab_finds_issues_in_our_probabilities(recording):
    from cleanlab.rank import get_label_quality_scores

    found = get_label_quality_scores(recording.labels, recording.pred_probs())
    ours = find_label_issues(recording, method="confidence", progress=False).label_quality
    assert np.corrcoef(found, ours)[0, 1] > 0.99


@needs("datasets")
@needs("cleanlab")
def test_datalab_reports_on_our_export(recording, capsys):
    pandas = pytest.importorskip("pandas")
    from cleanlab import Datalab

    issues = find_label_issues(recording, method="aum", progress=False)
    frame = pandas.DataFrame(issues.to_cleanlab())
    lab = Datalab(data=frame, label_name="given_label", task="classification")
    lab.find_issues(pred_probs=recording.pred_probs(), issue_types={"label": {}})
    lab.report()
    assert "label issues" in capsys.readouterr().out
    theirs = lab.get_issues("label")
    assert theirs["given_label"].tolist() == issues.given_label.tolist()
    both = theirs["is_label_issue"].to_numpy() & issues.is_label_issue
    assert both.sum() > 0.6 * theirs["is_label_issue"].sum()


@pytest.fixture
def interpretdl(monkeypatch):
    """InterpretDL 0.8.0 imports `paddle.fluid`, which Paddle has not had since 2.5, and uses nothing of it here."""
    paddle = pytest.importorskip("paddle")
    pytest.importorskip("interpretdl")
    if not hasattr(paddle, "fluid"):
        fluid = types.ModuleType("paddle.fluid")
        monkeypatch.setitem(sys.modules, "paddle.fluid", fluid)
        monkeypatch.setattr(paddle, "fluid", fluid, raising=False)
    return importlib.import_module("interpretdl.interpreter.training_dynamics")


def test_interpretdl_ranks_our_npz_as_we_do(interpretdl, recording, tmp_path, monkeypatch):
    import paddle

    from paddle_td_callback import NoiseDetector

    monkeypatch.chdir(tmp_path)
    theirs = interpretdl.LSTM()
    paddle.save(theirs.state_dict(), "weights.pdparams")
    write_interpretdl(recording, "td.npz")
    _, found = interpretdl.BHDFInterpreter(theirs, device="cpu").interpret(training_dynamics_path="td.npz")
    ours = find_label_issues(
        recording, detector=NoiseDetector.load_interpretdl("weights.pdparams"), device="cpu", progress=False
    )
    np.testing.assert_allclose(np.asarray(found), ours.noise_score, atol=2e-4)  # float16 went in
    top = set(np.argsort(-np.asarray(found))[:30].tolist())
    assert len(top & set(ours.ranking[:30].tolist())) >= 29


def test_we_read_what_interpretdl_saves(interpretdl, tmp_path):
    rng = np.random.default_rng(0)
    dynamics = {i: list(rng.dirichlet(np.ones(3), 4)) for i in range(20)}
    labels = rng.integers(0, 3, 20)
    # Its constructor wants a network, which saving does not use.
    tool = interpretdl.TrainingDynamics.__new__(interpretdl.TrainingDynamics)
    tool.save(
        {i: list(rows) for i, rows in dynamics.items()}, labels, label_flip=None, save_path=str(tmp_path)
    )
    import_interpretdl(tmp_path / "training_dynamics.npz", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as store:
        np.testing.assert_array_equal(store.labels, labels)
        np.testing.assert_allclose(store.probabilities(), [dynamics[i] for i in range(20)], atol=1e-3)


@pytest.mark.skipif(
    "CARTOGRAPHY" not in os.environ, reason="CARTOGRAPHY names no checkout of allenai/cartography"
)
def test_cartography_computes_our_scores_from_our_files_and_filters_by_them(path, tmp_path, monkeypatch):
    for module in ("torch", "pandas", "seaborn"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(os.environ["CARTOGRAPHY"])
    from cartography.selection.selection_utils import read_training_dynamics
    from cartography.selection.train_dy_filtering import compute_train_dy_metrics, write_filtered_data

    record(path, never_seen=0, missing=0)
    with TrainingDynamicsStore(path) as store:
        write_cartography(store, tmp_path / "training_dynamics")
        given = store.given_probabilities()
    dynamics = read_training_dynamics(str(tmp_path))
    found, _ = compute_train_dy_metrics(dynamics, argparse.Namespace(include_ci=False, burn_out=100))
    for name in ("confidence", "variability"):
        np.testing.assert_allclose(found[name], getattr(scores, name)(given), atol=1e-3)
    # Its filtering picks by these metrics out of a tab-separated file with the guids.
    data, out = tmp_path / "data" / "WINOGRANDE", tmp_path / "out"
    data.mkdir(parents=True)
    out.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.tsv").write_text("index\tlabel\n" + "".join(f"{guid}\tx\n" for guid in dynamics))
    options = argparse.Namespace(
        metric="confidence",
        worst=False,
        both_ends=False,
        task_name="WINOGRANDE",
        data_dir=str(tmp_path / "data"),
        filtering_output_dir=str(out),
    )
    write_filtered_data(options, found)
    lines = (out / "cartography_confidence_0.05" / "WINOGRANDE" / "train.tsv").read_text().splitlines()[1:]
    picked = {int(line.split("\t")[0]) for line in lines}
    assert picked == set(np.argsort(scores.confidence(given))[: len(picked)].tolist())


@needs("label_studio_sdk")
def test_label_studio_accepts_our_tasks(recording, tmp_path):
    from label_studio_sdk.label_interface import LabelInterface

    issues = find_label_issues(recording, method="aum", progress=False)
    for kind, options in (("image", {}), ("text", {"texts": [f"<text> {i}" for i in range(300)]})):
        write_label_studio(issues, tmp_path / "tasks.json", **options)
        interface = LabelInterface(labeling_config(issues, kind=kind))
        interface.validate()
        tasks = json.loads((tmp_path / "tasks.json").read_text())
        assert tasks
        for task in tasks:
            assert interface.validate_task(
                {"data": task["data"]}
            )  # 2.1.2 fails on predictions in it, a defect there
            for prediction in task["predictions"]:
                assert interface.validate_prediction(prediction)


@needs("fiftyone")
def test_fiftyone_imports_our_labels(recording, tmp_path):
    import fiftyone as fo

    (tmp_path / "pictures" / "c").mkdir(parents=True)
    picture = png(np.zeros((4, 4), np.uint8))
    for i in range(300):
        (tmp_path / "pictures" / "c" / f"{i}.png").write_bytes(picture)
    issues = find_label_issues(recording, method="aum", progress=False)
    write_fiftyone(issues, tmp_path / "labels.json")
    importer = fo.utils.data.FiftyOneImageClassificationDatasetImporter(
        data_path=str(tmp_path / "pictures"),
        labels_path=str(tmp_path / "labels.json"),
    )
    with importer:
        found = {path: label for path, _, label in importer}
    assert len(found) == 300
    for path, label in found.items():
        sample = int(os.path.basename(path).removesuffix(".png"))
        assert label.label == issues.label_name(int(issues.given_label[sample]))
        assert label["sample"] == sample
        assert label["noise_score"] == pytest.approx(issues.noise_score[sample], abs=1e-6)
        assert label.confidence == pytest.approx(issues.label_quality[sample], abs=1e-6)
