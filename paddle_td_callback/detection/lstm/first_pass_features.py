"""What a first look at a whole recording tells the second: how the suspects spread over data set, classes and pairs.

Numpy only. One sample's odds say little of whether its data set is hard or its labels are wrong; all of them together
do. Wrong labels that come from one class and go to another stand out as a pair, chance ones spread evenly, and
a data set that is merely hard has no bulk of samples that the first look is sure of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dataset_features import LOG_UNIT, Table, rank

QUANTILES = (2, 10, 25, 50, 75, 90, 98)
OF_SAMPLE: tuple[str, ...] = (
    "first_odds", "first_head", "first_tail", "first_class_tail", "first_pair_tail", "first_class_odds",
    "first_pair_odds", "first_pair_count", "first_pair_share", "first_pair_lift", "first_pair_excess",
)  # fmt: skip
OF_RECORDING: tuple[str, ...] = (
    "first_mean_odds", "first_flagged", "first_flagged_mean", "first_unflagged_mean",
    *(f"first_odds_q{q}" for q in QUANTILES),
)  # fmt: skip
NAMES: tuple[str, ...] = (*OF_SAMPLE, *OF_RECORDING)
"""The columns that `with_opinion` adds."""


def with_opinion(table: Table, log_odds: ArrayLike) -> Table:
    """The table with the columns `NAMES`, made of a first detector's log-odds.

    Args:
        table: of a whole recording.
        log_odds: [sample], that the label is wrong; NaN = never seen.

    Raises:
        ValueError: not one number for each sample.
    """
    all_odds = np.asarray(log_odds, np.float64)
    if all_odds.shape != (len(table),):
        raise ValueError(f"log_odds must be [sample] {(len(table),)}, got {all_odds.shape}")
    known = np.flatnonzero(~np.isnan(all_odds) & (table.labels >= 0))
    if not len(known):
        nothing = np.full(len(table), np.nan, np.float32)
        return table.with_more(dict.fromkeys(OF_SAMPLE, nothing), dict.fromkeys(OF_RECORDING, np.nan))
    odds = all_odds[known]
    chance = 1 / (1 + np.exp(-np.clip(odds, -60, 60)))
    label, taken = table.labels[known].astype(np.int64), table.others[known].astype(np.int64)
    columns = [odds / LOG_UNIT, *_tails(odds, label, taken), *_spread(chance, label, taken)]
    of_sample = {}
    for name, values in zip(OF_SAMPLE, columns, strict=True):
        of_sample[name] = np.full(len(table), np.nan, np.float32)
        of_sample[name][known] = values
    flagged = chance > 0.5
    numbers = [
        _odds(chance.mean()),
        flagged.mean(),
        chance[flagged].mean() if flagged.any() else 0.5,
        chance[~flagged].mean() if not flagged.all() else 0.5,
        *np.percentile(odds, QUANTILES) / LOG_UNIT,
    ]
    return table.with_more(of_sample, {n: float(v) for n, v in zip(OF_RECORDING, numbers, strict=True)})


def _odds(chance: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    bounded = np.clip(chance, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(bounded / (1 - bounded)) / LOG_UNIT)


def _pairs(label: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pair of each sample as one number; those taken for no other class are a pair with none."""
    return label * (max(int(label.max()), int(taken.max())) + 2) + taken + 1


def _tails(
    odds: NDArray[np.float64], label: NDArray[np.int64], taken: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """How far up or down a sample is among all, in its class and in its pair."""
    _, of_pair = np.unique(_pairs(label, taken), return_inverse=True)
    among_all = rank(odds, np.zeros(len(odds), np.int64))
    _, of_class = np.unique(label, return_inverse=True)
    tails = (among_all, 1 - among_all, 1 - rank(odds, of_class), 1 - rank(odds, of_pair))
    return [-np.log(tail) / LOG_UNIT for tail in tails]


def _spread(
    chance: NDArray[np.float64], label: NDArray[np.int64], taken: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """How many wrong labels a sample's class and pair have by the first look."""
    keys, of_pair = np.unique(_pairs(label, taken), return_inverse=True)
    width = int(max(label.max(), taken.max())) + 2
    wrong, size = np.bincount(of_pair, chance), np.bincount(of_pair)
    class_wrong, class_size = np.bincount(label, chance, width), np.bincount(label, minlength=width)
    taken_wrong = np.bincount(taken + 1, chance, width + 1)
    back = taken * width + label + 1
    at = np.searchsorted(keys, back).clip(max=len(keys) - 1)
    wrong_back = np.where((taken >= 0) & (keys[at] == back), wrong[at], 0.0)
    own = wrong[of_pair]
    by_chance = class_wrong[label] * taken_wrong[taken + 1] / chance.sum()
    return [
        _odds(class_wrong[label] / class_size[label]),
        _odds(own / size[of_pair]),
        np.log1p(own) / LOG_UNIT,
        np.log((own + 0.1) / (class_wrong[label] + 0.1)) / LOG_UNIT,
        np.log((own + 0.1) / (wrong_back + 0.1)) / LOG_UNIT,
        np.log((own + 0.5) / (by_chance + 0.5)) / LOG_UNIT,
    ]
