"""Record trainings through the package into a folder outside the repository.

In `python -m benchmarks.shipped_detector.recordings.record WHAT`, WHAT is one of

    random 0 300      the random trainings 0 to 299
    table             the table of detection.py
    extra             EL2N, cross-validation and further runs for some cells of the table
    large             60,000 samples
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsStore, find_label_issues

from . import matrix, networks
from .datasets import Task
from .matrix import Cell
from .networks import Recipe
from .reading import Recording, save

N_FOLDS = 5  # of cross-validation
FURTHER_RUNS = (1, 2)


def cache_folder() -> Path:
    """Where the recordings are: $PADDLE_TD_CACHE, or a folder of the user's cache."""
    default = "~/.cache/paddle_td_callback/recordings"
    folder = Path(os.environ.get("PADDLE_TD_CACHE", default)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def extra_folder() -> Path:
    """Where lies what detectors are not trained on."""
    folder = cache_folder() / "extra"
    folder.mkdir(exist_ok=True)
    return folder


def fit(
    cell: Cell,
    seed: int,
    callbacks: Sequence[Any] = (),
    rows: np.ndarray | slice = slice(None),
) -> tuple[Task, Recipe, paddle.Model]:
    """Train a cell's network on the given labels, of some samples or of all; the seed settles everything."""
    task, given, recipe = matrix.make(cell)
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # paddle shuffles by this global generator
    data = networks.Samples(task.inputs[rows], given[rows].astype(np.int64), recipe.augment, cell.seed)
    model = networks.prepare(recipe, task, len(data))
    options = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "verbose": 0}
    model.fit(data, callbacks=list(callbacks), **options)
    return task, recipe, model


def record(cell: Cell, folder: Path | None = None, run: int = 0) -> Path:
    """Train a cell under `TrainingDynamicsCallback`, unless that has been done.

    Args:
        cell: what to train.
        folder: where to; None = the cache.
        run: another number is another training of the same network on the same labels.

    Returns:
        The path of an npz with what the store held, and the right labels: see `reading.Recording`.
    """
    folder = cache_folder() if folder is None else folder
    name = f"{cell.name}-run-{run}" if run else cell.name
    path, done = folder / f"{name}.h5", folder / f"{name}.npz"
    if done.exists():
        return done
    start = time.perf_counter()
    callback = TrainingDynamicsCallback(path, keep="given", overwrite=True)
    task, recipe, _ = fit(cell, zlib.crc32(name.encode()), [callback])
    about = {
        "cell": asdict(cell),
        "group": task.group,
        "recipe": asdict(recipe),
        "n_classes": task.n_classes,
        "seconds": round(time.perf_counter() - start, 2),
    }
    with TrainingDynamicsStore(path) as store:
        save(
            done,
            Recording(
                store.labels,
                store.given_probabilities(),
                store.margins(),
                store.predictions(),
                task.labels.astype(np.int32),
                about,
            ),
        )
    path.unlink()
    return done


def el2n(cell: Cell) -> np.ndarray:
    """The score of the package, from a recording of all probabilities: the same training as `record`'s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.h5"
        fit(cell, zlib.crc32(cell.name.encode()), [TrainingDynamicsCallback(path, keep="all")])
        return find_label_issues(path, method="el2n", progress=False).noise_score


def cross_validated(cell: Cell) -> np.ndarray:
    """Probabilities [sample, class] from five trainings of the same network, each of the fifth it has not seen."""
    task, _, _ = matrix.make(cell)
    folds = np.random.default_rng(0).permutation(len(task.labels)) % N_FOLDS
    probabilities = np.zeros((len(folds), task.n_classes), np.float32)
    for fold in range(N_FOLDS):
        _, _, model = fit(cell, fold, rows=np.flatnonzero(folds != fold))
        model.network.eval()
        with paddle.no_grad():
            for rows in np.array_split(np.flatnonzero(folds == fold), 8):
                logits = model.network(paddle.to_tensor(task.inputs[rows]))
                probabilities[rows] = paddle.nn.functional.softmax(logits).numpy()
    return probabilities


def extra(cell: Cell) -> Path:
    """What its recording does not hold of a cell: EL2N, cross-validated probabilities and further runs."""
    folder = extra_folder()
    for run in FURTHER_RUNS:
        record(cell, folder, run)
    done = folder / f"{cell.name}.npz"
    if not done.exists():
        start = time.perf_counter()
        arrays = {"el2n": el2n(cell), "cross_validated": cross_validated(cell)}
        np.savez_compressed(done.with_suffix(".new.npz"), **arrays, seconds=time.perf_counter() - start)
        done.with_suffix(".new.npz").replace(done)
    return done


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    if arguments[0] == "random":
        cells = [matrix.random_cell(seed) for seed in range(int(arguments[1]), int(arguments[2]))]
    else:
        cells = {"table": matrix.table, "extra": matrix.extra, "large": matrix.large}[arguments[0]]()
        np.random.default_rng(0).shuffle(cells)
    for cell in tqdm(cells, mininterval=10):
        if arguments[0] == "large":
            record(cell, extra_folder())
        else:
            (extra if arguments[0] == "extra" else record)(cell)


if __name__ == "__main__":
    main(sys.argv[1:])
