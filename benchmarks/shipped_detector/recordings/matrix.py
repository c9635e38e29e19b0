"""Which trainings there are: a table of data sets by noise by rate, and any number of random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import datasets, networks, noise
from .datasets import Task
from .networks import Recipe

SEEDS = (0, 1)
RATES = (0.05, 0.1, 0.2, 0.3, 0.4)
TABLE_SIZES = {
    "mnist": 4000,
    "fashion": 5000,
    "letter": 6000,
    "optdigits": 4000,
    "docs": 4000,
    "manual": 2500,
    "texture": 4000,
    "glyphs": 4300,
    "digits": 1797,
    "diamonds": 5000,
    "glosses": 5000,
    "icons": 3500,
    "scripts": 4000,
    "words": 5000,
}
N_FIRST, N_LATER = (
    1500,
    1800,
)  # random trainings before these numbers are of the sets that were there first, then later
BUDGET = 3.5


@dataclass(frozen=True)
class Cell:
    """One training, fully determined by what stands here.

    Args:
        data: Name of the data set or generator.
        kind: Kind of noise, ``none`` for none.
        rate: Share of wrong labels.
        regime: A key of `networks.REGIMES`, or ``random``.
        seed: Of everything drawn.
    """

    data: str
    kind: str
    rate: float
    regime: str
    seed: int

    @property
    def name(self) -> str:
        """Of the files."""
        return f"{self.regime}-{self.data}-{self.kind}-{round(self.rate * 100)}-{self.seed}"


def table() -> list[Cell]:
    """The benchmark: every data set x kind x rate, each with two of the regimes, and clean ones with all."""
    cells = []
    regimes = [regime for regime in networks.REGIMES if regime != "large"]
    for d, data in enumerate(datasets.NAMES):
        for k, kind in enumerate(noise.KINDS):
            for r, rate in enumerate(RATES):
                cells += [
                    Cell(data, kind, rate, regimes[(d + k + r + 2 * seed) % len(regimes)], seed)
                    for seed in SEEDS
                ]
        cells += [Cell(data, "none", 0.0, regime, 0) for regime in regimes]
    return cells


def extra() -> list[Cell]:
    """The cells of the table that are also judged by methods which need more trainings."""
    return [cell for cell in table() if cell.seed == 0 and cell.rate in (0.1, 0.3)]


def large() -> list[Cell]:
    """All of Fashion-MNIST, 60,000 samples."""
    return [Cell("fashion", kind, 0.2, "large", 0) for kind in noise.KINDS]


def random_cell(seed: int) -> Cell:
    """The random training of that number."""
    rng = np.random.default_rng([7, seed])
    names = tuple(datasets.LATER if seed < N_LATER else datasets.UNEVEN)
    if seed < N_FIRST:
        names = datasets.FIRST_NAMES
    weights = np.array([{"digits": 0.5, "optdigits": 0.5}.get(name, 1.0) for name in names])
    data = str(rng.choice(names, p=weights / weights.sum()))
    kind = str(rng.choice([*noise.MORE_KINDS, "instance", "instance", "pairs", "none"]))
    rate = (
        0.0
        if kind == "none"
        else round(float(rng.choice([rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.45)])), 2)
    )
    return Cell(data, kind, rate, "random", seed)


def make(cell: Cell) -> tuple[Task, np.ndarray, Recipe]:
    """The task, its given labels and the recipe of a cell."""
    rng = np.random.default_rng([*cell.name.encode()])
    few = cell.regime != "random"
    generate = (datasets.GENERATED | datasets.UNEVEN).get(cell.data)
    if generate:
        n_classes = int(rng.choice([2, 3, 5, 10, 10, 10, 20, 50, 100]))
        n_samples = int(rng.integers(1500, 5000))
        task = generate(rng, n_samples, n_classes)
    else:
        task = datasets.load(cell.data)
        if cell.regime == "large":
            task = datasets.halve(task)
        elif few:
            task = datasets.take(task, rng.permutation(len(task.labels))[: TABLE_SIZES[cell.data]])
            if task.is_image and task.inputs.shape[2] > 16:
                task = datasets.halve(task)
        else:
            task = datasets.vary(task, int(rng.integers(1000, 6000)), rng)
    if few:
        recipe = networks.REGIMES[cell.regime][task.is_image]
        while cell.regime != "large" and networks.seconds(recipe, task) > BUDGET and recipe.epochs > 12:
            recipe = replace(recipe, epochs=int(recipe.epochs * 0.8))
    else:
        recipe = networks.random_recipe(task, rng, BUDGET)
    return task, noise.inject(task, cell.kind, cell.rate, rng) if cell.rate else task.labels.copy(), recipe
