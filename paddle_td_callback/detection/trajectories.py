"""Raw trajectories as the detector takes them: their checks, and how they are varied for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import real

N_RAW = 3  # given probability, largest other probability, predicted right (1/2: it tied)

Array = NDArray[Any]
Arrays = Array | Sequence[Array]


@dataclass(frozen=True)
class Augmentation:
    """How each recording is varied in every epoch of `NoiseDetector.fit`.

    Args:
        truncate: smallest fraction of its epochs to keep, from the start; 1 = always all.
        subsample: smallest fraction of these to keep, anywhere; 1 = always all.
        missing: largest fraction of entries [sample, epoch] to make unseen; 0 = none.
        jitter: standard deviation of the noise added to the log-odds of both probabilities; 0 = none.
    """

    truncate: float = 1.0
    subsample: float = 1.0
    missing: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("truncate", "subsample", "missing"):
            real(getattr(self, name), name, most=1)
        real(self.jitter, "jitter")

    def __call__(self, raw: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """A varied copy of one recording [sample, epoch, 3]; the fractions are drawn once for all of it."""
        kept = np.arange(max(1, round(raw.shape[1] * rng.uniform(self.truncate, 1.0))))
        kept = np.sort(rng.permutation(kept)[: max(1, round(len(kept) * rng.uniform(self.subsample, 1.0)))])
        varied = raw[:, kept]
        if self.jitter:
            odds = varied[:, :, :2].clip(1e-7, 1 - 1e-7)
            odds = np.log(odds / (1 - odds))
            odds += rng.standard_normal(odds.shape, np.float32) * np.float32(self.jitter)
            varied[:, :, :2] = 1 / (1 + np.exp(-odds))
        if self.missing:
            varied[rng.random(varied.shape[:2], np.float32) < rng.uniform(0.0, self.missing)] = np.nan
        return varied


def trajectories_of(
    given_probabilities: NDArray[np.floating], margins: NDArray[np.floating]
) -> NDArray[np.float32]:
    """What a detector's LSTM reads: given probability, largest other one, predicted right, [sample, epoch, 3].

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.
        margins: [sample, epoch], NaN = unseen.
    """
    others = largest_other_probabilities(given_probabilities, margins)
    return np.stack([given_probabilities, others, predicted_right(margins)], axis=-1).astype(np.float32)


def predicted_right(margins: NDArray[np.floating]) -> NDArray[np.float32]:
    """1 where the given label was predicted, 0 where another class was, 1/2 where they tied; NaN = unseen.

    By the margin's sign, since the predicted class of a tie is the one with the lowest number, whatever that means.
    A difference of float32 logits is 0 only where they are equal, so the two agree everywhere else.

    Args:
        margins: [sample, epoch], NaN = unseen.
    """
    return np.asarray(0.5 + 0.5 * np.sign(margins), np.float32)


def largest_other_probabilities(
    given_probabilities: NDArray[np.floating], margins: NDArray[np.floating]
) -> NDArray[np.float32]:
    """The largest probability besides the given label's, [sample, epoch] float32 in [0, 1], NaN = unseen.

    The margin is a difference of logits, so it is also one of log-probabilities. Where the given label's
    probability underflowed to zero, the smallest positive float32 is used.

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.
        margins: [sample, epoch], NaN = unseen.
    """
    log_given = np.log(np.maximum(given_probabilities, np.finfo(np.float32).tiny))
    return np.asarray(np.exp(np.minimum(log_given - margins, 0.0)), np.float32)


def need_both(n_wrong: int, n_right: int, what: str) -> None:
    """Refuse labels that are all of one kind; `what` could learn nothing from them."""
    if not n_wrong or not n_right:
        raise ValueError(
            f"is_mislabeled marks {n_wrong} of {n_wrong + n_right} seen samples: {what} needs both; "
            "give some samples of either kind"
        )


def checked(trajectories: ArrayLike) -> Array:
    """The trajectories as a float array [sample, epoch, 3] of probabilities or NaN, or a ValueError."""
    raw = np.asarray(trajectories)
    if raw.ndim != 3 or raw.shape[1] < 1 or raw.shape[2] != N_RAW or raw.dtype.kind != "f":
        raise ValueError(
            f"trajectories must be floats [sample, epoch, {N_RAW}] (given probability, largest other "
            f"probability, predicted right) with at least one epoch, got {raw.dtype} {raw.shape}"
        )
    lowest, highest = np.fmin.reduce(raw, axis=None, initial=0), np.fmax.reduce(raw, axis=None, initial=0)
    if lowest < 0 or highest > 1 + 1e-3:
        raise ValueError(f"trajectories must lie in [0, 1] or be NaN, got {lowest} to {highest}")
    return raw


def labelled(trajectories: Arrays, is_mislabeled: Arrays) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
    """Each recording, of one or of a list, as (trajectories [sample, epoch, 3], mislabeled [sample]), checked."""
    several = isinstance(trajectories, (list, tuple))
    arrays = list(trajectories) if several else [trajectories]
    labels = list(is_mislabeled) if several else [is_mislabeled]
    if len(arrays) != len(labels) or not arrays:
        raise ValueError(
            f"got {len(arrays)} recordings and {len(labels)} arrays of is_mislabeled; give one for each"
        )
    for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        raw, wrong = checked(array), np.asarray(label)
        if wrong.shape != raw.shape[:1] or not np.isin(wrong, (0, 1)).all():
            raise ValueError(
                f"recording {number}: is_mislabeled must be 0 or 1 for each of {len(raw)} samples, "
                f"got {wrong.dtype} {wrong.shape}"
            )
        yield raw, wrong.astype(bool)


def each_weight(sample_weight: Arrays | None, sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """The weights of each recording's samples, of one recording or of a list; ones where there are none."""
    if sample_weight is None:
        return [np.ones(size) for size in sizes]
    given = list(sample_weight) if isinstance(sample_weight, (list, tuple)) else [sample_weight]
    weights = [np.asarray(array, np.float64) for array in given]
    if [weight.shape for weight in weights] != [(size,) for size in sizes] or not all(
        (np.isfinite(weight) & (weight >= 0)).all() for weight in weights
    ):
        raise ValueError(
            f"sample_weight must be finite numbers of at least 0 for recordings of {list(sizes)} samples, "
            f"got shapes {[weight.shape for weight in weights]}"
        )
    return weights
