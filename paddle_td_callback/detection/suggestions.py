"""Suggested labels: the class that the network preferred during training, the given label left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .tile_reader import TileReader
from .trajectories import largest_other_probabilities

Suggestion = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def suggest_labels(tile: TileReader) -> Suggestion:
    """The class with the largest mean probability over epochs, the given label left out.

    With `keep="given"` the votes of `predicted` against the given label stand in for the probabilities of the
    other classes, each weighing as much as its probability; `keep=k` knows the k largest.

    Args:
        tile: some samples of a recording.

    Returns:
        `[sample]` int32, the suggested labels, -1 where there is nothing to suggest, and `[sample]` float32,
        their shares of all the probability that did not go to the given label: 1 = the network never thought
        of a third class.
    """
    if tile.keep == "all":
        return _from_all(tile)
    labels, given = tile.labels, tile.given_probabilities
    if isinstance(tile.keep, int):
        classes, weights = tile.top
        weights = np.nan_to_num(weights.astype(np.float32))
    else:
        classes = tile.predictions[:, :, np.newaxis]
        weights = np.nan_to_num(largest_other_probabilities(given, tile.margins))[:, :, np.newaxis]
    other = (classes >= 0) & (classes != labels[:, np.newaxis, np.newaxis])
    return _heaviest(classes, np.where(other, weights, 0), np.nansum(1 - given, axis=1), tile.n_classes)


def _from_all(tile: TileReader) -> Suggestion:
    probabilities, labels = tile.probabilities, tile.labels
    total = np.zeros((len(labels), tile.n_classes), np.float32)
    for epoch in range(probabilities.shape[1]):  # one at a time: float32 of all would be twice what is read
        seen = ~np.isnan(probabilities[:, epoch, :1])
        np.add(total, probabilities[:, epoch], out=total, where=seen)
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
