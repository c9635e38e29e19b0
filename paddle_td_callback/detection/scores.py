"""Hand-made scores of training dynamics: pure functions of arrays, one number a sample.

Every function takes the samples it is given as a tile of any size: no number depends on the other samples.
Unseen entries (NaN, or -1 for predictions) are skipped, not filled; a sample never seen scores NaN.
All of them go through the epochs one by one, which keeps memory at a few [sample] arrays, and makes the
result the same, to the last bit, however the samples are cut into tiles. Sample numbers in messages count
within the tile.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .trajectories import largest_other_probabilities

FloatArray = NDArray[np.float64]

EL2N_EPOCHS = 20
"""Epochs that EL2N looks at as a noise score: the paper takes it around epoch 20 of 200."""

# What a probability stored as 0 counts as: float16 down to its last subnormal, the others down to their
# smallest normal number, because devices that flush subnormals to 0 leave nothing below it.
_FLOOR = {np.dtype(np.float16): 2.0**-24, np.dtype(np.float32): 2.0**-126}
_FLOOR_FLOAT64 = 2.0**-1022
_PROBABILITY_SLACK = 1e-3  # a softmax in low precision may pass 1 by its rounding


def aum(margins: ArrayLike) -> FloatArray:
    """Area under the margin: mean over seen epochs of (logit of the given label - largest other logit).

    Low = suspicious. Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin
    Ranking". Its authors stop at the first drop of the learning rate: cut the epoch axis for that.

    Args:
        margins: [sample, epoch], NaN = unseen.

    Returns:
        float64 [sample], NaN = never seen.
    """
    array = _floats(margins, "margins")
    return _mean(len(array), _columns(array, "margins"))


def confidence(given_probabilities: ArrayLike) -> FloatArray:
    """Mean probability of the given label over seen epochs. Low = suspicious.

    Swayamdipta et al. 2020, "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics".

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.

    Returns:
        float64 [sample] in [0, 1], NaN = never seen.
    """
    array = _floats(given_probabilities, "given_probabilities")
    return _mean(len(array), _given_columns(array))


def variability(given_probabilities: ArrayLike) -> FloatArray:
    """Population standard deviation of the given label's probability over seen epochs.

    Swayamdipta et al. 2020 (see `confidence`). A sample seen once has variability 0.

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.

    Returns:
        float64 [sample] in [0, 0.5], NaN = never seen.
    """
    array = _floats(given_probabilities, "given_probabilities")
    mean = confidence(array)
    # Squares of differences, not the difference of squares: that one loses small deviations by rounding.
    squares = (np.square(column - mean) for column in _given_columns(array))
    return np.asarray(np.sqrt(_mean(len(array), squares)), np.float64)


def correctness(predictions: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Fraction of seen epochs in which the given label was predicted. Low = suspicious.

    Swayamdipta et al. 2020 (see `confidence`).

    Args:
        predictions: integers [sample, epoch], -1 = unseen.
        labels: integers [sample], the given labels; -1 only for samples never seen.

    Returns:
        float64 [sample] in [0, 1], NaN = never seen.
    """
    array = _predictions(predictions)
    return _mean(len(array), _right_columns(array, labels))


def forgetting_events(predictions: ArrayLike, labels: ArrayLike) -> FloatArray:
    """How often a sample was right at one presentation and wrong at the next one.

    Toneva et al. 2019, "An Empirical Study of Example Forgetting during Deep Neural Network Learning".
    Epochs in which the sample was not seen lie between presentations and do not count. A sample that was
    never right has no event and yet is the most suspicious of all: see `never_learned`.

    Args:
        predictions: integers [sample, epoch], -1 = unseen.
        labels: integers [sample], the given labels; -1 only for samples never seen.

    Returns:
        float64 [sample] of whole numbers, NaN = never seen.
    """
    array = _predictions(predictions)
    events = np.zeros(len(array))
    last = np.full(len(array), np.nan)
    for right in _right_columns(array, labels):
        events += (last == 1) & (right == 0)
        last = np.where(np.isnan(right), last, right)
    return np.where(np.isnan(last), np.nan, events)


def never_learned(predictions: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Which samples were seen, and never predicted right.

    Toneva et al. 2019 (see `forgetting_events`) sort them with the samples forgotten most often.

    Args:
        predictions: integers [sample, epoch], -1 = unseen.
        labels: integers [sample], the given labels; -1 only for samples never seen.

    Returns:
        bool [sample]; False for a sample never seen, of which nothing is known.
    """
    return np.asarray(correctness(predictions, labels) == 0)  # NaN is not 0


def el2n(probabilities: ArrayLike, labels: ArrayLike, *, epochs: int | None = None) -> FloatArray:
    """Error L2 norm: mean over seen epochs of the length of (probabilities - one-hot given label).

    High = suspicious. Paul et al. 2021, "Deep Learning on a Data Diet: Finding Important Examples Early in
    Training", who take it early in training and average over several runs.

    All probabilities of a sample are needed: the given label's alone do not fix the norm. With two classes
    they do, as `el2n(stack([given, 1 - given], axis=-1), zeros)`.

    Args:
        probabilities: [sample, epoch, class], NaN = unseen.
        labels: integers [sample], the given labels; -1 only for samples never seen.
        epochs: look at this many first epochs only; None = all. A sample first seen later scores NaN.

    Returns:
        float64 [sample] in [0, sqrt(2)], NaN = never seen.
    """
    array = _floats(probabilities, "probabilities", "[sample, epoch, class]")
    given = _labels(labels, len(array))
    if given.size and given.max() >= array.shape[2]:
        sample = int(given.argmax())
        raise ValueError(f"labels must be in [0, {array.shape[2]}), got {given[sample]} for sample {sample}")
    if epochs is not None:
        try:
            epochs = operator.index(epochs)
        except TypeError:
            raise TypeError(f"epochs must be a whole number or None, got {epochs!r}") from None
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for all, got {epochs}")
    return _mean(len(array), _error_norms(array[:, :epochs], given))


def mean_loss(given_probabilities: ArrayLike, margins: ArrayLike | None = None) -> FloatArray:
    """Mean cross-entropy of the given label over seen epochs, -log p in natural units. High = suspicious.

    The plain loss as a score is as old as the field; e.g. Arazo et al. 2019, "Unsupervised Label Noise
    Modeling and Loss Correction".

    Always finite. A probability too small for the array's precision is clipped: float32 at 1.2e-38 (a loss
    of 87.3), float16 at 6e-8 (16.6, so give float32). With `margins` an entry is log(1 + exp(-margin))
    where that is larger, which is what remains of a clipped probability and of one rounded to 1: exact for
    two classes, at most log(classes - 1) too small for more, and in order beyond 87.3.

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.
        margins: [sample, epoch], logit of the given label - largest other logit; None = not known.

    Returns:
        float64 [sample], at least 0, NaN = never seen.
    """
    probabilities = _floats(given_probabilities, "given_probabilities")
    floor = _FLOOR.get(probabilities.dtype, _FLOOR_FLOAT64)
    losses = (-np.log(np.clip(column, floor, 1.0)) for column in _given_columns(probabilities))
    if margins is None:
        return _mean(len(probabilities), losses)
    logit_margins = _same_shape(margins, probabilities)
    bounds = (_softplus(-column) for column in _columns(logit_margins, "margins"))
    # Neither passes the true loss, so the larger is the nearer one. fmax keeps the loss where only the
    # margin is missing; unseen is where the probability is.
    larger = (
        np.where(np.isnan(loss), np.nan, np.fmax(loss, bound))
        for loss, bound in zip(losses, bounds, strict=True)
    )
    return _mean(len(probabilities), larger)


def margin(given_probabilities: ArrayLike, margins: ArrayLike) -> FloatArray:
    """Mean over seen epochs of (probability of the given label - largest other probability). Low = suspicious.

    The normalized margin of Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    as a mean over epochs. A difference of logits is one of log-probabilities, so the largest other probability
    follows from what every recording holds: this score needs no `keep="all"`.

    Args:
        given_probabilities: [sample, epoch], NaN = unseen.
        margins: [sample, epoch], logit of the given label - largest other logit.

    Returns:
        float64 [sample] in [-1, 1], NaN = never seen.
    """
    probabilities = _floats(given_probabilities, "given_probabilities")
    logit_margins = _same_shape(margins, probabilities)
    columns = zip(_given_columns(probabilities), _columns(logit_margins, "margins"), strict=True)
    return _mean(
        len(probabilities), (given - largest_other_probabilities(given, one) for given, one in columns)
    )


@dataclass(frozen=True)
class NoiseScore:
    """A score as a ranking uses it: in [0, 1], higher = more suspicious, NaN = never seen.

    The scaling is a fixed function of the sample's own score, the same for every tile, data set and run, so
    values can be streamed, compared and averaged, and `label_quality` is 1 - the noise score. It is no
    probability of being mislabeled. Those that squash an endless range do so by x / (1 + x) and not by an
    exponential, which would round all of the most suspicious samples to the same 1.

    Args:
        needs: the keyword arguments of `compute`, named as in the store: `given_probabilities`, `margins`,
            `predictions` `[sample, epoch]`, `probabilities` `[sample, epoch, class]`, `labels` `[sample]`.
        compute: from these arrays of a tile of samples to the noise score, float64 `[sample]`.
        rule: when a label looks wrong (a noise score above 1/2), in terms of the published score; ends the sentence
            "a label looks wrong where ...".
    """

    needs: tuple[str, ...]
    compute: Callable[..., FloatArray]
    rule: str


def _aum_noise(margins: ArrayLike) -> FloatArray:
    score = aum(margins)
    return np.asarray(0.5 - 0.5 * score / (1 + np.abs(score)), np.float64)


def _confidence_noise(given_probabilities: ArrayLike) -> FloatArray:
    return _unit(1 - confidence(given_probabilities))


def _variability_noise(given_probabilities: ArrayLike) -> FloatArray:
    spread = variability(given_probabilities)
    return _unit(np.where(confidence(given_probabilities) < 0.5, 1 - spread, spread))


def _correctness_noise(predictions: ArrayLike, labels: ArrayLike) -> FloatArray:
    return 1 - correctness(predictions, labels)


def _forgetting_noise(
    predictions: ArrayLike, labels: ArrayLike, given_probabilities: ArrayLike
) -> FloatArray:
    uncertainty = _confidence_noise(given_probabilities)
    # A sample that was right once has less than 1, so this orders within equal events only.
    rank = forgetting_events(predictions, labels) + uncertainty
    return np.where(never_learned(predictions, labels), 0.5 + 0.5 * uncertainty, 0.5 * rank / (1 + rank))


def _el2n_noise(probabilities: ArrayLike, labels: ArrayLike) -> FloatArray:
    return _unit(el2n(probabilities, labels, epochs=EL2N_EPOCHS) / math.sqrt(2))


def _mean_loss_noise(given_probabilities: ArrayLike, margins: ArrayLike) -> FloatArray:
    loss = mean_loss(given_probabilities, margins)
    return loss / (math.log(2) + loss)


def _margin_noise(given_probabilities: ArrayLike, margins: ArrayLike) -> FloatArray:
    return _unit(0.5 - 0.5 * margin(given_probabilities, margins))


NOISE_SCORES: dict[str, NoiseScore] = {
    # A network that learns the rule before the exceptions rates another class above a wrong label. 1/2 is a mean margin
    # of 0, 3/4 of -1.
    "aum": NoiseScore(
        ("margins",),
        _aum_noise,
        "its mean margin is below 0: another class had the larger logit on average",
    ),
    # Wrong labels are hard to learn, so their probability stays low or rises late. 1 - mean probability.
    "confidence": NoiseScore(
        ("given_probabilities",),
        _confidence_noise,
        "the mean probability of the given label is below 1/2",
    ),
    # Wrong labels vary little where they are never learned, much where they are memorised late. So samples go along the
    # arch that Swayamdipta et al. draw, from easy (confidence at least 1/2, low variability) over ambiguous (high) to
    # hard (below 1/2, low): the deviation on the easy side, 1 - deviation on the hard one. Prefer confidence.
    "variability": NoiseScore(
        ("given_probabilities",),
        _variability_noise,
        "the mean probability of the given label is below 1/2 and varies little",
    ),
    # The network keeps contradicting a wrong label. Fraction of seen epochs it was wrong, many ties.
    "correctness": NoiseScore(
        ("predictions", "labels"),
        _correctness_noise,
        "the given label was predicted in less than half of the epochs",
    ),
    # Never learned fills [1/2, 1], then come those forgotten most often, below 1/2. Among equals the less confident is
    # the more suspicious.
    "forgetting_events": NoiseScore(
        ("predictions", "labels", "given_probabilities"),
        _forgetting_noise,
        "the given label was never predicted",
    ),
    # Early in training the error of a wrong label is the largest. Over its maximum sqrt(2), which is all probability on
    # one other class.
    "el2n": NoiseScore(
        ("probabilities", "labels"),
        _el2n_noise,
        f"its mean error norm in the first {EL2N_EPOCHS} epochs is above 0.71, half of the largest there is",
    ),
    # A wrong label is learned late and so costs most. loss / (log 2 + loss), 1/2 where the geometric mean of the given
    # label's probability is 1/2.
    "mean_loss": NoiseScore(
        ("given_probabilities", "margins"),
        _mean_loss_noise,
        "its mean loss is above 0.69: the given label had a probability below 1/2, as a geometric mean",
    ),
    # The best single number on most recordings: unlike AUM it does not grow with the scale of the logits. 1/2 is a mean
    # margin of 0, 1 that of -1.
    "margin": NoiseScore(
        ("given_probabilities", "margins"),
        _margin_noise,
        "another class had the larger probability on average",
    ),
}
"""Every score that can rank samples, by name. A new one is a function and an entry here; nothing else changes."""


def rule_of(method: str) -> str:
    """When a label looks wrong by a method of `find_label_issues`, as a part of a sentence."""
    if method in NOISE_SCORES:
        return NOISE_SCORES[method].rule
    return "the detector gives it a probability above 1/2 of being wrong"


def _softplus(value: FloatArray) -> FloatArray:
    # log(1 + exp(value)) without overflow; logaddexp would do, but warns of NaN, which is not wrong here.
    return np.asarray(np.maximum(value, 0) + np.log1p(np.exp(-np.abs(value))), np.float64)


def _unit(score: FloatArray) -> FloatArray:
    # Takes back what rounding put outside; NaN passes.
    return np.asarray(np.clip(score, 0.0, 1.0), np.float64)


def _mean(n_samples: int, columns: Iterable[FloatArray]) -> FloatArray:
    """Mean over epochs of [sample] columns, skipping NaN; NaN where nothing is left."""
    total = np.zeros(n_samples)
    count = np.zeros(n_samples)
    for column in columns:
        seen = ~np.isnan(column)
        total += np.where(seen, column, 0.0)
        count += seen
    with np.errstate(invalid="ignore"):  # 0 / 0 is how a sample never seen becomes NaN
        return total / count


def _columns(array: NDArray[Any], name: str) -> Iterator[FloatArray]:
    """Epoch after epoch as a contiguous float64 copy; contiguous so that no result depends on the layout."""
    for epoch in range(array.shape[1]):
        column = np.array(array[:, epoch], np.float64, order="C")
        _refuse(np.isinf(column), column, f"{name} must be finite, or NaN for unseen", epoch)
        yield column


def _given_columns(given_probabilities: NDArray[Any]) -> Iterator[FloatArray]:
    name = "given_probabilities"
    for epoch, column in enumerate(_columns(given_probabilities, name)):
        _refuse(_outside(column), column, f"{name} must be in [0, 1], or NaN for unseen", epoch)
        yield column


def _right_columns(predictions: NDArray[Any], labels: ArrayLike) -> Iterator[FloatArray]:
    """Epoch after epoch 1 = predicted right, 0 = wrong, NaN = unseen."""
    given = _labels(labels, len(predictions))
    for epoch in range(predictions.shape[1]):
        column = predictions[:, epoch]
        _refuse(column < -1, column, "predictions must be classes, or -1 for unseen", epoch)
        seen = column >= 0
        _refuse_unlabeled(seen, given, epoch)
        yield np.where(seen, (column == given).astype(np.float64), np.nan)


def _error_norms(probabilities: NDArray[Any], labels: NDArray[Any]) -> Iterator[FloatArray]:
    labeled = np.flatnonzero(labels >= 0)
    for epoch in range(probabilities.shape[1]):
        error = np.array(probabilities[:, epoch], np.float64, order="C")
        _refuse(_outside(error), error, "probabilities must be in [0, 1], or NaN for unseen", epoch)
        error[labeled, labels[labeled]] -= 1
        norm = np.sqrt(np.square(error).sum(axis=1))
        _refuse_unlabeled(~np.isnan(norm), labels, epoch)
        yield norm


def _outside(probabilities: FloatArray) -> NDArray[np.bool_]:
    return (probabilities < -_PROBABILITY_SLACK) | (probabilities > 1 + _PROBABILITY_SLACK)


def _refuse(bad: NDArray[np.bool_], values: NDArray[Any], wanted: str, epoch: int) -> None:
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        which = f"sample {first[0]}, epoch {epoch}" + (f", class {first[1]}" if len(first) > 1 else "")
        raise ValueError(f"{wanted}, got {values[first]} for {which}")


def _refuse_unlabeled(seen: NDArray[np.bool_], labels: NDArray[Any], epoch: int) -> None:
    unlabeled = seen & (labels < 0)
    if unlabeled.any():
        sample = int(unlabeled.argmax())
        raise ValueError(
            f"labels may be -1 only for samples never seen, got -1 for sample {sample}, seen in epoch {epoch}"
        )


def _floats(values: ArrayLike, name: str, axes: str = "[sample, epoch]") -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be floating-point numbers, got {array.dtype}")
    return _ranked(array, name, axes)


def _predictions(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"predictions must be integers, -1 for unseen, got {array.dtype}")
    return _ranked(array, "predictions", "[sample, epoch]")


def _same_shape(margins: ArrayLike, probabilities: NDArray[Any]) -> NDArray[Any]:
    array = _floats(margins, "margins")
    if array.shape != probabilities.shape:
        raise ValueError(
            f"margins must have the shape of given_probabilities {probabilities.shape}, got {array.shape}"
        )
    return array


def _ranked(array: NDArray[Any], name: str, axes: str) -> NDArray[Any]:
    if array.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must be {axes}, got shape {array.shape}")
    return array


def _labels(labels: ArrayLike, n_samples: int) -> NDArray[Any]:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {array.dtype}")
    if array.shape != (n_samples,):
        raise ValueError(f"labels must be [sample], one for each of {n_samples}, got shape {array.shape}")
    if array.size and array.min() < -1:
        sample = int(array.argmin())
        raise ValueError(
            f"labels must be classes, or -1 for never seen, got {array[sample]} for sample {sample}"
        )
    return array
