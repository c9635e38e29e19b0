"""The README and the pages against the code: snippets run, links lead somewhere, tables are those of the code."""

import ast
import inspect
import re
from pathlib import Path

import h5py
import numpy as np
import paddle
import pytest
from PIL import Image

import paddle_td_callback
from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsRecorder
from paddle_td_callback.cli import _parser
from paddle_td_callback.demo import Digits
from paddle_td_callback.detection.find_issues import METHODS
from paddle_td_callback.store.schema import ALL_FIELDS, EPOCH_FIELDS, LABELS, TOP_FIELDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPERS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *ROOT.glob("benchmarks/**/*.md"),
]
PACKAGE = ROOT / "paddle_td_callback"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [path for path in PAPERS if path.parent == ROOT / "docs"]
ALL_PAGES = README + "".join(path.read_text(encoding="utf-8") for path in PAGES)


def snippets_of(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def table_after(text, heading):
    """Rows of the first table behind a line, as lists of cells, code marks taken off."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


class NamedDigits(Digits):
    """Digits with the attributes of a DatasetFolder."""

    def __init__(self):
        super().__init__()
        self.samples = [(f"{label}/{i}.png", label) for i, label in enumerate(self.labels.tolist())]
        self.classes = [f"digit {i}" for i in range(10)]
        for (path, _), image in zip(self.samples, self.images, strict=True):
            Path(path).parent.mkdir(exist_ok=True)
            Image.fromarray((255 * image.reshape(8, 8)).astype(np.uint8)).save(path)


def make_model():
    network = paddle.nn.Sequential(paddle.nn.Linear(64, 32), paddle.nn.ReLU(), paddle.nn.Linear(32, 10))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    return model


@pytest.fixture
def training(tmp_path, monkeypatch):
    """What a reader has before the first snippet: a prepared model and data."""
    monkeypatch.chdir(tmp_path)
    digits = NamedDigits()
    model = make_model()
    network = model.network
    loader = [
        (rows, paddle.to_tensor(digits.images[rows]), paddle.to_tensor(digits.labels[rows]))
        for rows in np.array_split(np.arange(len(digits)), 20)
    ]
    return {
        "model": model,
        "make_model": make_model,
        "train_data": digits,
        "dataset": digits,
        "network": network,
        "loader": loader,
        "epochs": 2,
        "is_mislabeled": digits.is_changed,
        "TrainingDynamicsCallback": TrainingDynamicsCallback,
    }


@pytest.fixture
def recorded(training):
    """The same after a recording, with a data set that has no files."""
    training["train_data"] = training["dataset"] = Digits()
    training["model"].fit(
        training["train_data"],
        epochs=2,
        batch_size=128,
        verbose=0,
        callbacks=[TrainingDynamicsCallback("run.h5")],
    )
    return training


def run(path, names):
    """Run the snippets of a page in order, as they are written."""
    snippets = [one for one in snippets_of(path) if not one.startswith("# pytorch")]
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, path.name, "exec"), names)  # the pages are ours


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_snippets_of_the_readme(name, training):
    run(ROOT / name, training)
    assert len(training["suspects"]) == 100
    assert training["issues"].sample_ids[0] == training["train_data"].samples[0][0]
    assert Path("issues.csv").exists()
    assert "data:image" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["results", "file-format", "own-detectors", "streams"])
def test_snippets_that_read_a_recording_or_make_another(page, recorded):
    run(ROOT / "docs" / f"{page}.md", recorded)


def test_snippet_of_a_loop_in_paddle(training):
    run(ROOT / "docs" / "own-loops.md", training)
    assert h5py.File("run.h5").attrs["committed_epochs"] == 2


def test_every_page_with_a_snippet_is_run():
    pages = {path.stem for path in PAGES if snippets_of(path)}
    assert pages == {"results", "file-format", "own-detectors", "streams", "own-loops"}


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, target


def test_the_tests_that_are_named_exist():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in re.findall(r"`(test_\w+)`", ALL_PAGES) if f"def {name}(" not in tests]
    assert not missing


def test_the_readme_is_a_front_door():
    assert len(README.splitlines()) <= 180


def test_both_readmes_have_the_same_numbers():
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    numbers = [
        sorted(set(re.findall(r"0\.\d{3}|\d+%|\d,\d{3}|\d\.\d\.\d", text))) for text in (README, chinese)
    ]
    numbers[0] += ["1%", "10%", "18%", "51%"]  # the English page says "percent"
    assert set(numbers[1]) <= set(numbers[0])
    assert {n for n in numbers[0] if n.startswith("0.")} <= set(numbers[1])


def test_the_schema_is_as_documented():
    page = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    wanted = [[LABELS.name, "[sample]", LABELS.dtype, LABELS.meaning]]
    for field in (*EPOCH_FIELDS, *ALL_FIELDS, *TOP_FIELDS):
        axes = "[epoch, sample" + (f", {field.last_axis}]" if field.last_axis else "]")
        wanted.append([field.name, axes, field.dtype, field.meaning])
    assert [row[:4] for row in table_after(page, "## What it holds")][: len(wanted)] == wanted


def test_the_attributes_are_as_documented(tmp_path):
    page = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    with TrainingDynamicsRecorder(tmp_path / "run.h5", n_samples=2, n_classes=2) as recorder:
        recorder.update([0, 1], np.eye(2, dtype=np.float32), [0, 1])
        recorder.end_epoch()
    with h5py.File(tmp_path / "run.h5") as file:
        assert sorted(row[0] for row in table_after(page, "Attributes of the file")) == sorted(file.attrs)


def test_the_places_in_the_file_are_as_documented():
    from paddle_td_callback.store import blocks, disk, hdf5_format

    page = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    places = [row[0] for row in table_after(page, "## The bytes")]
    assert places[1].startswith(f"{hdf5_format.BEFORE_AT} to ")
    assert places[2:5] == [str(disk.SIGN_AT), f"{blocks.START} ...", "behind the log"]
    assert f"at least {hdf5_format.SLACK_BYTES:,} bytes" in page
    kinds = [row[1].split()[0].strip(":,") for row in table_after(page, "| kind | block |")]
    assert kinds == ["chunk", "node", "text", "array", "labels", "state", "HDF5"]
    assert [blocks.CHUNK, blocks.METADATA] == [1, 7]


def test_every_public_name_method_command_and_argument_is_mentioned():
    names = [name for name in paddle_td_callback.__all__ if not name.endswith(("Error", "__"))]
    names += METHODS
    names += _parser()._subparsers._group_actions[0].choices
    names += [f"{name}=" for name in inspect.signature(TrainingDynamicsCallback).parameters if name != "path"]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}", ALL_PAGES)]
    assert not missing


def test_the_commands_and_their_options_exist():
    parsers = _parser()._subparsers._group_actions[0].choices
    lines = re.findall(r"^paddle-td (.*)$", ALL_PAGES, flags=re.MULTILINE)
    used = [line.split("#")[0].split() for line in lines]
    assert len(used) > 8
    for command, *words in used:
        if command == "COMMAND":
            continue
        options = {text for action in parsers[command]._actions for text in action.option_strings}
        assert {word for word in words if word.startswith("-")} <= options, (command, words)


def test_the_install_commands_are_the_two_that_ci_runs():
    commands = [line for line in README.splitlines() if line.startswith("pip install") and "&&" in line]
    assert commands == ['pip install -e ".[cpu]" && paddle-td demo', 'pip install -e ".[cpu,test]" && pytest']


def messages_of(source):
    """All texts of a module, with a mark in place of each value that a message gets when it is raised."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.strip("|").split("|")[0] for line in page.splitlines() if line.startswith("| `")]
    known = "\n".join(text for path in PACKAGE.rglob("*.py") for text in messages_of(path.read_text("utf-8")))
    foreign = ("No module named 'setuptools'", 'pip install ".[gpu]"')  # Python's and pip's
    told = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell) if message not in foreign]
    told = [one.removeprefix("'run.h5' ") for one in told if " " in one]
    missing = [one for one in told if not re.search(re.escape(one).replace(r"\.\.\.", ".*"), known)]
    assert len(told) > 40
    assert not missing


def test_the_rooms_are_those_of_the_contract():
    drawing = re.search(r"## Rooms\n\n```\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)[1]
    contract = re.search(
        r"layers = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.DOTALL
    )[1]
    rooms = set(re.findall(r"\w+", contract)) - {"__main__"}
    assert rooms == set(re.findall(r"\w+", drawing)) - {"imports", "go", "down", "only", "v"}


def test_the_files_and_names_of_the_architecture_exist():
    named = re.findall(r"`([\w/]+\.py)`(?:, `(?!\w+\.py)([\w.]+)`)?(?: and `(\w+)`)?", ARCHITECTURE)
    assert len(named) > 40
    for file, *names in named:
        source = ((ROOT if file.startswith("tests/") else PACKAGE) / file).read_text(encoding="utf-8")
        for name in filter(None, (name.split(".")[-1] for name in names)):
            assert re.search(rf"^ *(def|class) {name}\b", source, flags=re.MULTILINE), (file, name)
