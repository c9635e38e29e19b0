"""Damaged and hostile files given to all that reads recordings: right numbers or an error of ours, nothing else.

    python -m benchmarks.mutations --count 10000

Each file is read in a child process of its own, with limits on time and memory. Base recordings of every
layout are mutated: bits flipped, sectors zeroed, blocks spliced within a file and from another recording, bytes
inserted and removed, files cut, lengthened; and rewritten through h5py with hostile attributes and shapes, in
place and also through the package's own journal, so that all its checksums fit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from paddle_td_callback.store.journal import Journal

from paddle_td_callback import StoreError, TrainingDynamicsError, TrainingDynamicsStore, find_label_issues
from paddle_td_callback.cli import main as command
from paddle_td_callback.recording.recorder import TrainingDynamicsRecorder
from paddle_td_callback.store.verify import verify

USER_BLOCK_BYTES = 128 * 1024
MEMORY_BYTES = 1 << 30
SECONDS = 10
BASES: dict[str, dict[str, Any]] = {
    "all": {"n_samples": 300, "n_classes": 5, "class_names": list("abcde")},
    "all, gzip": {"n_samples": 300, "n_classes": 5, "compression": "gzip"},
    "top 2": {"n_samples": 200, "n_classes": 6, "keep": 2, "dtype": "float32"},
    "given": {
        "n_samples": 500,
        "n_classes": 3,
        "keep": "given",
        "sample_ids": [f"id {i}" for i in range(500)],
    },
    "many samples": {"n_samples": 40_000, "n_classes": 2, "keep": "given"},
    "one epoch": {"n_samples": 60, "n_classes": 4, "epochs": 1},
    "no epoch": {"n_samples": 60, "n_classes": 4, "epochs": 0},
}


def record(path: Path, *, seed: int, epochs: int = 4, **options: Any) -> None:
    rng = np.random.default_rng(seed)
    n_samples, n_classes = options["n_samples"], options["n_classes"]
    labels = rng.integers(0, n_classes, n_samples)
    with TrainingDynamicsRecorder(path, **options) as recorder:
        for _ in range(epochs):
            indices = rng.permutation(n_samples)[: n_samples * 9 // 10]
            logits = rng.normal(0, 2, (len(indices), n_classes)).astype(np.float32)
            recorder.update(indices, logits, labels[indices])
            recorder.end_epoch()


# Mutations of bytes: each takes the content and another recording's, and gives the new content.


def somewhere(content: bytes, rng: np.random.Generator) -> int:
    """A place to hit: mostly where something is, not in the empty parts of the user block."""
    if rng.random() < 0.25:
        return int(rng.choice([0, 65536]) + rng.integers(0, 1024))
    return int(rng.integers(USER_BLOCK_BYTES if rng.random() < 0.8 else 0, len(content)))


def flip_bits(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        mutated[somewhere(content, rng)] ^= 1 << rng.integers(8)
    return bytes(mutated)


def set_bytes(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(content)
    at, n_bytes = somewhere(content, rng), int(rng.choice([1, 2, 4, 8, 64, 512, 4096]))
    value = int(rng.choice([0, 0xFF, 0x7F, 0x80, rng.integers(256)]))
    mutated[at : at + n_bytes] = bytes([value]) * len(mutated[at : at + n_bytes])
    return bytes(mutated)


def zero_sectors(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(content)
    size = int(rng.choice([512, 4096, 65536]))
    at = somewhere(content, rng) // size * size
    mutated[at : at + size] = bytes(len(mutated[at : at + size]))
    return bytes(mutated)


def splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(content)
    size = int(rng.choice([8, 64, 512, 1204, 4096, 65536]))
    align = int(rng.choice([1, 8, 512]))
    source, target = (somewhere(content, rng) // align * align for _ in range(2))
    block = content[source : source + size]
    mutated[target : target + len(block)] = block
    return bytes(mutated[: len(content)])


def splice_other(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bytes of another recording at the same place, as when two copies of a file got mixed."""
    mutated = bytearray(content)
    size = int(rng.choice([512, 4096, 65536, len(other)]))
    at = somewhere(content, rng) // 512 * 512
    block = other[at : at + size]
    mutated[at : at + len(block)] = block
    return bytes(mutated)


def swap_slots(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Whole commit records moved: older ones instead of newer, or those of another file."""
    first, second = content[:65536], content[65536:USER_BLOCK_BYTES]
    user_block = [
        second + first,
        first + first,
        second + second,
        first + bytes(65536),
        bytes(65536) + second,
        other[:USER_BLOCK_BYTES],
        bytes(USER_BLOCK_BYTES),
    ][rng.integers(7)]
    return user_block + content[USER_BLOCK_BYTES:]


def cut(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def lengthen(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.choice([1, 512, 100_000])))


def shift(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, n_bytes = somewhere(content, rng), int(rng.integers(1, 600))
    if rng.random() < 0.5:
        return content[:at] + content[at + n_bytes :]
    return content[:at] + rng.bytes(n_bytes) + content[at:]


BYTE_MUTATIONS = [flip_bits] * 6 + [set_bytes] * 3 + [zero_sectors, splice, splice, splice_other, swap_slots]
BYTE_MUTATIONS += [cut, cut, lengthen, shift]

# Mutations through HDF5. "right" is not to be had from these: the numbers they leave are the forger's.
HOSTILE_NUMBERS = [2**60, 2**62, -1, 0, 1, 2**31, 10**9, 2**63 - 1, 3.5, float("nan"), "many", b"\xff\xfe"]


def hostile_attribute(h5: h5py.File, rng: np.random.Generator) -> None:
    name = str(rng.choice(sorted(h5.attrs)))
    value = HOSTILE_NUMBERS[rng.integers(len(HOSTILE_NUMBERS))]
    kind = rng.integers(5)
    if kind == 0:
        del h5.attrs[name]
    elif kind == 1:
        h5.attrs[name] = np.zeros(int(rng.choice([0, 3, 7000])), rng.choice(["i8", "f8", "S3"]))
    elif kind == 2:
        h5.attrs[name] = h5py.Empty("f4")
    else:
        h5.attrs[name] = value


def hostile_shape(h5: h5py.File, rng: np.random.Generator) -> None:
    name = str(rng.choice([key for key in h5 if h5[key].chunks]))
    dataset = h5[name]
    axis = int(rng.choice([i for i, limit in enumerate(dataset.maxshape) if limit is None] or [0]))
    if dataset.maxshape[axis] is None:
        dataset.resize(int(rng.choice([2**60, 2**40, 2**31, 100, 0, 1])), axis=axis)


def hostile_dataset(h5: h5py.File, rng: np.random.Generator) -> None:
    name = str(rng.choice(sorted(h5)))
    shape, dtype = h5[name].shape, h5[name].dtype
    del h5[name]
    kind = rng.integers(9)
    if kind == 0:
        h5.create_group(name)
    elif kind == 1:
        h5.create_dataset(name, shape=(2**60,), maxshape=(None,), chunks=(1024,), dtype="f4")
    elif kind == 2:
        h5.create_dataset(
            name, shape=shape, dtype=dtype, chunks=True if len(shape) and 0 not in shape else None
        )
    elif kind == 3:
        h5[name] = h5py.ExternalLink("/etc/passwd", "/")
    elif kind == 4:
        h5[name] = h5py.SoftLink(f"/{name}")
    elif kind == 5:
        h5.create_dataset(name, data=np.array(["a", "bb"], dtype=object), dtype=h5py.string_dtype())
    elif kind == 6:
        h5.create_dataset(name, data=np.zeros(shape, [("a", "f4"), ("b", "i4")]))
    elif kind == 7:
        # 1 GB of zeros that gzip makes into 1 MB
        zeros = h5.create_dataset(name, shape=(2**28,), dtype="f4", chunks=(2**22,), compression="gzip")
        zeros[:] = 0
    # else: it is missing


def facts_and_shapes(h5: h5py.File, rng: np.random.Generator) -> None:
    """Attributes and shapes that agree with each other, but with no data."""
    n_samples = int(rng.choice([2**39, 2**33, 2**31 - 1, 10**8]))
    h5.attrs["n_samples"] = n_samples
    for name in list(h5):
        if h5[name].chunks:
            shape, dtype, chunk = h5[name].shape, h5[name].dtype, h5[name].chunks
            del h5[name]
            sized = tuple(n_samples if n == 300 or n == 60 else n for n in shape)
            h5.create_dataset(name, shape=sized, maxshape=(None, *sized[1:]), dtype=dtype, chunks=chunk)


HOSTILE = [hostile_attribute] * 4 + [hostile_shape, hostile_dataset, hostile_dataset, facts_and_shapes]


def through_hdf5(path: Path, edit: Callable[..., None], rng: np.random.Generator, *, sealed: bool) -> None:
    if sealed:
        journal = Journal(path, durable=False)
        try:
            with journal.transaction() as transaction:
                edit(transaction.h5, rng)
        finally:
            journal.close()
    else:
        with h5py.File(path, "r+") as h5:
            edit(h5, rng)


# What a child does with a file, and what may come of it.


def contents(path: str) -> dict[str, Any]:
    with TrainingDynamicsStore(path) as store:
        found: dict[str, Any] = {
            name: getattr(store, name)
            for name in (
                "layout",
                "n_epochs",
                "labels",
                "class_names",
                "dropped_epochs",
                "created",
                "versions",
            )
        }
        found["sample_ids"] = store.sample_ids
        found["given"] = store.given_probabilities()
        found["margins"] = store.margins(slice(0, store.n_samples, 7))
        found["predicted"] = store.predictions(np.arange(0, store.n_samples, 3))
        found["times"] = store.n_presentations()
        if store.keep == "all":
            found["wide"] = store.probabilities()
        elif store.keep != "given":
            found["top"], found["wide"] = store.top()
    return found


def info(path: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command(["info", path])
    if status:
        raise StoreError(err.getvalue())
    # The size of the file is what it is.
    return "\n".join(line for line in out.getvalue().splitlines() if "bytes" not in line and "MB" not in line)


def detect(path: str) -> dict[str, Any]:
    issues = find_label_issues(path, method="aum", progress=False)
    return {name: getattr(issues, name) for name in ("noise_score", "suggested_label", "given_label")}


def checked(path: str) -> str:
    report = verify(path)
    if not report.ok:
        raise StoreError(str(report))
    return str(report)


def plain_hdf5(path: str) -> dict[str, Any]:
    """What h5py makes of the file by itself."""
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {name: np.asarray(value) for name, value in file.attrs.items()}
        found.update((f"{name} data", file[name][...]) for name in file)
    return found


WAYS: dict[str, Callable[[str], Any]] = {"store": contents, "info": info, "verify": checked, "detect": detect}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return bool(one == other)


def outcome(way: str, path: str, wanted: Any) -> str:
    """Say "right", "refused", or what is wrong."""
    try:
        found = WAYS[way](path)
    except TrainingDynamicsError as error:
        text = str(error)
        return (
            "refused"
            if path in text and len(text) < 4000
            else f"an error without the file's name: {text[:300]}"
        )
    except Exception:
        if way == "h5py":
            return "refused"
        return "another error: " + traceback.format_exc(limit=-3).strip()[-600:]
    if isinstance(wanted, Exception):  # what the base itself is refused with
        return "right" if wanted is ANYTHING else f"read what cannot be read: {str(found)[:200]}"
    accepted = wanted if isinstance(wanted, list) else [wanted]
    return "right" if any(same(found, one) for one in accepted) else "WRONG NUMBERS"


ANYTHING = Exception("whatever is said of a forged file is the forger's")


def in_child(path: str, wanted: dict[str, Any]) -> tuple[dict[str, str], float, int]:
    """Outcomes of all ways, seconds and the child's peak memory above the parent's in bytes."""
    read_end, write_end = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            own, before = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in statm()[:2])
            resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES, own + MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            warnings.simplefilter("ignore")
            Path("/proc/self/clear_refs").write_text("5")  # so that the peak is this child's
            results: dict[str, Any] = {way: outcome(way, path, wanted[way]) for way in WAYS}
            peak = resident_peak_bytes() - before
            os.write(write_end, json.dumps([results, peak]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    raw = b""
    while time.perf_counter() - started < 4 * SECONDS:
        if select.select([read_end], [], [], 1)[0]:
            part = os.read(read_end, 1 << 16)
            if not part:
                break
            raw += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if status:
        what = f"killed by signal {status & 127}" if status & 127 else f"ended with status {status >> 8}"
        return {"process": what}, seconds, 0
    results, peak = json.loads(raw)
    return results, seconds, peak


def statm() -> list[str]:
    return Path("/proc/self/statm").read_text().split()


def resident_peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    parser.add_argument("--plain", action="store_true", help="read with h5py alone, to see what is shielded")
    options = parser.parse_args()
    if options.plain:
        WAYS.clear()
        WAYS["h5py"] = plain_hdf5
    folder = Path(tempfile.mkdtemp(prefix="mutations"))
    try:
        sys.exit(run(options.count, options.seed, folder, options.keep))
    finally:
        shutil.rmtree(folder)


def run(count: int, seed: int, folder: Path, keep: Path | None = None) -> int:
    """Number of failures."""
    bases, others, right, other_right = {}, {}, {}, {}
    for name, base in BASES.items():
        for store, number in ((bases, 1), (others, 2)):
            path = folder / "base.h5"
            record(path, seed=number, **base)
            store[name] = path.read_bytes()
            found = {way: attempt(function, str(path)) for way, function in WAYS.items()}
            if store is bases:
                right[name] = found
            else:
                other_right[name] = found
            path.unlink()
    # Their texts name the file, so all files have one name; it is in a folder of its own for each process.
    path = folder / "base.h5"
    tally: collections.Counter[str] = collections.Counter()
    kinds_of_failure: collections.Counter[str] = collections.Counter()
    failures, slowest, largest = 0, 0.0, 0
    started = time.perf_counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = str(rng.choice(list(BASES)))
        wanted = right[name]
        path.unlink(missing_ok=True)
        if rng.random() < 0.85:
            mutation = BYTE_MUTATIONS[rng.integers(len(BYTE_MUTATIONS))]
            kind = mutation.__name__
            path.write_bytes(mutation(bases[name], others[name], rng))
        else:
            edit = HOSTILE[rng.integers(len(HOSTILE))]
            sealed = bool(rng.random() < 0.5)
            kind = edit.__name__ + (" (sealed)" if sealed else "")
            path.write_bytes(bases[name])
            with contextlib.suppress(Exception):  # HDF5 refuses some of it by itself
                through_hdf5(path, edit, rng, sealed=sealed)
            if sealed:
                wanted = dict.fromkeys(WAYS, ANYTHING)
        if (
            kind == "splice_other" and name != "no epoch"
        ):  # where all that counts is the other's, it is the other
            wanted = {way: [right[name][way], other_right[name][way]] for way in WAYS}
        results, seconds, peak = in_child(str(path), wanted)
        slowest, largest = max(slowest, seconds), max(largest, peak)
        bad = {way: text for way, text in results.items() if text not in ("right", "refused")}
        if seconds > SECONDS:
            bad["time"] = "longer than the limit" if "h5py" in WAYS else f"{seconds:.1f} s"
        if peak > MEMORY_BYTES:
            bad["memory"] = "more than the limit" if "h5py" in WAYS else f"{peak / 2**20:.0f} MiB"
        for text in results.values():
            tally[f"{kind}: {text if text in ('right', 'refused') else 'FAILED'}"] += 1
        kinds_of_failure.update(bad.values() if "h5py" in WAYS else ())
        if bad:
            failures += 1
            if failures <= 30 and "h5py" not in WAYS:
                print(f"mutation {number}, {name}, {kind}: {json.dumps(bad, indent=1)}", flush=True)
            if keep is not None:
                keep.mkdir(exist_ok=True)
                shutil.copy(path, keep / f"{number}.h5")
        if (number + 1) % 1000 == 0:
            print(f"{number + 1} files, {failures} failed, {time.perf_counter() - started:.0f} s", flush=True)
    for text, number in kinds_of_failure.most_common():
        print(f"{number:>6} {text}")
    kinds = sorted({text.rsplit(": ", 1)[0] for text in tally})
    print(
        f"{'mutation':<28} {'right':>8} {'refused':>8} {'FAILED':>8}   (each file is read in {len(WAYS)} ways)"
    )
    for kind in kinds:
        numbers = [tally[f"{kind}: {result}"] for result in ("right", "refused", "FAILED")]
        print(f"{kind:<28} {numbers[0]:>8} {numbers[1]:>8} {numbers[2]:>8}")
    print(
        f"{count} files, {failures} failed; slowest {slowest:.2f} s for all ways, "
        f"at most {largest / 2**20:.0f} MiB above the parent, {time.perf_counter() - started:.0f} s in all"
    )
    return failures


def attempt(function: Callable[[str], Any], path: str) -> Any:
    try:
        return function(path)
    except TrainingDynamicsError as error:
        return error


if __name__ == "__main__":
    main()
