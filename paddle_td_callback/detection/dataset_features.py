"""Features that hold each sample against its data set: ranks, classes, pairs of classes. NumPy only.

The LSTM reads one trajectory at a time. These features say where a sample stands among all samples and among those
of its given label, which other class the network predicts for it, how often that happens to its class, and how often
the other way round. No feature depends on the order or the number of classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .feature_table import Array, FeatureTable, Ints, spread_over
from .sample_features import LOG_UNIT, N_PARTS, PARTS, sample_features

Floats = NDArray[np.float64]
Column = Callable[[str], Floats]  # from a feature's name to its float64 values of the samples that were seen

AT_ONCE = 1 << 20  # entries [sample, epoch] that are worked on together: each takes some 200 bytes meanwhile

_RANKED = (
    "confidence",
    "other",
    "margin",
    "aum",
    "correctness",
    "first_right",
    *(f"margin_{p}" for p in PARTS),
)
_RANKED_IN_CLASS = ("confidence", "other", "margin", "aum", "correctness", "margin_1", "margin_2")
_TAILS = ("log_given", "margin", "aum")  # how far down in the ranks, on a logarithmic scale
_SPREAD = ("log_given", "margin", "margin_1", f"margin_{N_PARTS}")  # against the data set's median and scale
_OF_CLASS = ("confidence", "other", "margin", "correctness", "margin_1", "margin_2")
_MEANS = (*(f"correct_{p}" for p in PARTS), "given_1", f"given_{N_PARTS}", "wrong", "votes", "agreement")
# How a data set's samples are distributed tells noise, which limits what a network is sure of, from hard data.
_QUANTILES = (2, 10, 25, 50, 75, 90, 98)
_QUANTILES_OF = (
    "confidence", "other", "log_given", "margin", *(f"given_{p}" for p in PARTS),
    *(f"margin_{p}" for p in PARTS), "highest_given", "lowest_margin",
)  # fmt: skip
# So do the means over the samples of lowest margin: bands of the ranking, as shares of the data set.
_BANDS = {"low": (0.0, 0.03), "lower": (0.03, 0.1), "middling": (0.1, 0.3)}
_BAND_MEANS_OF = (
    "other", "confidence", "agreement", "correctness", "votes", "first_right", "log_given_spread", "margin_spread",
    "pair", "pair_share", "pair_lift", "pair_size", "class_kept",
)  # fmt: skip
_SCATTER_OF = ("class_kept", "pair_lift", "margin_class_mean")  # standard deviations over the data set


class FeatureCollector:
    """Collects a recording tile by tile, and makes the `FeatureTable` of all its samples.

    Args:
        n_classes: number of classes; None = as many as the labels and predictions show.
    """

    def __init__(self, n_classes: int | None = None) -> None:
        self._n_classes = n_classes
        self._features: list[dict[str, Array]] = []
        self._labels: list[Ints] = []
        self._others: list[Ints] = []
        self._counts: list[tuple[Ints, Ints, Floats]] = []

    def add(
        self, given_probabilities: ArrayLike, margins: ArrayLike, predictions: ArrayLike, labels: ArrayLike
    ) -> None:
        """Take the next samples.

        Args:
            given_probabilities: `[sample, epoch]`, NaN = unseen.
            margins: `[sample, epoch]`, logit of the given label minus the largest other one; 0 = they tie.
            predictions: integers `[sample, epoch]`, -1 = unseen. Any of the tied classes where there is a tie.
            labels: integers `[sample]`, the given labels; -1 = never seen.
        """
        predicted, label = np.asarray(predictions), np.asarray(labels, np.int64)
        given, margin = np.asarray(given_probabilities, np.float32), np.asarray(margins, np.float32)
        step = max(1, AT_ONCE // predicted.shape[1])
        # At least once, so that a recording without samples has features too.
        for start in range(0, max(1, len(label)), step):
            rows = slice(start, start + step)
            self._add(given[rows], margin[rows], predicted[rows].astype(np.int64), label[rows])

    def _add(self, given: Array, margin: Array, predicted: Ints, label: Ints) -> None:
        seen = predicted >= 0
        known = np.flatnonzero(seen.any(axis=1) & (label >= 0))
        features, other = sample_features(given[known], margin[known], predicted[known], label[known])
        self._features.append(
            {name: spread_over(known, len(label), values) for name, values in features.items()}
        )
        labels, others = np.full((2, len(label)), -1, np.int64)
        labels[known], others[known] = label[known], other
        self._labels.append(labels)
        self._others.append(others)
        says = seen & (labels >= 0)[:, np.newaxis] & (margin != 0)  # a tie says nothing of pairs of classes
        given_of = np.broadcast_to(label[:, np.newaxis], predicted.shape)[says]
        self._counts.append(_count(given_of, predicted[says]))

    def table(self) -> FeatureTable:
        """The features of the samples added so far, in the order in which they were added."""
        labels, others = np.concatenate(self._labels), np.concatenate(self._others)
        of_sample = {name: np.concatenate([f[name] for f in self._features]) for name in self._features[0]}
        known = np.flatnonzero(labels >= 0)
        if not len(known):
            return self._table_of_nothing(labels, others)

        def column(name: str) -> Floats:
            values: Floats = of_sample[name][known].astype(np.float64)
            return values

        label, other = labels[known], others[known]
        for make in (_ranks, _against_data_set, _against_class, self._pairs):
            for name, values in make(column, label, other).items():
                of_sample[name] = spread_over(known, len(labels), values)
        return FeatureTable(of_sample, _of_recording(column, len(known)), labels, others)

    def _pairs(self, column: Column, label: Ints, other: Ints) -> dict[str, Floats]:
        """How often each sample's given label and the class predicted instead are confused in the data set."""
        given_of, said, count = (np.concatenate(parts) for parts in zip(*self._counts, strict=True))
        n_classes = self._n_classes or int(max(label.max(), other.max(), said.max(initial=0))) + 1
        keys, place = np.unique(given_of * n_classes + said, return_inverse=True)
        share = np.bincount(place, count)
        total = np.bincount(keys // n_classes, share, n_classes)
        share = share / total[keys // n_classes]

        def rate(row: Ints, said_of: Ints) -> Floats:
            if not len(keys):  # nothing but ties
                return np.zeros(len(row))
            at = np.searchsorted(keys, row * n_classes + said_of).clip(max=len(keys) - 1)
            return np.where((keys[at] == row * n_classes + said_of) & (other >= 0), share[at], 0.0)

        mixed = keys // n_classes != keys % n_classes
        largest = np.zeros(n_classes)
        np.maximum.at(largest, keys[mixed] // n_classes, share[mixed])
        all_mixed = np.bincount(keys[mixed] // n_classes, share[mixed], n_classes)
        pair, back = rate(label, other), rate(other, label)
        some = other >= 0
        size = np.bincount(label, minlength=n_classes)
        confidence = np.bincount(label, column("confidence"), n_classes) / np.maximum(size, 1)
        other_confidence = np.where(some, confidence[other], 0.0)
        _, of_pair = np.unique(label * (n_classes + 1) + other + 1, return_inverse=True)
        return {
            "pair": pair,
            "pair_back": back,
            "pair_share": pair / np.maximum(all_mixed[label], 1e-9),
            "pair_largest": largest[label],
            "class_kept": 1 - all_mixed[label],
            "other_class_kept": np.where(some, 1 - all_mixed[other], 0.0),
            "pair_lift": np.log((pair + 1e-3) / (back + 1e-3)) / LOG_UNIT,
            "pair_rank": rank(column("margin"), of_pair),
            "pair_size": np.log1p(np.bincount(of_pair)[of_pair]) / LOG_UNIT,
            "other_class_confidence": other_confidence,
            "other_against_class": column("other") - other_confidence,
            "class_size": np.log(size[label] * np.count_nonzero(size) / len(label)),
        }

    @staticmethod
    def _table_of_nothing(labels: Ints, others: Ints) -> FeatureTable:
        table = _example()
        nothing = np.full(len(labels), np.nan, np.float32)
        of_recording = dict.fromkeys(table.of_recording, np.nan)
        return FeatureTable(dict.fromkeys(table.of_sample, nothing), of_recording, labels, others)


def _ranks(column: Column, label: Ints, other: Ints) -> dict[str, Floats]:
    """Where a sample stands among all samples, and among those of its given label."""
    together = np.zeros(len(label), np.int64)
    among_all = {name: rank(column(name), together) for name in {*_RANKED, *_TAILS}}
    in_class = {name: rank(column(name), label) for name in {*_RANKED_IN_CLASS, *_TAILS}}
    return {
        **{f"{name}_rank": among_all[name] for name in _RANKED},
        **{f"{name}_class_rank": in_class[name] for name in _RANKED_IN_CLASS},
        **{f"{name}_tail": -np.log(among_all[name]) / LOG_UNIT for name in _TAILS},
        **{f"{name}_class_tail": -np.log(in_class[name]) / LOG_UNIT for name in _TAILS},
    }


def _against_data_set(column: Column, label: Ints, other: Ints) -> dict[str, Floats]:
    return {f"{name}_spread": _spread(column(name)) for name in _SPREAD}


def _against_class(column: Column, label: Ints, other: Ints) -> dict[str, Floats]:
    """The mean of a sample's class against that of the data set, and the sample against its class."""
    size = np.maximum(np.bincount(label), 1)
    means = {name: (np.bincount(label, column(name)) / size)[label] for name in _OF_CLASS}
    return {
        **{f"{name}_class_mean": mean - column(name).mean() for name, mean in means.items()},
        **{f"{name}_from_class": column(name) - mean for name, mean in means.items()},
    }


def _of_recording(column: Column, n_samples: int) -> dict[str, float]:
    """The features that all samples of a recording share."""
    features: dict[str, float] = {f"{name}_mean": float(column(name).mean()) for name in _MEANS}
    for name in _QUANTILES_OF:
        values = np.percentile(column(name), _QUANTILES)
        features |= {f"{name}_q{q}": float(value) for q, value in zip(_QUANTILES, values, strict=True)}
    place = rank(column("aum"), np.zeros(n_samples, np.int64)) * n_samples
    for band, shares in _BANDS.items():
        rows = _band(place, shares)
        features |= {f"{name}_{band}": float(column(name)[rows].mean()) for name in _BAND_MEANS_OF}
    features |= {f"{name}_scatter": float(column(name).std()) for name in _SCATTER_OF}
    return features | {"log_size": float(np.log(n_samples) / LOG_UNIT)}


def feature_table(
    given_probabilities: ArrayLike, margins: ArrayLike, predictions: ArrayLike, labels: ArrayLike
) -> FeatureTable:
    """The features of a recording that fits in memory; see `FeatureCollector.add`."""
    collector = FeatureCollector()
    collector.add(given_probabilities, margins, predictions, labels)
    return collector.table()


def feature_table_of_trajectories(trajectories: Array) -> FeatureTable:
    """The features where only trajectories are known: all samples count as one class.

    Args:
        trajectories: `[sample, epoch, 3]`: given probability, largest other probability, predicted right
            (1/2 = a tie); NaN = unseen.
    """
    seen: NDArray[np.bool_] = np.all(~np.isnan(trajectories), axis=2)
    given, other, right = (np.where(seen, trajectories[:, :, k], np.nan) for k in range(3))
    logs = [np.log(np.maximum(values, np.finfo(np.float32).tiny)) for values in (given, other)]
    # Rounded probabilities may tie, or underflow, where the prediction still tells right from wrong.
    side, margin, least = np.sign(right - 0.5), logs[0] - logs[1], np.finfo(np.float32).tiny
    margin = np.where(side > 0, np.maximum(margin, least), np.where(side < 0, np.minimum(margin, -least), 0))
    predictions = np.where(seen, side < 0, -1).astype(np.int64)
    return feature_table(
        given, np.where(seen, margin, np.nan), predictions, np.where(seen.any(axis=1), 0, -1)
    )


@functools.cache
def _example() -> FeatureTable:
    given = np.array([[0.9], [0.2]], np.float32)
    return feature_table(given, given - 0.5, np.array([[0], [0]]), np.array([0, 1]))


@functools.cache
def feature_names() -> tuple[str, ...]:
    """The names of all features of a `FeatureTable`; they are written beside their computation and nowhere else."""
    return _example().names


def _count(given_of: Ints, said: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """How often each pair of given and predicted class occurs: classes, classes, counts."""
    if not len(said):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    width = int(said.max()) + 1
    keys, counts = np.unique(given_of * width + said, return_counts=True)
    return keys // width, keys % width, counts.astype(np.float64)


def rank(values: NDArray[np.float64], group: Ints) -> NDArray[np.float64]:
    """Where each value stands within its group, from 0 to 1; equal values share the middle of their ranks."""
    order = np.argsort(values)  # twice as fast as a lexsort; the order of equal values does not matter
    order = order[np.argsort(group[order], kind="stable")]
    sorted_group, sorted_values = group[order], values[order]
    new_group = np.r_[True, sorted_group[1:] != sorted_group[:-1]]
    new_value = new_group | np.r_[True, sorted_values[1:] != sorted_values[:-1]]
    starts = np.flatnonzero(new_value)
    ends = np.r_[starts[1:], len(values)]
    group_start = np.maximum.accumulate(np.where(new_group, np.arange(len(values)), 0))
    size = np.bincount(group)[sorted_group]
    middle = np.repeat((starts + ends) / 2, ends - starts)
    ranks = np.empty(len(values))
    ranks[order] = (middle - group_start) / size
    return ranks


def _band(place: NDArray[np.float64], shares: tuple[float, float]) -> NDArray[np.int64]:
    """Which samples lie in a band of a ranking, at least one.

    Args:
        place: [sample], the middle of where a sample and its equals stand: 0.5, 1.5, 2.5 and so on where no two
            are equal. Equals are in the band together, or none of them is.
        shares: where the band starts and stops, as shares of all samples.
    """
    start, stop = (int(share * len(place)) for share in shares)
    start = min(start, len(place) - 1)
    middle = np.round(2 * place) / 2
    inside = np.flatnonzero((middle >= start) & (middle < max(start + 1, stop)))
    if not len(inside):  # equals that reach beyond the band and have their middle elsewhere
        inside = np.flatnonzero(middle == np.sort(middle)[start])
    return inside


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in typical distances, which a few outliers do not move."""
    distance = values - np.median(values)
    return np.asarray(np.clip(distance / (np.percentile(np.abs(distance), 60) + 0.01), -8, 8) / LOG_UNIT)
