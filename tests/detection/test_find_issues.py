"""find_label_issues: what it says of a recording, whatever is missing in it, and what it refuses."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recordings import make_epoch, make_labels

from paddle_td_callback import (
    StoreError,
    StoreNotFoundError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    detector_features,
    detector_input,
    find_label_issues,
)
from paddle_td_callback.detection.find_issues import METHODS
from paddle_td_callback.detection.scores import NOISE_SCORES
from paddle_td_callback.detection.suggestions import suggest_labels
from paddle_td_callback.detection.tile_reader import TileReader
from paddle_td_callback.store import StoreWriter, schema

N_SAMPLES, N_CLASSES, N_EPOCHS = 57, 4, 5
HAND_MADE = tuple(NOISE_SCORES)


def record(
    path: Any,
    logits: Any,
    labels: Any,
    seen: Any = None,
    *,
    n_classes: int | None = None,
    **options: Any,
) -> Path:
    """A recording of `logits` `[sample, epoch, class]` where `seen` `[sample, epoch]`."""
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels)
    n_samples, n_epochs, width = logits.shape
    seen = np.ones((n_samples, n_epochs), bool) if seen is None else np.asarray(seen, bool)
    options = {"dtype": "float32", **options}
    with TrainingDynamicsRecorder(
        path, n_samples=n_samples, n_classes=n_classes or width, **options
    ) as recorder:
        for epoch in range(n_epochs):
            rows = np.flatnonzero(seen[:, epoch])
            recorder.update(rows, logits[rows, epoch], labels[rows])
            recorder.end_epoch()
    return Path(path)


@pytest.fixture
def trajectories() -> dict[str, Any]:
    """Samples that are learned or not, 15 percent of the entries and samples 3 and 40 never seen."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, N_CLASSES, N_SAMPLES)
    wrong = rng.random(N_SAMPLES) < 0.3
    favoured = np.where(wrong, (labels + 1) % N_CLASSES, labels)
    logits = rng.normal(0, 1, (N_SAMPLES, N_EPOCHS, N_CLASSES))
    logits[np.arange(N_SAMPLES), :, favoured] += np.linspace(0.5, 4, N_EPOCHS)
    seen = rng.random((N_SAMPLES, N_EPOCHS)) < 0.85
    seen[[3, 40]] = False
    return {"logits": logits, "labels": labels, "seen": seen}


@pytest.fixture(scope="module")
def detector() -> Any:
    """Fitted on made-up trajectories of samples that are learned or not."""
    detector_module = pytest.importorskip("paddle_td_callback.detection.lstm.detector")
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 0.3
    given = np.clip(np.where(wrong, 0.1, 0.8)[:, np.newaxis] + rng.normal(0, 0.1, (300, 6)), 0, 1)
    raw = np.stack([given, 1 - given, given > 0.5], axis=-1).astype(np.float32)
    detector = detector_module.NoiseDetector(n_steps=4, hidden_size=4, n_layers=1)
    return detector.fit(raw, wrong, epochs=20, batch_size=32, learning_rate=0.02, seed=1)


def find(source: Any, **options: Any) -> Any:
    return find_label_issues(source, progress=False, **options)


# ---------------------------------------------------------------------------------------------------------------
# Scores and ranking.


def test_a_ranking_by_hand(path: str) -> None:
    # Margins of the given label: sample 0: 2, 4; 1: -3, -1; 2: never seen; 3: 1, unseen; AUM 3, -2, none, 1.
    logits = np.zeros((4, 2, 3))
    logits[0, :, 0] = 2, 4
    logits[1, :, 2] = 3, 1
    logits[3, 0, 1] = 1
    record(path, logits, [0, 1, 2, 1], [[1, 1], [1, 1], [0, 0], [1, 0]], class_names=["ant", "bee", "cat"])
    issues = find(path, method="aum")
    assert issues.ranking.tolist() == [1, 3, 0]
    assert issues.unscored.tolist() == [2]
    assert issues.is_label_issue.tolist() == [False, True, False, False]
    assert issues.given_label.tolist() == [0, 1, -1, 1]
    assert issues.suggested_label[1] == 2
    assert issues.suggested_label[2] == -1
    assert issues.n_epochs_seen.tolist() == [2, 2, 0, 1]
    assert np.isnan(issues.noise_score[2])
    assert np.isnan(issues.label_quality[2])
    assert issues.suggested_confidence[2] == 0
    text = repr(issues).splitlines()
    assert (
        text[0]
        == "LabelIssues by aum: 1 of 4 labels look wrong; 1 samples were never seen and are not scored"
    )
    assert text[1].startswith("a label looks wrong where its mean margin is below 0")
    assert text[2] == "rests on 2 epochs"
    assert text[4].split()[:4] == ["1", "1", "bee", "cat"]
    assert len(text) == 7


@pytest.mark.parametrize("method", HAND_MADE)
def test_every_method_is_its_score_of_the_whole_recording(method: str, trajectories: Any, path: str) -> None:
    record(path, **trajectories)
    issues = find(path, method=method)
    with TrainingDynamicsStore(path) as whole:
        needs = {
            name: whole.labels if name == "labels" else getattr(whole, name)()
            for name in NOISE_SCORES[method].needs
        }
    want = NOISE_SCORES[method].compute(**needs)
    never = [3, 40]
    seen = np.setdiff1d(np.arange(N_SAMPLES), never)
    np.testing.assert_array_equal(issues.noise_score[seen], want[seen])
    assert issues.unscored.tolist() == never
    assert sorted(issues.ranking) == seen.tolist()
    assert (np.diff(issues.noise_score[issues.ranking]) <= 0).all()
    assert ((issues.noise_score[seen] >= 0) & (issues.noise_score[seen] <= 1)).all()
    assert issues.n_epochs_seen.tolist() == trajectories["seen"].sum(axis=1).tolist()


def test_the_detector_sees_what_was_recorded(trajectories: Any, detector: Any, path: str) -> None:
    record(path, **trajectories)
    issues = find(path, detector=detector)
    assert issues.method == "lstm"
    assert issues.unscored.tolist() == [3, 40]
    wrong = (
        np.median(trajectories["logits"].argmax(axis=2) != trajectories["labels"][:, np.newaxis], axis=1)
        > 0.5
    )
    seen = trajectories["seen"].any(axis=1)
    assert issues.noise_score[wrong & seen].mean() > issues.noise_score[~wrong & seen].mean() + 0.2
    assert issues.noise_rate == pytest.approx(np.nanmean(issues.noise_score))
    assert issues.noise_rate_interval is None  # this detector was not measured on other data


def test_the_interval_of_the_noise_rate_is_as_wide_as_the_detector_is_unsure(
    trajectories: Any, path: str
) -> None:
    record(path, **trajectories)
    detector = pytest.importorskip("paddle_td_callback.detection.lstm.detector").NoiseDetector.pretrained()
    by_uncertainty = detector.provenance["noise_rate_error_by_uncertainty"]
    sure, unsure = (find(path, detector=detector) for detector.temperature in (0.05, 5.0))
    for issues in (sure, unsure):
        p = issues.noise_score[~np.isnan(issues.noise_score)]
        error = by_uncertainty * (np.minimum(p, 1 - p).mean() + 0.005)
        low, high = issues.noise_rate_interval
        assert low == pytest.approx(max(0, p.mean() - error))
        assert high == pytest.approx(min(1, p.mean() + error))
    assert np.subtract(*sure.noise_rate_interval) > np.subtract(*unsure.noise_rate_interval)


# ---------------------------------------------------------------------------------------------------------------
# Suggested labels against a naive loop.


def naive_suggestion(probabilities: Any, label: int, keep: Any) -> tuple[int, float]:
    """Of one sample's `probabilities` `[epoch, class]`, unseen epochs left out."""
    sums = [0.0] * probabilities.shape[1]
    whole = 0.0
    for p in probabilities:
        whole += sum(value for c, value in enumerate(p) if c != label)
        kept = range(len(p))
        if keep == "given":
            kept = [int(np.argmax(p))]
        elif keep != "all":
            kept = sorted(kept, key=lambda c: -p[c])[:keep]
        for c in kept:
            if c != label:
                sums[c] += p[c]
    best = max(range(len(sums)), key=lambda c: sums[c])
    return (best, sums[best] / whole) if sums[best] > 0 else (-1, 0.0)


@pytest.mark.parametrize("keep", ["all", 1, 2, 3, 4, "given"])
def test_suggestions_agree_with_a_naive_loop(keep: Any, trajectories: Any, path: str) -> None:
    record(path, **trajectories, keep=keep)
    issues = find(path, method="aum")
    logits, labels, seen = (trajectories[name] for name in ("logits", "labels", "seen"))
    powers = np.exp(logits.astype(np.float32).astype(np.float64))
    probabilities = powers / powers.sum(axis=2, keepdims=True)
    for sample in range(N_SAMPLES):
        want = naive_suggestion(probabilities[sample][seen[sample]], labels[sample], keep)
        assert issues.suggested_label[sample] == want[0], sample
        np.testing.assert_allclose(
            issues.suggested_confidence[sample], want[1], rtol=1e-4, err_msg=str(sample)
        )


def test_nothing_to_suggest_where_only_the_given_label_is_known(path: str) -> None:
    logits = np.zeros((2, 2, 3))
    logits[0, :, 1] = logits[1, :, 2] = 9
    record(path, logits, [1, 2], keep="given")
    issues = find(path, method="aum")
    assert issues.suggested_label.tolist() == [-1, -1]
    assert issues.suggested_confidence.tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------------------
# Tile by tile.


@pytest.mark.parametrize("keep", ["all", 2, "given"])
@pytest.mark.parametrize("chunk_rows", [1, 7, 19, N_SAMPLES])
def test_tiles_of_any_size_give_the_same(
    keep: Any, chunk_rows: int, trajectories: Any, detector: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record(path, **trajectories, keep=keep)
    monkeypatch.setattr(schema, "_CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(schema, "_CHUNK_BYTES", chunk_rows * 10)
    tiled = record(f"{path}.tiled", **trajectories, keep=keep)
    monkeypatch.undo()
    methods = [method for method in METHODS if keep == "all" or method != "el2n"]
    options = {method: {"detector": detector} if method == "lstm" else {} for method in methods}
    want = {method: find(whole, method=method, **options[method]) for method in methods}

    monkeypatch.setattr(schema, "_CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(schema, "_CHUNK_BYTES", chunk_rows * 10)
    original = TrainingDynamicsStore.tiles
    n_tiles: list[int] = []

    def small(self: Any, max_bytes: int = 1, *, wide: bool = False) -> Any:
        tiles = list(original(self, 1, wide=wide))
        n_tiles.append(len(tiles))
        return iter(tiles)

    monkeypatch.setattr(TrainingDynamicsStore, "tiles", small)
    for method in methods:
        got = find(tiled, method=method, **options[method])
        close = np.testing.assert_allclose if method == "lstm" else np.testing.assert_array_equal
        close(got.noise_score, want[method].noise_score, **({"atol": 1e-6} if method == "lstm" else {}))
        for name in ("given_label", "suggested_label", "n_epochs_seen"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want[method], name))
        np.testing.assert_allclose(got.suggested_confidence, want[method].suggested_confidence, rtol=1e-6)
    assert max(n_tiles) >= -(-N_SAMPLES // chunk_rows)


def test_suggestions_of_no_samples(trajectories: Any, path: str) -> None:
    for keep in ("all", 2, "given"):
        with TrainingDynamicsStore(record(path, **trajectories, keep=keep, overwrite=True)) as recording:
            labels, confidence = suggest_labels(TileReader(recording, slice(5, 5)))
            assert labels.shape == confidence.shape == (0,)


# ---------------------------------------------------------------------------------------------------------------
# Recordings with little in them.


def test_one_epoch_works_and_is_said_to_be_none_to_rely_on(
    trajectories: Any, detector: Any, path: str
) -> None:
    one = {name: trajectories[name][:, :1] for name in ("logits", "seen")}
    record(path, **one, labels=trajectories["labels"])
    for options in ({"method": "aum"}, {"method": "forgetting_events"}, {"detector": detector}):
        with pytest.warns(RuntimeWarning, match=r"run\.h5' holds one epoch: .*record more epochs") as said:
            issues = find(path, **options)
        assert said[0].filename == __file__
        assert np.isfinite(issues.noise_score[one["seen"][:, 0]]).all()


def test_no_epoch(path: str) -> None:
    with TrainingDynamicsRecorder(path, n_samples=3, n_classes=2):
        for method in METHODS:
            with pytest.raises(StoreError, match=r"run\.h5' holds no committed epoch yet; .*try again then"):
                find(path, method=method)

        with TrainingDynamicsStore(path) as store:
            for of_detector in (detector_features, detector_input):
                with pytest.raises(StoreError, match=r"run\.h5' holds no committed epoch yet"):
                    of_detector(store)


def test_values_that_no_training_makes_are_said_to_be_damage(path: str) -> None:
    layout = schema.Layout(30, 3)
    labels = make_labels(layout)
    epoch = make_epoch(layout, labels, 0, missing=0)
    epoch["given_probability"][7] = 1.5
    writer = StoreWriter.create(path, layout)
    for index in range(2):
        writer.commit_epoch(index, epoch, labels)
    writer.close()
    with pytest.raises(
        StoreError, match=r"run\.h5', samples from 0: .*got 1\.5 .*is damaged, see `paddle-td verify`"
    ):
        find(path, method="confidence")


def test_two_stages_that_read_no_features_are_two_stages(detector: Any, trajectories: Any, path: str) -> None:
    from paddle_td_callback import NoiseDetector

    record(path, **trajectories)
    two = NoiseDetector(n_steps=4, hidden_size=4, n_layers=1, first_stage=detector)
    with TrainingDynamicsStore(path) as store:
        raw = detector_input(store)
    known = np.flatnonzero(~np.isnan(raw).all(axis=(1, 2)))
    two.fit(raw[known], np.arange(len(known)) % 2 == 0, epochs=1, seed=0)
    np.testing.assert_allclose(
        find(path, detector=two, device="cpu").noise_score[known], two.predict_proba(raw[known]), atol=1e-6
    )


def test_epochs_in_which_nothing_was_seen(path: str) -> None:
    record(path, np.zeros((3, 2, 2)), [0, 0, 1], np.zeros((3, 2)))
    with pytest.raises(StoreError, match="holds 2 epochs, but no sample was seen in any of them"):
        find(path, method="aum")


def test_one_class(path: str) -> None:
    record(path, np.zeros((3, 2, 2)), [1, 1, 1])
    with pytest.raises(StoreError, match="all 3 labels are class 1; with one class there is no other label"):
        find(path, method="aum")


def test_no_file(path: str) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no such file"):
        find(path, method="aum")


def test_what_a_method_needs_was_not_kept(trajectories: Any, path: str) -> None:
    record(path, **trajectories, keep="given")
    with pytest.raises(StoreError, match=r"keep='given', so it does not hold .*record with keep='all'"):
        find(path, method="el2n")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "magic"}, ValueError, "method must be one of lstm, aum, .*got 'magic'"),
        (
            {"method": "aum", "detector": object()},
            ValueError,
            "detector= goes with method='lstm', got 'aum'",
        ),
        (
            {"detector": "weights.h5"},
            TypeError,
            r"must be a NoiseDetector, got 'weights\.h5'; .*NoiseDetector\.load",
        ),
        ({"source": []}, ValueError, "source is an empty list"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number from 1"),
        ({"class_names": {"a", "b"}}, TypeError, "class_names must be a list"),
        (
            {"source": 5},
            TypeError,
            "source must be a path, an open TrainingDynamicsStore, or a list of these, got 5",
        ),
    ],
)
def test_arguments_that_are_refused_unread(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        find(**{"source": "no such file", **options})


# ---------------------------------------------------------------------------------------------------------------
# Several runs.


def several(tmp_path: Path, trajectories: Any) -> list[Path]:
    rng = np.random.default_rng(8)
    paths = []
    for run in range(3):
        noisy = trajectories["logits"] + rng.normal(0, 0.5, trajectories["logits"].shape)
        seen = trajectories["seen"].copy()
        seen[run * 10] = False  # each run misses another sample
        paths.append(record(tmp_path / f"{run}.h5", noisy, trajectories["labels"], seen))
    return paths


@pytest.mark.parametrize("method", ["aum", "confidence", "el2n"])
def test_runs_are_averaged_where_they_saw_a_sample(method: str, tmp_path: Path, trajectories: Any) -> None:
    paths = several(tmp_path, trajectories)
    singles = [find(path, method=method) for path in paths]
    with TrainingDynamicsStore(paths[1]) as opened:
        issues = find([paths[0], opened, str(paths[2])], method=method)
    for sample in range(N_SAMPLES):
        scores = [run.noise_score[sample] for run in singles if not np.isnan(run.noise_score[sample])]
        want = sum(scores) / len(scores) if scores else np.nan
        np.testing.assert_allclose(issues.noise_score[sample], want, rtol=1e-12)
        votes: dict[int, float] = {}
        for run in singles:
            label = int(run.suggested_label[sample])
            votes[label] = votes.get(label, 0) + float(run.suggested_confidence[sample])
        best = max(votes, key=lambda label: votes[label])
        assert issues.suggested_label[sample] == best
        n_runs = max(1, sum(int(run.n_epochs_seen[sample] > 0) for run in singles))
        np.testing.assert_allclose(issues.suggested_confidence[sample], votes[best] / n_runs, rtol=1e-5)
    assert issues.unscored.tolist() == [3, 40]
    assert issues.given_label[[0, 10, 20]].tolist() == trajectories["labels"][[0, 10, 20]].tolist()
    assert issues.n_epochs_seen.tolist() == np.sum([run.n_epochs_seen for run in singles], axis=0).tolist()
    assert 0 < issues.stability < 1


def test_runs_of_other_data_are_refused(tmp_path: Path) -> None:
    logits = np.zeros((3, 2, 2))
    first = record(tmp_path / "first.h5", logits, [0, 1, 1])
    longer = record(tmp_path / "longer.h5", np.zeros((4, 2, 2)), [0, 1, 1, 0])
    other = record(tmp_path / "other.h5", logits, [0, 1, 0])
    with pytest.raises(
        ValueError, match=r"longer\.h5.* has 4 samples, the first run 3: give runs of the same data"
    ):
        find([first, longer], method="aum")
    with pytest.raises(
        ValueError, match=r"other\.h5.* has label 0 for sample 2, the first run 1: give runs of the same"
    ):
        find([first, other], method="aum")
    classes = record(tmp_path / "classes.h5", np.zeros((3, 2, 5)), [0, 1, 1])
    with pytest.raises(
        ValueError, match=r"classes\.h5.* has 5 classes, the first run 2: give runs of the same labels"
    ):
        find([first, classes], method="aum")
    (tmp_path / "link.h5").symlink_to(first)
    with pytest.raises(ValueError, match=r"link\.h5.* is given twice"):
        find([first, tmp_path / "link.h5"], method="aum")


def test_the_noise_rate_of_runs_is_the_mean_of_their_averaged_scores(
    tmp_path: Path, trajectories: Any
) -> None:
    half = trajectories["seen"].copy()
    half[20:] = False
    whole = record(tmp_path / "whole.h5", **trajectories)
    part = record(tmp_path / "part.h5", trajectories["logits"], trajectories["labels"], half)
    pytest.importorskip("paddle")
    alone, issues = [find(path) for path in (whole, part)], find([whole, part])
    assert issues.noise_rate == pytest.approx(np.nanmean(issues.noise_score))
    widths = [run.noise_rate_interval[1] - run.noise_rate_interval[0] for run in alone]
    low, high = issues.noise_rate_interval
    assert low < issues.noise_rate < high
    assert high - low <= np.mean(widths) + 1e-9


# ---------------------------------------------------------------------------------------------------------------
# CSV and data frame.


def test_the_csv_holds_every_sample(tmp_path: Path, trajectories: Any, path: str) -> None:
    record(path, **trajectories, class_names=["ant", "bee", 'c"a,t', "dög"])
    issues = find(path, method="aum")
    issues.to_csv(tmp_path / "issues.csv")
    with open(tmp_path / "issues.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == [*issues.ranking, 3, 40]
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, N_SAMPLES - 1)] + ["", ""]
    for row in rows:
        sample = int(row["sample"])
        seen = sample not in (3, 40)
        assert (row["noise_score"] != "") == (row["label_quality"] != "") == seen
        if seen:
            assert float(row["noise_score"]) == issues.noise_score[sample]
            assert float(row["label_quality"]) == 1 - issues.noise_score[sample]
        assert row["is_label_issue"] == str(bool(issues.is_label_issue[sample]))
        for column in ("given_label", "suggested_label", "n_epochs_seen"):
            assert int(row[column]) == getattr(issues, column)[sample]
        assert np.float32(row["suggested_confidence"]) == issues.suggested_confidence[sample]
        assert row["given_name"] == ["ant", "bee", 'c"a,t', "dög", ""][issues.given_label[sample]]
    assert [file.name for file in tmp_path.glob("*.new")] == []


def test_the_data_frame_is_in_the_order_of_the_ranking(trajectories: Any, path: str) -> None:
    pytest.importorskip("pandas")
    record(path, **trajectories)
    issues = find(path, method="aum")
    frame = issues.to_dataframe()
    assert frame.index.tolist() == [*issues.ranking, 3, 40]
    assert frame.index.name == "sample"
    assert frame["rank"].tolist()[:-2] == list(range(1, N_SAMPLES - 1))
    assert frame["rank"].isna().tolist()[-3:] == [False, True, True]
    assert frame["rank"].dtype == "Int64"
    np.testing.assert_array_equal(frame.loc[range(N_SAMPLES), "noise_score"], issues.noise_score)
    assert frame["is_label_issue"].dtype == bool


def test_without_pandas_the_frame_says_what_to_install(
    trajectories: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(path, **trajectories)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas: pip install pandas, or use to_csv\(\)"):
        find(path, method="aum").to_dataframe()


# ---------------------------------------------------------------------------------------------------------------
# Without Paddle.


def test_without_paddle_a_recording_is_made_and_read_and_ranked(path: str) -> None:
    code = f"""
import sys

class NoPaddle:
    def find_spec(self, name, path=None, target=None):
        if name == "paddle" or name.startswith("paddle."):
            raise ModuleNotFoundError("No module named 'paddle'", name="paddle")

sys.meta_path.insert(0, NoPaddle())
import numpy as np
import paddle_td_callback as td
from paddle_td_callback import cli

logits = np.random.default_rng(0).normal(size=(20, 3, 4)).astype("f")
with td.TrainingDynamicsRecorder({path!r}, n_samples=20, n_classes=4) as recorder:
    for epoch in range(3):
        recorder.update(np.arange(20), logits[:, epoch], np.arange(20) % 4)
        recorder.end_epoch()
with td.TrainingDynamicsStore({path!r}) as store:
    assert td.scores.aum(store.margins()).shape == (20,)
    assert len(td.find_label_issues(store, method="aum", progress=False).ranking) == 20
assert cli.main(["info", {path!r}]) == 0
assert cli.main(["detect", {path!r}, "--method", "aum"]) == 0
assert td.NoiseDetector.pretrained().is_trained
for what in ("TrainingDynamicsCallback", "LabelIssuesCallback"):
    try:
        getattr(td, what)
    except ModuleNotFoundError as error:
        assert error.name == "paddle"
        print(error)
assert td.find_label_issues({path!r}, progress=False).method == "lstm"
assert "paddle" not in sys.modules
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    said = [
        line for line in child.stdout.splitlines() if "needs PaddlePaddle, which is not installed" in line
    ]
    assert len(said) == 2
    assert all("pip install paddlepaddle" in line for line in said)


def test_what_the_detector_is_given_can_be_given_to_fit(
    tmp_path: Path, trajectories: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles, with a detector of several stages: `find_label_issues` scores what public functions read."""
    detector_module = pytest.importorskip("paddle_td_callback.detection.lstm.detector")
    monkeypatch.setattr(schema, "_CHUNK_ROWS", 19)
    path = record(tmp_path / "run.h5", **trajectories, keep="given")
    original = TrainingDynamicsStore.tiles
    monkeypatch.setattr(
        TrainingDynamicsStore, "tiles", lambda self, _=1, *, wide=False: original(self, 1, wide=wide)
    )
    with TrainingDynamicsStore(path) as reader:
        raw, features = detector_input(reader), detector_features(reader)
        assert len(list(reader.tiles())) == 3
    wrong = np.asarray(trajectories["logits"].mean(axis=1).argmax(axis=1) != trajectories["labels"])
    options: dict[str, Any] = {"epochs": 30, "batch_size": 32, "learning_rate": 0.02, "progress": False}
    first = detector_module.NoiseDetector(("given",), 4, 4, 1, dataset_features=("pair", "margin_rank"))
    first.fit(raw, wrong, dataset_features=features, **options)
    names = ("first_odds", "first_pair_odds", "confidence_rank")
    both = detector_module.NoiseDetector(("given",), 4, 4, 1, dataset_features=names, first_stage=first)
    both.fit([raw], [wrong], dataset_features=[features], **options)
    third = detector_module.NoiseDetector(("given",), 4, 4, 1, dataset_features=names, first_stage=both)
    third.fit([raw], [wrong], dataset_features=[features], **options)
    scores = find(path, detector=third).noise_score
    np.testing.assert_allclose(scores, third.predict_proba(raw, dataset_features=features), atol=1e-5)
    issues = find(path, detector=both)
    expected = both.predict_proba(raw, dataset_features=features)
    np.testing.assert_allclose(issues.noise_score, expected, atol=1e-5)
    assert np.isnan(issues.noise_score[[3, 40]]).all()
    seen = ~np.isnan(expected)
    assert expected[seen & wrong].mean() > expected[seen & ~wrong].mean() + 0.2
