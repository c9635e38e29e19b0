"""Every message of an error says what was wanted and what to do."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paddle_td_callback
from paddle_td_callback import (
    NoiseDetector,
    StoreError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.errors import DetectorError

FOLDER = Path(paddle_td_callback.__file__).parent
ERRORS = {"TrainingDynamicsError", "CaptureError", "StoreError", "StoreNotFoundError", "StoreExistsError"}
ERRORS |= {"DetectorError", "ValueError", "TypeError", "FileNotFoundError"}

# A next step: something to do, or an argument to give.
STEP = re.compile(
    r"\b(give|pass|use|record|make|raise|say|call|fit|train|try|add|save|set|create|install|reinstall|upgrade|copy|open|cast|"
    r"yield|keep|see|wait|resume|replaces|continues|index|mark|close|rank|leave|begin|saves|says what|writes|needs|get|"
    r"detect)\b|\w+=|; \{\}|, \{\}, or|otherwise, \{\}|rename"
)
# What was wanted, where an argument was wrong; what was got stands beside it.
ARGUMENT = re.compile(r"\b(must|may|wanted|takes)\b.*\bgot\b|\bgot\b.*\bwanted\b", re.DOTALL)
HOLE = "{}"
# Causes that the next lines of the same function put into a message of theirs, which says what to do.
CAUSES = {
    "a header of {} bytes, its file has {}",
    "holds values that are not finite",
    "is no regular file",
    "an array claims shape {} of {}, its file holds {} bytes",
    "a member lies before the file's first byte",
    "a stage without arrays or without a description",
    "a size that is no whole number of at least 1",
}

# These never reach a user as they are: another message wraps them, and says what to do. Reason by file.
WRAPPED = {
    "detection/lstm/weights_pickle.py": "read_lstm names the file and what to give",
    "detection/lstm/detector_stages.py": "NoiseDetector.load says to train or copy it again",
    "store/chunks.py": "the reader says what is damaged and names verify",
    "store/hdf5_format.py": "the same",
    "store/state.py": "the same",
    "detection/scores.py": "the values are named by `wanted`, which says what they must be",
    "paddle_fit/issues_callback.py": "a programming error of ours: all values of the issues travel",
    "store/commits.py": "the committer names the recording and what becomes of its epochs",
}


def sites() -> list[tuple[str, int, str, str]]:
    """File, line, error and message of each `raise`; what is put into a message is a hole."""
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                if name in ERRORS and node.exc.args:
                    text = "".join(texts(node.exc.args[0]))
                    found.append((path.relative_to(FOLDER).as_posix(), node.lineno, name, text))
    return found


def texts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return [text for value in node.values for text in texts(value)]
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    if isinstance(node, ast.FormattedValue) and ast.unparse(node.value).isupper():  # HINT, _WAYS_OUT
        return ["; " + HOLE]
    if isinstance(node, ast.FormattedValue):  # f"{'a' if b else 'c'}" says one of these
        return ["".join(re.findall(r"'([^']*)'", ast.unparse(node.value))) or HOLE]
    return [HOLE]


def is_complete(text: str) -> bool:
    return bool(STEP.search(text) or ARGUMENT.search(text))


def test_every_message_says_what_to_do() -> None:
    bad = [
        f"{file}:{line} {error}: {text}"
        for file, line, error, text in sites()
        if file not in WRAPPED and text not in CAUSES and text.strip("{}':; ") and not is_complete(text)
    ]
    assert not bad, "\n".join(["messages without a next step:", *bad])


@pytest.mark.parametrize("text", ["it is damaged", "no such file", "{} names, not {}", "3 epochs"])
def test_what_is_incomplete(text: str) -> None:
    assert not is_complete(text)


def test_usual_mistakes(tmp_path: Path) -> None:
    """What was got, what was wanted and the way out, for what users get wrong most."""
    path = str(tmp_path / "run.h5")
    with TrainingDynamicsRecorder(path, n_samples=4, n_classes=2) as recorder:
        recorder.update([0, 1, 2, 3], np.zeros((4, 2), np.float32), [0, 1, 0, 1])
        recorder.end_epoch()
    text = tmp_path / "notes.txt"
    text.write_text("no recording")

    def recorder_of(**named: Any) -> TrainingDynamicsRecorder:
        return TrainingDynamicsRecorder(tmp_path / "new.h5", **{"n_samples": 4, "n_classes": 2, **named})

    def update(*arguments: Any, **named: Any) -> None:
        with recorder_of(overwrite=True, on_error="raise") as recorder:
            recorder.update(*arguments, **named)

    logits = np.zeros((2, 2), np.float32)
    mistakes: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
        (lambda: TrainingDynamicsStore(tmp_path / "no.h5"), StoreError, ["no.h5", "no such file", "give"]),
        (lambda: TrainingDynamicsStore(tmp_path), StoreError, ["is a folder", "give the path"]),
        (lambda: TrainingDynamicsStore(text), StoreError, ["notes.txt", "TrainingDynamicsRecorder made"]),
        (
            lambda: TrainingDynamicsRecorder(path, n_samples=4, n_classes=2),
            StoreError,
            ["resume=", "overwrite="],
        ),
        (lambda: recorder_of(n_samples=0), ValueError, ["n_samples", "at least 1", "got 0"]),
        (lambda: recorder_of(n_classes=1), ValueError, ["n_classes", "at least 2", "got 1"]),
        (lambda: recorder_of(keep=3), ValueError, ["keep=3", "2 classes", "keep='all'"]),
        (lambda: recorder_of(class_names=["a"]), ValueError, ["class_names", "2 names", "got 1", "give one"]),
        (lambda: recorder_of(class_names={"a", "b"}), TypeError, ["class_names", "list", "set"]),
        (lambda: update([0, 9], logits, [0, 1]), ValueError, ["[0, 4)", "got index 9", "n_samples="]),
        (lambda: update([0, 1], logits, [0]), ValueError, ["1 labels for 2 indices", "give one for each"]),
        (lambda: update([0, 1], logits[:, :1], [0, 1]), ValueError, ["[row, class]", "got", "n_classes="]),
        (lambda: update([0, 1], None, [0, 1]), ValueError, ["neither", "pass logits="]),
        (lambda: find_label_issues(path, method="nothing"), ValueError, ["method must be one of", "nothing"]),
        (lambda: find_label_issues([]), ValueError, ["empty list", "at least one"]),
        (lambda: find_label_issues(text), StoreError, ["notes.txt", "give a file"]),
        (lambda: NoiseDetector.load(text), DetectorError, ["notes.txt", "NoiseDetector.save"]),
        (lambda: NoiseDetector.load(tmp_path / "no.weights"), FileNotFoundError, ["no.weights", "save"]),
        (lambda: NoiseDetector.load_interpretdl(text), DetectorError, ["notes.txt", "InterpretDL"]),
        (
            lambda: NoiseDetector().predict_proba(np.zeros((2, 2, 3))),
            DetectorError,
            ["no weights", "call fit"],
        ),
    ]
    for mistake, error, parts in mistakes:
        with pytest.raises(error) as raised:
            mistake()
        missing = [part for part in parts if part not in str(raised.value)]
        assert not missing, f"{raised.value} lacks {missing}"
