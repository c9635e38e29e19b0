"""What recording costs a training: pairs of the same fit with and without it, and what a step's part of it is spent on.

    python -m benchmarks.overhead [--pairs 15] [--only mlp ...] [--update-only]

Each pair runs the same fit twice, with and without the callback, in an order that alternates; the ratio is taken
within a pair, so that a machine that slows down slows both. The file and its commits are included. Prints the median
ratio with its quartiles and its range, and of the recorded fits the microseconds of a step: "tap" sees the loss's
arguments and takes them to the host, "copy" puts them into the recorder's block, "block work" makes of a block what
is stored (softmax, margin, float16, scatter), "commit" is what training waited for the disk. Last, `update` against
a NumPy softmax and copy of the same array. Numbers of a machine that does something else meanwhile mean little.
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import tempfile
import time
import warnings
from collections import defaultdict

import numpy as np
import paddle
from paddle import nn

from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsRecorder
from paddle_td_callback.paddle_fit.outputs import OutputReader
from paddle_td_callback.recording.batches import Block

PEAKED = 30.0  # logits so far apart that most probabilities are subnormal in float16, as after some epochs of training


class Arrays(paddle.io.Dataset):
    """Inputs and labels in memory."""

    def __init__(self, inputs, n_classes):
        super().__init__()
        self.inputs = inputs
        self.labels = np.random.default_rng(1).integers(0, n_classes, len(inputs))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


class Times(nn.Layer):
    """Makes the softmax behind it peaked."""

    def forward(self, values):
        """Multiply."""
        return values * PEAKED


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def lenet():
    """LeNet on 28 x 28."""
    return Arrays(noise(3_200, 1, 28, 28), 10), paddle.vision.models.LeNet(), 64, {}


def resnet18():
    """ResNet-18 on 32 x 32."""
    return Arrays(noise(320, 3, 32, 32), 10), paddle.vision.models.resnet18(num_classes=10), 32, {}


def mlp():
    """A table: steps of a millisecond."""
    return (
        Arrays(noise(20_000, 32), 10),
        nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 10)),
        128,
        {},
    )


def wide():
    """1,000 classes, all kept, peaked."""
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 1000), Times())
    return Arrays(noise(10_000, 64), 1000), network, 128, {}


def widest():
    """21,841 classes, five kept, peaked."""
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 21_841), Times())
    return Arrays(noise(1_280, 64), 21_841), network, 64, {"keep": 5}


TRAININGS = {make.__name__: make for make in (lenet, resnet18, mlp, wide, widest)}


class Split:
    """Seconds spent in parts of recording, by wrapping what does them."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self.inside = []
        self.recorders = []

    @contextlib.contextmanager
    def watching(self):
        """Wrap and unwrap."""
        parts = [
            (TrainingDynamicsCallback, "on_train_batch_end", "tap"),
            (OutputReader, "read", "tap"),
            (TrainingDynamicsRecorder, "update", "copy"),
            (TrainingDynamicsRecorder, "end_epoch", "commit"),
            (TrainingDynamicsRecorder, "close", "commit"),
            (Block, "flush", "block work"),
        ]
        originals = [(owner, name, vars(owner)[name]) for owner, name, _ in parts]
        for owner, name, part in parts:
            setattr(owner, name, self.timed(vars(owner)[name], part))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def timed(self, function, part):
        """The function, its own time noted under `part` without that of parts called within it."""

        def call(*arguments, **options):
            self.inside.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.perf_counter() - started
                self.seconds[part] += spent - self.inside.pop()
                if self.inside:
                    self.inside[-1] += spent

        return call


def fit(make, epochs, path):
    """Wall time and number of steps of one fit, with a new network and new data; recorded where there is a path."""
    paddle.seed(0)
    np.random.seed(0)  # noqa: NPY002  Paddle's samplers shuffle by it
    data, network, batch_size, options = make()
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), nn.CrossEntropyLoss())
    callbacks = [] if path is None else [TrainingDynamicsCallback(path, overwrite=True, **options)]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(data, epochs=epochs, batch_size=batch_size, verbose=0, callbacks=callbacks)
    return time.perf_counter() - started, epochs * -(-len(data) // batch_size)


def compare(name, n_pairs, epochs, path):
    """Print one row of the first table."""
    make = TRAININGS[name]
    fit(make, 1, path)  # warms up
    plain, recorded, split = [], [], Split()
    for pair in range(n_pairs):
        for with_it in (True, False) if pair % 2 else (False, True):
            with split.watching() if with_it else contextlib.nullcontext():
                seconds, n_steps = fit(make, epochs, path if with_it else None)
            (recorded if with_it else plain).append(seconds)
    ratios = sorted(a / b for a, b in zip(recorded, plain, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if n_pairs > 1 else ratios * 3
    parts = [
        1e6 * split.seconds[part] / n_steps / n_pairs for part in ("tap", "copy", "block work", "commit")
    ]
    print(
        f"{name:9} {1e3 * statistics.median(plain) / n_steps:8.2f} {statistics.median(ratios):7.3f}  "
        f"{quartiles[0]:.3f} to {quartiles[2]:.3f}  {ratios[0]:.3f} to {ratios[-1]:.3f} "
        + "".join(f"{part:11.0f}" for part in parts),
        flush=True,
    )


def softmax_and_copy(logits, copy):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    np.copyto(copy, logits)
    return powers


def compare_update(n_rows, n_classes, keep, scale, folder):
    """Print one row of the second table: an epoch of steps, the baseline and `update` in turn."""
    rng = np.random.default_rng(0)
    n_samples = max(n_rows * 8, 64_000_000 // n_classes // n_rows * n_rows)
    logits = rng.standard_normal((n_rows, n_classes), np.float32) * scale
    labels, copy = rng.integers(0, n_classes, n_rows), np.empty_like(logits)
    starts = range(0, n_samples, n_rows)
    steps = [rng.permutation(n_samples)[:n_rows] for _ in range(8)]
    recorder = TrainingDynamicsRecorder(
        pathlib.Path(folder) / "update.h5",
        n_samples=n_samples,
        n_classes=n_classes,
        keep=keep,
        overwrite=True,
    )
    ratios, mine = [], []
    for _ in range(9):
        started = time.perf_counter()
        for _ in starts:
            softmax_and_copy(logits, copy)
        between = time.perf_counter()
        for number, _ in enumerate(starts):
            recorder.update(steps[number % 8], logits, labels)
        recorder._block.flush()
        ended = time.perf_counter()
        mine.append((ended - between) / len(starts))
        ratios.append((ended - between) / (between - started))
    recorder.close()
    print(
        f"{n_rows:>4} x {n_classes:<6} {keep!s:6} {'peaked' if scale > 1 else 'flat':7} "
        f"{1e6 * statistics.median(mine[1:]):10.0f} {statistics.median(ratios[1:]):7.2f}  "
        f"{min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}",
        flush=True,
    )


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--update-only", action="store_true")
    parser.add_argument("--folder", help="where the recordings go", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not options.update_only:
            print(f"{'':62}microseconds of a step")
            print("training  ms/step   ratio  quartiles       range", end="")
            print("                   tap       copy block work     commit")
            for name in options.only:
                compare(name, options.pairs, options.epochs, pathlib.Path(folder) / "run.h5")
            print()
        print("update, rows x classes       microseconds   times a NumPy softmax and copy")
        for n_rows, n_classes, keep in (
            (64, 10, "all"),
            (128, 1000, "all"),
            (64, 21_841, "all"),
            (64, 21_841, 5),
        ):
            for scale in (1.0, PEAKED):
                compare_update(n_rows, n_classes, keep, scale, folder)


if __name__ == "__main__":
    main()
