"""Features of one sample's own trajectory, before it is compared with the rest of the data set. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .feature_table import Array, Ints
from .interpolate import fill_missed_epochs, resample
from .trajectories import predicted_right

N_PARTS = 4  # of a training: early to late
PARTS = [str(part) for part in range(1, N_PARTS + 1)]
LOG_FLOOR = np.float32(np.log(1e-7))
MARGIN_LIMIT = 16.0  # nats; larger margins only tell the scale of the logits
LOG_UNIT = 4.0  # nats; keeps logarithms in the range of the other features


def sample_features(
    given: Array, margin: Array, predicted: Ints, label: Ints
) -> tuple[dict[str, Array], Ints]:
    """The features of samples that were seen at least once.

    Args:
        given: `[sample, epoch]`, probability of the given label, NaN = unseen.
        margin: `[sample, epoch]`, logit of the given label minus the largest other one, NaN = unseen.
        predicted: `[sample, epoch]`, the predicted class, -1 = unseen.
        label: `[sample]`, the given labels.

    Returns:
        float32 `[sample]` by name, and int64 `[sample]`, the wrong class predicted most often, -1 = none.
    """
    right = np.where(predicted >= 0, predicted_right(margin), np.float32(np.nan))
    filled = fill_missed_epochs(np.stack([given, margin, right], axis=2))
    if filled.shape[1] < N_PARTS:
        filled = resample(filled, N_PARTS)
    given, margin, is_right = filled[:, :, 0], filled[:, :, 1], filled[:, :, 2]
    log_given = np.log(np.maximum(given, np.float32(1e-7)))
    log_other = np.clip(log_given - margin, LOG_FLOOR, 0.0)
    ratio = np.clip(margin, -MARGIN_LIMIT, MARGIN_LIMIT) / LOG_UNIT
    other_probability = np.exp(log_other)
    n_epochs = given.shape[1]
    parts = dict(zip(PARTS, np.array_split(np.arange(n_epochs), N_PARTS), strict=True))
    seen = predicted >= 0
    names_other = seen & (right == 0) & (predicted != label[:, np.newaxis])
    n_seen, n_names_other = seen.sum(axis=1), names_other.sum(axis=1)
    n_wrong = np.where(seen, 1 - right, 0.0).sum(axis=1)
    other, votes, late_votes = count_votes(np.where(names_other, predicted, -1), seen)
    aum = margin.mean(axis=1, dtype=np.float64)  # margins may be as large as float32 goes
    was_right = is_right > 0.5
    features: dict[str, NDArray[Any]] = {
        "confidence": given.mean(axis=1),
        "variability": given.std(axis=1),
        "other": other_probability.mean(axis=1),
        "correctness": is_right.mean(axis=1),
        "log_given": log_given.mean(axis=1) / LOG_UNIT,
        "log_other": log_other.mean(axis=1) / LOG_UNIT,
        "margin": ratio.mean(axis=1),
        "aum": aum / (LOG_UNIT + np.abs(aum)),
        **{f"given_{part}": given[:, epochs].mean(axis=1) for part, epochs in parts.items()},
        **{f"other_{part}": other_probability[:, epochs].mean(axis=1) for part, epochs in parts.items()},
        **{f"margin_{part}": ratio[:, epochs].mean(axis=1) for part, epochs in parts.items()},
        **{f"correct_{part}": is_right[:, epochs].mean(axis=1) for part, epochs in parts.items()},
        "last_given": given[:, -1],
        "last_margin": ratio[:, -1],
        "lowest_margin": ratio.min(axis=1),
        "highest_given": given.max(axis=1),
        "forgetting": np.maximum(is_right[:, :-1] - is_right[:, 1:], 0).sum(axis=1) / (n_epochs - 1),
        "first_right": np.where(was_right.any(axis=1), was_right.argmax(axis=1), n_epochs) / n_epochs,
        "wrong": n_wrong / n_seen,
        "votes": votes / n_seen,
        "agreement": votes / np.maximum(n_names_other, 1),
        "late_votes": late_votes,
    }
    return {name: values.astype(np.float32) for name, values in features.items()}, other


def count_votes(said: Ints, seen: NDArray[np.bool_]) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """The wrong class predicted most often and how often that was.

    Args:
        said: `[sample, epoch]`, the wrong class that was predicted; -1 = none.
        seen: bool `[sample, epoch]`.

    Returns:
        `[sample]` each: the class, -1 = never predicted wrong; its votes; its share of the last quarter.
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
