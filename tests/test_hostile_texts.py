"""Hostile class names and sample ids go through every way out of a recording: nothing runs, nothing is lost."""

import csv
import json

import pytest
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsStore, find_label_issues
from paddle_td_callback.cli import main
from paddle_td_callback.csv_cells import from_cell

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r"
NAMES = [
    "</script><script>window.hacked = 1</script>",
    '=HYPERLINK("http://x")\'<img src=x onerror=alert(1)>' + ESCAPES,
    "\u202eright to left \u05d0\u05d1\u2066\u2028\n",
    "N" * 10_000,
]
IDS = [
    "=1+1",
    "@SUM(A1)",
    "-1+cmd|' /C calc'!A0",
    "\t=1",
    ESCAPES,
    "a,\"b'",
    "\u202ex",
    "I" * 10_000,
    "<b>",
    "-->",
]
N = 300


@pytest.fixture
def recording(tmp_path):
    record(tmp_path / "run.h5", class_names=NAMES, sample_ids=[*IDS, *map(str, range(len(IDS), N))])
    return tmp_path / "run.h5"


def is_safe(text):
    """No character that a terminal acts on."""
    return not any(
        (char < " " and char != "\n") or "\x7f" <= char <= "\x9f" or char in "\u202e\u2066" for char in text
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["info", "{run}"], 0),
        (["info", "{run}", "--json"], 0),
        (["verify", "{run}"], 0),
        (["verify", "{run}", "--json"], 0),
        (["verify", "{run}", "--salvage", "{folder}/\x1b[2J.h5"], 0),
        (["keep", "{run}", "2"], 0),
        (["keep", "{run}" + ESCAPES, "2"], 1),
        (["detect", "{run}", "--method", "aum"], 0),
        (["detect", "{run}", "--method", "aum", "--json"], 0),
        (["detect", "{run}", "--method", "aum", "--csv", "{folder}/\x1b[2J.csv"], 0),
        (["report", "{run}", "--method", "aum", "-o", "{folder}/\x1b[2J.html", "--title", ESCAPES], 0),
        (["report", "{run}", "--method", "aum", "--images", ESCAPES], 1),
        (["report", "{run}", "--method", "aum", "--texts", ESCAPES], 1),
        (["report", "{run}", "--method", "aum", "--rows", ESCAPES], 1),
        (["review", "{marks}", "{run}", "--method", "aum"], 0),
        (["review", "{marks}", "{run}", "--method", "aum", "--json"], 0),
        (["review", "{bad_marks}", "{run}", "--method", "aum"], 1),
        (["review", ESCAPES, "{run}", "--method", "aum"], 1),
        (["export", "{run}", "--method", "aum", "-o", "{folder}/\x1b[2J.csv"], 0),
        (["export", "{run}", "--method", "aum", "-o", "{folder}/" + ESCAPES], 1),
        (["import", ESCAPES, "-o", "{folder}/new.h5"], 1),
        (["import", "{marks}", "-o", "{folder}/new.h5"], 1),
    ],
)
def test_every_command_prints_what_a_terminal_only_shows(
    recording, tmp_path, capsys, monkeypatch, arguments, status
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks.csv").write_text("sample,mark,corrected_label\n5,wrong,1\n6,right,\n")
    (tmp_path / "bad.csv").write_text("sample,mark\n5,\x1b[2J\u202e\n")
    places = {
        "run": recording,
        "folder": tmp_path,
        "marks": tmp_path / "marks.csv",
        "bad_marks": tmp_path / "bad.csv",
    }
    assert main([one.format(**places) for one in arguments]) == status
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert is_safe(captured.out)
    assert is_safe(captured.err)
    assert len(captured.err.splitlines()) <= 1
    if "--json" in arguments:
        json.loads(captured.out)


def test_the_recording_and_json_hold_the_names_whole(recording, tmp_path, capsys):
    with TrainingDynamicsStore(recording) as store:
        assert list(store.class_names) == NAMES
        assert list(store.sample_ids)[: len(IDS)] == IDS
    assert main(["detect", str(recording), "--method", "aum", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    for row in json.loads(out)["samples"]:
        assert row["given_name"] == NAMES[row["given_label"]]
        assert row["sample_id"] == [*IDS, *map(str, range(len(IDS), N))][row["sample"]]
    for name in ("labels.json", "tasks.json"):
        kind = "fiftyone" if name == "labels.json" else "label-studio"
        assert (
            main(["export", str(recording), "-o", str(tmp_path / name), "--to", kind, "--method", "aum"]) == 0
        )
        json.loads((tmp_path / name).read_text(encoding="utf-8"))


def test_the_csv_holds_no_formula_and_no_control_character(recording, tmp_path, capsys):
    issues = find_label_issues(recording, method="aum", progress=False)
    issues.to_csv(tmp_path / "issues.csv")
    with open(tmp_path / "issues.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N
    assert {row["given_name"] for row in rows} >= {NAMES[0], NAMES[3]}
    for row in rows:
        for cell in (row["sample_id"], row["given_name"], row["suggested_name"]):
            assert not cell.startswith(("=", "+", "-", "@", "\t"))
            assert is_safe(cell.replace("\t", "").replace("\n", ""))
    plain = {int(row["sample"]): from_cell(row["sample_id"]) for row in rows}
    for place in (0, 1, 2, 5, 7, 8, 9):
        assert plain[place] == IDS[place]


def test_a_notebook_shows_the_names_as_text(recording):
    issues = find_label_issues(recording, method="aum", progress=False)
    shown = issues._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert is_safe(shown)
    assert is_safe(repr(issues))
    assert max(map(len, repr(issues).splitlines())) < 400  # 10,000 letters do not fill a screen


def test_names_that_no_utf8_file_holds_are_kept_or_refused_in_words(tmp_path, capsys):
    for name in ("\ud800", "a\x00b"):
        path = tmp_path / "odd.h5"
        path.unlink(missing_ok=True)
        try:
            record(path, class_names=[name, "b", "c", "d"])
        except ValueError as refused:
            told = str(refused)
            assert is_safe(told)
            continue
        assert main(["detect", str(path), "--method", "aum"]) == 0
        captured = capsys.readouterr()
        assert is_safe(captured.out)
        assert "\ud800" not in captured.out
        issues = find_label_issues(path, method="aum", progress=False)
        issues.to_csv(tmp_path / "odd.csv")
        issues._repr_html_().encode()
        issues.report(path, tmp_path / "odd.html")
