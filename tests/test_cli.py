"""The command: what it prints, what it writes, how it refuses."""

import csv
import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from paddle_td_callback import TrainingDynamicsRecorder, __version__
from paddle_td_callback.cli import main


@pytest.fixture
def recording(tmp_path):
    """Six samples of three classes, four epochs; sample 4 is never predicted as labelled, sample 5 never seen."""
    path = tmp_path / "run.h5"
    labels = np.array([0, 1, 2, 0, 1])
    logits = 3.0 * np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 2]]
    with TrainingDynamicsRecorder(
        path, n_samples=6, n_classes=3, class_names=["ant", "bee", "cow"]
    ) as recorder:
        for _ in range(4):
            recorder.update(np.arange(5), logits, labels)
            recorder.end_epoch()
    return path


def test_info_prints_the_facts(recording, capsys):
    assert main(["info", str(recording)]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): value.strip() for name, value in shown.items()}
    assert shown["samples"] == "6"
    assert shown["never seen"] == "1"
    assert shown["classes"] == "3"
    assert shown["class names"] == "ant, bee, cow"
    assert shown["largest class"] == "0 (2 samples)"
    assert shown["committed epochs"] == "4"
    assert shown["keep"] == "all"


def test_info_speaks_json(recording, capsys):
    assert main(["info", "--json", str(recording)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 6
    assert facts["committed_epochs"] == 4
    assert facts["class_names"] == ["ant", "bee", "cow"]


def test_detect_ranks_and_writes_csv(recording, tmp_path, capsys):
    table = tmp_path / "issues.csv"
    assert main(["detect", str(recording), "--method", "aum", "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    assert "1 of 6 labels look wrong; 1 samples were never seen" in out
    assert out.splitlines()[2].split()[:4] == ["1", "4", "bee", "cow"]
    assert str(table) in out
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows][::5] == ["4", "5"]
    assert (rows[0]["given_name"], rows[0]["suggested_name"]) == ("bee", "cow")
    assert (rows[-1]["rank"], rows[-1]["noise_score"]) == ("", "")


def test_detect_prints_the_csv_into_a_pipe(recording):
    command = f"{sys.executable} -m paddle_td_callback detect {recording} --method aum --csv /dev/stdout"
    for reader, wanted in (("cat", 7), ("head -n 2", 2)):
        done = subprocess.run(
            f"set -o pipefail; {command} | {reader}",
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == wanted
        assert lines[0].startswith("sample,rank")
        assert "paddle-td:" not in done.stderr


def test_detect_prints_the_csv_behind_what_a_file_holds(recording, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("earlier\n")
    command = f"{sys.executable} -m paddle_td_callback detect {recording} --method aum --csv /dev/stdout"
    subprocess.run(f"{command} >> {table}", shell=True, check=True)
    lines = table.read_text().splitlines()
    assert lines[0] == "earlier"
    assert lines[1].startswith("sample,rank")
    assert len(lines) == 8


def test_detect_averages_several_recordings(recording, capsys):
    again = recording.with_name("again.h5")
    shutil.copy(recording, again)
    assert main(["detect", str(recording), str(again), "--method", "aum"]) == 0
    assert "1 of 6 labels look wrong" in capsys.readouterr().out


def test_detect_quiet_prints_nothing(recording, tmp_path, capsys):
    assert (
        main(["detect", str(recording), "--method", "aum", "--quiet", "--csv", str(tmp_path / "i.csv")]) == 0
    )
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_verify_says_what_is_good_and_salvages(recording, tmp_path, capsys):
    assert main(["verify", str(recording)]) == 0
    sound = capsys.readouterr().out
    with open(recording, "r+b") as file:  # one byte of the last epoch's data
        image = bytearray(file.read())
        position = image.rindex(np.float32(3.0).tobytes())
        image[position] ^= 1
        file.seek(0)
        file.write(image)
    assert main(["verify", str(recording)]) == 1
    damaged = capsys.readouterr()
    assert damaged.out != sound
    assert "--salvage" in damaged.out
    assert "is damaged" in damaged.err
    assert main(["verify", str(recording), "--salvage", str(tmp_path / "good.h5")]) == 0
    assert "good.h5" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "good.h5")]) == 0
    assert main(["verify", str(recording), "--salvage", str(tmp_path / "good.h5")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["info", "{tmp}/none.h5"], "none.h5': there is no such file"),
        (["info", "{tmp}"], "is a folder"),
        (["info", "{tmp}/text.h5"], "is no HDF5 file"),
        (["info", "{tmp}/other.h5"], "no recording of training dynamics"),
        (["detect", "{tmp}/none.h5"], "there is no such file"),
        (
            ["detect", "{tmp}/run.h5", "--method", "aum", "--detector", "w.h5"],
            "--detector goes with --method lstm",
        ),
        (["detect", "{tmp}/run.h5", "--detector", "{tmp}/w.h5"], "w.h5"),
        (["detect", "{tmp}/run.h5", "--method", "aum", "--csv", "{tmp}/none/i.csv"], "none"),
        (["detect", "{tmp}/run.h5", "--method", "aum", "--csv", ""], "the path of the CSV is empty"),
    ],
)
def test_refusals_are_one_line_and_status_1(recording, tmp_path, capsys, arguments, wanted):
    (tmp_path / "text.h5").write_text("sample,label\n")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("paddle-td: ")
    assert wanted in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["detect"],
        ["detect", "run.h5", "--method", "magic"],
        ["detect", "r", "--batch-size", "0"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: paddle-td" in capsys.readouterr().err


def test_interrupt_is_status_130(recording, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("paddle_td_callback.cli.find_label_issues", interrupted)
    assert main(["detect", str(recording), "--method", "aum"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_module_is_the_command_and_survives_a_closed_pipe(recording):
    command = [sys.executable, "-m", "paddle_td_callback"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"paddle-td {__version__}"
    piped = subprocess.run(
        f"{' '.join(command)} info {recording} | true", shell=True, capture_output=True, text=True, check=True
    )
    assert "Error" not in piped.stderr
