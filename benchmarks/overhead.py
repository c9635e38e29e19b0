"""What the callback costs a training: the same fit with and without it, in turn, as ratios.

    python -m benchmarks.overhead [--repeats 7]

Each row is one kind of training. A repeat runs every variant once, in an order that changes; the ratio is taken
within a repeat, so that a machine that slows down slows all variants. Prints the median and the range of ratios.
"""

import argparse
import contextlib
import gzip
import io
import pathlib
import statistics
import tempfile
import time
import warnings

import numpy as np
import paddle
from paddle import nn

from paddle_td_callback import TrainingDynamicsCallback

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
VARIANTS = {
    "no callback": None,
    "keep=given": {"keep": "given"},
    "keep=all": {},
    "keep=all gzip": {"compression": "gzip"},
}


class Arrays(paddle.io.Dataset):
    """Inputs and labels in memory."""

    def __init__(self, inputs, labels):
        super().__init__()
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def mlp():
    """A table: the smallest step anybody trains with, so the largest share of overhead."""
    rng = np.random.default_rng(0)
    data = Arrays(rng.standard_normal((20_000, 32), np.float32), rng.integers(0, 10, 20_000))
    return data, nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 10)), 128


def wide():
    """A thousand classes."""
    rng = np.random.default_rng(0)
    data = Arrays(rng.standard_normal((20_000, 64), np.float32), rng.integers(0, 1000, 20_000))
    return data, nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 1000)), 128


def cnn():
    """Two convolutions over 28x28 images: Fashion-MNIST where Debian's package is installed, else noise."""
    n = 6_000
    if FASHION.exists():
        images = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16)[: n * 784]
    else:
        images = np.random.default_rng(0).integers(0, 256, n * 784)
    labels = np.random.default_rng(0).integers(0, 10, n)
    data = Arrays((images.reshape(n, 1, 28, 28) / 255).astype(np.float32), labels)
    network = nn.Sequential(
        nn.Conv2D(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2),
        nn.Conv2D(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip
    return data, network, 64


def seconds(make, options, epochs, folder):
    """Wall time of one fit, network and data made anew."""
    paddle.seed(0)
    np.random.seed(0)  # noqa: NPY002  Paddle's samplers shuffle by it
    data, network, batch_size = make()
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), nn.CrossEntropyLoss())
    path = pathlib.Path(folder) / "run.h5"
    callbacks = [] if options is None else [TrainingDynamicsCallback(path, overwrite=True, **options)]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(data, epochs=epochs, batch_size=batch_size, verbose=0, callbacks=callbacks)
    return time.perf_counter() - started


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'training':8} {'variant':14} {'seconds':>8} {'ratio':>7}   range")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for make in (mlp, wide, cnn):
            seconds(make, None, 1, folder)
            times = {name: [] for name in VARIANTS}
            for repeat in range(options.repeats):
                names = list(VARIANTS)
                for name in names[repeat % 4 :] + names[: repeat % 4]:
                    times[name].append(seconds(make, VARIANTS[name], options.epochs, folder))
            for name, row in times.items():
                ratios = [a / b for a, b in zip(row, times["no callback"], strict=True)]
                print(
                    f"{make.__name__:8} {name:14} {statistics.median(row):>8.2f} {statistics.median(ratios):>7.3f}"
                    f"   {min(ratios):.3f} to {max(ratios):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
