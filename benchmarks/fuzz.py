"""Hostile files for every reader of ours, as many as some minutes allow.

    python -m benchmarks.fuzz recording|detector|pdparams|csv --minutes 10

Each file is read in a child process of its own. It may give a result or an error of ours; it may not crash, take more
than 5 seconds, or take more than 256 MiB above the interpreter with its imports. No file is larger than 1 MB. Bytes are
changed at random, and so is what the bytes say: then checksums, sizes and compression are right.

`recording` runs `benchmarks.mutations`, which also compares the numbers. `csv` stands for all that `paddle-td review`
and `paddle-td import` read: CSV files of marks, npz files of any tool and of InterpretDL, JSON lines of cartography.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import math
import os
import pickle
import pickletools
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import mutations
from benchmarks.mutations import HOSTILE_NUMBERS, SECONDS, change_fact, damage, in_child, pick
from paddle_td_callback import NoiseDetector, TrainingDynamicsError, find_label_issues
from paddle_td_callback.detection.label_issues import LabelIssues
from paddle_td_callback.detection.lstm.weights_file import FIXED_BYTES, MAGIC
from paddle_td_callback.export.cartography import import_cartography
from paddle_td_callback.export.import_arrays import import_npz
from paddle_td_callback.export.marks import read_marks
from paddle_td_callback.messages import escape

MEMORY_BYTES = 256 << 20
FILE_BYTES = 1_000_000
N_SAMPLES, N_EPOCHS, N_CLASSES = 12, 4, 3
HERE = os.sep + "paddle_td_callback" + os.sep
Rng = np.random.Generator


class Target(NamedTuple):
    """A kind of file."""

    file: str  # its name
    base: Callable[[], Any]  # what a right file says
    forge: Callable[[Any, Rng], bytes]  # a file that says something else
    read: Callable[[Path], Any]


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """Say "result", "refused", or what is wrong with the error."""
    try:
        read(path)
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        text = str(error)
        is_ours = isinstance(error, TrainingDynamicsError) or (
            isinstance(error, (ValueError, TypeError, OSError)) and HERE in raised_in
        )
        if is_ours and 10 < len(text) < 5000 and escape(text) == text:
            return "refused"
        return "another error: " + traceback.format_exc(limit=-4).strip()[-1200:]
    return "result"


def change_bytes(content: bytes, rng: Rng) -> bytes:
    """Flip, cut, insert, repeat or move some bytes, up to four times."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, size = int(rng.integers(0, len(changed) + 1)), int(rng.choice([1, 2, 4, 8, 64, 512]))
        match rng.integers(6):
            case 0:
                part = changed[at : at + size]
                damage(part, rng)
                changed[at : at + size] = part
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = rng.bytes(size)
            case 3:
                changed[at:at] = changed[at : at + size] * int(rng.choice([1, 2, 100]))
            case 4:
                start = int(rng.integers(0, len(changed) + 1))
                changed[at : at + size] = changed[start : start + size]
            case 5:
                del changed[at if rng.random() < 0.1 else len(changed) :]
    return bytes(changed[:FILE_BYTES])


# Detectors


def detector_base() -> bytes:
    small = NoiseDetector(
        channels=("given", "largest_other"), n_steps=4, hidden_size=4, n_layers=2, n_members=2
    )
    rng = np.random.default_rng(0)
    small.members = [
        {
            key: rng.normal(size=shape).astype(np.float32)
            for key, shape in small.config.architecture.shapes().items()
        }
        for _ in range(small.config.n_members)
    ]
    with tempfile.TemporaryDirectory() as folder:
        small.save(os.path.join(folder, "small.weights"))
        return Path(folder, "small.weights").read_bytes()


def forge_detector(content: bytes, rng: Rng) -> bytes:
    """A detector whose header or arrays say something else; mostly its checksum is right."""
    if rng.random() < 0.3:
        content = change_bytes(content, rng)
        if rng.random() < 0.3:
            return content
        body = content[12:]
    else:
        n_header = int.from_bytes(content[12:16], "little")
        header = json.loads(content[FIXED_BYTES : FIXED_BYTES + n_header])
        data = bytearray(content[FIXED_BYTES + n_header :])
        for _ in range(rng.integers(1, 4)):
            change_fact(header, rng)
        if rng.random() < 0.3:
            damage(data, rng)
        text = json.dumps(header).encode()
        if rng.random() < 0.5:  # as many bytes as are claimed, where these are few
            try:
                claimed = 4 * sum(
                    stage["n_members"] * sum(math.prod(shape) for _, shape in stage["arrays"])
                    for stage in header["stages"]
                )
                data = (data + bytes(max(0, min(claimed, FILE_BYTES // 2))))[: max(0, claimed)]
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError, MemoryError):
                pass
        body = len(text).to_bytes(4, "little") + text + bytes(data)
    return (MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)[:FILE_BYTES]


def read_detector(path: Path) -> None:
    detector = NoiseDetector.load(path)
    repr(detector)
    use(detector)
    detector.save(path.with_name("again.weights"))


def use(detector: NoiseDetector) -> None:
    trajectories = np.random.default_rng(1).random((6, 5, 3)).astype(np.float32)
    detector.predict_proba(trajectories, device="cpu")


# Pickles


def pdparams_base() -> list[bytes]:
    rng = np.random.default_rng(0)
    state: dict[str, Any] = {}
    for key, shape in {
        "lstm.weight_ih_l0": (16, 1),
        "lstm.weight_hh_l0": (16, 4),
        "lstm.bias_ih_l0": (16,),
        "lstm.bias_hh_l0": (16,),
        "fc.weight": (4, 2),
        "fc.bias": (2,),
    }.items():
        state[key] = rng.normal(size=shape).astype(np.float32)
    named: dict[str, Any] = {key: (key, array) for key, array in state.items()}
    named["StructuredToParameterName@@"] = {key: key for key in state}
    return [pickle.dumps(one, protocol=protocol) for one in (state, named) for protocol in (2, 3, 4)]


TOKENS = [bytes([code]) for code in b"()]}Nt0eusabR\x85\x86\x87\x88\x89\x93\x94."]
TOKENS += [
    b"q\x00",
    b"h\x00",
    b"h\x01",
    b"K\x02",
    b"X\x01\x00\x00\x00a",
    b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n",
]
TOKENS += [
    b"\x8c\x02f4",
    b"c_codecs\nencode\n",
    b"cos\nsystem\n",
    b"C\x04\x00\x00\x80\x7f",
    b"J\xff\xff\xff\xff",
]
TOKENS += [
    b"B\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x8e" + b"\xff" * 8,
    b"\x8a\xff" + b"\x7f" * 255,
    b"\x8a\x09" + b"\x01" * 9,
]


def forge_pdparams(bases: list[bytes], rng: Rng) -> bytes:
    """Operations of a pickle removed, moved, repeated and added."""
    content = pick(bases, rng)
    if rng.random() < 0.4:
        return change_bytes(content, rng)
    places = [at for _, _, at in pickletools.genops(content) if at is not None]
    operations = [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(operations) + 1))
        match rng.integers(5):
            case 0:
                del operations[at : at + int(rng.integers(1, 4))]
            case 1:
                operations.insert(at, pick(TOKENS, rng))
            case 2:
                operations[at : at + 1] = [pick(TOKENS, rng)]
            case 3:
                part = operations[at : at + int(rng.integers(1, 20))]
                operations[at:at] = part * int(rng.choice([1, 2, 1000, 30_000]))
            case 4:
                operations[at:at] = [pick(TOKENS, rng), pick(TOKENS, rng)] * int(
                    rng.choice([1, 100, 100_000])
                )
    return b"".join(operations)[: FILE_BYTES - 1] + b"."


def read_pdparams(path: Path) -> None:
    detector = NoiseDetector.load_interpretdl(path)
    repr(detector)
    use(detector)


# CSV, npz and JSON lines

CELLS = [
    "",
    "wrong",
    "right",
    "unsure",
    "0",
    "11",
    "12",
    "-1",
    "1.5",
    "1e3",
    "nan",
    "٣",
    "²",
    "9" * 5000,
    "0x1",
    "1_0",
]
CELLS += [
    "'=1+1",
    "a\x00b",
    "\x1b[2J",
    '"',
    '""',
    "'",
    "\n",
    "\r",
    "\ufeff",
    "\ud800",
    "x" * 200_000,
    " 3 ",
    "+3",
    "class 1",
]


def issues() -> LabelIssues:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "run.h5")
        record(path)
        return find_label_issues(path, method="aum", progress=False)


def record(path: str) -> None:
    from paddle_td_callback import TrainingDynamicsRecorder

    rng, labels = np.random.default_rng(0), np.arange(N_SAMPLES) % N_CLASSES
    names = [f"class {index}" for index in range(N_CLASSES)]
    with TrainingDynamicsRecorder(
        path, n_samples=N_SAMPLES, n_classes=N_CLASSES, class_names=names
    ) as recorder:
        for _ in range(N_EPOCHS):
            recorder.update(
                np.arange(N_SAMPLES), rng.normal(size=(N_SAMPLES, N_CLASSES)).astype(np.float32), labels
            )
            recorder.end_epoch()


def marks_base() -> list[list[str]]:
    rows = [["sample", "mark", "given_label", "corrected_label"]]
    marks = ["wrong", "right", "unsure", ""]
    return rows + [
        [str(n), marks[n % 4], str(n % N_CLASSES), str((n + 1) % N_CLASSES)] for n in range(N_SAMPLES)
    ]


def forge_marks(rows: list[list[str]], rng: Rng) -> bytes:
    rows = [list(row) for row in rows]
    for _ in range(rng.integers(0, 4)):
        row = pick(rows, rng)
        if not row:
            continue
        at = int(rng.integers(len(row)))
        match rng.integers(5):
            case 0 | 1:
                row[at] = pick(CELLS, rng)
            case 2:
                row[at:at] = [pick(CELLS, rng)] * int(rng.choice([1, 1000]))
            case 3:
                del row[at:]
            case 4:
                rows += [list(row)] * int(rng.choice([1, 10_000]))
    end, comma = str(rng.choice(["\n", "\r\n", "\r"])), str(rng.choice([",", ";", "\t"]))
    text = ""
    for row in rows:
        if len(text) > FILE_BYTES:  # thousands of rows of thousands of long cells fit into no memory
            break
        text += comma.join(row[:2000])[:FILE_BYTES] + end
    content = text.encode(str(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])), "surrogatepass")[
        :FILE_BYTES
    ]
    return change_bytes(content, rng) if rng.random() < 0.4 else content


def npz_base() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(N_CLASSES), (N_EPOCHS, N_SAMPLES)).astype(np.float32)
    labels = np.arange(N_SAMPLES) % N_CLASSES
    order = (labels[:, np.newaxis] + np.arange(N_CLASSES)) % N_CLASSES
    ids = np.array([f"s{index}" for index in range(N_SAMPLES)])
    plain = {"probabilities": table, "labels": labels}
    return [
        plain,
        plain
        | {"indices": np.arange(N_SAMPLES), "sample_ids": ids, "class_names": np.array(["a", "b", "c"])},
        {"logits": table, "labels": labels},
        {"td": table.transpose(1, 0, 2).astype(np.float16), "labels": order.astype(np.int16)},
    ]


def hostile_array(array: Any, rng: Rng) -> Any:
    """Another shape, another type, other values, or so large that it only fits because it packs well."""
    dtypes = [
        "?",
        "u1",
        "i2",
        "i8",
        "u8",
        "f2",
        ">f4",
        "f8",
        "c8",
        "M8[s]",
        "S3",
        "U2",
        "V3",
        "O",
        [("a", "i4")],
    ]
    if array.size > FILE_BYTES:  # large already; once more, and it would fit into no memory
        return array
    match rng.integers(5 if array.ndim else 3):
        case 0:
            return np.zeros(array.shape, pick(dtypes, rng))
        case 1:
            numbers = [0, 1, 2, 3, 4, 12, 1000, 50_000]
            shape = tuple(int(rng.choice(numbers)) for _ in range(rng.integers(0, 4)))
            return np.zeros(shape if math.prod(shape) * 4 < 1 << 28 else (1 << 24,), array.dtype)
        case 2:
            array = array.copy()
            if array.dtype.kind in "iuf" and array.size:
                with np.errstate(all="ignore"):
                    value = np.float64(pick([*HOSTILE_NUMBERS, -1, np.nan, np.inf, 1e38, -5], rng))
                    array.flat[rng.integers(array.size)] = value.astype(array.dtype)
            return array
        case 3:
            axis = int(rng.integers(array.ndim))
            return np.repeat(array, int(rng.choice([0, 2, 1000])), axis)
    most = (FILE_BYTES * 900) // max(1, array.dtype.itemsize)  # what deflate makes a megabyte of
    shape = list(array.shape)
    axis = int(rng.integers(array.ndim))
    shape[axis] = 1
    shape[axis] = max(
        1, most // max(1, math.prod(shape)) // int(rng.choice([1, 10, 100, 400], p=[0.02, 0.18, 0.4, 0.4]))
    )
    return np.broadcast_to(np.zeros((), array.dtype), shape)


def npy_parts(array: Any, rng: Rng) -> tuple[bytes, int]:
    """The header of a `.npy`, which may lie, and how many bytes follow it."""
    header = io.BytesIO()
    shape = list(array.shape)
    if shape and rng.random() < 0.1:
        shape[rng.integers(len(shape))] = pick([*HOSTILE_NUMBERS, -1], rng)
    facts = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": bool(rng.random() < 0.1),
        "shape": tuple(shape),
    }
    np.lib.format.write_array_header_2_0(header, facts)
    raw = bytearray(header.getvalue())
    if rng.random() < 0.1:
        damage(raw, rng)
    return bytes(raw), array.nbytes


def forge_npz(bases: list[dict[str, Any]], rng: Rng) -> bytes:
    arrays = dict(pick(bases, rng))
    for _ in range(rng.integers(0, 3)):
        name = pick(list(arrays), rng)
        match rng.integers(6):
            case 0:
                del arrays[name]
            case 1:
                arrays[pick(["td", "logits", "labels", "indices", "sample_ids", "x", "../x"], rng)] = arrays[
                    name
                ]
            case _:
                arrays[name] = hostile_array(np.asarray(arrays[name]), rng)
        if not arrays:
            break
    out = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(out, "w", pick([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], rng)) as archive,
    ):
        warnings.simplefilter("ignore")
        for name, array in arrays.items():
            header, n_bytes = npy_parts(array, rng)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = archive.compression if n_bytes < 1 << 20 else zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(header)
                if array.dtype.hasobject:
                    member.write(pickle.dumps(array))
                elif n_bytes < 1 << 20:
                    member.write(np.ascontiguousarray(array).tobytes())
                else:
                    for start in range(0, n_bytes, 1 << 20):
                        member.write(bytes(min(1 << 20, n_bytes - start)))
    content = out.getvalue()
    if rng.random() < 0.3:
        content = change_bytes(content, rng)
    return content if len(content) <= FILE_BYTES else content[:FILE_BYTES]


def lines_base() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N_SAMPLES, N_CLASSES)).round(4).tolist()
    return [{"guid": n, "logits_epoch_0": rows[n], "gold": n % N_CLASSES} for n in range(N_SAMPLES)]


def forge_lines(lines: list[dict[str, Any]], rng: Rng) -> bytes:
    lines = json.loads(json.dumps(lines))
    for _ in range(rng.integers(0, 4)):
        change_fact(pick(lines, rng), rng) if rng.random() < 0.7 else change_fact({"all": lines}, rng)
        if not isinstance(lines, list) or not lines or not all(isinstance(line, dict) for line in lines):
            break
    if rng.random() < 0.1:
        lines = lines + [pick(lines, rng)] * 5000 if lines else lines
    content = "\n".join(json.dumps(line) for line in lines).encode()[:FILE_BYTES]
    if rng.random() < 0.05:
        content = pick([b"[" * 900_000, b'{"a":' * 100_000, b"9" * 900_000, b'"' * 10], rng)
    return change_bytes(content, rng) if rng.random() < 0.4 else content


def read_lines(path: Path) -> None:
    folder = path.parent / "lines"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "dynamics_epoch_0.jsonl")
    import_cartography(folder, fresh(path.parent / "out.h5"))


def fresh(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def targets(name: str) -> list[Target]:
    if name == "detector":
        return [Target("detector.weights", detector_base, forge_detector, read_detector)]
    if name == "pdparams":
        return [Target("detector.pdparams", pdparams_base, forge_pdparams, read_pdparams)]
    known = issues()
    return [
        Target("marks.csv", marks_base, forge_marks, lambda path: read_marks(path, known)),
        Target(
            "arrays.npz", npz_base, forge_npz, lambda path: import_npz(path, fresh(path.parent / "out.h5"))
        ),
        Target("lines.jsonl", lines_base, forge_lines, read_lines),
    ]


def run(name: str, minutes: float, seed: int, folder: Path, keep: Path | None, first: int) -> int:
    """Number of failures."""
    tempfile.tempdir = str(folder)
    if name == "recording":
        return mutations.run(sys.maxsize, seed, folder, keep, first, seconds_in_all=60 * minutes)
    kinds = [(target, target.base()) for target in targets(name)]
    for (
        target,
        base,
    ) in kinds:  # what has not been changed is read; and all is imported before the children are made
        pick_of = base if not isinstance(base, list) else base[0]
        if isinstance(pick_of, bytes):
            path = folder / target.file
            path.write_bytes(pick_of)
            target.read(path)
    tally: collections.Counter[str] = collections.Counter()
    failures, slowest, largest, largest_file, number = 0, 0.0, 0, "", first
    started = time.perf_counter()
    while time.perf_counter() - started < 60 * minutes:
        rng = np.random.default_rng([seed, number])
        target, base = kinds[number % len(kinds)]
        path = folder / target.file
        content = target.forge(base, rng)
        path.write_bytes(content)
        results, seconds, peak = in_child(
            {target.file: functools.partial(outcome, target.read, path)}, MEMORY_BYTES
        )
        text = results.get(target.file, str(results))
        slowest = max(slowest, seconds)
        if peak > largest:
            largest, largest_file = peak, target.file
        bad = text not in ("result", "refused") or seconds > SECONDS
        tally[f"{target.file}: {'FAILED' if bad else text}"] += 1
        if bad:
            failures += 1
            if failures <= 30:
                print(f"{target.file} {number}, {len(content)} bytes, {seconds:.1f} s: {text}", flush=True)
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / f"{number}.{target.file}").write_bytes(content)
        number += 1
        for left in folder.iterdir():  # what a killed child left behind
            if left.is_dir() and left.name.startswith("tmp"):
                shutil.rmtree(left)
    for kind in sorted(tally):
        print(f"{kind:<30} {tally[kind]:>8}")
    print(
        f"{number - first} files, {failures} failed; slowest {slowest:.2f} s; at most {largest / 2**20:.0f} MiB above "
        f"the interpreter with its imports ({largest_file}); {time.perf_counter() - started:.0f} s in all"
    )
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["recording", "detector", "pdparams", "csv"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        failures = run(options.target, options.minutes, options.seed, folder, options.keep, options.first)
    finally:
        shutil.rmtree(folder)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
