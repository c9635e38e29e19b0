"""What a whole recording says of each sample: its course, its rank, its class and the class it is taken for.

Numpy only. The LSTM reads one trajectory at a time; here a sample is held against its data set: where it stands
among all samples and among those of the same given label, which other class the network takes it for, how often
that happens to its class, and how often the other way round. No number depends on the order or the number of
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .interpolate import fill_missed_epochs, resample
from .trajectories import predicted_right

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

AT_ONCE = 1 << 20  # entries [sample, epoch] that are worked on together: each takes some 200 bytes meanwhile
N_PARTS = 4  # of a training: early to late
LOG_FLOOR = np.float32(np.log(1e-7))
MARGIN_LIMIT = 16.0  # nats; what lies beyond is a matter of logit scale
LOG_UNIT = 4.0  # nats; keeps logarithms in the range of the other columns

_PARTS = [str(part) for part in range(1, N_PARTS + 1)]
_OWN = (
    "confidence", "variability", "other", "correctness", "log_given", "log_other", "margin", "aum",
    *(f"{name}_{part}" for name in ("given", "other", "margin", "correct") for part in _PARTS),
    "last_given", "last_margin", "lowest_margin", "highest_given", "forgetting", "first_right",
    "wrong", "votes", "agreement", "late_votes",
)  # fmt: skip
_RANKED = (
    "confidence",
    "other",
    "margin",
    "aum",
    "correctness",
    "first_right",
    *(f"margin_{p}" for p in _PARTS),
)
_RANKED_IN_CLASS = ("confidence", "other", "margin", "aum", "correctness", "margin_1", "margin_2")
_TAILS = ("log_given", "margin", "aum")  # where a few among many count: how far down in the ranks
_SPREAD = ("log_given", "margin", "margin_1", f"margin_{N_PARTS}")  # against the data set's median and scale
_OF_CLASS = ("confidence", "other", "margin", "correctness", "margin_1", "margin_2")
_PAIR = (
    "pair", "pair_back", "pair_share", "pair_largest", "class_kept", "other_class_kept", "pair_lift",
    "pair_rank", "pair_size", "other_class_confidence", "other_against_class", "class_size",
)  # fmt: skip
OF_SAMPLE: tuple[str, ...] = (
    *_OWN,
    *(f"{name}_rank" for name in _RANKED),
    *(f"{name}_class_rank" for name in _RANKED_IN_CLASS),
    *(f"{name}_tail" for name in _TAILS),
    *(f"{name}_class_tail" for name in _TAILS),
    *(f"{name}_spread" for name in _SPREAD),
    *(f"{name}_class_mean" for name in _OF_CLASS),
    *(f"{name}_from_class" for name in _OF_CLASS),
    *_PAIR,
)
"""What differs from sample to sample."""

_OF_ALL = (*(f"correct_{p}" for p in _PARTS), "given_1", f"given_{N_PARTS}", "wrong", "votes", "agreement")
# How a data set's samples are spread tells noise, which caps what a network is sure of, from hard data.
_QUANTILES = (2, 10, 25, 50, 75, 90, 98)
_OF_QUANTILES = (
    "confidence", "other", "log_given", "margin", *(f"given_{p}" for p in _PARTS),
    *(f"margin_{p}" for p in _PARTS), "highest_given", "lowest_margin",
)  # fmt: skip
# What the samples of lowest margin are like does so too: by shares of the data set, as means.
_BANDS = {"low": (0.0, 0.03), "lower": (0.03, 0.1), "middling": (0.1, 0.3)}
_OF_BAND = (
    "other", "confidence", "agreement", "correctness", "votes", "first_right", "log_given_spread", "margin_spread",
    "pair", "pair_share", "pair_lift", "pair_size", "class_kept",
)  # fmt: skip
_SCATTER = ("class_kept", "pair_lift", "margin_class_mean")  # standard deviations over the data set
OF_RECORDING: tuple[str, ...] = (
    *(f"{name}_mean" for name in _OF_ALL),
    *(f"{name}_q{q}" for name in _OF_QUANTILES for q in _QUANTILES),
    *(f"{name}_{band}" for band in _BANDS for name in _OF_BAND),
    *(f"{name}_scatter" for name in _SCATTER),
    "log_size",
)
"""What is the same for all samples of a recording."""

NAMES: tuple[str, ...] = (*OF_SAMPLE, *OF_RECORDING)


@dataclass(frozen=True)
class Table:
    """What a recording says of each of its samples; a slice of samples keeps what was learned from all of them.

    Args:
        of_sample: float32 [sample] by name, NaN where a sample was never seen.
        of_recording: one number by name.
        labels: integers [sample], the given labels; -1 = never seen.
        others: integers [sample], the class that a sample is taken for instead; -1 = none.
        n_whole: of how many samples the recording is; None = of those that are here.
    """

    of_sample: Mapping[str, Array]
    of_recording: Mapping[str, float]
    labels: Ints
    others: Ints
    n_whole: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, samples: slice | ArrayLike) -> Table:
        rows = samples if isinstance(samples, slice) else np.asarray(samples)
        of_sample = {name: column[rows] for name, column in self.of_sample.items()}
        return Table(of_sample, self.of_recording, self.labels[rows], self.others[rows], self._n_whole)

    @property
    def is_slice(self) -> bool:
        """Whether samples of the recording are missing here, so that it cannot be looked at as a whole."""
        return len(self) != self._n_whole

    @property
    def _n_whole(self) -> int:
        return len(self) if self.n_whole is None else self.n_whole

    def agrees(self, other: Table) -> bool:
        """Whether these are the same samples: equal labels, and equal numbers in all columns that both have."""
        names = self.of_sample.keys() & other.of_sample.keys()
        return (
            np.array_equal(self.labels, other.labels)
            and np.array_equal(self.others, other.others)
            and all(np.array_equal(self.of_sample[n], other.of_sample[n], equal_nan=True) for n in names)
        )

    def with_more(self, of_sample: Mapping[str, Array], of_recording: Mapping[str, float]) -> Table:
        """The same with further columns."""
        return replace(
            self,
            of_sample={**self.of_sample, **of_sample},
            of_recording={**self.of_recording, **of_recording},
        )

    def columns(self, names: Sequence[str]) -> Array:
        """float32 [sample, name].

        Raises:
            KeyError: a name that the table has no column of.
        """
        made = np.empty((len(self), len(names)), np.float32)
        for k, name in enumerate(names):
            made[:, k] = self.of_recording[name] if name in self.of_recording else self.of_sample[name]
        return made


class Evidence:
    """Collects a recording tile by tile, and gives the columns `NAMES` of its samples.

    Args:
        n_classes: number of classes; None = as many as the labels and predictions show.
    """

    def __init__(self, n_classes: int | None = None) -> None:
        self._n_classes = n_classes
        self._rows: list[Array] = []
        self._labels: list[Ints] = []
        self._others: list[Ints] = []
        self._counts: list[tuple[Ints, Ints, NDArray[np.float64]]] = []

    def add(
        self, given_probabilities: ArrayLike, margins: ArrayLike, predictions: ArrayLike, labels: ArrayLike
    ) -> None:
        """Take the next samples.

        Args:
            given_probabilities: [sample, epoch], NaN = unseen.
            margins: [sample, epoch], logit of the given label minus the largest other one; 0 = they tie.
            predictions: integers [sample, epoch], -1 = unseen. Of a tie it does not matter.
            labels: integers [sample], the given labels; -1 = never seen.
        """
        predicted, label = np.asarray(predictions), np.asarray(labels, np.int64)
        if predicted.ndim != 2 or not predicted.shape[1]:
            raise ValueError(
                f"predictions must be [sample, epoch] with at least one epoch, got shape {predicted.shape}"
            )
        given, margin = np.asarray(given_probabilities, np.float32), np.asarray(margins, np.float32)
        step = max(1, AT_ONCE // predicted.shape[1])
        for start in range(0, len(label), step):
            rows = slice(start, start + step)
            self._add(given[rows], margin[rows], predicted[rows].astype(np.int64), label[rows])

    def _add(self, given: Array, margin: Array, predicted: Ints, label: Ints) -> None:
        seen = predicted >= 0
        known = seen.any(axis=1) & (label >= 0)
        rows = np.full((len(label), len(_OWN)), np.nan, np.float32)
        others = np.full(len(label), -1, np.int64)
        if known.any():
            rows[known], others[known] = _own(given[known], margin[known], predicted[known], label[known])
            says = seen & known[:, np.newaxis] & (margin != 0)  # a tie says nothing of pairs of classes
            given_of = np.broadcast_to(label[:, np.newaxis], predicted.shape)[says]
            self._counts.append(_count(given_of, predicted[says]))
        self._rows.append(rows)
        self._labels.append(np.where(known, label, -1))
        self._others.append(others)

    def table(self) -> Table:
        """What the samples added so far say together, in the order in which they were added."""
        own = np.concatenate([np.zeros((0, len(_OWN)), np.float32), *self._rows])
        labels, others = (
            np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (self._labels, self._others)
        )
        known = np.flatnonzero(labels >= 0)
        of_sample: dict[str, Array] = {name: own[:, k] for k, name in enumerate(_OWN)}
        of_recording: dict[str, float] = {}
        if not len(known):
            nothing = np.full(len(labels), np.nan, np.float32)
            return Table(
                dict.fromkeys(OF_SAMPLE, nothing), dict.fromkeys(OF_RECORDING, np.nan), labels, others
            )

        def column(name: str) -> NDArray[np.float64]:
            values: NDArray[np.float64] = of_sample[name][known].astype(np.float64)
            return values

        def put(name: str, values: NDArray[np.float64]) -> None:
            of_sample[name] = np.full(len(labels), np.nan, np.float32)
            of_sample[name][known] = values

        classes, label = np.unique(labels[known], return_inverse=True)
        together, size = np.zeros(len(known), np.int64), np.bincount(label)
        for name in _RANKED:
            put(f"{name}_rank", rank(column(name), together))
        for name in _RANKED_IN_CLASS:
            put(f"{name}_class_rank", rank(column(name), label))
        for name in _TAILS:
            put(f"{name}_tail", -np.log(rank(column(name), together)) / LOG_UNIT)
            put(f"{name}_class_tail", -np.log(rank(column(name), label)) / LOG_UNIT)
        for name in _SPREAD:
            put(f"{name}_spread", _spread(column(name)))
        for name in _OF_CLASS:
            values = column(name)
            of_class = (np.bincount(label, values) / size)[label]
            put(f"{name}_class_mean", of_class - values.mean())
            put(f"{name}_from_class", values - of_class)
        own_pairs = self._pairs(column, labels[known], others[known])
        own_pairs.append(np.log(size[label] * len(classes) / len(known)))
        for name, values in zip(_PAIR, own_pairs, strict=True):
            put(name, values)
        for name in _OF_ALL:
            of_recording[f"{name}_mean"] = float(column(name).mean())
        for name in _OF_QUANTILES:
            quantiles = np.percentile(column(name), _QUANTILES)
            of_recording |= {
                f"{name}_q{q}": float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)
            }
        place = rank(column("aum"), together) * len(known)
        for band, shares in _BANDS.items():
            rows = _band(place, shares)
            for name in _OF_BAND:
                of_recording[f"{name}_{band}"] = float(column(name)[rows].mean())
        for name in _SCATTER:
            of_recording[f"{name}_scatter"] = float(column(name).std())
        of_recording["log_size"] = float(np.log(len(known)) / LOG_UNIT)
        return Table(of_sample, of_recording, labels, others)

    def _pairs(
        self, column: Callable[[str], NDArray[np.float64]], label: Ints, other: Ints
    ) -> list[NDArray[np.float64]]:
        """How each sample's given label and the class it is taken for are mixed up elsewhere."""
        given_of, said, count = (np.concatenate(parts) for parts in zip(*self._counts, strict=True))
        n_classes = self._n_classes or int(max(label.max(), other.max(), said.max(initial=0))) + 1
        keys, place = np.unique(given_of * n_classes + said, return_inverse=True)
        share = np.bincount(place, count)
        total = np.bincount(keys // n_classes, share, n_classes)
        share = share / total[keys // n_classes]

        def rate(row: Ints, said_of: Ints) -> NDArray[np.float64]:
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
        return [
            pair,
            back,
            pair / np.maximum(all_mixed[label], 1e-9),
            largest[label],
            1 - all_mixed[label],
            np.where(some, 1 - all_mixed[other], 0.0),
            np.log((pair + 1e-3) / (back + 1e-3)) / LOG_UNIT,
            rank(column("margin"), of_pair),
            np.log1p(np.bincount(of_pair)[of_pair]) / LOG_UNIT,
            other_confidence,
            column("other") - other_confidence,
        ]


def evidence(
    given_probabilities: ArrayLike, margins: ArrayLike, predictions: ArrayLike, labels: ArrayLike
) -> Table:
    """The table of a recording that fits in memory; see `Evidence.add`."""
    collected = Evidence()
    collected.add(given_probabilities, margins, predictions, labels)
    return collected.table()


def evidence_of_trajectories(trajectories: Array) -> Table:
    """The table where only trajectories [sample, epoch, 3] are known: all samples stand for one class.

    Args:
        trajectories: given probability, largest other probability, predicted right (1/2 = a tie); NaN = unseen.
    """
    seen: NDArray[np.bool_] = np.all(~np.isnan(trajectories), axis=2)
    given, other, right = (np.where(seen, trajectories[:, :, k], np.nan) for k in range(3))
    logs = [np.log(np.maximum(values, np.finfo(np.float32).tiny)) for values in (given, other)]
    # Rounded probabilities may tie, or underflow, where the prediction still tells right from wrong.
    side, margin, least = np.sign(right - 0.5), logs[0] - logs[1], np.finfo(np.float32).tiny
    margin = np.where(side > 0, np.maximum(margin, least), np.where(side < 0, np.minimum(margin, -least), 0))
    predictions = np.where(seen, side < 0, -1).astype(np.int64)
    return evidence(given, np.where(seen, margin, np.nan), predictions, np.where(seen.any(axis=1), 0, -1))


def _own(given: Array, margin: Array, predicted: Ints, label: Ints) -> tuple[Array, Ints]:
    """What a sample's own trajectory says: the columns `_OWN`, and the class it is taken for, -1 = none."""
    right = np.where(predicted >= 0, predicted_right(margin), np.float32(np.nan))
    filled = fill_missed_epochs(np.stack([given, margin, right], axis=2))
    if filled.shape[1] < N_PARTS:
        filled = resample(filled, N_PARTS)
    given, margin, is_right = filled[:, :, 0], filled[:, :, 1], filled[:, :, 2]
    log_given = np.log(np.maximum(given, np.float32(1e-7)))
    log_other = np.clip(log_given - margin, LOG_FLOOR, 0.0)
    ratio = np.clip(margin, -MARGIN_LIMIT, MARGIN_LIMIT) / LOG_UNIT
    chance = np.exp(log_other)
    parts = np.array_split(np.arange(given.shape[1]), N_PARTS)
    n_epochs = given.shape[1]
    first = np.where((is_right > 0.5).any(axis=1), (is_right > 0.5).argmax(axis=1), n_epochs) / n_epochs
    seen = predicted >= 0
    says = seen & (right == 0) & (predicted != label[:, np.newaxis])  # names another class
    n_seen, n_says, n_wrong = seen.sum(axis=1), says.sum(axis=1), np.where(seen, 1 - right, 0.0).sum(axis=1)
    other, votes, late = _votes(np.where(says, predicted, -1), seen)
    aum = margin.mean(axis=1, dtype=np.float64)  # margins may be as large as float32 goes
    columns = [
        given.mean(axis=1),
        given.std(axis=1),
        chance.mean(axis=1),
        is_right.mean(axis=1),
        log_given.mean(axis=1) / LOG_UNIT,
        log_other.mean(axis=1) / LOG_UNIT,
        ratio.mean(axis=1),
        aum / (LOG_UNIT + np.abs(aum)),
        *(values[:, part].mean(axis=1) for values in (given, chance, ratio, is_right) for part in parts),
        given[:, -1],
        ratio[:, -1],
        ratio.min(axis=1),
        given.max(axis=1),
        np.maximum(is_right[:, :-1] - is_right[:, 1:], 0).sum(axis=1) / (n_epochs - 1),
        first,
        n_wrong / n_seen,
        votes / n_seen,
        votes / np.maximum(n_says, 1),
        late,
    ]
    return np.stack(columns, axis=1).astype(np.float32), other


def _votes(said: Ints, seen: NDArray[np.bool_]) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """The wrong class predicted most often and how often that was.

    Args:
        said: [sample, epoch], the wrong class that was predicted; -1 = none.
        seen: bool [sample, epoch].

    Returns:
        the class, -1 = never predicted wrong; its votes; its share of the last quarter.
    """
    n_samples, n_epochs = said.shape
    # Equal counts are settled by the latest vote, which does not depend on the numbers of the classes.
    order = np.argsort(said, axis=1, kind="stable")
    ordered = np.take_along_axis(said, order, axis=1)
    best = np.full(n_samples, -1, np.int64)
    votes = np.zeros(n_samples, np.int64)
    latest = np.zeros(n_samples, np.int64)
    run = np.zeros(n_samples, np.int64)
    for k in range(n_epochs):
        same = ordered[:, k] == ordered[:, k - 1] if k else np.zeros(n_samples, bool)
        run = np.where(same, run + 1, 1)
        better = (ordered[:, k] >= 0) & ((run > votes) | ((run == votes) & (order[:, k] > latest)))
        best, votes = np.where(better, ordered[:, k], best), np.where(better, run, votes)
        latest = np.where(better, order[:, k], latest)
    last = slice(-max(1, n_epochs // N_PARTS), None)
    late = ((said[:, last] == best[:, np.newaxis]) & (best >= 0)[:, np.newaxis]).sum(axis=1)
    return best, votes, late / np.maximum(seen[:, last].sum(axis=1), 1)


def _count(given_of: Ints, said: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """How often each pair of given and predicted class occurs: classes, classes, counts."""
    if not len(said):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    width = int(said.max()) + 1
    keys, counts = np.unique(given_of * width + said, return_counts=True)
    return keys // width, keys % width, counts.astype(np.float64)


def rank(values: NDArray[np.float64], group: Ints) -> NDArray[np.float64]:
    """Where each value stands within its group, from 0 to 1; equal values share the middle of their ranks."""
    order = np.lexsort((values, group))
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
