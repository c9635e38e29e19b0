"""What compression costs a training and what it saves: the same fit without recording, with, and with gzip.

    OMP_NUM_THREADS=2 python -m benchmarks.compression

An MLP on a part of Fashion-MNIST, recorded with keep="all", with 10 outputs and, for a wide recording, with 100, of
which 90 belong to no sample; the three kinds of fit take turns in one process. CPU seconds are those of the whole
process, all threads; they tell what the writer takes from a training that uses every core, which the wall clock of
a busy machine does not. Bytes are given without what a file without epochs has.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle

from paddle_td_callback import TrainingDynamicsCallback

KINDS = {"off": None, "none": None, "gzip": "gzip"}
EMPTY_BYTES = 131072


class Images(paddle.io.Dataset):
    """The first images of Fashion-MNIST's training set."""

    def __init__(self, folder: Path, n: int) -> None:
        with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
            self.pixels = np.frombuffer(file.read(16 + n * 784), np.uint8, offset=16).reshape(n, 784)
        with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
            self.labels = np.frombuffer(file.read(8 + n), np.uint8, offset=8).astype(np.int64)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        return self.pixels[index].astype(np.float32) / 255, self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def fit(kind: str, data: Images, n_outputs: int, epochs: int, path: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and bytes of an epoch."""
    paddle.seed(0)
    nn = paddle.nn
    network = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, n_outputs))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(parameters=network.parameters()), nn.CrossEntropyLoss())
    model.fit(data, epochs=1, batch_size=256, verbose=0)  # everything is warm
    callbacks = [] if kind == "off" else [TrainingDynamicsCallback(path, compression=KINDS[kind])]
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    model.fit(data, epochs=epochs, batch_size=256, verbose=0, callbacks=callbacks)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    size = 0
    if callbacks:
        size = os.path.getsize(path) - EMPTY_BYTES
        os.unlink(path)
    return wall / epochs, cpu / epochs, size / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the recording goes (default: the temporary folder)")
    options = parser.parse_args()
    data = Images(options.data, options.samples)
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    for n_outputs in (10, 100):
        found = measure(data, n_outputs, options)
        print(
            f"{options.samples} samples x {n_outputs} outputs, {threads} threads; an epoch, median (least) of "
            f"{options.rounds}"
        )
        print(f"{'recording':<10} {'wall s':>14} {'CPU s':>14} {'MB':>7}")
        for kind, rows in found.items():
            (wall, cpu, size), least = (
                [pick(row[i] for row in rows) for i in range(3)] for pick in (statistics.median, min)
            )
            print(
                f"{kind:<10} {wall:>7.2f} ({least[0]:.2f}) {cpu:>7.2f} ({least[1]:.2f}) {size / 1e6:>7.2f}",
                flush=True,
            )


def measure(
    data: Images, n_outputs: int, options: argparse.Namespace
) -> dict[str, list[tuple[float, float, float]]]:
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for _ in range(options.rounds):
            for kind, rows in found.items():
                rows.append(fit(kind, data, n_outputs, options.epochs, os.path.join(folder, "run.h5")))
    return found


if __name__ == "__main__":
    main()
