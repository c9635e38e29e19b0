"""Which label a sample should rather have: what the network said while it was trained, given label left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..store import TrainingDynamicsStore
from .trajectories import largest_other_probabilities

Suggestion = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def suggest_labels(store: TrainingDynamicsStore, tile: slice) -> Suggestion:
    """The class with the largest mean probability over epochs, the given label left out.

    With `keep="given"` the votes of `predicted` against the given label stand in for the probabilities of the
    other classes, each weighing as much as its probability; `keep=k` knows the k largest.

    Args:
        store: a recording.
        tile: which samples.

    Returns:
        `[sample]` int32, the suggested labels, -1 where there is nothing to suggest, and `[sample]` float32,
        their shares of all the probability that did not go to the given label: 1 = the network never thought
        of a third class.
    """
    labels = store.labels[tile]
    if store.keep == "all":
        return _from_all(store, tile, labels)
    given = store.given_probabilities(tile)
    if isinstance(store.keep, int):
        classes, weights = store.top(tile)
        weights = np.nan_to_num(weights.astype(np.float32))
    else:
        classes = store.predictions(tile)[:, :, np.newaxis]
        weights = np.nan_to_num(largest_other_probabilities(given, store.margins(tile)))[:, :, np.newaxis]
    other = (classes >= 0) & (classes != labels[:, np.newaxis, np.newaxis])
    return _heaviest(classes, np.where(other, weights, 0), np.nansum(1 - given, axis=1), store.n_classes)


def _from_all(store: TrainingDynamicsStore, tile: slice, labels: npt.NDArray[np.int32]) -> Suggestion:
    probabilities = store.probabilities(tile)
    total = np.zeros((len(labels), store.n_classes), np.float32)
    for epoch in range(store.n_epochs):  # one at a time: float32 of all epochs would be twice what is read
        total += np.nan_to_num(probabilities[:, epoch].astype(np.float32))
    rows = np.arange(len(labels))
    total[rows, np.maximum(labels, 0)] = 0
    suggested = total.argmax(axis=1).astype(np.int32)
    weight, whole = total[rows, suggested], total.sum(axis=1)
    return _finish(suggested, weight, whole, weight > 0)


def _heaviest(
    classes: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    whole: npt.NDArray[np.float32],
    n_classes: int,
) -> Suggestion:
    """Per sample the class with the largest sum of weights, without a column for every class."""
    n_samples = len(classes)
    rows = np.repeat(np.arange(n_samples, dtype=np.int64), classes[0].size) if n_samples else np.zeros(0, int)
    keys, place = np.unique(rows * n_classes + np.maximum(classes.reshape(-1), 0), return_inverse=True)
    sums = np.bincount(place.reshape(-1), weights=weights.reshape(-1), minlength=len(keys))
    samples = keys // n_classes
    order = np.lexsort((keys, -sums, samples))
    first = order[np.unique(samples[order], return_index=True)[1]]
    suggested = (keys[first] % n_classes).astype(np.int32)
    weight = sums[first].astype(np.float32)
    return _finish(suggested, weight, np.maximum(whole, weight), weight > 0)


def _finish(
    suggested: npt.NDArray[np.int32],
    weight: npt.NDArray[np.float32],
    whole: npt.NDArray[np.float32],
    known: npt.NDArray[np.bool_],
) -> Suggestion:
    share = np.divide(weight, whole, out=np.zeros_like(weight, dtype=np.float32), where=known)
    return np.where(known, suggested, -1).astype(np.int32), np.minimum(share, 1).astype(np.float32)
