"""paddle-td report, review, export and import, as a user calls them."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsStore, find_label_issues
from paddle_td_callback.cli import main
from paddle_td_callback.export.thumbnails import png


@pytest.fixture
def recording(path):
    record(path, sample_ids=[f"{i}.png" for i in range(300)], class_names=["cat", "dog", "owl", "fox"])
    return path


def run(*arguments):
    return main([str(one) for one in arguments])


def test_report(recording, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report", recording, "--method", "aum", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert "<title>Label issues of run.h5</title>" in (tmp_path / "report.html").read_text()
    for i in range(300):
        (tmp_path / f"{i}.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    options = ("--images", tmp_path, "--title", "T", "--top", 7, "--method", "aum")
    assert run("report", recording, "-o", "r.html", *options) == 0
    assert capsys.readouterr().out == "report: r.html\n"
    text = (tmp_path / "r.html").read_text()
    assert text.count("data:image/png;base64,") == 7


def contents(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])["content"]


def test_report_of_texts_and_rows(path, tmp_path, capsys):
    record(path)
    texts, rows, out = tmp_path / "texts.txt", tmp_path / "rows.csv", tmp_path / "r.html"
    texts.write_text("".join(f"text <{i}>\n" for i in range(300)))
    rows.write_text("a,b\n" + "".join(f'{i},"x\ny"\n' for i in range(300)))
    options = ("-o", out, "--method", "aum", "--quiet", "--top", "3")
    first = find_label_issues(path, method="aum", progress=False).ranking[0]
    assert run("report", path, "--texts", texts, *options) == 0
    assert contents(out)[0] == {"text": f"text <{first}>"}
    assert run("report", path, "--rows", rows, *options) == 0
    assert contents(out)[0] == {"row": [["a", str(first)], ["b", "x\ny"]]}
    texts.write_text("one\ntwo\n")
    assert run("report", path, "--texts", texts, *options) == 1
    assert "texts.txt' holds 2 for 300 samples; give one for each" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("report", path, "--texts", texts, "--rows", rows)


def test_report_shows_pictures_that_the_ids_lead_to_below_this_folder_alone(
    recording, tmp_path, monkeypatch, capsys
):
    here = tmp_path / "here"
    here.mkdir()
    for i in range(300):
        (tmp_path / f"{i}.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    monkeypatch.chdir(here)
    options = ("-o", "r.html", "--method", "aum", "--quiet", "--top", "3")
    assert run("report", recording, *options) == 0
    assert contents(here / "r.html") == []
    (tmp_path / "ids.txt").write_text("".join(f"../{i}.png\n" for i in range(300)))
    assert run("report", recording, "--sample-ids", tmp_path / "ids.txt", *options) == 0
    assert contents(here / "r.html") == []
    with pytest.warns(RuntimeWarning, match=r"3 samples could not be shown, .* is no file below"):
        assert run("report", recording, "--sample-ids", tmp_path / "ids.txt", "--images", ".", *options) == 0
    assert contents(here / "r.html") == [None] * 3
    monkeypatch.chdir(tmp_path)
    assert run("report", recording, *options) == 0
    assert [list(one) for one in contents(tmp_path / "r.html")] == [["image"]] * 3


def test_names_from_files_and_output_that_is_printed(path, tmp_path, capsys):
    record(path)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    (tmp_path / "ids.txt").write_text("".join(f"id-{i}\n" for i in range(300)))
    names = ("--class-names", tmp_path / "classes.txt", "--sample-ids", tmp_path / "ids.txt")
    assert run("report", path, "-o", "-", "--method", "aum", *names) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!DOCTYPE html>")
    assert '"id-' in page
    assert '"ant"' in page
    assert "report: " not in page
    assert run("export", path, "-o", "-", "--to", "csv", "--method", "aum", *names) == 0
    assert capsys.readouterr().out.startswith("sample,sample_id,rank")
    assert run("export", path, "-o", "-", "--to", "interpretdl") == 1
    assert "--to interpretdl is not printed" in capsys.readouterr().err
    (tmp_path / "marks.csv").write_text("sample,mark,corrected_label\n5,wrong,dog\n")
    review = ("review", tmp_path / "marks.csv", path, "--method", "aum", *names)
    assert run(*review, "--corrected", "-") == 0
    assert capsys.readouterr().out.splitlines()[6].startswith("5,id-5,3,dog,")
    assert run(*review, "--corrected", "-", "--json") == 1
    assert "only one thing can go to standard output" in capsys.readouterr().err


def test_files_from_windows_are_read(recording, tmp_path, capsys):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee\r\ncow\r\ndog\r\n")
    table = "id;size;size;\n" + "".join(f"{i};{i}.5;b;\n" for i in range(300))
    (tmp_path / "rows.csv").write_bytes(("\ufeff" + table.replace("\n", "\r\n")).encode())
    options = ("--class-names", tmp_path / "classes.txt", "--rows", tmp_path / "rows.csv")
    assert run("report", recording, "-o", tmp_path / "r.html", "--method", "aum", *options) == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.S)[1])
    assert set(data["names"].values()) <= {"ant", "bee", "cow", "dog"}
    sample = data["suspects"]["sample"][0]
    row = [["id", str(sample)], ["size", f"{sample}.5"], ["size (3)", "b"], ["column 4", ""]]
    assert data["content"][0] == {"row": row}


def test_a_table_of_one_column_may_have_empty_cells(recording, tmp_path):
    (tmp_path / "rows.csv").write_text("text\n" + "".join("\n" if i == 7 else f"{i}\n" for i in range(300)))
    assert (
        run(
            "report", recording, "-o", tmp_path / "r.html", "--method", "aum", "--rows", tmp_path / "rows.csv"
        )
        == 0
    )


def test_a_page_without_pictures_says_how_to_get_them(recording, tmp_path, capsys, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(300):
        (pictures / f"{i}.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    monkeypatch.chdir(tmp_path)
    assert run("report", recording, "--method", "aum") == 0
    assert "no files below this folder. Pass --images FOLDER" in capsys.readouterr().out
    assert run("report", recording, "--method", "aum", "--images", "pictures") == 0
    assert "Pass --images" not in capsys.readouterr().out
    named = tmp_path / "named.h5"
    record(named, sample_ids=[f"pictures\\{i}.png" for i in range(300)])
    assert run("report", named, "--method", "aum", "--images", "pictures") == 0
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 298


def test_marks_are_not_replaced_by_their_own_review(recording, tmp_path, capsys):
    marks = tmp_path / "marks.csv"
    marks.write_text("sample,mark\n5,wrong\n")
    assert run("review", marks, recording, "--method", "aum", "--corrected", marks) == 1
    assert "would replace what it reads" in capsys.readouterr().err
    assert marks.read_text() == "sample,mark\n5,wrong\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("detect", "run.h5", "--class-names", "x.txt", "--csv", "./x.txt"),
        ("detect", "run.h5", "--sample-ids", "x.txt", "--csv", "x.txt"),
        ("report", "run.h5", "--texts", "x.txt", "-o", "x.txt"),
        ("export", "run.h5", "--to", "label-studio", "--texts", "x.txt", "-o", "x.txt"),
        ("review", "x.txt", "run.h5", "--corrected", "y.csv", "--csv", "./y.csv"),
        ("export", "run.h5", "--to", "label-studio", "--texts", "x.txt", "-o", "y.xml"),
        ("export", "run.h5", "--to", "cartography", "-o", "-"),
    ],
)
def test_no_output_replaces_an_input_or_another(recording, tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(os.path.dirname(recording))
    Path("x.txt").write_text("a\n" * 300)
    assert run(*arguments, "--method", "aum") == 1
    assert re.search("give (it another path|the tasks one|-o one)", capsys.readouterr().err)
    assert Path("x.txt").read_text() == "a\n" * 300
    assert not Path("y.csv").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("review", "none.csv", "run.h5"),
        ("report", "run.h5", "--texts", "x.txt"),
        ("report", "run.h5", "--rows", "x.txt"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_ranking(recording, capsys, monkeypatch, arguments):
    monkeypatch.chdir(os.path.dirname(recording))
    monkeypatch.setattr(
        "paddle_td_callback.detection.find_issues.find_label_issues", lambda *_, **__: pytest.fail("ranked")
    )
    Path("x.txt").write_text("a\n" * 30)
    assert run(*arguments) == 1
    assert re.search("there is no such file|samples; give one for each", capsys.readouterr().err)


def test_a_review_without_a_detector_to_save_is_said_with_the_rest(recording, tmp_path, capsys):
    (tmp_path / "marks.csv").write_text("sample,mark\n5,wrong\n")
    review = ("review", tmp_path / "marks.csv", recording, "--method", "aum")
    assert run(*review, "--save-detector", tmp_path / "d.weights") == 1
    printed = capsys.readouterr()
    assert "of the judged labels 100.0% are wrong" in printed.out
    assert "no detector was saved: " in printed.err
    assert not (tmp_path / "d.weights").exists()


def test_averaged_runs_are_reviewed(recording, tmp_path, capsys):
    second = tmp_path / "second.h5"
    shutil.copy(recording, second)
    (tmp_path / "marks.csv").write_text("sample,mark\n5,wrong\n")
    assert run("review", tmp_path / "marks.csv", recording, second, "--method", "aum") == 0
    assert "average of several runs; review one of them alone" in capsys.readouterr().out


def test_texts_go_to_label_studio(recording, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("".join(f"text {i}\n" for i in range(300)))
    texts = ("--texts", tmp_path / "texts.txt", "--method", "aum")
    assert run("export", recording, "-o", tmp_path / "t.json", "--to", "label-studio", *texts) == 0
    task = json.loads((tmp_path / "t.json").read_text())[0]["data"]
    assert task["text"] == f"text {task['sample']}"
    assert "<Text " in (tmp_path / "t.xml").read_text()
    assert run("export", recording, "-o", tmp_path / "t.csv", *texts) == 1
    assert "--texts goes with --to label-studio" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda file: file.mkdir(),
        lambda file: file.write_bytes(b"\xff\xfea\n"),
        os.mkfifo,
        lambda file: file.symlink_to("/dev/zero"),
    ],
    ids=["missing", "folder", "not-utf-8", "pipe", "device"],
)
@pytest.mark.parametrize("option", ["--class-names", "--sample-ids", "--texts", "--rows"])
def test_files_of_names_that_cannot_be_read_are_named(recording, tmp_path, capsys, make, option):
    make(tmp_path / "names.txt")
    assert run("report", recording, "-o", "-", "--method", "aum", option, tmp_path / "names.txt") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(r"names.txt'.*; (give a|save it in UTF-8)", message)


def test_report_is_refused_before_the_ranking(recording, tmp_path, capsys):
    assert run("report", recording, "-o", tmp_path / "no" / "r.html", "--method", "aum") == 1
    assert "no folder" in capsys.readouterr().err
    assert run("report", tmp_path / "gone.h5") == 1
    assert "no such file" in capsys.readouterr().err
    assert run("report", recording, "-o", tmp_path / "r.html", "--method", "aum", "--detector", "x") == 1
    assert "--detector goes with" in capsys.readouterr().err


def test_pictures_of_a_folder_that_is_not_there_are_refused(recording, tmp_path, capsys):
    assert (
        run("report", recording, "-o", tmp_path / "r.html", "--method", "aum", "--images", tmp_path / "no")
        == 1
    )
    assert "is no folder; give the folder that holds the pictures" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_review(recording, tmp_path, capsys):
    (tmp_path / "marks.csv").write_text("sample,mark,corrected_label\n5,wrong,fox\n6,right,\n")
    outs = ("--corrected", tmp_path / "labels.csv", "--csv", tmp_path / "new.csv")
    assert run("review", tmp_path / "marks.csv", recording, "--method", "aum", *outs) == 0
    said = capsys.readouterr().out
    assert "marks: 1 wrong, 1 right, 0 unsure" in said
    assert f"corrected labels: {tmp_path / 'labels.csv'}" in said
    assert (tmp_path / "labels.csv").read_text().splitlines()[6].startswith("5,5.png,3,fox,")
    assert (tmp_path / "new.csv").exists()
    assert run("review", tmp_path / "marks.csv", recording, "--method", "aum", "--json", "--quiet") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["wrong"], facts["right"], facts["precision"]) == (1, 1, 0.5)
    assert (
        run("review", tmp_path / "marks.csv", recording, "--method", "aum", "--save-detector", tmp_path / "d")
        == 1
    )
    assert "no detector was saved: the ranking is by aum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.csv", ()),
        ("x.npz", ()),
        ("x.npy", ()),
        ("folder", ("--to", "cartography")),
        ("labels.json", ("--to", "fiftyone")),
        ("tasks.json", ("--to", "label-studio", "--prefix", "http://x/")),
    ],
)
def test_export(recording, tmp_path, capsys, name, options):
    assert run("export", recording, "-o", tmp_path / name, "--method", "aum", *options) == 0
    assert str(tmp_path / name) in capsys.readouterr().out
    assert (tmp_path / name).exists()
    assert (tmp_path / "tasks.xml").exists() == ("label-studio" in options)


def test_export_needs_a_format_and_one_recording(recording, tmp_path, capsys):
    assert run("export", recording, "-o", tmp_path / "x.abc") == 1
    assert "names no format; pass --to csv, parquet" in capsys.readouterr().err
    assert run("export", recording, recording, "-o", tmp_path / "x.npz") == 1
    assert "takes one recording, got 2" in capsys.readouterr().err


def test_import_of_what_was_exported(recording, tmp_path, capsys):
    run("export", recording, "-o", tmp_path / "x.npz")
    run("export", recording, "-o", tmp_path / "folder", "--to", "cartography")
    for source, n_samples in (("x.npz", 300), ("folder", 298)):
        assert run("import", tmp_path / source, "-o", tmp_path / "back.h5", "--overwrite", "--keep", "2") == 0
        assert "recording: " in capsys.readouterr().out
        with TrainingDynamicsStore(tmp_path / "back.h5") as store:
            assert (store.n_samples, store.keep, store.n_epochs) == (n_samples, 2, 6)
    assert run("import", tmp_path / "x.npz", "-o", tmp_path / "back.h5") == 1
    assert "exists already" in capsys.readouterr().err


def test_wrong_usage_leaves_with_2(recording):
    for arguments in (
        ("report", recording, "--top", "0"),
        ("import", "x", "-o", "y", "--keep", "some"),
        ("export", recording),
    ):
        with pytest.raises(SystemExit) as left:
            run(*arguments)
        assert left.value.code == 2


def test_export_as_parquet(recording, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)  # newest ones need NumPy 2
    assert run("export", recording, "-o", tmp_path / "x.parquet", "--method", "aum", "--quiet") == 0
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 300


def test_export_for_label_studio_writes_the_interface_beside_a_file_and_nothing_else_into_a_pipe(
    recording, tmp_path, capsys
):
    out, options = tmp_path / "tasks.json", ("--method", "aum")
    assert run("export", recording, "--to", "label-studio", "-o", out, *options) == 0
    assert f"labeling interface: {tmp_path / 'tasks.xml'}" in capsys.readouterr().out
    (tmp_path / "tasks.xml").unlink()
    assert run("export", recording, "--to", "label-studio", "-o", out, *options, "--quiet") == 0
    assert (tmp_path / "tasks.xml").exists()
    assert capsys.readouterr().out == ""
    assert run("export", recording, "--to", "label-studio", "-o", "-", *options) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_review_saves_the_detector_that_the_marks_made_better(recording, tmp_path, monkeypatch, capsys):
    pytest.importorskip("paddle")
    from paddle_td_callback import NoiseDetector
    from paddle_td_callback.export import marks

    tuned = NoiseDetector.pretrained()
    gain = marks.Gain(0.5, 0.6, (0.0, 0.2), True)
    monkeypatch.setattr(marks, "_why_not", lambda *_: "")
    monkeypatch.setattr(marks, "_fine_tuned", lambda *_: (gain, tuned))
    (tmp_path / "m.csv").write_text("sample,mark\n5,wrong\n6,right\n")
    assert run("review", tmp_path / "m.csv", recording, "--save-detector", tmp_path / "tuned.weights") == 0
    assert f"detector: {tmp_path / 'tuned.weights'}" in capsys.readouterr().out
    assert NoiseDetector.load(tmp_path / "tuned.weights").config == tuned.config
