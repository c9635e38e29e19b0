"""What compression costs a training and what it saves: one real fit without recording, with, and with gzip.

    python benchmarks/compression.py [--threads 2]

An MLP on the bundled-size part of Fashion-MNIST, recorded with keep="all"; the three kinds of run take turns. CPU
seconds are those of the whole process, all threads; they tell what the writer takes from a training that uses
every core, which the wall clock of a busy machine does not. Bytes are given without the file's fixed 0.13 MB.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def images(folder: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + n * 784), np.uint8, offset=16).reshape(n, 784)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + n), np.uint8, offset=8).astype(np.int64)
    return pixels.astype(np.float32) / 255, labels


def fit(kind: str, folder: Path, n: int, epochs: int) -> None:
    import paddle

    from paddle_td_callback import TrainingDynamicsCallback

    x, y = images(folder, n)
    paddle.seed(0)
    nn = paddle.nn
    network = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 100)
    )  # 100 outputs: a wide recording
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(parameters=network.parameters()), nn.CrossEntropyLoss())
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "run.h5")
        compression = "gzip" if kind == "gzip" else None
        callbacks = [] if kind == "off" else [TrainingDynamicsCallback(path, compression=compression)]
        data = list(zip(x, y, strict=True))
        model.fit(data, epochs=1, batch_size=256, verbose=0)  # everything is warm
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        model.fit(data, epochs=epochs, batch_size=256, verbose=0, callbacks=callbacks)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        size = os.path.getsize(path) - 131072 if callbacks else 0
    print(wall / epochs, cpu / epochs, size / epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=6_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.kind:
        fit(options.kind, options.data, options.samples, options.epochs)
        return
    found: dict[str, list[list[float]]] = {"off": [], "none": [], "gzip": []}
    for _ in range(options.rounds):
        for kind, rows in found.items():
            command = [sys.executable, "-W", "ignore", __file__, "--kind", kind, "--data", str(options.data)]
            command += ["--samples", str(options.samples), "--epochs", str(options.epochs)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            said = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment
            ).stdout
            rows.append([float(number) for number in said.split()[-3:]])
    print(
        f"{options.samples} samples x 100 outputs, {options.threads} threads; an epoch, median of {options.rounds}"
    )
    print(f"{'recording':<10} {'wall s':>7} {'CPU s':>7} {'MB':>6}")
    for kind, rows in found.items():
        wall, cpu, size = (statistics.median(row[i] for row in rows) for i in range(3))
        print(f"{kind:<10} {wall:>7.2f} {cpu:>7.2f} {size / 1e6:>6.2f}")


if __name__ == "__main__":
    main()
