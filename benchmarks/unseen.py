"""Trainings of data sets that the shipped detector has not seen, with mistakes as people make them.

    python -m benchmarks.unseen record              # what is missing in the cache
    python -m benchmarks.unseen runs                # one long training against five short ones
    python -m benchmarks.unseen planted             # noise rates with labels moved on purpose
    python -m benchmarks.unseen neighbours          # what the labels of similar samples would add; not in the package
    python -m benchmarks.unseen every               # what recording every n-th epoch only costs the ranking

Constants of the package were chosen on `CHOOSE`, whose data sets the detector was trained on relatives of. `JUDGE` and
the heads on pretrained features are other data. $PADDLE_TD_FEATURES is the folder that `benchmarks.frozen_features`
made; without it, the heads are left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn.datasets
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from benchmarks.shipped_detector.recordings import datasets, networks, noise, reading, training
from benchmarks.shipped_detector.recordings.datasets import Task
from benchmarks.shipped_detector.recordings.networks import Recipe
from benchmarks.shipped_detector.recordings.reading import Recording
from benchmarks.shipped_detector.recordings.record import cache_folder
from paddle_td_callback import NoiseDetector, TrainingDynamicsCallback, TrainingDynamicsStore
from paddle_td_callback.detection.learning_clock import LearningClock
from paddle_td_callback.detection.noise_rate import rate_by_planted

N_SAMPLES, N_TEST = 2500, 1500
N_RUNS = 5
FITTED = 0.95
PLANTED = 0.02
NETWORKS = {
    "large": Recipe("mlp", (256, 256), 30, 64, "adam", 1e-3),
    "small": Recipe("mlp", (48,), 20, 64, "momentum", 0.03),
    "dropout": Recipe("mlp", (192,), 30, 64, "adam", 1e-3, dropout=0.3),
    "head": Recipe("mlp", (), 30, 64, "adam", 3e-3),
}
CHOOSE = ("digits", "mnist", "fashion", "letter")
JUDGE = ("breast_cancer", "wine")
HEADS = ("head-trec", "head-fashion", "head-mnist")
MISTAKES = (
    ("none", 0.0),
    ("uniform", 0.1),
    ("instance", 0.1),
    ("clusters", 0.2),
    ("rules", 0.2),
    ("uniform", 0.4),
)


@dataclass(frozen=True)
class Cell:
    """One kind of training; `given` mistakes are those of a real labelling process."""

    data: str
    kind: str
    rate: float
    network: str

    @property
    def name(self) -> str:
        """Of the files."""
        return f"{self.data}-{self.kind}-{round(self.rate * 100)}-{self.network}"


def cells() -> list[Cell]:
    """All of them, each data set with two networks that alternate over the mistakes."""
    made = []
    for number, data in enumerate((*CHOOSE, *JUDGE)):
        for k, (kind, rate) in enumerate(MISTAKES):
            made.append(Cell(data, kind, rate, ("large", "small", "dropout")[(number + k) % 3]))
    if features_folder() is not None:
        for data in HEADS:
            made += [Cell(data, kind, rate, "head") for kind, rate in (*MISTAKES, ("given", 1.0))
                     if kind != "given" or data == "head-trec"]  # fmt: skip
            made += [Cell(data, "given", 1.0, "large")] if data == "head-trec" else []
            made += [Cell(data, "clusters", 0.2, "large"), Cell(data, "uniform", 0.1, "large")]
    return made


def features_folder() -> Path | None:
    """Where the features of pretrained networks are."""
    folder = os.environ.get("PADDLE_TD_FEATURES")
    return None if folder is None else Path(folder)


def task_of(cell: Cell) -> tuple[Task, np.ndarray | None, Task]:
    """The training samples with right labels, the given labels of a real process, and the test samples."""
    given = None
    if cell.data in HEADS:
        folder = features_folder()
        assert folder is not None
        with np.load(folder / f"{cell.data}.npz") as file:
            whole = datasets._task(cell.data, cell.data, file["inputs"], file["labels"])
            given = file["given"] if cell.kind == "given" else None
    elif cell.data in CHOOSE:
        whole = datasets.load(cell.data)
        whole = datasets.halve(whole) if whole.is_image and whole.inputs.shape[2] > 16 else whole
        whole = replace(whole, inputs=whole.inputs.reshape(len(whole.inputs), -1))
    else:
        inputs, labels = getattr(sklearn.datasets, f"load_{cell.data}")(return_X_y=True)
        whole = datasets._task(cell.data, cell.data, inputs.astype(np.float32), labels)
    rows = np.random.default_rng(zlib.crc32(cell.data.encode())).permutation(len(whole.labels))
    n_train = min(N_SAMPLES, len(rows) * 7 // 10)
    train, test = rows[:n_train], rows[n_train : n_train + N_TEST]
    part = replace(whole, inputs=whole.inputs[train], labels=whole.labels[train])
    held_out = replace(whole, inputs=whole.inputs[test], labels=whole.labels[test])
    return part, None if given is None else given[train].astype(np.int64), held_out


def leading(inputs: np.ndarray, n: int = 64) -> np.ndarray:
    """The leading principal components."""
    flat = inputs.reshape(len(inputs), -1)
    return PCA(min(n, *flat.shape), random_state=0).fit_transform(flat)


def mistaken(task: Task, kind: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a share is wrong.

    Args:
        task: samples with right labels.
        kind: of `noise.inject`; `clusters`, where samples that look alike get one wrong name; or `rules`, where a
            threshold on one feature sends samples of one class to another, as a careless instruction does.
        rate: share of wrong labels.
        rng: what to draw from.
    """
    labels, n_classes = task.labels, task.n_classes
    n_wrong = round(rate * len(labels))
    if kind not in ("clusters", "rules"):
        return noise.inject(task, kind, rate, rng)
    given, points = labels.copy(), leading(task.inputs, 32)
    if kind == "clusters":
        size = max(8, len(labels) // 60)
        of = KMeans(max(2, len(labels) // size), n_init=1, random_state=int(rng.integers(2**31))).fit_predict(
            points
        )
        for cluster in rng.permutation(of.max() + 1):
            rows = np.flatnonzero(of == cluster)
            given[rows] = rng.integers(n_classes)
            if (given != labels).sum() >= n_wrong:
                break
    while kind == "rules" and (given != labels).sum() < n_wrong:
        one, other = rng.choice(n_classes, 2, replace=False)
        rows = np.flatnonzero(labels == one)
        value = points[rows, rng.integers(min(8, points.shape[1]))] * rng.choice([-1, 1])
        given[rows[value > np.quantile(value, rng.uniform(0.5, 0.8))]] = other
    wrong = np.flatnonzero(given != labels)
    too_many = rng.permutation(wrong)[: max(0, len(wrong) - n_wrong)]
    given[too_many] = labels[too_many]
    return given


def labels_of(cell: Cell, task: Task, given: np.ndarray | None) -> np.ndarray:
    """The given labels of a cell."""
    if given is not None:
        return given
    rng = np.random.default_rng(zlib.crc32(cell.name.rsplit("-", 1)[0].encode()))
    return mistaken(task, cell.kind, cell.rate, rng) if cell.rate else task.labels


def planted_in(labels: np.ndarray, n_classes: int, name: str) -> np.ndarray:
    """Labels of which 2 percent more are wrong, at random."""
    rng = np.random.default_rng(zlib.crc32(f"{name} planted".encode()))
    rows = rng.permutation(len(labels))[: max(1, round(PLANTED * len(labels)))]
    made = labels.copy()
    made[rows] = (made[rows] + rng.integers(1, n_classes, len(rows))) % n_classes
    return made


def record(cell: Cell, run: int | str) -> Path:
    """Train a cell once, unless that has been done.

    Args:
        cell: what to train.
        run: 0 = all epochs; 1, 2, ... = until 95 percent of the given labels are predicted; "planted" = all epochs,
            with labels flipped on purpose.
    """
    import paddle

    folder = cache_folder() / "unseen"
    folder.mkdir(exist_ok=True)
    done = folder / f"{cell.name}-{run}.npz"
    if done.exists():
        return done
    task, given, test = task_of(cell)
    labels = labels_of(cell, task, given)
    if run == "planted":
        labels = planted_in(labels, task.n_classes, cell.name)
    recipe, seed, start = (
        NETWORKS[cell.network],
        zlib.crc32(f"{cell.name} {run}".encode()),
        time.perf_counter(),
    )
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # paddle shuffles by this global generator
    model = networks.prepare(recipe, task, len(labels))
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "run.h5")
        callbacks: list[Any] = [TrainingDynamicsCallback(path, keep="given")]
        if run not in (0, "planted"):
            callbacks.append(stop_when_fitted(path))
        data = networks.Samples(task.inputs, labels.astype(np.int64), 0.0, 0)
        model.fit(data, epochs=recipe.epochs, batch_size=recipe.batch_size, verbose=0, callbacks=callbacks)
        model.network.eval()
        with paddle.no_grad():
            said = model.network(paddle.to_tensor(test.inputs)).numpy().argmax(axis=1)
        about = {
            "cell": asdict(cell),
            "run": run,
            "n_classes": task.n_classes,
            "test_accuracy": float((said == test.labels).mean()),
            "seconds": round(time.perf_counter() - start, 2),
        }
        with TrainingDynamicsStore(path) as store:
            arrays = store.labels, store.given_probabilities(), store.margins(), store.predictions()
    reading.save(done, Recording(*arrays, task.labels.astype(np.int32), about))
    return done


def stop_when_fitted(path: str) -> Any:
    """A callback that ends a training once 95 percent of the given labels were predicted in an epoch."""
    import paddle

    from paddle_td_callback.recording.open_recorders import wait_for_commits

    class Stop(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            wait_for_commits(path)
            with TrainingDynamicsStore(path) as store:
                if (store.predictions()[:, -1] == store.labels).mean() >= FITTED:
                    self.model.stop_training = True

    return Stop()


def read(cell: Cell, run: int | str) -> Recording:
    """A recording in the cache."""
    return reading.read(cache_folder() / "unseen" / f"{cell.name}-{run}.npz")


def score(recording: Recording, detector: Any, epochs: np.ndarray | None = None) -> np.ndarray:
    """P(mislabeled) `[sample]`, read to where the labels are memorised as `find_label_issues` does."""
    if epochs is not None:
        recording = training.cut(recording, epochs)
    fitted = (recording.predictions == recording.labels[:, np.newaxis]).mean(axis=0)
    n_epochs = LearningClock(fitted, 1).epochs_to_read
    recording = training.cut(recording, np.arange(n_epochs))
    odds = detector.log_odds(training.trajectories(recording), dataset_features=training.table(recording))
    return np.asarray(detector.probabilities(odds), np.float64)


def groups() -> dict[str, list[Cell]]:
    """Cells whose recordings are in the cache, by who was judged on them."""
    here = [cell for cell in cells() if (cache_folder() / "unseen" / f"{cell.name}-planted.npz").exists()]
    names = {"tables and images": CHOOSE, "small tables": JUDGE, "heads": HEADS}
    found = {name: [cell for cell in here if cell.data in data] for name, data in names.items()}
    return {name: some for name, some in found.items() if some}


def print_runs(detector: Any) -> None:
    """One long training against five that end when 95 percent of the given labels are fitted."""
    print("data, fitted in its epochs | trainings | AP long | two short | five short | better | cost")
    for name, some in groups().items():
        rows = []
        for cell in some:
            long, short = read(cell, 0), [read(cell, run) for run in range(1, N_RUNS + 1)]
            if not long.is_mislabeled.any():
                continue
            lengths, n_epochs = [one.predictions.shape[1] for one in short], long.predictions.shape[1]
            scores = np.array([score(one, detector) for one in short])
            found = [score(long, detector), scores[:2].mean(axis=0), scores.mean(axis=0)]
            aps = [average_precision_score(long.is_mislabeled, one) for one in found]
            rows.append((*aps, sum(lengths) / n_epochs, np.mean(lengths) <= n_epochs / 2))
        table = np.array(rows)
        for word, chosen in (("half", table[:, 4] == 1), ("more", table[:, 4] == 0)):
            if chosen.any():
                mean, better = table[chosen].mean(axis=0), (table[chosen, 2] >= table[chosen, 0]).mean()
                print(
                    f"{name}, {word} | {chosen.sum()} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} | {better:.0%} "
                    f"| {mean[3]:.1f}"
                )


def print_planted(detector: Any) -> None:
    """Errors of the noise rate without and with labels moved on purpose, and what they cost in test accuracy."""
    print("data | trainings | within 5 points: without | with | mean error: without | with | accuracy")
    for name, some in groups().items():
        rows = []
        for cell in some:
            plain, planted = read(cell, 0), read(cell, "planted")
            moved = plain.labels != planted.labels
            scores, wrong = score(planted, detector), plain.is_mislabeled.mean()
            rate = scores[~moved].mean()
            estimate = max(rate, rate_by_planted(scores[~moved], scores[moved])[0])
            cost = planted.about["test_accuracy"] - plain.about["test_accuracy"]
            is_random = cell.kind in ("none", "uniform")
            rows.append((score(plain, detector).mean() - wrong, estimate - wrong, cost, is_random))
        table = np.array(rows)
        for word, errors in (
            ("random or none", table[table[:, 3] == 1]),
            ("others", table[table[:, 3] == 0]),
        ):
            within, mean = (np.abs(errors[:, :2]) <= 0.05).mean(axis=0), errors.mean(axis=0)
            print(
                f"{name}, {word} | {len(errors)} | {within[0]:.0%} | {within[1]:.0%} | {mean[0]:+.3f} | {mean[1]:+.3f} "
                f"| {mean[2]:+.4f}"
            )


def disagreement(features: np.ndarray, labels: np.ndarray, suspicion: np.ndarray) -> np.ndarray:
    """The share of the 30 nearest neighbours with another label, each counting by how right its own label looks."""
    nearest = NearestNeighbors(n_neighbors=30).fit(features).kneighbors(return_distance=False)
    weights = 1 - suspicion[nearest]
    return (weights * (labels[nearest] != labels[:, np.newaxis])).sum(axis=1) / weights.sum(axis=1)


def print_neighbours(detector: Any) -> None:
    """Average precision of the detector, and blended by ranks with the labels of similar samples."""
    print("data | trainings | detector | neighbours | 4 : 1 | 2 : 1 | better (4 : 1)")
    for name, some in groups().items():
        rows = []
        for cell in some:
            long, inputs = read(cell, 0), task_of(cell)[0].inputs
            if not long.is_mislabeled.any():
                continue
            points = leading(inputs)
            spread = points.std(axis=0)
            points = (points / np.maximum(spread, 1e-12))[:, spread > 1e-4 * spread.max()]
            ours = score(long, detector)
            near = disagreement(points, long.labels, ours)
            blends = [rankdata(ours) + share * rankdata(near) for share in (0.25, 0.5)]
            found = [average_precision_score(long.is_mislabeled, one) for one in (ours, near, *blends)]
            rows.append((*found, cell.kind == "uniform"))
        table = np.array(rows)
        for word, part in (("random", table[table[:, 4] == 1]), ("others", table[table[:, 4] == 0])):
            means, better = (
                " | ".join(f"{one:.3f}" for one in part[:, :4].mean(axis=0)),
                part[:, 2] >= part[:, 0],
            )
            print(f"{name}, {word} | {len(part)} | {means} | {better.mean():.0%}")


def print_every(detector: Any) -> None:
    """Average precision where every n-th epoch is recorded."""
    print("data | trainings | every epoch | 2nd | 5th | 10th")
    for name, some in groups().items():
        rows = []
        for cell in some:
            long = read(cell, 0)
            if long.is_mislabeled.any():
                epochs = np.arange(long.predictions.shape[1])
                found = [score(long, detector, epochs[::n]) for n in (1, 2, 5, 10)]
                rows.append([average_precision_score(long.is_mislabeled, one) for one in found])
        print(f"{name} | {len(rows)} | " + " | ".join(f"{one:.3f}" for one in np.mean(rows, axis=0)))


def main() -> None:
    """Record, or print a table."""
    tables = {
        "runs": print_runs,
        "planted": print_planted,
        "neighbours": print_neighbours,
        "every": print_every,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("record", *tables))
    parser.add_argument("--part", default="0/1", help="i/n: the i-th of n parts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.what in tables:
        tables[options.what](NoiseDetector.pretrained())
        return
    part, n_parts = map(int, options.part.split("/"))
    jobs = [(cell, run) for cell in cells()[part::n_parts] for run in (0, *range(1, N_RUNS + 1), "planted")]
    for cell, run in tqdm(jobs, mininterval=10):
        record(cell, run)


if __name__ == "__main__":
    main()
