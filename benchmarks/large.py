"""How long it takes to open large recordings, and to read one sample of many epochs.

    python -m benchmarks.large [PART OF A NAME]

The files are sparse: frames, chunk indexes and metadata are what the writer writes, chunks are holes, that is zeros
with the checksum of zeros.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddle_td_callback.store import StoreWriter, TrainingDynamicsStore, commits, disk
from paddle_td_callback.store.blocks import FRAME_BYTES, METADATA, NODE, STATE, scan
from paddle_td_callback.store.chunks import checksums
from paddle_td_callback.store.disk import RawFile
from paddle_td_callback.store.schema import Layout
from paddle_td_callback.store.state import newest_state

RUNS = {
    "100 GB: 1,281,167 x 1,000, 40 epochs": (Layout(1_281_167, 1000), 40),
    "10,000 epochs: 2,000 x 10, given": (Layout(2000, 10, keep="given"), 10_000),
    "2,000 x 10, 200 epochs": (Layout(2000, 10), 200),
    "50,000 x 100, 200 epochs": (Layout(50_000, 100), 200),
    "2,000 x 10, 1,000 epochs": (Layout(2000, 10), 1000),
}


class SparseFile(RawFile):
    """Leaves out what is zero anyway."""

    def write(self, offset: int, *parts: Any) -> None:
        """Of a chunk, only its frame."""
        if len(parts) > 1 and isinstance(parts[1], memoryview):  # a chunk
            super().write(offset, parts[0])
        else:
            super().write(offset, *parts)

    def sync(self) -> None:
        """Nothing has to last."""


def zeros(block: Any, *, gzip_level: int | None) -> tuple[memoryview, bytes, int]:
    payload = memoryview(bytes(block.size * block.dtype.itemsize))
    return payload, *checksums(payload)


def record(path: Path, layout: Layout, n_epochs: int) -> None:
    one = {f.name: np.zeros((1, *f.shape[1:]), f.dtype) for f in layout.fields}
    one["n_presentations"][:] = 1
    epoch = {f.name: np.broadcast_to(one[f.name], f.shape) for f in layout.fields}
    made = StoreWriter.create(path, layout)
    for index in range(n_epochs):
        made.commit_epoch(index, epoch, np.zeros(layout.n_samples, np.int32))
    made.close()


def seconds(function: Callable[[], Any], n: int = 5) -> float:
    """Median of some calls."""
    times = []
    for _ in range(n):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def overhead(path: Path) -> float:
    """Share of the file that no reader needs any more: states and metadata of commits before the last, and nodes."""
    file = RawFile(str(path), os.O_RDONLY)
    newest, *_ = newest_state(file)
    n_bytes = dict.fromkeys((STATE, METADATA, NODE), 0)
    for _, frame in scan(file, newest.end):
        if frame is not None and frame.kind in n_bytes:
            n_bytes[frame.kind] += FRAME_BYTES + frame.n_bytes
    file.close()
    return sum(n_bytes.values()) / newest.end


def main() -> None:
    disk.RawFile = SparseFile  # type: ignore[misc]
    commits.encode_chunk = zeros  # type: ignore[assignment]
    command = [sys.executable, "-m", "paddle_td_callback", "info"]
    print(
        "| recording | bytes | open | `paddle-td info` | one sample: given | all classes | metadata |\n"
        + "|---" * 7
        + "|"
    )
    for name, (layout, n_epochs) in RUNS.items():
        if not any(one in name for one in sys.argv[1:] or [""]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.h5"
            record(path, layout, n_epochs)

            def sample(kind: str, path: Path = path) -> Any:
                with TrainingDynamicsStore(path) as store:
                    return getattr(store, kind)([17])

            opened = seconds(lambda path=path: TrainingDynamicsStore(path).close())  # type: ignore[misc]
            told = seconds(
                lambda path=path: subprocess.run([*command, path], check=True, stdout=subprocess.DEVNULL)
            )  # type: ignore[misc]
            given = seconds(lambda: sample("given_probabilities"))
            wide = seconds(lambda: sample("probabilities")) if layout.keep == "all" else float("nan")
            cells = [
                name,
                f"{path.stat().st_size:,}",
                *(f"{1000 * one:.1f} ms" for one in (opened, told, given, wide)),
            ]
            print("| " + " | ".join([*cells, f"{100 * overhead(path):.1f} %"]) + " |", flush=True)


if __name__ == "__main__":
    main()
