"""LabelIssues: thresholds, what to train on again, several runs."""

import contextlib
import csv
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import replace

import h5py
import numpy as np
import pytest

from paddle_td_callback import (
    LabelIssues,
    LabelIssuesCallback,
    StoreError,
    StoreNotFoundError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.detection.several_runs import stability


class Lookalike:
    def predict_proba(self, trajectories):
        return trajectories


COLUMNS = [
    "sample",
    "rank",
    "noise_score",
    "label_quality",
    "is_label_issue",
    "given_label",
    "suggested_label",
]


@pytest.fixture
def issues():
    return LabelIssues(
        method="lstm",
        noise_score=np.array([0.9, 0.1, 0.7, np.nan, 0.5]),
        given_label=np.array([0, 1, 2, -1, 1], np.int32),
        suggested_label=np.array([1, 2, 0, -1, 0], np.int32),
        suggested_confidence=np.array([0.8, 0.9, 0.3, 0.0, 1.0], np.float32),
        n_epochs_seen=np.array([3, 3, 3, 0, 3], np.int32),
        noise_rate=0.55,
        noise_rate_interval=(0.5, 0.6),
    )


def test_flags_and_ranking(issues):
    assert issues.is_label_issue.tolist() == [True, False, True, False, False]
    assert issues.ranking.tolist() == [0, 2, 4, 1]
    assert issues.unscored.tolist() == [3]
    assert np.allclose(issues.label_quality[:3], [0.1, 0.9, 0.3])


def test_clean_indices(issues):
    assert issues.clean_indices().tolist() == [1, 3, 4]
    assert issues.clean_indices(keep_unscored=False).tolist() == [1, 4]
    assert issues.clean_indices(max_noise_score=0.2).tolist() == [1, 3]
    assert issues.clean_indices(max_noise_score=1).tolist() == [0, 1, 2, 3, 4]


def test_corrected_labels_change_only_sure_suspects(issues):
    assert issues.corrected_labels().tolist() == [1, 1, 2, -1, 1]
    assert issues.corrected_labels(min_confidence=0.2).tolist() == [1, 1, 0, -1, 1]
    assert issues.corrected_labels(min_noise_score=0.05).tolist() == [1, 2, 2, -1, 0]
    assert issues.given_label.tolist() == [0, 1, 2, -1, 1]


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("clean_indices", "max_noise_score"),
        ("corrected_labels", "min_confidence"),
        ("corrected_labels", "min_noise_score"),
    ],
)
def test_thresholds_outside_0_to_1_are_refused(issues, method, argument):
    with pytest.raises(ValueError, match=rf"{argument} must be in \[0, 1\], got 50"):
        getattr(issues, method)(**{argument: 50})


def test_text_tells_rate_and_interval(issues):
    assert "2 of 5 labels look wrong; 1 samples were never seen" in repr(issues)
    assert "estimated share of wrong labels: 55.0% (50.0% to 60.0%)" in repr(issues)


def test_stability_is_spearmans_correlation():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    runs = np.round(rng.random((3, 50)), 1)  # rounded: ties
    pairs = [stats.spearmanr(runs[a], runs[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert stability(runs) == pytest.approx(np.mean(pairs))
    runs[1, 7] = np.nan
    assert stability(runs[:2]) == pytest.approx(
        stats.spearmanr(np.delete(runs[0], 7), np.delete(runs[1], 7)).statistic
    )
    assert stability(np.ones((2, 5))) is None


def test_several_runs_report_their_agreement(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    for name in ("a.h5", "b.h5"):
        with TrainingDynamicsRecorder(tmp_path / name, n_samples=40, n_classes=3) as recorder:
            for _ in range(3):
                recorder.update(np.arange(40), rng.standard_normal((40, 3)).astype(np.float32), labels)
                recorder.end_epoch()
    alone = find_label_issues(tmp_path / "a.h5", method="aum", progress=False)
    shutil.copy(tmp_path / "a.h5", tmp_path / "copy.h5")
    twice = find_label_issues([tmp_path / "a.h5", tmp_path / "copy.h5"], method="aum", progress=False)
    both = find_label_issues([tmp_path / "a.h5", tmp_path / "b.h5"], method="aum", progress=False)
    assert alone.stability is None
    assert twice.stability == pytest.approx(1)
    assert np.array_equal(twice.ranking, alone.ranking)
    assert -1 <= both.stability < 0.9
    assert "rank correlation between runs" in repr(both)
    assert both.noise_rate is None


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_by_hand(issues, tmp_path):
    issues.to_csv(tmp_path / "i.csv")
    head, *rows = rows_of(tmp_path / "i.csv")
    assert head[:7] == COLUMNS
    assert head[7:] == ["suggested_confidence", "n_epochs_seen"]
    assert rows == [
        ["0", "1", "0.9", str(1 - 0.9), "True", "0", "1", "0.8", "3"],
        ["2", "2", "0.7", str(1 - 0.7), "True", "2", "0", "0.3", "3"],
        ["4", "3", "0.5", "0.5", "False", "1", "0", "1.0", "3"],
        ["1", "4", "0.1", "0.9", "False", "1", "2", "0.9", "3"],
        ["3", "", "", "", "False", "-1", "-1", "0.0", "0"],
    ]


def test_csv_and_frame_have_the_same_columns_with_names_and_ids(issues, tmp_path):
    named = replace(issues, class_names=["ant", "bee\ncow", "NA"], sample_ids=list("vwxyz"))
    named.to_csv(tmp_path / "i.csv")
    frame = named.to_dataframe()
    head, first = rows_of(tmp_path / "i.csv")[:2]
    assert head == ["sample", *frame.columns]
    assert first[1] == "v"
    assert first[-2:] == ["ant", "bee\ncow"]
    assert frame.loc[3, ["given_name", "suggested_name"]].tolist() == ["", ""]
    assert len(repr(named).splitlines()) == len(repr(issues).splitlines())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("=1+1", "'=1+1"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
        ("@x", "'@x"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\\r=1"),
        ("\n=1", "'\n=1"),
        ("\uff1d1", "'\uff1d1"),
        ("-5", "-5"),
        ("-5\n", "'-5\n"),
        ("+1.5", "+1.5"),
        ("img=1.png", "img=1.png"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egnp", "\\u202egnp"),
        ("a\x00b", "a\\x00b"),
        ("\ud800", "\\ud800"),
        ("d\u00f6g, \u732b", "d\u00f6g, \u732b"),
    ],
)
def test_formulas_and_control_characters_in_the_csv_are_defused(issues, tmp_path, name, wanted):
    named = replace(issues, class_names=[name, "b", "c"], sample_ids=[name] * 5)
    named.to_csv(tmp_path / "i.csv")
    row = rows_of(tmp_path / "i.csv")[1]
    assert (row[1], row[-2]) == (wanted, wanted)
    if name not in ("\ud800", "a\x00b"):  # which no CSV file holds on every Python
        named.to_csv(tmp_path / "raw.csv", raw=True)
        assert rows_of(tmp_path / "raw.csv")[1][1] == name


def test_frames_by_hand(issues):
    pytest.importorskip("pandas")
    named = replace(issues, class_names=["ant", "bee", "cow"])
    frame = named.to_dataframe()
    assert frame.index.tolist() == [0, 2, 4, 1, 3]
    assert frame["rank"].tolist()[:4] == [1, 2, 3, 4]
    assert frame["rank"].isna().tolist() == [False] * 4 + [True]
    assert named.top(2).index.tolist() == [0, 2]
    assert named.top(99).index.tolist() == [0, 2, 4, 1]
    assert named[1:3].index.tolist() == [2, 4]
    assert named[::-1].index.tolist() == [1, 4, 2, 0]
    with pytest.raises(TypeError, match=r"takes a slice of the ranking, such as issues\[:100\], got int"):
        named[3]
    classes = named.by_class()
    assert classes["label"].tolist() == [0, 2, 1]
    assert classes["name"].tolist() == ["ant", "cow", "bee"]
    assert classes["n_samples"].tolist() == [1, 1, 2]
    assert classes["n_issues"].tolist() == [1, 1, 0]
    assert classes["share"].tolist() == [1, 1, 0]
    assert classes["mean_noise_score"].tolist() == pytest.approx([0.9, 0.7, 0.3])
    pairs = named.pairs()
    assert pairs.to_dict("list") == {
        "given_label": [0, 2],
        "suggested_label": [1, 0],
        "given_name": ["ant", "cow"],
        "suggested_name": ["bee", "ant"],
        "n_issues": [1, 1],
    }
    nothing = replace(named, noise_score=np.full(5, np.nan))
    assert (len(nothing.by_class()), len(nothing.pairs()), len(nothing.top())) == (0, 0, 0)


def test_html_and_text_are_escaped_and_say_what_the_result_rests_on(issues):
    named = replace(
        issues,
        class_names=["<b>ant</b>", "\x1b[2J\n", "cow"],
        sample_ids=["<script>alert(1)</script>"] * 5,
        n_epochs=7,
        is_recording=True,
    )
    shown = named._repr_html_()
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 5
    for text in (shown, repr(named)):
        assert "\x1b" not in text
        assert "rests on 7 epochs; the training is not over, so more may come" in text
    text = repr(replace(named, n_epochs=1, is_recording=False))
    assert "rests on 1 epoch\n" in text
    assert "a label looks wrong where the detector gives it a probability above 1/2" in text
    assert "rests on 7 epochs of 2 runs" in repr(replace(named, n_runs=2, is_recording=False))
    assert len(named.to_text(2).splitlines()) == len(repr(named).splitlines()) - 1


def test_json_types(issues):
    facts = json.loads(json.dumps(replace(issues, class_names=list("abc")).to_json(2)))
    assert [row["sample"] for row in facts["samples"]] == [0, 2]
    assert facts["samples"][0]["suggested_name"] == "b"
    assert facts["noise_rate_interval"] == [0.5, 0.6]
    assert len(issues.to_json()["samples"]) == 4


def test_tables_of_classes_that_have_no_names(issues):
    pytest.importorskip("pandas")
    by_class = issues.by_class()
    assert list(by_class.columns) == ["label", "n_samples", "n_issues", "share", "mean_noise_score"]
    assert by_class.label.tolist() == [0, 2, 1]
    assert by_class.n_issues.tolist() == [1, 1, 0]
    pairs = issues.pairs()
    assert list(pairs.columns) == ["given_label", "suggested_label", "n_issues"]
    assert pairs.to_numpy().tolist() == [[0, 1, 1], [2, 0, 1]]


def test_a_csv_into_the_output_of_a_notebook(issues, tmp_path):
    issues.to_csv(tmp_path / "i.csv")
    with contextlib.redirect_stdout(io.StringIO(newline="")) as out:
        issues.to_csv("-")
    assert out.getvalue().encode() == (tmp_path / "i.csv").read_bytes()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become another user")
def test_a_pipe_that_may_not_be_written_is_refused(issues, request):
    folder = tempfile.mkdtemp()  # pytest's own may not be entered by others
    request.addfinalizer(lambda: shutil.rmtree(folder))
    os.chmod(folder, 0o755)
    os.mkfifo(os.path.join(folder, "pipe"), mode=0o444)
    os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(StoreError, match="pipe' cannot be written: Permission denied; give another path"):
            issues.to_csv(os.path.join(folder, "pipe"))
    finally:
        os.setresuid(0, 0, 0)


def test_a_figure_of_many_samples_shows_some_and_one_of_none_shows_none(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("paddle_td_callback.detection.plots.MAX_POINTS", 10)
    with TrainingDynamicsRecorder(tmp_path / "run.h5", n_samples=30, n_classes=3) as recorder:
        for _ in range(2):
            recorder.update(np.arange(30), np.zeros((30, 3), np.float32), np.arange(30) % 3)
            recorder.end_epoch()
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        issues = find_label_issues(store, method="confidence", progress=False)
        figure = issues.plot(store, n_trajectories=4)
        assert len(figure.axes[0].collections[0].get_offsets()) == 10
        assert len(figure.axes[1].lines) == len(figure.axes[1].get_legend().get_texts()) == 4
        empty = replace(issues, noise_score=np.full(30, np.nan)).plot(store)
    assert empty.axes[1].get_legend() is None


def test_a_figure_of_the_map_and_the_suspects(tmp_path):
    path = tmp_path / "run.h5"
    rng = np.random.default_rng(0)
    ids = [f"_$x^{i}\x1b" for i in range(30)]
    with TrainingDynamicsRecorder(path, n_samples=30, n_classes=3, sample_ids=ids) as recorder:
        for _ in range(3):
            recorder.update(np.arange(30), rng.standard_normal((30, 3)).astype(np.float32), np.arange(30) % 3)
            recorder.end_epoch()
        with TrainingDynamicsStore(path) as store:
            issues = find_label_issues(store, method="aum")
            assert issues.is_recording == (sys.platform == "linux")
            pytest.importorskip("matplotlib")
            figure = issues.plot(store, n_trajectories=2)
            assert len(figure.axes[1].lines) == 2
            figure.savefig(tmp_path / "figure.png")
            for samples in ([30], [-1], [0.5], 7):
                with pytest.raises(ValueError, match=r"samples must be a list of indices in \[0, 30\)"):
                    issues.plot(store, samples=samples)
            with pytest.raises(ValueError, match=r"has 30 samples, these issues 2; pass their recording"):
                replace(issues, noise_score=issues.noise_score[:2]).plot(store)
    issues = find_label_issues(path, method="aum")
    assert not issues.is_recording
    lines = issues.plot(str(path), samples=[7, 3, 5]).axes[1].lines
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(lines[1].get_ydata(), store.given_probabilities([3])[0])


@pytest.mark.parametrize("as_mapping", [False, True])
def test_names_may_be_given_later(tmp_path, as_mapping):
    path = tmp_path / "run.h5"
    with TrainingDynamicsRecorder(path, n_samples=4, n_classes=2, class_names=["x", "y"]) as recorder:
        recorder.update(np.arange(4), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], np.array([0, 1, 1, 0]))
        recorder.end_epoch()
        recorder.update(np.arange(4), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], np.array([0, 1, 1, 0]))
        recorder.end_epoch()

    def names(values):
        return dict(enumerate(values)) if as_mapping else np.array(values)

    issues = find_label_issues(
        path, method="aum", class_names=names(["cat", "dog"]), sample_ids=names(list("abcd"))
    )
    assert (issues.class_names, issues.sample_ids) == (["cat", "dog"], list("abcd"))
    assert find_label_issues(path, method="aum").class_names == ["x", "y"]
    for wrong in ({"cat", "dog"}, "ab", (name for name in "ab"), {"cat": 0, "dog": 1}):
        with pytest.raises(TypeError, match="class_names"):
            find_label_issues(path, method="aum", class_names=wrong)
    with pytest.raises(ValueError, match="sample_ids has 2 names for 4 samples; give one for each"):
        find_label_issues(path, method="aum", sample_ids=["a", "b"])


def test_csv_goes_into_pipes_and_through_links_and_never_over_a_recording(issues, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), newline="") as reader:
        issues.to_csv(tmp_path / "pipe")
        got = reader.read()
    assert got.startswith("sample,rank")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "real.csv").write_text("old")
    os.symlink("real.csv", tmp_path / "link.csv")
    issues.to_csv(tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_bytes() == got.encode()
    with h5py.File(tmp_path / "run.h5", "w"):
        pass
    with pytest.raises(StoreError, match="is an HDF5 file, perhaps a recording; give another path"):
        issues.to_csv(tmp_path / "run.h5")
    with pytest.raises(StoreNotFoundError, match="there is no folder"):
        issues.to_csv(tmp_path / "none" / "i.csv")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "lstmm"}, ValueError, "method must be one of lstm, aum"),
        ({"method": "aum", "detector": object()}, ValueError, "goes with method='lstm'"),
        ({"detector": "weights.h5"}, TypeError, r"pass NoiseDetector.load\(path\)"),
        ({"detector": Lookalike()}, TypeError, "must be a NoiseDetector, got <"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(options, error, message):
    with pytest.raises(error, match=message):
        find_label_issues("there is no such file", **options)
    with pytest.raises(error, match=message):
        LabelIssuesCallback("there is no such file", **options)


def test_the_csv_may_not_be_the_recording():
    with pytest.raises(ValueError, match="is the recording itself"):
        LabelIssuesCallback("run.h5", csv="./run.h5")
    with pytest.raises(ValueError, match="csv='' names no file"):
        LabelIssuesCallback("run.h5", csv="")


def test_results_can_be_compared_and_hashed(issues):
    assert issues == issues
    assert issues != replace(issues)
    assert len({issues, issues}) == 1
