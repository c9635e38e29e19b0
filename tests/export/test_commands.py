"""paddle-td report, review, export and import, as a user calls them."""

import json

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsStore
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


def test_report_is_refused_before_the_ranking(recording, tmp_path, capsys):
    assert run("report", recording, "-o", tmp_path / "no" / "r.html", "--method", "aum") == 1
    assert "no folder" in capsys.readouterr().err
    assert run("report", tmp_path / "gone.h5") == 1
    assert "no such file" in capsys.readouterr().err
    assert run("report", recording, "-o", tmp_path / "r.html", "--method", "aum", "--detector", "x") == 1
    assert "--detector goes with" in capsys.readouterr().err


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
