"""The command: what it prints, what it writes, how it refuses."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from paddle_td_callback import TrainingDynamicsRecorder, TrainingDynamicsStore, __version__
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


def test_info_says_that_a_class_has_no_sample(tmp_path, capsys):
    with TrainingDynamicsRecorder(tmp_path / "run.h5", n_samples=3, n_classes=4) as recorder:
        recorder.update([0, 1, 2], np.zeros((3, 4), np.float32), [0, 0, 3])
        recorder.end_epoch()
    assert main(["info", "--json", str(tmp_path / "run.h5")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["smallest_class"] == {"label": 1, "samples": 0}
    assert facts["largest_class"] == {"label": 0, "samples": 2}


def test_info_in_a_notebook_whose_output_is_no_file(recording):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["info", str(recording)]) == 0
    assert "committed epochs" in out.getvalue()


def test_detect_ranks_and_writes_csv(recording, tmp_path, capsys):
    table = tmp_path / "issues.csv"
    assert main(["detect", str(recording), "--method", "aum", "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    assert "1 of 6 labels look wrong; 1 samples were never seen" in out
    assert out.splitlines()[4].split()[:4] == ["1", "4", "bee", "cow"]
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
    capsys.readouterr()
    assert main(["verify", str(recording), "--salvage", str(tmp_path / "again.h5"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["good_epochs"]) == (False, [0, 1, 2])
    with TrainingDynamicsStore(tmp_path / "again.h5") as store:
        assert store.n_epochs == 3
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
        (["verify", "{tmp}/run.h5", "--salvage", "{tmp}/run.h5"], "give --salvage another path"),
        (["detect", "{tmp}/run.h5", "--method", "aum", "--sample-ids", "{tmp}/none.txt"], "none.txt"),
        (["detect", "{tmp}/run.h5", "--method", "aum", "--csv", "{tmp}/none/i.csv"], "none"),
        (["detect", "{tmp}/run.h5", "--method", "aum", "--csv", ""], "the path is empty"),
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


ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def record_odd(path, **options):
    """Forty samples of four classes, four epochs."""
    labels = np.arange(40) % 4
    rng = np.random.default_rng(0)
    with TrainingDynamicsRecorder(path, n_samples=40, n_classes=4, **options) as recorder:
        for epoch in range(4):
            recorder.update(np.arange(40), rng.normal(0, 2, (40, 4)) + epoch * np.eye(4)[labels], labels)
            recorder.end_epoch()
    return path


def is_safe(text):
    return not any((ord(char) < 32 and char not in "\n\t") or char in "\u202e\ud800" for char in text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "{run}"],
        ["info", "--json", "{run}"],
        ["verify", "{run}"],
        ["detect", "{run}", "--method", "aum"],
        ["detect", "{run}", "--method", "aum", "--json"],
        ["detect", "{run}", "--method", "aum", "--csv", "-"],
        ["info", "{run}" + ESCAPES],
        ["detect", "{run}", "--csv", ESCAPES + "/x"],
        ["detect", "{run}", "--detector", ESCAPES],
        ["detect", "{run}", "--class-names", ESCAPES],
        ["detect", "{run}", "--device", ESCAPES],
    ],
)
def test_no_name_reaches_the_terminal_raw(arguments, tmp_path, capsys):
    names = [ESCAPES + "all is well", "b\nfile  /etc/shadow", "\u202egnirts", "d\x00"]
    ids = [f"{ESCAPES}{i}\r" for i in range(40)]
    run = record_odd(tmp_path / "run.h5", class_names=names, sample_ids=ids, keep="given")
    main([argument.format(run=run) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert is_safe(captured.out.replace("\r\n", "\n"))  # a line of a CSV ends so
    assert is_safe(captured.err)
    assert len(captured.err.splitlines()) <= 1


def test_names_that_stdout_cannot_encode_are_printed_all_the_same(tmp_path):
    run = record_odd(tmp_path / "run.h5", class_names=["\u732b", "\u72d7", "\u725b", "\u732a"])
    for arguments in (
        ["info", run],
        ["detect", run, "--method", "aum"],
        ["detect", run, "--method", "aum", "--csv", "-"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "paddle_td_callback", *map(str, arguments)],
            env={**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"\\u732b" in done.stdout


def test_detect_prints_as_many_as_asked_for_in_text_and_json(tmp_path, capsys):
    run = str(record_odd(tmp_path / "run.h5", class_names=list("abcd")))
    assert main(["detect", run, "--method", "aum", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "a label looks wrong where its mean margin is below 0" in out
    assert "rests on 4 epochs" in out
    assert out.splitlines()[-1] == "   ... 37 more in .ranking"
    assert main(["detect", run, "--method", "aum", "--top", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in facts["samples"]] == [1, 2, 3]
    assert (facts["n_samples"], facts["n_epochs"], facts["noise_rate"]) == (40, 4, None)
    assert main(["detect", run, "--method", "aum", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 40
    assert main(["detect", run, "--method", "aum", "--json", "--csv", "-"]) == 1
    assert "give the others a file" in capsys.readouterr().err


def test_detect_prints_the_csv_and_takes_names_from_files(tmp_path, capsys):
    run = str(record_odd(tmp_path / "run.h5"))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\nd\u00f6g\n", encoding="utf-8")
    (tmp_path / "ids.txt").write_text("".join(f"={i}.png\n" for i in range(40)))
    names = ["--class-names", str(tmp_path / "classes.txt"), "--sample-ids", str(tmp_path / "ids.txt")]
    assert main(["detect", run, "--method", "aum", "--csv", "-", *names]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 40
    assert all(row["sample_id"] == f"'={row['sample']}.png" for row in rows)
    assert {row["given_name"] for row in rows} == {"ant", "bee", "cow", "d\u00f6g"}
    assert main(["detect", run, "--method", "aum", "--csv", "-", "--raw-csv", *names]) == 0
    assert next(csv.DictReader(capsys.readouterr().out.splitlines()))["sample_id"].startswith("=")
    (tmp_path / "classes.txt").write_text("ant\n")
    assert main(["detect", run, "--method", "aum", *names]) == 1
    assert "--class-names has 1 names for 4 classes; give one for each" in capsys.readouterr().err


def test_info_takes_several_files(recording, tmp_path, capsys):
    other = record_odd(tmp_path / "other.h5")
    assert main(["info", str(recording), str(other)]) == 0
    assert capsys.readouterr().out.count("label checksum") == 2
    assert main(["info", "--json", str(recording), str(other)]) == 0
    assert [facts["samples"] for facts in json.loads(capsys.readouterr().out)] == [6, 40]


def test_info_says_all_that_can_be_read(recording, tmp_path, capsys):
    (tmp_path / "bad.h5").write_bytes(b"x" * 100)
    assert main(["info", str(tmp_path / "bad.h5"), str(recording), str(tmp_path / "gone.h5")]) == 1
    printed = capsys.readouterr()
    assert "committed epochs" in printed.out
    assert printed.err.count("paddle-td: ") == 2
    assert main(["info", "--json", str(recording), str(tmp_path / "gone.h5")]) == 1
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_options_are_named_and_files_keep_their_names(tmp_path, capsys):
    assert main(["info", str(tmp_path / "class_names.h5")]) == 1
    assert "class_names.h5'" in capsys.readouterr().err


def test_wrong_usage_is_escaped(capsys):
    with pytest.raises(SystemExit):
        main(["info", "run.h5", "--\x1b]0;title\x07"])
    assert "\x1b" not in capsys.readouterr().err


def test_a_missing_device_is_said_before_any_work(recording, capsys):
    pytest.importorskip("paddle")
    assert main(["detect", str(recording), "--device", "no-such:0"]) == 1
    captured = capsys.readouterr()
    assert "device 'no-such:0' cannot be used: this Paddle computes on" in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_a_full_stdout_is_said_and_no_traceback(recording):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    for arguments in (["info"], ["detect", "--method", "aum"]):
        command = [sys.executable, "-m", "paddle_td_callback", arguments[0], str(recording), *arguments[1:]]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("paddle-td: standard output cannot be written")
        assert len(done.stderr.splitlines()) == 1


def test_the_demo_speaks_json_and_nothing_else(tmp_path, monkeypatch, capsys):
    pytest.importorskip("paddle")

    def run(folder, *, overwrite, quiet):
        print("training a small network")
        return {"lstm": {"roc_auc": 0.5}}

    monkeypatch.setattr("paddle_td_callback.demo.run", run)
    assert main(["demo", "--dir", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"lstm": {"roc_auc": 0.5}}
    assert captured.err == "training a small network\n"


def test_a_command_that_needs_paddle_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "paddle", None)  # as if it were not installed
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "PaddlePaddle is not installed, and the demo trains a network: pip install paddlepaddle" in said


def test_a_paddle_that_lacks_something_says_what(recording, tmp_path):
    (tmp_path / "paddle.py").write_text("import no_such_part\n")  # as Paddle 2.6 does without setuptools
    path = os.pathsep.join([str(tmp_path), *sys.path])
    for arguments in (
        ["-m", "paddle_td_callback", "demo"],
        ["-c", "from paddle_td_callback import TrainingDynamicsCallback"],
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "No module named 'no_such_part'" in done.stderr
        assert "pip install paddlepaddle" not in done.stderr


def test_keep_drops_the_last_epochs(recording, capsys):
    with TrainingDynamicsStore(recording) as store:
        before, n_epochs = store.given_probabilities(), store.n_epochs
    assert main(["keep", str(recording), "2"]) == 0
    assert f"2 epochs kept, {n_epochs - 2} dropped" in capsys.readouterr().out
    with TrainingDynamicsStore(recording) as store:
        np.testing.assert_array_equal(store.given_probabilities(), before[:, :2])
    assert main(["verify", str(recording)]) == 0
    capsys.readouterr()
    assert main(["keep", str(recording), "3"]) == 1
    assert "has 2 epochs, so the first 3 cannot be kept" in capsys.readouterr().err


def test_keep_leaves_a_live_recording_alone(tmp_path, capsys):
    path = tmp_path / "live.h5"
    with TrainingDynamicsRecorder(path, n_samples=2, n_classes=2) as recorder:
        for _ in range(3):
            recorder.update([0, 1], np.zeros((2, 2), np.float32), [0, 1])
            recorder.end_epoch()
        recorder.flush()
        assert main(["keep", str(path), "1"]) == 1
        assert "is being recorded" in capsys.readouterr().err
    assert main(["info", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["committed_epochs"] == 3


def test_nothing_heavy_is_imported_before_it_is_needed(recording):
    code = """
import sys
import paddle_td_callback
from paddle_td_callback.cli import main
assert not {"numpy", "h5py", "tqdm", "paddle"} & set(sys.modules)
try:
    main(["--help"])
except SystemExit:
    pass
assert not {"numpy", "h5py", "tqdm", "paddle"} & set(sys.modules)
main(["info", sys.argv[1]])
main(["detect", sys.argv[1], "--method", "aum"])
main(["detect", sys.argv[1], "--device", "cpu"])
assert "paddle" not in sys.modules
assert dir(paddle_td_callback) == sorted(paddle_td_callback.__all__)
for name in paddle_td_callback.__all__:
    getattr(paddle_td_callback, name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(recording)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_labels_are_ranked_where_there_is_no_paddle(recording):
    code = """
import sys
sys.modules["paddle"] = None
from paddle_td_callback import NoiseDetector, find_label_issues
from paddle_td_callback.cli import main
issues = find_label_issues(sys.argv[1], progress=False)
assert issues.method == "lstm" and (issues.noise_score[:5] >= 0).all()
assert main(["detect", sys.argv[1]]) == 0
assert main(["detect", sys.argv[1], "--device", "gpu:0"]) == 1
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PaddlePaddle is not installed, and device gpu:0 needs it; --device cpu does not" in done.stderr


def test_interrupt_is_status_130(recording, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("paddle_td_callback.detection.find_issues.find_label_issues", interrupted)
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


def test_a_warning_takes_one_line_without_the_code_it_came_from(tmp_path):
    run = str(record_odd(tmp_path / "run.h5", sample_ids=[f"{i}.png" for i in range(40)]))
    command = ["report", run, "-o", str(tmp_path / "r.html"), "--method", "aum", "--images", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "paddle_td_callback", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    (said,) = done.stderr.splitlines()
    assert said.startswith("paddle-td: warning: report: 40 samples could not be shown")
