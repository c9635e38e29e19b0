"""Marks come back: reading them, precision, corrected labels, and what fine-tuning gains."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsStore, detector_input, find_label_issues
from paddle_td_callback.csv_cells import to_cell
from paddle_td_callback.errors import DetectorError
from paddle_td_callback.export.marks import (
    RIGHT,
    UNSURE,
    WRONG,
    Marks,
    _difference,
    average_precision,
    read_marks,
    review_marks,
    wilson,
    write_labels,
)

try:
    import paddle

    from paddle_td_callback import NoiseDetector
except ModuleNotFoundError:
    paddle = None


@pytest.fixture
def issues(path):
    record(path, class_names=["cat", "dog", "=owl", "fox"], sample_ids=[f"@{i}" for i in range(300)])
    return find_label_issues(path, method="aum", progress=False)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_marks_are_read_in_every_form_that_spreadsheets_save(issues, tmp_path):
    owl = int(np.flatnonzero(issues.given_label[10:] != 2)[0]) + 10
    plain = (
        f"sample,mark,corrected_label\n5,wrong,dog\n6,Right,\n7,unsure,\n8,,\n9,wrong,3\n{owl},wrong,'=owl\n"
    )
    for text in (
        plain,
        "\ufeff" + plain.replace("\n", "\r\n"),
        plain.replace(",", ";"),
        plain.replace(",", "\t"),
    ):
        marks = read_marks(write(tmp_path / "m.csv", text), issues)
        assert marks.samples.tolist() == [5, 6, 7, 9, owl]
        assert marks.verdicts.tolist() == [WRONG, RIGHT, UNSURE, WRONG, WRONG]
        assert marks.corrections.tolist() == [1, -1, -1, 3, 2]


def test_marks_are_read_in_the_form_that_pandas_saves(issues, tmp_path):
    text = "Sample, Mark ,Corrected_Label,given_label\n5.0,wrong,1.0,{}.0\n6,,dog,\n7,right,{},\n"
    text = text.format(issues.given_label[5], issues.given_label[7])
    marks = read_marks(write(tmp_path / "m.csv", text), issues)
    assert marks.samples.tolist() == [5, 6, 7]
    assert marks.verdicts.tolist() == [WRONG, WRONG, RIGHT]
    assert marks.corrections.tolist() == [1, 1, -1]


ODD_IDS = ["007", "a\nb", "\x1b[2J", " blank ", "'=1", "-7", "half\ud800", "x" * 300, "1-2"]


@pytest.mark.parametrize("sample", range(len(ODD_IDS)))
def test_ids_in_marks_are_compared_as_they_come_back(path, tmp_path, sample):
    record(path, sample_ids=ODD_IDS + [f"@{i}" for i in range(len(ODD_IDS), 300)])
    issues = find_label_issues(path, method="aum", progress=False)

    def marked(sample_id):
        with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            csv.writer(file).writerows([["sample", "mark", "sample_id"], [sample, "wrong", sample_id]])
        return read_marks(tmp_path / "m.csv", issues).samples.tolist()

    own = issues.sample_ids[sample]
    exported = {"007": "7", "x" * 300: "x" * 20 + "…"}.get(own, to_cell(own))
    assert marked(exported) == [sample]
    assert marked("") == [sample]
    with pytest.raises(ValueError, match="give the recording that was reviewed"):
        marked("another")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no columns 'sample' and 'mark'"),
        ("", "no columns"),
        ("sample,mark,mark\n1,wrong,right\n", "has the column 'mark' twice; give it once"),
        ("sample,mark\n1,maybe\n", "line 2: mark must be wrong, right or unsure, got 'maybe'"),
        ("sample,mark\n300,wrong\n", "line 2: sample must be a whole number in \\[0, 300\\)"),
        ("sample,mark\n-1,wrong\n", "sample must be"),
        ("sample,mark\n1" + "0" * 5000 + ",wrong\n", "sample must be"),
        ("sample,mark\n,wrong\n", "sample must be"),
        ("sample,mark\n1,wrong\n1,right\n", "line 3: sample 1 was marked differently"),
        ("sample,mark,given_label\n1,wrong,77\n", "was given '77'"),
        ("sample,mark,corrected_label\n1,wrong,4\n", "corrected_label must be"),
        (
            "sample,mark,corrected_label\n1,wrong,bird\n",
            r"or a class name such as 'cat', 'dog', .*, got 'bird'",
        ),
        (
            "sample,mark,corrected_label\n1,right,0\n",
            "line 2: sample 1 is marked right and has another corrected",
        ),
        (
            "sample,mark,corrected_label\n1,unsure,0\n",
            "marked unsure and has another .* mark it wrong, or leave",
        ),
        ("sample,mark,sample_id\n1,wrong,@2\n", "line 2: sample 1 was '@2' when it was marked, and is '@1'"),
        ("sample,mark\n1.5,wrong\n", "sample must be"),
        ('sample,mark\n"' + "x" * 200_000 + '",wrong\n', "no CSV"),
    ],
)
def test_marks_that_are_none_are_refused_by_line(issues, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_marks(write(tmp_path / "m.csv", text), issues)


def test_other_bytes_are_refused(issues, tmp_path):
    (tmp_path / "m.csv").write_bytes(b"sample,mark\n\xff\xfe,wrong\n")
    with pytest.raises(ValueError, match="no CSV in UTF-8"):
        read_marks(tmp_path / "m.csv", issues)
    with pytest.raises(FileNotFoundError):
        read_marks(tmp_path / "gone.csv", issues)


def test_a_number_that_is_also_a_name_is_asked_about(path, tmp_path):
    record(path, class_names=["1", "0", "x", "3"])
    issues = find_label_issues(path, method="aum", progress=False)

    def corrected(text):
        label = 2 if text == "x" else int(text.strip("#")[0])
        sample = int(np.flatnonzero((issues.given_label != label) & (issues.given_label >= 0))[0])
        write(tmp_path / "m.csv", f"sample,corrected_label\n{sample},{text}\n")
        return read_marks(tmp_path / "m.csv", issues).corrections

    others = find_label_issues(path, method="aum", progress=False, class_names=["02", "01", "x", "3"])
    write(tmp_path / "m.csv", "sample,corrected_label\n5,2\n")  # as Excel writes 02
    with pytest.raises(ValueError, match=r"'2' may be the name or the number of class #0 or #2"):
        read_marks(tmp_path / "m.csv", others)
    with pytest.raises(ValueError, match=r"line 2: .* '1.0' may be"):
        corrected("1.0")
    with pytest.raises(ValueError, match=r"line 2: .* '1' may be the name or the number .*; write #0 or #1"):
        corrected("1")
    assert [corrected(text)[0] for text in ("#0", "#1", "x", "2", "3", "#3")] == [0, 1, 2, 2, 3, 3]


def test_the_given_label_as_its_own_correction_says_right(issues, tmp_path):
    given = int(issues.given_label[5])
    marks = read_marks(write(tmp_path / "m.csv", f"sample,mark,corrected_label\n5,,{given}\n"), issues)
    assert (marks.verdicts.tolist(), marks.corrections.tolist()) == ([RIGHT], [-1])
    with pytest.raises(
        ValueError, match="line 2: sample 5 is marked wrong and has the given label as its corrected"
    ):
        read_marks(write(tmp_path / "m.csv", f"sample,mark,corrected_label\n5,wrong,{given}\n"), issues)


def test_a_quote_that_is_not_closed_swallows_no_marks(issues, tmp_path):
    with pytest.raises(ValueError, match="is no CSV"):
        read_marks(write(tmp_path / "m.csv", 'sample,mark,x\n1,wrong,"a\n2,wrong,b\n3,right,c\n'), issues)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts):
    hits, n = counts
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=1e-4)  # Brown, Cai and DasGupta 2001


def test_average_precision_by_hand():
    assert average_precision(np.array([3.0, 2, 1]), np.array([True, False, True])) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_review_without_fine_tuning(issues, path, tmp_path):
    head = issues.ranking[:4]
    marks = Marks(head, np.array([WRONG, WRONG, RIGHT, UNSURE], np.int8), np.array([-1, 3, -1, -1], np.int32))
    review = review_marks(marks, issues, path)
    assert (review.n_wrong, review.n_right, review.n_unsure, review.deepest_rank) == (2, 1, 1, 4)
    assert review.precision == pytest.approx(2 / 3)
    assert review.precision_interval == wilson(2, 3)
    assert review.corrected_labels[head].tolist() == [
        issues.suggested_label[head[0]],
        3,
        issues.given_label[head[2]],
        issues.given_label[head[3]],
    ]
    assert review.issues.noise_score[head].tolist() == [1, 1, 0, issues.noise_score[head[3]]]
    others = np.setdiff1d(np.arange(300), head)
    np.testing.assert_array_equal(review.issues.noise_score[others], issues.noise_score[others])
    np.testing.assert_array_equal(review.corrected_labels[others], issues.given_label[others])
    assert review.gain is None
    assert "by aum" in review.why_not
    assert "of the judged labels 66.7% are wrong" in repr(review)
    write_labels(tmp_path / "labels.csv", review)
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == [
        "" if label < 0 else str(label) for label in review.corrected_labels
    ]
    assert lines[0]["sample_id"] == "'@0"
    assert {line["label_name"] for line in lines} == {"cat", "dog", "'=owl", "fox", ""}
    assert [int(line["sample"]) for line in lines if line["changed"] == "True"] == sorted(head[:2].tolist())


def test_nothing_marked_is_refused(issues, path, tmp_path):
    with pytest.raises(ValueError, match="nothing is marked"):
        review_marks(write(tmp_path / "m.csv", "sample,mark\n1,\n"), issues, path)


@pytest.mark.skipif(paddle is None, reason="PaddlePaddle is not installed")
def test_too_few_marks_are_not_trained_on(path):
    record(path)
    issues = find_label_issues(path, progress=False)
    marks = Marks(
        issues.ranking[:12], np.array([WRONG] * 9 + [RIGHT] * 3, np.int8), np.full(12, -1, np.int32)
    )
    review = review_marks(marks, issues, path)
    assert "at least 10 labels marked wrong and 10 marked right, got 9 and 3" in review.why_not
    assert review.detector is None


@pytest.mark.skipif(paddle is None, reason="PaddlePaddle is not installed")
def test_fine_tuning_is_kept_where_it_helps_and_says_what_it_gained(path):
    # A detector that was taught only a little, so that marks have something to teach it.
    wrong = record(path, n_samples=600, never_seen=0, noise=0.3, hard=0.3)
    with TrainingDynamicsStore(path) as store:
        detector = NoiseDetector(hidden_size=8).fit(detector_input(store), wrong, epochs=1, progress=False)
    issues = find_label_issues(path, detector=detector, progress=False)
    marked = issues.ranking[::2]
    verdicts = wrong[marked].astype(np.int8)
    marks = Marks(marked, verdicts, np.full(300, -1, np.int32))
    review = review_marks(marks, issues, path, detector=detector)
    assert review.gain.kept
    assert review.gain.after > review.gain.before
    assert review.gain.interval[1] > 0
    assert "the new ranking is by it" in repr(review)
    np.testing.assert_array_equal(review.issues.noise_score[marked], verdicts)
    with TrainingDynamicsStore(path) as store:
        again = review_marks(marks, issues, store, detector=detector)
    np.testing.assert_array_equal(again.issues.noise_score, review.issues.noise_score)


@pytest.mark.skipif(paddle is None, reason="PaddlePaddle is not installed")
def test_fine_tuning_that_does_not_help_changes_nothing(path):
    wrong = record(path, n_samples=400, never_seen=0)
    issues = find_label_issues(path, progress=False)
    marks = Marks(
        issues.ranking[:200], wrong[issues.ranking[:200]].astype(np.int8), np.full(200, -1, np.int32)
    )
    review = review_marks(marks, issues, path)
    assert not review.gain.kept
    assert review.detector is None
    unmarked = issues.ranking[200:]
    np.testing.assert_array_equal(review.issues.noise_score[unmarked], issues.noise_score[unmarked])


def test_where_all_marks_are_unsure_no_precision_is_claimed(issues, path):
    marks = Marks(issues.ranking[:2], np.full(2, UNSURE, np.int8), np.full(2, -1, np.int32))
    review = review_marks(marks, issues, path)
    assert review.precision is review.precision_interval is None
    assert "marks: 0 wrong, 0 right, 2 unsure" in repr(review)
    assert "of the judged labels" not in repr(review)


def test_a_mark_of_a_sample_never_seen_is_not_trained_on(issues, path):
    by_detector = replace(issues, method="lstm")
    samples = np.r_[issues.ranking[:20], 299]
    verdicts = np.array([WRONG] * 10 + [RIGHT] * 11, np.int8)
    review = review_marks(Marks(samples, verdicts, np.full(21, -1, np.int32)), by_detector, path)
    assert review.why_not == "a marked sample was never seen in the training"
    assert review.gain is None


@pytest.mark.skipif(paddle is None, reason="PaddlePaddle is not installed")
def test_fine_tuning_that_explodes_gains_nothing(path, monkeypatch):
    def explode(*_arguments, **_options):
        raise DetectorError("the weights are not finite")

    wrong = record(path, n_samples=100, never_seen=0)
    issues = find_label_issues(path, progress=False)
    monkeypatch.setattr(NoiseDetector, "fit", explode)
    marks = Marks(np.arange(100), wrong.astype(np.int8), np.full(100, -1, np.int32))
    review = review_marks(marks, issues, path)
    assert (review.gain.kept, review.gain.after, review.detector) == (False, 0.0, None)
    assert 0 < review.gain.before <= 1


def test_a_gain_is_estimated_from_the_draws_that_hold_a_wrong_label():
    scores = np.array([0.0, 1.0, 2.0])
    low, high = _difference(scores, scores, np.array([True, False, False]))
    assert (low, high) == (0.0, 0.0)  # and not NaN, as a draw without a wrong label would make it
