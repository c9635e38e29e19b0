"""Features that the first stage adds for the second: how its suspects are distributed over data set, classes, pairs.

NumPy only. One sample's log-odds say little about whether its data set is hard or its labels are wrong; all of them
together do. Wrong labels that come from one class and go to another stand out as a pair, random ones spread evenly,
and a data set that is merely hard has no bulk of samples of which the first stage is sure.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dataset_features import rank
from ..feature_table import FeatureTable, Ints, spread_over
from ..sample_features import LOG_UNIT

Floats = NDArray[np.float64]

QUANTILES = (2, 10, 25, 50, 75, 90, 98)


def with_first_pass(table: FeatureTable, log_odds: ArrayLike) -> FeatureTable:
    """The table with the features named by `feature_names`, made of the first stage's log-odds.

    Args:
        table: of a whole recording.
        log_odds: `[sample]`, that the label is wrong; NaN = never seen.

    Raises:
        ValueError: not one number for each sample.
    """
    all_odds = np.asarray(log_odds, np.float64)
    if all_odds.shape != (len(table),):
        raise ValueError(f"log_odds must be [sample] {(len(table),)}, got {all_odds.shape}")
    known = np.flatnonzero(~np.isnan(all_odds) & (table.labels >= 0))
    if not len(known):
        nothing = np.full(len(table), np.nan, np.float32)
        example = _example()
        return table.with_more(
            dict.fromkeys(example.of_sample, nothing), dict.fromkeys(example.of_recording, np.nan)
        )
    odds = all_odds[known]
    probability = 1 / (1 + np.exp(-np.clip(odds, -60, 60)))
    label, other = table.labels[known].astype(np.int64), table.others[known].astype(np.int64)
    features = {
        "first_odds": odds / LOG_UNIT,
        **_tails(odds, label, other),
        **_of_class_and_pair(probability, label, other),
    }
    of_sample = {name: spread_over(known, len(table), values) for name, values in features.items()}
    return table.with_more(of_sample, _of_recording(odds, probability))


@functools.cache
def feature_names() -> tuple[str, ...]:
    """The names of the features that `with_first_pass` adds."""
    return _example().names


@functools.cache
def _example() -> FeatureTable:
    return with_first_pass(FeatureTable({}, {}, np.array([0, 1]), np.array([1, -1])), [0.0, 1.0])


def _of_recording(odds: Floats, probability: Floats) -> dict[str, float]:
    flagged = probability > 0.5
    quantiles = np.percentile(odds, QUANTILES) / LOG_UNIT
    return {
        "first_mean_odds": float(_log_odds(probability.mean())),
        "first_flagged": float(flagged.mean()),
        "first_flagged_mean": float(probability[flagged].mean()) if flagged.any() else 0.5,
        "first_unflagged_mean": float(probability[~flagged].mean()) if not flagged.all() else 0.5,
        **{f"first_odds_q{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _log_odds(probability: Floats | np.float64) -> Floats:
    bounded = np.clip(probability, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(bounded / (1 - bounded)) / LOG_UNIT)


def _pairs(label: Ints, other: Ints) -> Ints:
    """The pair (given, predicted instead) of each sample as one number; no other class makes a pair, too."""
    return label * (max(int(label.max()), int(other.max())) + 2) + other + 1


def _tails(odds: Floats, label: Ints, other: Ints) -> dict[str, Floats]:
    """How far up or down a sample ranks among all, in its class and in its pair."""
    _, of_pair = np.unique(_pairs(label, other), return_inverse=True)
    among_all = rank(odds, np.zeros(len(odds), np.int64))
    _, of_class = np.unique(label, return_inverse=True)
    return {
        "first_head": -np.log(among_all) / LOG_UNIT,
        "first_tail": -np.log(1 - among_all) / LOG_UNIT,
        "first_class_tail": -np.log(1 - rank(odds, of_class)) / LOG_UNIT,
        "first_pair_tail": -np.log(1 - rank(odds, of_pair)) / LOG_UNIT,
    }


def _of_class_and_pair(probability: Floats, label: Ints, other: Ints) -> dict[str, Floats]:
    """How many wrong labels the first stage expects in a sample's class and in its pair."""
    keys, of_pair = np.unique(_pairs(label, other), return_inverse=True)
    width = int(max(label.max(), other.max())) + 2
    wrong, size = np.bincount(of_pair, probability), np.bincount(of_pair)
    class_wrong, class_size = np.bincount(label, probability, width), np.bincount(label, minlength=width)
    other_wrong = np.bincount(other + 1, probability, width + 1)
    back = other * width + label + 1
    at = np.searchsorted(keys, back).clip(max=len(keys) - 1)
    wrong_back = np.where((other >= 0) & (keys[at] == back), wrong[at], 0.0)
    own = wrong[of_pair]
    by_chance = class_wrong[label] * other_wrong[other + 1] / probability.sum()
    return {
        "first_class_odds": _log_odds(class_wrong[label] / class_size[label]),
        "first_pair_odds": _log_odds(own / size[of_pair]),
        "first_pair_count": np.log1p(own) / LOG_UNIT,
        "first_pair_share": np.log((own + 0.1) / (class_wrong[label] + 0.1)) / LOG_UNIT,
        "first_pair_lift": np.log((own + 0.1) / (wrong_back + 0.1)) / LOG_UNIT,
        "first_pair_excess": np.log((own + 0.5) / (by_chance + 0.5)) / LOG_UNIT,
    }
