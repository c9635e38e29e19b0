"""Recordings of every layout, read by programs that know nothing of this package.

    python -m benchmarks.readers                 writes docs/readers.md
    python -m benchmarks.readers --live 60       reads in a loop beside commits without pause

h5py with HDF5 1.12, 1.14 and 2.0 and pyfive come into virtual environments of their own, made by pip in a temporary
folder, or `--environments FOLDER` to keep them. h5dump, h5ls, h5stat, h5diff and h5repack are those of the system.
Every number of every dataset is compared with what was committed, by its CRC-32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import live
from support.recordings import make_epoch, make_labels, unseen_epoch

from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.schema import Layout

PAGE = Path(__file__).parents[1] / "docs" / "readers.md"
ENVIRONMENTS = {
    "h5py, HDF5 1.12": ["h5py==3.9.0", "numpy<2"],
    "h5py, HDF5 1.14": ["h5py==3.12.1", "numpy<2"],
    "h5py, HDF5 2.0": ["h5py>=3.16"],
    "pyfive": ["pyfive", "h5py>=3.16"],
}
# Layout, epochs, dropped epochs, whether with class names, with sample ids
CASES: dict[str, tuple[Layout, int, set[int], bool, bool]] = {
    'keep="all"': (Layout(300, 5), 10, set(), False, False),
    "keep=3": (Layout(300, 9, keep=3), 10, set(), False, False),
    'keep="given"': (Layout(300, 5, keep="given"), 10, set(), False, False),
    "gzip": (Layout(300, 5, gzip_level=4), 10, set(), False, False),
    "float32": (Layout(300, 5, dtype="float32"), 10, set(), False, False),
    "class names": (Layout(300, 5), 3, set(), True, False),
    "sample ids": (Layout(20_000, 5, keep="given"), 3, set(), False, True),
    "dropped epochs": (Layout(300, 5), 10, {0, 3, 4, 7}, False, False),
    "no epoch": (Layout(300, 5), 0, set(), True, False),
    "1 epoch": (Layout(300, 5), 1, set(), False, False),
    "5,000 epochs": (Layout(20, 3), 5000, set(), False, False),
    "1 sample": (Layout(1, 2), 10, set(), True, True),
    "1,281,167 samples": (Layout(1_281_167, 1000, keep="given"), 2, set(), False, False),
    "2,000 samples x 1,000 classes": (Layout(2000, 1000), 3, set(), False, False),
}

READER = """
import importlib, json, sys, zlib
module = importlib.import_module(sys.argv[1])
wanted = json.load(open(sys.argv[2]))
with module.File(sys.argv[3], "r") as file:
    assert int(file.attrs["committed_epochs"]) == wanted["n_epochs"], "committed_epochs"
    text = file.attrs["format"]
    text = text.decode() if isinstance(text, bytes) else text
    assert text == "paddle_td_callback training dynamics", "format"
    for name, (shape, dtype, crc) in wanted["data"].items():
        dataset = file[name]
        assert list(dataset.shape) == shape, f"{name}: shape {dataset.shape}"
        assert dataset.dtype.str == dtype, f"{name}: {dataset.dtype}"
        found = 0
        for start in range(0, shape[0], 2_000_000 if len(shape) == 1 else 500):
            stop = min(shape[0], start + (2_000_000 if len(shape) == 1 else 500))
            found = zlib.crc32(dataset[start:stop].tobytes(), found)
        assert found == crc, f"{name}: other numbers"
    for name, texts in wanted["texts"].items():
        found = [one.decode() if isinstance(one, bytes) else str(one) for one in file[name][:].tolist()]
        assert found == texts, f"{name}: other texts"
"""


def record(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Make a recording; returns it and what must be read from it."""
    layout, n_epochs, dropped, with_names, with_ids = CASES[name]
    class_names = [f"class {i} Ä图" for i in range(layout.n_classes)] if with_names else None
    sample_ids = [f"images/{i}.png" for i in range(layout.n_samples)] if with_ids else None
    path, labels = folder / "run.h5", make_labels(layout)
    writer = StoreWriter.create(path, layout, class_names=class_names, sample_ids=sample_ids)
    sums = {field.name: 0 for field in layout.fields}
    for index in range(n_epochs):
        epoch = unseen_epoch(layout) if index in dropped else make_epoch(layout, labels, index)
        for field in layout.fields:
            sums[field.name] = zlib.crc32(epoch[field.name].tobytes(), sums[field.name])
        if index not in dropped:
            writer.commit_epoch(index, epoch, labels)
    data: dict[str, Any] = {}
    for field in layout.fields:
        data[field.name] = [n_epochs, *field.shape], np.dtype(field.dtype).str, sums[field.name]
    seen = labels if n_epochs else np.full_like(labels, -1)
    data["labels"] = [layout.n_samples], "<i4", zlib.crc32(seen.tobytes())
    data["dropped_epochs"] = [len(dropped)], "<i8", zlib.crc32(np.array(sorted(dropped), "<i8").tobytes())
    texts = {"class_names": class_names, "sample_ids": sample_ids}
    there = {kind: given for kind, given in texts.items() if given is not None}
    copy = Path(shutil.copy(path, folder / "copy.h5"))  # `close` removes a recording without epochs
    writer.close()
    return copy, {"n_epochs": n_epochs, "data": data, "texts": there}


def run(*command: str | Path) -> None:
    """Run a program that must succeed.

    Raises:
        ValueError: it did not; the message has its last words.
    """
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    if done.returncode or "error" in done.stderr.lower():
        words = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(words[-1] if words else f"status {done.returncode}")


def dump(path: Path, wanted: dict[str, Any], folder: Path) -> None:
    """The whole file as text, and each dataset as bytes."""
    run("h5dump", "-o", "/dev/null", path)
    out = folder / "bytes"
    for name, (shape, _, crc) in wanted["data"].items():
        if 0 not in shape:
            run("h5dump", "-d", f"/{name}", "-b", "FILE", "-o", out, path)
            if zlib.crc32(out.read_bytes()) != crc:
                raise ValueError(f"{name}: other numbers")


def environments(folder: Path) -> dict[str, Path]:
    """Interpreters in which the readers are."""
    made = {}
    for name, packages in ENVIRONMENTS.items():
        place = folder / "".join(c if c.isalnum() else "_" for c in name)
        made[name] = place / "bin" / "python"
        if not made[name].exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            subprocess.run([made[name], "-m", "pip", "install", "-q", *packages], check=True)
    return made


def version(python: Path, module: str) -> str:
    number = "version.hdf5_version" if module == "h5py" else "__version__"
    code = f"import {module}; print({module}.{number})"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def table(interpreters: dict[str, Path]) -> tuple[str, int]:
    """The page, and how many cells are not right."""
    columns: dict[str, Callable[[Path, Path, dict[str, Any], Path], None]] = {}

    def by(python: Path, module: str) -> Callable[[Path, Path, dict[str, Any], Path], None]:
        return lambda path, facts, wanted, folder: run(python, "-c", READER, module, facts, path)

    for name, python in interpreters.items():
        module = name.split(",", maxsplit=1)[0]
        number = version(python, module)
        columns[f"{module}, HDF5 {number}" if module == "h5py" else f"{module} {number}"] = by(python, module)
    newest = interpreters["h5py, HDF5 2.0"]

    def repack(path: Path, facts: Path, wanted: dict[str, Any], folder: Path) -> None:
        packed = folder / "packed.h5"
        packed.unlink(missing_ok=True)
        run("h5repack", path, packed)
        run("h5diff", path, packed)
        by(newest, "h5py")(packed, facts, wanted, folder)

    columns["h5dump"] = lambda path, facts, wanted, folder: dump(path, wanted, folder)
    columns["h5ls"] = lambda path, facts, wanted, folder: run("h5ls", "-r", "-v", path)
    columns["h5stat"] = lambda path, facts, wanted, folder: run("h5stat", path)
    columns["h5repack, h5diff, h5py"] = repack
    tools = subprocess.run(
        ["h5dump", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    lines, n_wrong = ["| recording | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"], 0
    for name in CASES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path, wanted = record(folder, name)
            facts = folder / "wanted.json"
            facts.write_text(json.dumps(wanted))
            cells = []
            for column, reads in columns.items():
                try:
                    reads(path, facts, wanted, folder)
                    cells.append("right")
                except ValueError as error:  # noqa: PERF203
                    n_wrong += 1
                    cells.append(f"**{error}**")
                    print(f"{name}, {column}: {error}", file=sys.stderr)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    text = f"""# Programs that read a recording

A recording is one HDF5 file. These programs know nothing of this package. "right" means that each read every number of
every dataset as it was committed. h5ls and h5stat read metadata alone. The last column is the file rewritten by
h5repack, compared with the original by h5diff, and read by h5py. The command-line tools are those of HDF5 {tools}.

"""
    return text + "\n".join([*lines, "", "Made by `python -m benchmarks.readers`.", ""]), n_wrong


def beside(interpreters: dict[str, Path], seconds: float) -> int:
    """Every reader in a loop beside commits without pause; returns how many reads were not right."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        readers = {
            name: subprocess.Popen(
                [python, live.__file__, "read", path, name.split(",", maxsplit=1)[0]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, python in interpreters.items()
        }
        time.sleep(1)
        n_epochs = live.write(str(path), seconds)
        for name, reader in readers.items():
            out = reader.communicate("stop")[0]
            found = json.loads(out.replace("'", '"')) if reader.returncode == 0 else {"wrong": 1, "errors": 1}
            failures += found["wrong"] + found["errors"]
            print(f"{name}: {found}; {n_epochs} epochs were committed in {seconds:.0f} s", flush=True)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", type=float, metavar="SECONDS")
    parser.add_argument("--environments", type=Path, help="folder of the virtual environments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        interpreters = environments(options.environments or Path(folder))
        if options.live is not None:
            sys.exit(beside(interpreters, options.live) > 0)
        text, n_wrong = table(interpreters)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    sys.exit(n_wrong > 0)


if __name__ == "__main__":
    main()
