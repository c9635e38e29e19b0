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
ERRORS = {
    "TrainingDynamicsError",
    "CaptureError",
    "BatchError",
    "RowsError",
    "RanksEndedError",
    "RanksLostError",
    "StoreError",
    "StoreNotFoundError",
    "StoreExistsError",
    "DetectorError",
    "ValueError",
    "TypeError",
    "FileNotFoundError",
    "ImportError",
    "ModuleNotFoundError",
    "OSError",
    "RuntimeError",
    "ArgumentTypeError",
}
WARNINGS = {"warn", "_warn"}

# A next step: a clause that begins with something to do, or a command to run.
STEP = re.compile(
    r"(?:^|[;:,.?] |\b(?:or|so|and|must) )(?:to \w+ \w+, )?"
    r"(?:add|ask|begin|call|cast|choose|close|copy|create|deal|detect|end|free|get|give|hand on|import|index|install|"
    r"keep|leave|make|mark|open|pass|pip install|put|raise|record|reinstall|rename|resume|run|save|say|see|set|start|"
    r"train|try|upgrade|use|wait|write)\b|`paddle-td |; \{\}|, \{\}, or|otherwise, \{\}|otherwise ; \{\}"
)
# What was wanted, where an argument was wrong; what was got stands beside it.
ARGUMENT = re.compile(r"\b(must|may|wanted|takes)\b.*\bgot\b|\bgot\b.*\bwanted\b", re.DOTALL)
# What becomes of the training, in warnings that say of an error what it costs; the error says what to do.
COST = re.compile(r"\b(?:training (?:and recording )?go(?:es)? on|committed epochs stay)\b")
HOLE = "{}"
# Causes that the next lines of the same function put into a message of theirs, which says what to do.
CAUSES = {
    "a header of {} bytes, its file has {}",
    "holds values that are not finite",
    "is no regular file",
    "an array claims shape {} of {}, its file holds {} bytes",
    "a member lies before the file's first byte",
    "logits are no list of numbers",
    "a stage without arrays or without a description",
    "a size that is no whole number of at least 1",
    "HDF5 is bound to it already",
    "a second copy of it is broken too",
}

# These never reach a user as they are: another message wraps them, and says what to do. Reason by file.
WRAPPED = {
    "detection/lstm/weights_pickle.py": "read_lstm names the file and what to give",
    "detection/lstm/detector_stages.py": "NoiseDetector.load says to train or copy it again",
    "store/chunks.py": "the reader says what is damaged and names verify",
    "store/state.py": "the same",
    "store/commits.py": "the committer names the recording and what becomes of its epochs",
}
# Holes that are whole messages.
PASSED_ON = {
    "step {}: {}",
    "report: {}",
    "rank {} of {} cannot record: {}",
    "rank {} of {} did not arrive: {}",
    "{}, got {} for {}",
}
INTERNAL = {"{} cannot travel between ranks"}  # an error of ours in the code, not of the user


def sites() -> list[tuple[str, int, str, str]]:
    """File, line, error (or "warn") and message of each error made and warning given; what is put in is a hole."""
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ERRORS | WARNINGS:
                text = "".join(texts(node.args[0]))
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
    return bool(STEP.search(text) or ARGUMENT.search(text) or COST.search(text))


def test_every_message_says_what_to_do() -> None:
    found = sites()
    assert len(found) > 300  # the walk sees them
    assert {name for _, _, name, _ in found} >= WARNINGS | {"CaptureError", "StoreError", "DetectorError"}
    bad = [
        f"{file}:{line} {error}: {text}"
        for file, line, error, text in found
        if file not in WRAPPED
        and text not in CAUSES | PASSED_ON | INTERNAL
        and text.strip("{}':; ")
        and not is_complete(text)
    ]
    assert not bad, "\n".join(["messages without a next step:", *bad])


def test_what_is_said_of_messages_is_still_so() -> None:
    """No file or text stands on a list of exceptions that is not needed."""
    found = sites()
    assert not set(WRAPPED) - {file for file, *_ in found}
    assert not (CAUSES | PASSED_ON | INTERNAL) - {text for *_, text in found}


@pytest.mark.parametrize(
    "text",
    [
        "it is damaged",
        "no such file",
        "{} names, not {}",
        "3 epochs",
        "n_samples={}, but there are {} sample_ids",
        "rows are not recorded",
    ],
)
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
    torn, flipped, pickled = (tmp_path / name for name in ("torn.h5", "flipped.weights", "odd.pdparams"))
    torn.write_bytes(Path(path).read_bytes()[:6000])
    weights = bytearray((FOLDER / "data" / "noise_detector.weights").read_bytes())
    weights[len(weights) // 2] ^= 1
    flipped.write_bytes(weights)
    pickled.write_bytes(b"\x80\x04cos\nsystem\n.")

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
        (lambda: TrainingDynamicsStore(torn), StoreError, ["torn.h5", "damaged", "`paddle-td verify`"]),
        (
            lambda: NoiseDetector.load(flipped),
            DetectorError,
            ["flipped.weights", "checksum", "copy it again"],
        ),
        (
            lambda: NoiseDetector.load_interpretdl(pickled),
            DetectorError,
            ["odd.pdparams", "os.system", "refused", "InterpretDL"],
        ),
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
