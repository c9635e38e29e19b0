"""What detection costs after training: ours, InterpretDL's way, and the LSTM alone, on the same cores in one run.

    python -m benchmarks.postfit                              # 20,000 samples x 30 epochs, 10 and 100 classes
    python -m benchmarks.postfit --device gpu:0 --classes 10

Ours is `find_label_issues` on a recording, from opening it to suggested labels. InterpretDL's is what its users call:
`TrainingDynamics.transform` and `.save`, then `BHDFInterpreter.interpret`; it needs `interpretdl` 0.8.0 (see README.md
for its environment) and is left out where that is missing. PyTorch's LSTM has the layers of all members of the shipped
detector, and reads the same input; it is left out where PyTorch is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddle_td_callback import (
    NoiseDetector,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.detection.lstm.config import Architecture
from paddle_td_callback.detection.lstm.device import paddle_on, uses_numpy
from paddle_td_callback.detection.lstm.network import Network
from paddle_td_callback.detection.lstm.numpy_network import last_state
from paddle_td_callback.detection.lstm.paddle_channels import as_tensor, make

BATCH_SIZE = 4096
Row = tuple[str, str, float]


def record(path: Path, n_samples: int, n_epochs: int, n_classes: int) -> None:
    """A made-up training with a fifth of wrong labels, learned later than the right ones."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, n_classes, n_samples)
    labels = np.where(rng.random(n_samples) < 0.2, rng.integers(0, n_classes, n_samples), truth)
    rows = np.arange(n_samples)
    with TrainingDynamicsRecorder(path, n_samples=n_samples, n_classes=n_classes, overwrite=True) as recorder:
        for epoch in range(n_epochs):
            logits = rng.normal(0, 1, (n_samples, n_classes)).astype(np.float32)
            logits[rows, truth] += 6 * epoch / n_epochs
            logits[rows, labels] += 5 * (epoch / n_epochs) ** 2
            recorder.update(rows, logits, labels)
            recorder.end_epoch()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def stages(detector: NoiseDetector) -> list[NoiseDetector]:
    return [*([] if detector.first_stage is None else stages(detector.first_stage)), detector]


def our_lstm(detector: NoiseDetector, trajectories: np.ndarray, device: str | None) -> None:
    """The LSTMs of all members and nothing else: no reading, no features, no last layers."""
    for stage in stages(detector):
        inputs, n_layers = stage.config.inputs, stage.config.n_layers
        if uses_numpy(device):
            for start in range(0, len(trajectories), BATCH_SIZE):
                channels = inputs.make(trajectories[start : start + BATCH_SIZE])
                for weights in stage.members:
                    last_state(channels, weights, n_layers)
            continue
        with paddle_on(device), paddle.no_grad():
            nets = [Network(stage.config.architecture, weights) for weights in stage.members]
            for start in range(0, len(trajectories), BATCH_SIZE):
                channels = make(inputs, as_tensor(trajectories[start : start + BATCH_SIZE]))
                for net in nets:
                    net.lstm(channels)[0][:, -1].numpy()


def torch_lstm(
    architectures: list[Architecture], n_steps: int, n_samples: int, device: str
) -> Callable[[], None]:
    """The same layers in PyTorch."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    place = torch.device("cuda" if device.startswith("gpu") else "cpu")
    nets = [
        torch.nn.LSTM(one.n_channels, one.hidden_size, one.n_layers, batch_first=True).to(place).eval()
        for one in architectures
    ]
    inputs = torch.rand(n_samples, n_steps, architectures[0].n_channels)

    def run() -> None:
        with torch.no_grad():
            for start in range(0, n_samples, BATCH_SIZE):
                channels = inputs[start : start + BATCH_SIZE].to(place)
                for net in nets:
                    net(channels)[0][:, -1].cpu().numpy()

    return run


def interpretdl(store: TrainingDynamicsStore) -> Callable[[], None]:
    """Transform, save, interpret, as InterpretDL's tutorial does; it leaves files in the working folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        from interpretdl.interpreter.training_dynamics import LSTM, BHDFInterpreter, TrainingDynamics
    weights = Path("assets/noise_detector_trained.pdparams")
    weights.parent.mkdir(exist_ok=True)
    paddle.save(LSTM().state_dict(), str(weights))
    probabilities, labels = store.probabilities().astype(np.float32), store.labels.astype(np.int64)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            recorder = TrainingDynamics(paddle.nn.Linear(1, 1), device="cpu")
            recorder.save(dict(enumerate(probabilities)), labels, save_path="theirs")
            interpreter = BHDFInterpreter(device="cpu")
            interpreter.interpret(training_dynamics_path="theirs/training_dynamics.npz")

    return run


def measure(n_samples: int, n_epochs: int, n_classes: int, device: str | None, repeats: int) -> None:
    """One size: the works in turn, `repeats` times, and their medians."""
    record(Path("run.h5"), n_samples, n_epochs, n_classes)
    detector = NoiseDetector.pretrained()
    architectures = [stage.config.architecture for stage in stages(detector) for _ in stage.members]
    works: dict[str, Callable[[], Any]] = {
        "find_label_issues": lambda: find_label_issues("run.h5", device=device, progress=False),
        "find_label_issues, aum": lambda: find_label_issues("run.h5", method="aum", progress=False),
    }
    with TrainingDynamicsStore("run.h5") as store:
        from paddle_td_callback import detector_input

        trajectories = detector_input(store)
        works["LSTMs alone, ours"] = lambda: our_lstm(detector, trajectories, device)
        try:
            works["LSTMs alone, PyTorch"] = torch_lstm(
                architectures, detector.config.n_steps or n_epochs, n_samples, device or "cpu"
            )
        except ImportError as error:
            print(f"  without PyTorch: {error}")
        try:
            works["InterpretDL: transform, save, interpret"] = interpretdl(store)
        except ImportError as error:
            print(f"  without InterpretDL: {error}")
        works["find_label_issues"]()  # loads kernels
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats):
            for name, work in works.items():
                taken[name].append(seconds(work))
    ours = statistics.median(taken["find_label_issues"])
    print(f"\n{n_samples:,} samples x {n_epochs} epochs x {n_classes} classes, median of {repeats}")
    for name, times in taken.items():
        median = statistics.median(times)
        print(
            f"  {name:<42}{median:>8.2f} s{median / ours:>8.2f} of ours   {min(times):.2f} to {max(times):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--device", help="Paddle device string (default: Paddle's own)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # InterpretDL reads and writes below the working folder
        try:
            for n_classes in arguments.classes:
                measure(arguments.samples, arguments.epochs, n_classes, arguments.device, arguments.repeats)
        finally:
            os.chdir("/")


if __name__ == "__main__":
    main()
