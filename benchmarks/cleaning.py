"""Does it help to act on the ranking? Retrain on cleaned and on corrected labels, and compare on a clean test set.

    python -m benchmarks.cleaning [--seeds 3] [--held-out]

For each data set and kind of noise, one network is trained with the wrong labels and recorded. The same network is
then trained again, from the same initial weights and for the same number of steps (fewer samples, more epochs), on

* noisy:     the labels as given;
* cleaned:   without the samples that `LabelIssues.clean_indices()` leaves out;
* corrected: with the labels of `LabelIssues.corrected_labels()`, and without the suspects that keep theirs;
* oracle:    the right labels of all samples.

With `--held-out` a detector of train_detector.py finds the wrong labels that has not seen the data set; the shipped
one has seen other recordings of it. Printed is the accuracy on test samples with right labels, and how much of the
gap from noisy to oracle is regained.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from benchmarks.shipped_detector.recordings.datasets import halve, load, take
from benchmarks.shipped_detector.recordings.noise import inject
from benchmarks.shipped_detector.recordings.record import cache_folder
from paddle_td_callback import (
    NoiseDetector,
    TrainingDynamicsCallback,
    find_label_issues,
)  # before paddle: see README

CASES = (
    ("letter", "uniform", 0.3),
    ("letter", "pairs", 0.3),
    ("fashion", "uniform", 0.3),
    ("mnist", "uniform", 0.3),
)
N_TRAIN, N_TEST, EPOCHS = 6000, 4000, 30


class Samples(paddle.io.Dataset):
    """Inputs and labels in memory."""

    def __init__(self, inputs, labels):
        super().__init__()
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def train(inputs, labels, n_classes, seed, n_steps_like, callbacks=()):
    """The same network from the same start, whatever the labels."""
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  Paddle's samplers shuffle by it
    network = nn.Sequential(nn.Linear(inputs.shape[1], 256), nn.ReLU(), nn.Linear(256, n_classes))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), nn.CrossEntropyLoss())
    data = Samples(inputs, labels.astype(np.int64))
    epochs = round(EPOCHS * n_steps_like / len(labels))
    model.fit(data, epochs=epochs, batch_size=64, verbose=0, callbacks=list(callbacks))
    return network


def accuracy(network, inputs, labels):
    """Share of test samples predicted right."""
    network.eval()
    with paddle.no_grad():
        predicted = network(paddle.to_tensor(inputs)).numpy().argmax(axis=1)
    return float((predicted == labels).mean())


def detector_for(group):
    """The detector that has been trained without a group of data sets."""
    for path in sorted((cache_folder() / "detectors").glob("fold-*.h5")):
        detector = NoiseDetector.load(path)
        if group in detector.provenance["left out"]:
            return detector
    raise SystemExit(
        f"no detector that has not seen {group}; python -m benchmarks.shipped_detector makes them"
    )


def case(name, kind, rate, seed, folder, held_out):
    """Accuracies by the labels that were trained on."""
    rng = np.random.default_rng(seed)
    task = load(name)
    if task.is_image:
        task = halve(task)
    rows = rng.permutation(len(task.labels))
    train_rows = rows[: min(N_TRAIN, len(rows) * 3 // 5)]
    test_rows = rows[len(train_rows) : len(train_rows) + N_TEST]
    part, test = take(task, train_rows), take(task, test_rows)
    given = inject(part, kind, rate, rng)
    inputs = part.inputs.reshape(len(given), -1)
    test_inputs = test.inputs.reshape(len(test.labels), -1)
    recording = Path(folder) / "run.h5"
    callback = TrainingDynamicsCallback(recording, overwrite=True)
    n = len(given)
    noisy = train(inputs, given, task.n_classes, seed, n, [callback])
    detector = detector_for(task.group) if held_out else None
    issues = find_label_issues(recording, detector=detector, progress=False)
    kept = issues.clean_indices()
    labels = issues.corrected_labels()
    trusted = np.union1d(kept, np.flatnonzero(labels != given))
    networks = {
        "noisy": noisy,
        "cleaned": train(inputs[kept], given[kept], task.n_classes, seed, n),
        "corrected": train(inputs[trusted], labels[trusted], task.n_classes, seed, n),
        "oracle": train(inputs, part.labels, task.n_classes, seed, n),
    }
    return {way: accuracy(network, test_inputs, test.labels) for way, network in networks.items()}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--held-out", action="store_true", help="with detectors that have not seen the data set"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("test accuracy, mean over seeds; in brackets the share of the gap that is regained")
    print(f"{'data, noise':24}{'noisy':>8}{'cleaned':>16}{'corrected':>16}{'oracle':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, rate in CASES:
            runs = [case(name, kind, rate, seed, folder, options.held_out) for seed in range(options.seeds)]
            mean = {way: np.mean([run[way] for run in runs]) for way in runs[0]}
            gap = mean["oracle"] - mean["noisy"]
            cells = [
                f"{mean[way]:.3f} ({(mean[way] - mean['noisy']) / gap:+.0%})"
                for way in ("cleaned", "corrected")
            ]
            title = f"{name}, {rate:.0%} {kind}"
            print(
                f"{title:24}{mean['noisy']:>8.3f}{cells[0]:>16}{cells[1]:>16}{mean['oracle']:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
