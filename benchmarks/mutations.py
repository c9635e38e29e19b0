"""Damaged and hostile files given to all that reads recordings: right numbers or an error of ours, nothing else.

    python -m benchmarks.mutations --count 10000

Each file is read in a child process of its own, with limits on time and memory. Base recordings of every layout are
mutated: bits flipped, sectors zeroed, blocks spliced within a file and from another recording, bytes inserted and
removed, files cut, lengthened; and forged: any block, frame, fact, node or chunk changed, with all checksums
put right. What is read of a mutated file must be what one of its commits held. What is read of a forged file is the
forger's, but it takes no longer and no more memory. Files that h5py opens are read by plain h5py only where nothing was
mutated.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import io
import json
import math
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.forging import forge, frame_of, newest, put_block, put_roots
from support.recordings import make_epoch, make_labels, unseen_epoch

from paddle_td_callback import StoreError, TrainingDynamicsError, TrainingDynamicsStore, find_label_issues
from paddle_td_callback.cli import main as command
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.blocks import (
    CHUNK,
    FRAME_BYTES,
    METADATA,
    START,
    STATE,
    TEXT,
    Frame,
    scan,
)
from paddle_td_callback.store.chunks import checksums
from paddle_td_callback.store.disk import SIGN_AT, RawFile
from paddle_td_callback.store.schema import Layout
from paddle_td_callback.store.verify import salvage, verify

MEMORY_BYTES = 64 << 20
SECONDS = 5
ANSWER_BYTES = 16 << 20  # of larger answers, which a small file may rightly have, a part is read
N_EPOCHS = 4
NAMES = ("class_names", "sample_ids")
BASES: dict[str, tuple[Layout, int]] = {
    "all": (Layout(300, 5), N_EPOCHS),
    "all, gzip": (Layout(300, 5, gzip_level=1), N_EPOCHS),
    "top 2": (Layout(200, 6, keep=2, dtype="float32"), N_EPOCHS),
    "given": (Layout(500, 3, keep="given"), N_EPOCHS),
    "many samples": (Layout(40_000, 2, keep="given"), 2),
    "many samples, gzip": (Layout(40_000, 2, keep="given", gzip_level=9), 2),
    "many epochs": (Layout(20, 3, keep="given"), 40),
    "one epoch": (Layout(60, 4), 1),
    "no epoch": (Layout(60, 4), 0),
}
TEXTS = {"all": "class_names", "given": "sample_ids", "no epoch": "class_names"}


class Base:
    """A recording, what a file of it holds after each commit, and the same as another run would have made it."""

    def __init__(self, name: str, path: Path, seed: int) -> None:
        layout, n_epochs = BASES[name]
        labels = make_labels(layout, seed)
        kind = TEXTS.get(name)
        count = layout.n_classes if kind == "class_names" else layout.n_samples
        names: dict[str, Any] = {kind: [f"{seed} {i}" for i in range(count)]} if kind else {}
        writer = StoreWriter.create(path, layout, **names)
        self.states: list[dict[str, Any]] = []
        for index in range(n_epochs):
            if index >= n_epochs - N_EPOCHS:
                self.states.append(read_all(path))
            seen = np.where(np.arange(layout.n_samples) % n_epochs <= index, labels, -1).astype(np.int32)
            if index != 1 or n_epochs <= N_EPOCHS - 1:  # which is dropped
                writer.commit_epoch(index, make_epoch(layout, seen, 100 * seed + index), seen)
        self.states.append(read_all(path))
        if n_epochs:
            writer.close()
            self.content = path.read_bytes()
        else:
            self.content = path.read_bytes()
            writer.close()
        path.write_bytes(self.content)
        self.newest = newest(path)
        file = RawFile(str(path), os.O_RDONLY)
        self.blocks = [
            (at - FRAME_BYTES, frame) for at, frame in scan(file, self.newest.end) if frame is not None
        ]
        file.close()


def read_all(path: Path) -> dict[str, Any]:
    """What all ways give; of a copy, since the file is locked."""
    copy = shutil.copy(path, path.with_name("copy.h5"))
    found = {way: attempt(function, str(path)) for way, function in WAYS.items() if way != "resume"}
    return {**found, "resume": attempt(resumed, copy)}


# Mutations of bytes: each takes the content and another recording's, and gives the new content.


def somewhere(content: bytes, rng: np.random.Generator) -> int:
    """A place to hit: often in the first sectors, on which all depends, or in the last commit."""
    chance = rng.random()
    if chance < 0.2:
        return int(rng.choice([0, 40, 64, SIGN_AT]) + rng.integers(0, 100))
    if chance < 0.4:
        return int(rng.integers(max(START, len(content) - 12_000), len(content)))
    return int(rng.integers(START, len(content)))


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


def swap_roots(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Addresses of commits moved: the older one instead of the newest, or those of another file."""
    newest, before, none = content[64:72], content[96:104], bytes(8)
    pairs = [(before, newest), (before, before), (newest, none), (none, newest), (none, before), (none, none)]
    pairs.append((other[64:72], other[96:104]))
    first, second = pairs[rng.integers(7)]
    return content[:64] + first + content[72:96] + second + content[104:]


def cut(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def lengthen(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.choice([1, 512, 100_000])))


def shift(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, n_bytes = somewhere(content, rng), int(rng.integers(1, 600))
    if rng.random() < 0.5:
        return content[:at] + content[at + n_bytes :]
    return content[:at] + rng.bytes(n_bytes) + content[at:]


BYTE_MUTATIONS: list[Callable[[bytes, bytes, np.random.Generator], bytes]] = (
    [flip_bits] * 6 + [set_bytes] * 3 + [zero_sectors, splice, splice, splice_other, swap_roots]
)
BYTE_MUTATIONS += [cut, cut, lengthen, shift]

# Forgeries: all checksums are right. Each takes the file and the base.
HOSTILE_NUMBERS = [
    0,
    1,
    2,
    7,
    31,
    255,
    4096,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**39,
    2**53,
    2**62,
    2**63,
    2**64 - 1,
]
HOSTILE_FACTS = [
    *HOSTILE_NUMBERS,
    2**80,
    -1,
    -(2**63),
    0.5,
    30.0,
    1e308,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "x",
]
HOSTILE_FACTS += ["\x1b[2J", "\ud800", "ab cd ef", "9" * 5000, [], {}, [1], [[]], {"a": 1}, [0] * 9]


def pick(values: list[Any], rng: np.random.Generator) -> Any:
    return values[rng.integers(len(values))]


def damage(raw: bytearray, rng: np.random.Generator) -> None:
    """Change some bytes, or a number somewhere among them."""
    for _ in range(rng.integers(1, 4)):
        if not raw:
            return
        if rng.random() < 0.4:
            raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        else:
            size = int(rng.choice([2, 4, 8]))
            number = (
                pick(HOSTILE_NUMBERS, rng)
                if rng.random() < 0.7
                else int(rng.integers(START, 1 << 20)) // 8 * 8
            )
            at = int(rng.integers(max(1, len(raw) - size + 1)))
            at -= at % min(8, size)
            part = (number % (1 << 8 * size)).to_bytes(size, "little")
            raw[at : at + size] = part[: len(raw) - at]


def change_fact(facts: dict[str, Any], rng: np.random.Generator) -> None:
    """Change, remove or add something at any depth."""
    here: Any = facts
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = pick(keys, rng)
        if isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.8:
            here = here[key]
            continue
        if isinstance(here, dict) and rng.random() < 0.1:
            del here[key]
        elif isinstance(here[key], int) and rng.random() < 0.4:
            here[key] += int(rng.choice([-8, -1, 1, 8, 4096]))
        else:
            here[key] = copy.deepcopy(pick(HOSTILE_FACTS, rng))
        return


def forge_state(path: Path, base: Base, rng: np.random.Generator) -> None:
    forge(path, change_state=lambda facts: change_fact(facts, rng))


def forge_size(path: Path, base: Base, rng: np.random.Generator) -> None:
    """Sizes that agree with each other, with no data behind them."""
    epochs, samples = (
        int(rng.choice([0, 1, 40, 2**20, 2**31])),
        int(rng.choice([1, 10**5, 2**24, 2**33, 2**39])),
    )
    classes = int(rng.choice([2, 1000, 2**20, 2**30]))
    dropped = [0, 0] if rng.random() < 0.5 else [START + FRAME_BYTES, epochs]

    def change_state(facts: dict[str, Any]) -> None:
        facts.update(n_epochs=epochs, dropped=dropped)
        facts["layout"].update(n_samples=samples, n_classes=classes, gzip_level=pick([None, 9], rng))

    forge(path, change_state=change_state)


def forge_nodes(path: Path, base: Base, rng: np.random.Generator) -> None:
    forge(path, change_nodes=lambda nodes: damage(nodes, rng))


def forge_metadata(path: Path, base: Base, rng: np.random.Generator) -> None:
    forge(path, change_metadata=lambda metadata: damage(metadata, rng))


def forge_block(path: Path, base: Base, rng: np.random.Generator) -> None:
    """Change what is in a block of any kind."""
    kinds = sorted({frame.kind for _, frame in base.blocks})
    kind = pick(kinds, rng)
    at, frame = pick([one for one in base.blocks if one[1].kind == kind], rng)
    content = bytearray(path.read_bytes())
    body = content[at + FRAME_BYTES : at + FRAME_BYTES + frame.n_bytes]
    if kind == CHUNK:
        payload = body[:-4]
        damage(payload, rng)
        fletcher, checksum = checksums(bytes(payload))
        body = payload + fletcher
    else:
        if kind == TEXT and rng.random() < 0.5:  # sizes of texts
            body[24:32] = struct.pack("<Q", pick(HOSTILE_NUMBERS, rng))
        damage(body, rng)
        checksum = zlib.crc32(body)
    frame = frame._replace(checksum=checksum)
    content[at : at + FRAME_BYTES + frame.n_bytes] = frame.pack(at) + body
    path.write_bytes(content)


def forge_frame(path: Path, base: Base, rng: np.random.Generator) -> None:
    """Let a frame say something else of its block."""
    at, frame = pick(base.blocks, rng)
    name = pick(["kind", "field", "epoch", "number", "n_bytes", "n_bytes", "run"], rng)
    most = 255 if name in ("kind", "field") else 2**32 - 1
    value = (
        pick(HOSTILE_NUMBERS, rng)
        if rng.random() < 0.5
        else getattr(frame, name) + int(rng.choice([-8, -1, 1, 8]))
    )
    content = bytearray(path.read_bytes())
    frame = frame._replace(**{name: value & most})
    body = content[at + FRAME_BYTES : at + FRAME_BYTES + frame.n_bytes]
    if frame.kind != CHUNK:
        frame = frame._replace(checksum=zlib.crc32(body))
    content[at : at + FRAME_BYTES] = frame.pack(at)
    path.write_bytes(content)


def move_block(path: Path, base: Base, rng: np.random.Generator) -> None:
    """Put one block over another, as if it had been written there."""
    at, frame = pick(base.blocks, rng)
    target, _ = pick(base.blocks, rng)
    content = bytearray(path.read_bytes())
    body = content[at + FRAME_BYTES : at + FRAME_BYTES + frame.n_bytes]
    content[target : target + FRAME_BYTES + frame.n_bytes] = frame.pack(target) + body
    path.write_bytes(content)


def forge_roots(path: Path, base: Base, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    places = [at + FRAME_BYTES for at, frame in base.blocks if frame.kind in (STATE, METADATA)]
    values = [*HOSTILE_NUMBERS, *places, base.newest.at - 8, base.newest.at + 8, len(content)]
    put_roots(content, newest=pick(values, rng) if rng.random() < 0.7 else None, before=pick(values, rng))
    path.write_bytes(content)


def forge_superblock(path: Path, base: Base, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    places = [at + FRAME_BYTES for at, _ in base.blocks]
    at = pick([40, 64, 64, 64], rng)
    content[at : at + 8] = struct.pack("<Q", pick([*HOSTILE_NUMBERS, *places], rng))
    path.write_bytes(content)


def gzip_bomb(path: Path, base: Base, rng: np.random.Generator) -> None:
    """A chunk that unpacks to as much as fits in its place; and one at the end to which every chunk leads."""
    chunks = [(at, frame) for at, frame in base.blocks if frame.kind == CHUNK]
    if not chunks:
        return
    at, frame = max(chunks, key=lambda one: one[1].n_bytes) if rng.random() < 0.5 else pick(chunks, rng)
    content = bytearray(path.read_bytes())
    squeezed = zlib.compress(bytes(min(1000 * frame.n_bytes, 1 << 26)), 9)
    payload = squeezed[: frame.n_bytes - 4].ljust(frame.n_bytes - 4, b"\0")
    fletcher, checksum = checksums(payload)
    body, frame = payload + fletcher, frame._replace(checksum=checksum)
    content[at : at + FRAME_BYTES + frame.n_bytes] = frame.pack(at) + body
    path.write_bytes(content)
    if rng.random() < 0.5:

        def lead_there(nodes: bytearray) -> None:
            for place in range(len(nodes) - 8):
                if nodes[place : place + 6] == b"TREE\x01\x00":
                    count = struct.unpack_from("<H", nodes, place + 6)[0]
                    for entry in range(count):
                        start = place + 24 + entry * 40
                        nodes[start : start + 4] = struct.pack("<I", frame.n_bytes)
                        nodes[start + 32 : start + 40] = struct.pack("<Q", at + FRAME_BYTES)

        forge(path, change_nodes=lead_there)


def many_frames(path: Path, base: Base, rng: np.random.Generator) -> None:
    """A million bytes of frames of chunks, or of states, that claim far epochs."""
    content = bytearray(path.read_bytes())
    first = frame_of(content, base.newest.state)
    body = bytes(content[base.newest.state :][: first.n_bytes])
    del content[base.newest.end :]
    step = int(rng.choice([1, 7, 10**5]))
    empty = bool(rng.random() < 0.5)
    facts = json.loads(body[-4 - int.from_bytes(body[-4:], "little") : -4])
    for number in range(6000):
        at = len(content)
        epoch = number * step % 2**32
        if number % 2 and not empty:
            text = json.dumps({**facts, "n_epochs": epoch}).encode()
            put_block(content, at, STATE, text + struct.pack("<I", len(text)), 0, first.run)
        else:
            content += Frame(CHUNK, 0, epoch, 0, 104, 0, first.run).pack(at) + bytes(104)
        content.extend(bytes(-len(content) % 8))
    put_roots(content, newest=len(content) + FRAME_BYTES, before=len(content) + 4096)
    path.write_bytes(content + bytes(8192))


FORGERIES = [
    forge_state,
    forge_state,
    forge_state,
    forge_size,
    forge_nodes,
    forge_nodes,
    forge_metadata,
]
FORGERIES += [
    forge_block,
    forge_block,
    forge_frame,
    move_block,
    forge_roots,
    forge_superblock,
    gzip_bomb,
    many_frames,
]

# What a child does with a file, and what may come of it.


def contents(path: str) -> dict[str, Any]:
    with TrainingDynamicsStore(path) as store:
        found: dict[str, Any] = {
            name: getattr(store, name)
            for name in ("layout", "n_epochs", "labels", "dropped_epochs", "created", "versions", *NAMES)
        }
        most = max(1, ANSWER_BYTES // max(1, store.n_epochs * store.layout.epoch_bytes // store.n_samples))
        part = slice(0, most) if most < store.n_samples else None
        found["given"] = store.given_probabilities(part)
        found["margins"] = store.margins(slice(0, min(most, store.n_samples), 7))
        found["predicted"] = store.predictions(np.arange(0, min(most, store.n_samples), 3))
        found["times"] = store.n_presentations(part)
        if store.keep == "all":
            found["wide"] = store.probabilities(part)
        elif store.keep != "given":
            found["top"], found["wide"] = store.top(part)
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
    return f"{report.n_epochs} {report.good_epochs} {report.dropped_epochs}"


def salvaged(path: str) -> dict[str, Any]:
    """The good epochs by their numbers."""
    out = path + ".out"
    try:
        salvage(path, out)
        with TrainingDynamicsStore(out) as store:
            good = np.setdiff1d(np.arange(store.n_epochs), store.dropped_epochs)[:50]
            predicted, margins = store.predictions(slice(0, 1000)), store.margins(slice(0, 1000))
            return {
                str(epoch): (predicted[:, epoch].tobytes(), margins[:, epoch].tobytes()) for epoch in good
            }
    finally:
        with contextlib.suppress(OSError):
            os.unlink(out)


def resumed(path: str) -> dict[str, Any]:
    """What a writer takes over; it may then write, so this comes last."""
    writer = StoreWriter.resume(path)
    try:
        found = {"layout": writer.layout, "n_epochs": writer.n_epochs, "labels": writer.labels.copy()}
        if writer.layout.epoch_bytes < ANSWER_BYTES and writer.n_epochs:
            writer.commit_epoch(writer.n_epochs, unseen_epoch(writer.layout), writer.labels)
    finally:
        writer.close()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == found["n_epochs"] + (writer.n_epochs > found["n_epochs"])
    return found


def plain_hdf5(path: str) -> dict[str, Any]:
    """What h5py makes of the file by itself."""
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {name: np.asarray(value) for name, value in file.attrs.items()}
        found.update((f"{name} data", file[name][...]) for name in file)
    return found


WAYS: dict[str, Callable[[str], Any]] = {
    "store": contents,
    "info": info,
    "verify": checked,
    "salvage": salvaged,
    "detect": detect,
    "resume": resumed,
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and bool(one == other)


def is_right(way: str, found: Any, states: list[Any]) -> bool:
    """Whether it is what one commit held; of salvaged epochs each by itself."""
    states = [state for state in states if not isinstance(state, Exception)]
    if way == "salvage":
        return all(any(state.get(epoch) == rows for state in states) for epoch, rows in found.items())
    return any(same(found, state) for state in states)


def outcome(way: str, path: str, states: list[Any] | None) -> str:
    """Say "right", "refused", or what is wrong. Of a forged file (no states) anything is right."""
    try:
        found = WAYS[way](path)
    except TrainingDynamicsError as error:
        text = str(error)
        if path not in text or len(text) > 5000:
            return f"an error without the file's name: {text[:300]}"
        return "refused"
    except ValueError as error:  # detection says so of recordings with nothing to rank
        if way == "detect" and path in str(error):
            return "refused"
        return "another error: " + traceback.format_exc(limit=-3).strip()[-600:]
    except Exception:
        return "another error: " + traceback.format_exc(limit=-4).strip()[-900:]
    return "right" if states is None or is_right(way, found, states) else "WRONG NUMBERS"


def in_child(
    ways: dict[str, Callable[[], str]], most_bytes: int = MEMORY_BYTES
) -> tuple[dict[str, str], float, int]:
    """Run each way in a child process with limits.

    Args:
        ways: what is run, one after the other; each says how it ended.
        most_bytes: memory above the parent's that is allowed.

    Returns:
        What they said, seconds of the slowest, and the child's peak memory above the parent's in bytes.
    """
    read_end, write_end = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            own, before = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in statm()[:2])
            resource.setrlimit(resource.RLIMIT_AS, (own + (1 << 30), own + (1 << 30)))
            resource.setrlimit(resource.RLIMIT_CPU, (8 * SECONDS, 8 * SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            warnings.simplefilter("ignore")
            Path("/proc/self/clear_refs").write_text("5")  # so that the peak is this child's
            results, slowest, peaks = {}, 0.0, {}
            for way, run_way in ways.items():
                began = time.process_time()
                results[way] = run_way()
                slowest = max(slowest, time.process_time() - began)
                peaks[way] = resident_peak_bytes() - before
            peak = max(peaks.values())
            if peak > most_bytes:
                way = next(one for one in ways if peaks[one] > most_bytes)
                results[way] += f", {peaks[way] >> 20} MiB"
            os.write(write_end, json.dumps([results, slowest, peak]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    raw = b""
    while time.perf_counter() - started < 12 * SECONDS:
        if select.select([read_end], [], [], 1)[0]:
            part = os.read(read_end, 1 << 16)
            if not part:
                break
            raw += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    if status:
        what = f"killed by signal {status & 127}" if status & 127 else f"ended with status {status >> 8}"
        return {"process": what}, time.perf_counter() - started, 0
    results, slowest, peak = json.loads(raw)
    return results, slowest, peak


def statm() -> list[str]:
    return Path("/proc/self/statm").read_text().split()


def resident_peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mutations"))
    try:
        sys.exit(run(options.count, options.seed, folder, options.keep, options.first) > 0)
    finally:
        shutil.rmtree(folder)


def run(
    count: int,
    seed: int,
    folder: Path,
    keep: Path | None = None,
    first: int = 0,
    seconds_in_all: float = math.inf,
) -> int:
    """Number of failures among `count` files, or as many as the time allows."""
    warnings.simplefilter("ignore")
    path = folder / "base.h5"  # texts name the file, so all files have one name
    bases, others = ({name: Base(name, fresh(path), number) for name in BASES} for number in (1, 2))
    for name, base in bases.items():  # plain h5py sees what our reader sees
        fresh(path).write_bytes(base.content)
        plain = plain_hdf5(str(path))
        assert plain["committed_epochs"] == base.states[-1]["store"]["n_epochs"], name
        assert same(plain["labels data"], base.states[-1]["store"]["labels"]) or name == "no epoch", name
        assert same(plain["given_probability data"].T.copy(), base.states[-1]["store"]["given"].copy()), name
    tally: collections.Counter[str] = collections.Counter()
    failures, slowest, largest, largest_kind = 0, 0.0, 0, ""
    started = time.perf_counter()
    for number in range(first, first + count):
        if time.perf_counter() - started > seconds_in_all:
            count = number - first
            break
        rng = np.random.default_rng([seed, number])
        name = pick(list(BASES), rng)
        base, states = bases[name], None
        fresh(path).write_bytes(base.content)
        if rng.random() < 0.6:
            mutation = pick(BYTE_MUTATIONS, rng)
            kind = mutation.__name__
            path.write_bytes(mutation(base.content, others[name].content, rng))
            # Where all that counts is the other's, it is the other.
            states = base.states + (others[name].states if kind == "splice_other" else [])
        else:
            forgery = pick(FORGERIES, rng)
            kind = forgery.__name__
            forgery(path, base, rng)
        mutated = path.read_bytes()
        ways = {
            way: functools.partial(
                outcome, way, str(path), None if states is None else [one[way] for one in states]
            )
            for way in WAYS
        }
        results, seconds, peak = in_child(ways)
        slowest = max(slowest, seconds)
        if peak > largest:
            largest, largest_kind = peak, f"{kind}, {name}"
        bad = {way: text for way, text in results.items() if text not in ("right", "refused")}
        if seconds > SECONDS:
            bad["time"] = f"{seconds:.1f} s"
        for text in results.values():
            tally[f"{kind}: {text if text in ('right', 'refused') else 'FAILED'}"] += 1
        if bad:
            failures += 1
            if failures <= 30:
                print(f"mutation {number}, {name}, {kind}: {json.dumps(bad, indent=1)}", flush=True)
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / f"{number}.h5").write_bytes(mutated)
        if (number + 1) % 1000 == 0:
            print(f"{number + 1} files, {failures} failed, {time.perf_counter() - started:.0f} s", flush=True)
    print(
        f"{'mutation':<20} {'right':>8} {'refused':>8} {'FAILED':>8}   (each file is read in {len(WAYS)} ways)"
    )
    for kind in sorted({text.rsplit(": ", 1)[0] for text in tally}):
        numbers = [tally[f"{kind}: {result}"] for result in ("right", "refused", "FAILED")]
        print(f"{kind:<20} {numbers[0]:>8} {numbers[1]:>8} {numbers[2]:>8}")
    print(
        f"{count} files, {failures} failed; slowest way {slowest:.2f} s; at most {largest / 2**20:.0f} MiB above the "
        f"parent ({largest_kind}); {time.perf_counter() - started:.0f} s in all"
    )
    return failures


def fresh(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def attempt(function: Callable[[str], Any], path: str) -> Any:
    try:
        return function(path)
    except (TrainingDynamicsError, ValueError) as error:
        return error


if __name__ == "__main__":
    main()
