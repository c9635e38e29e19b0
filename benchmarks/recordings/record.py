"""Record trainings through the package into a folder outside the repository.

python -m recordings.record random 0 300      # the random trainings 0 to 299
python -m recordings.record table             # the table of detection.py
"""

from __future__ import annotations

import os
import sys
import time
import warnings
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsStore

from . import matrix, networks
from .matrix import Cell
from .reading import Recording, save


def cache_folder() -> Path:
    """Where the recordings are: $PADDLE_TD_CACHE, or a folder of the user's cache."""
    default = "~/.cache/paddle_td_callback/recordings"
    folder = Path(os.environ.get("PADDLE_TD_CACHE", default)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record(cell: Cell, folder: Path | None = None) -> Path:
    """Train a cell under `TrainingDynamicsCallback`, unless that has been done.

    Returns:
        The path of an npz with what the store held, and the right labels: see `reading.Recording`.
    """
    folder = cache_folder() if folder is None else folder
    path = folder / f"{cell.name}.h5"
    done = folder / f"{cell.name}.npz"
    if done.exists():
        return done
    start = time.perf_counter()
    task, given, recipe = matrix.make(cell)
    seed = zlib.crc32(cell.name.encode())
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # paddle shuffles by this global generator
    model = networks.prepare(recipe, task, len(given))
    callback = TrainingDynamicsCallback(str(path), keep="given", overwrite=True)
    data = networks.Samples(task.inputs, given.astype(np.int64), recipe.augment, cell.seed)
    model.fit(data, epochs=recipe.epochs, batch_size=recipe.batch_size, verbose=0, callbacks=[callback])
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


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    if arguments[0] == "random":
        cells = [matrix.random_cell(seed) for seed in range(int(arguments[1]), int(arguments[2]))]
    else:
        cells = matrix.table()
        np.random.default_rng(0).shuffle(cells)
    for cell in tqdm(cells, mininterval=10):
        record(cell)


if __name__ == "__main__":
    main(sys.argv[1:])
