"""How fast epochs become durable, against a plain file and against h5py written batch by batch.

    python -m benchmarks.store [--folder FOLDER] [--no-gzip]

All rows write the same numbers to the same disk in one run: `rounds` times in turn, the median counts. An epoch is
durable before the next begins. "trainer waits" is what the commits cost the training thread: the time inside
`end_epoch`, with nothing else to do meanwhile ("busy") and with a training step of a second between ("training").
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from paddle_td_callback.recording.committer import Committer
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.schema import Layout

BATCH = 128


def make_epoch(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs as a half-trained network gives them: what compresses is the tail of small probabilities."""
    rng = np.random.default_rng(seed)
    epoch = {field.name: np.zeros(field.shape, field.dtype) for field in layout.fields}
    for start in range(0, layout.n_samples, 10_000):
        rows = slice(start, min(start + 10_000, layout.n_samples))
        logits = rng.normal(0, 2.5, (rows.stop - start, layout.n_classes)).astype(np.float32)
        logits[np.arange(len(logits)), rng.integers(0, layout.n_classes, len(logits))] += 8
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        epoch["given_probability"][rows] = softmax[:, 0]
        epoch["margin"][rows] = logits[:, 0] - logits[:, 1:].max(axis=1)
        epoch["predicted"][rows] = logits.argmax(axis=1)
        if layout.keep == "all":
            epoch["probabilities"][rows] = softmax
    epoch["n_presentations"][:] = 1
    return epoch


def plain_file(path: Path, layout: Layout, epoch: dict[str, np.ndarray], n_epochs: int) -> float:
    blocks = [memoryview(np.ascontiguousarray(array)).cast("B") for array in epoch.values()]
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(n_epochs):
            for block in blocks:
                for at in range(0, len(block), 1 << 20):
                    file.write(block[at : at + (1 << 20)])
            os.fsync(file.fileno())
    return time.perf_counter() - started


def our_store(path: Path, layout: Layout, epoch: dict[str, np.ndarray], n_epochs: int) -> float:
    labels = np.zeros(layout.n_samples, np.int32)
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(0, epoch, labels)  # the labels come with the first
    started = time.perf_counter()
    for index in range(1, n_epochs + 1):
        writer.commit_epoch(index, epoch, labels)
    seconds = time.perf_counter() - started
    writer.close()
    return seconds


def h5py_by_batch(path: Path, layout: Layout, epoch: dict[str, np.ndarray], n_epochs: int) -> float:
    """Each batch of shuffled samples written to where it belongs, as one would do it first."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    with h5py.File(path, "w") as file:
        for name, array in epoch.items():
            shape = (0, *array.shape)
            chunks = (1, min(layout.n_samples, 5000), *array.shape[1:])
            file.create_dataset(name, shape, array.dtype, maxshape=(None, *array.shape), chunks=chunks)
        for index in range(n_epochs):
            for name in epoch:
                file[name].resize(index + 1, axis=0)
            order = rng.permutation(layout.n_samples)
            for at in range(0, layout.n_samples, BATCH):
                rows = np.sort(order[at : at + BATCH])
                for name, array in epoch.items():
                    file[name][index, rows] = array[rows]
            file.flush()
            with open(path, "rb") as descriptor:
                os.fsync(descriptor.fileno())
    return time.perf_counter() - started


def blocked_ms(path: Path, layout: Layout, epoch: dict[str, np.ndarray], pause_s: float) -> float:
    """Milliseconds an epoch for which the training thread stands in `submit`."""
    labels = np.zeros(layout.n_samples, np.int32)
    committer = Committer(StoreWriter.create(path, layout))
    n_epochs = 6
    for _ in range(n_epochs):
        for name, array in epoch.items():
            np.copyto(committer.buffer[name], array)
        time.sleep(pause_s)
        committer.submit(labels)
    blocked = committer.blocked_seconds
    committer.close()
    return 1000 * blocked / n_epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-gzip", action="store_true", help="leave out the rows that take most of the time"
    )
    options = parser.parse_args()
    sizes = {
        "50,000 x 100": (Layout(50_000, 100), 40, True),
        "100,000 x 500": (Layout(100_000, 500), 8, True),
        "250,000 x 1,000": (Layout(250_000, 1000), 2, False),
    }
    for name, (layout, n_epochs, batches_too) in sizes.items():
        epoch = make_epoch(layout)
        n_bytes = layout.epoch_bytes
        gzip = Layout(layout.n_samples, layout.n_classes, gzip_level=1)
        rows: dict[str, tuple[Callable[..., float], Layout, int]] = {
            "plain file, fsync": (plain_file, layout, n_epochs),
            "this store": (our_store, layout, n_epochs),
            "this store, gzip": (our_store, gzip, max(2, n_epochs // 8)),
        }
        if options.no_gzip:
            del rows["this store, gzip"]
        if batches_too:
            rows["h5py, batch by batch"] = (h5py_by_batch, layout, 1)
        print(f"{name} float16, {n_bytes / 1e6:.0f} MB an epoch")
        print(f"{'':<24} {'MB/s':>7} {'to plain':>9} {'to batches':>11} {'bytes':>6}  rounds, MB/s")
        rates: dict[str, list[float]] = {row: [] for row in rows}
        sizes_on_disk: dict[str, float] = {}
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder, "run.h5")
            for _ in range(options.rounds):
                for row, (function, row_layout, count) in rows.items():
                    seconds = function(path, row_layout, epoch, count)
                    rates[row].append(n_bytes * count / seconds / 1e6)
                    n_written = count + (function is our_store)
                    sizes_on_disk[row] = path.stat().st_size / (n_bytes * n_written)
                    path.unlink()
            medians = {row: statistics.median(found) for row, found in rates.items()}
            for row, median in medians.items():
                ratio = median / medians["plain file, fsync"]
                batches = medians.get("h5py, batch by batch")
                times = f"{median / batches:.1f} x" if batches else ""
                every = " ".join(f"{rate:.0f}" for rate in rates[row])
                print(
                    f"{row:<24} {median:>7.0f} {ratio:>9.2f} {times:>11} {sizes_on_disk[row]:>6.2f}  {every}"
                )
            for title, row_layout in (("no compression", layout), ("gzip", gzip)):
                if options.no_gzip and row_layout is gzip:
                    continue
                for kind, pause_s in (("busy", 0.0), ("training", 1.0)):
                    waits = blocked_ms(path, row_layout, epoch, pause_s)
                    path.unlink()
                    print(f"trainer waits, {title}, {kind}: {waits:.2f} ms an epoch")
        print()


if __name__ == "__main__":
    main()
