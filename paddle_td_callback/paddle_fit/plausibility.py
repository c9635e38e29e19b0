"""Signs that a recording is not what it claims: warned of in the first epoch, with the argument that solves each."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .outputs import Batch

_SUM_TOLERANCE = 1e-2  # bfloat16 keeps no more
_N_ROWS = 10_000  # the last of the epoch are checked,
_BATCH_ROWS, _BATCH_CELLS = 32, 1 << 16  # of each batch so many rows, or more of few classes
_LEAST_ROWS = 30
_SIGMAS = 4.0
_LEAST_FALL = 0.02  # nats
_COSINE, _COSINE_TOLERANCE = 0.9, 1e-3  # the largest of many cosines is nearly 1


class Plausibility:
    """Checks the rows of the first epoch.

    Args:
        outputs: "logits" or "probabilities" where the user says so; "auto" otherwise.
    """

    def __init__(self, outputs: str) -> None:
        self._is_given = outputs != "auto"
        self._are_logits = True
        self._ones = np.inf, -np.inf  # the smallest and the largest of a network's one output
        self._largest = 0.0
        self._checked: deque[_Checked] = deque()
        self._n_rows = 0

    def check_batch(self, batch: Batch) -> str | None:
        """Take a batch; returns what is odd about the first one."""
        outputs, is_first = batch.outputs, not self._n_rows
        self._n_rows += len(outputs)
        if not len(outputs):
            return None
        self._are_logits = not (self._is_given or batch.are_probabilities)
        self._largest = max(self._largest, float(outputs.max()), -float(outputs.min()))
        some = batch.only(_evenly(*outputs.shape))
        self._checked.append(_Checked(len(outputs), some.outputs.argmax(axis=1), some.labels, _losses(some)))
        while sum(one.n_rows for one in self._checked) - self._checked[0].n_rows >= _N_ROWS:
            self._checked.popleft()
        if not self._are_logits:
            return None
        if batch.has_one_column:
            one = outputs[:, 1]
            self._ones = min(self._ones[0], float(one.min())), max(self._ones[1], float(one.max()))
        if not is_first or outputs.min() < 0 or np.abs(outputs.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            return None
        return (
            "the network's outputs are recorded as logits, as the loss takes them, but each row sums to 1 like "
            "probabilities; pass outputs='probabilities' if they are, or outputs='logits' if they are not"
        )

    def check_epoch(self, labels: npt.NDArray[np.int32], n_classes: int) -> list[str]:
        """What is odd about the epoch; `labels` `[sample]` are all that were seen, -1 = unseen."""
        messages = []
        if self._ones[0] >= 0 and self._ones[1] <= 1 and self._ones[1] - self._ones[0] >= 0.5:
            messages.append(
                "the network's one output is recorded as a logit, as the loss takes it, but stayed in [0, 1] "
                "through the first epoch, like a sigmoid's; pass outputs='probabilities' if it is one, or "
                "outputs='logits' if it is not"
            )
        if sum(len(one.given) for one in self._checked) >= _LEAST_ROWS:
            predicted, given, losses = map(np.concatenate, list(zip(*self._checked, strict=True))[1:])
            odd = _constant_shift(predicted, given)
            if odd is None and not _falls(losses):
                odd = _columns_without_labels(predicted, labels, n_classes)
            if odd is None and _falls(-losses):
                odd = _below_chance(predicted, given, n_classes)
            if odd is None and self._are_logits and _COSINE <= self._largest <= 1 + _COSINE_TOLERANCE:
                odd = _unscaled(predicted, given, n_classes)
            messages += [odd] if odd else []
        self._checked.clear()
        return messages


class _Checked(NamedTuple):
    """The rows of a batch that are checked, of `n_rows`: predicted and given class, and loss."""

    n_rows: int
    predicted: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float32]


def _evenly(n_rows: int, n_classes: int) -> npt.NDArray[np.bool_]:
    """Which rows of a batch are checked, `[row]`: of many classes not all, whose softmax would take too long."""
    n_checked = min(n_rows, max(_BATCH_ROWS, _BATCH_CELLS // n_classes))
    is_checked = np.zeros(n_rows, np.bool_)
    is_checked[np.linspace(0, n_rows - 1, n_checked).astype(np.int64)] = True
    return is_checked


def _losses(batch: Batch) -> npt.NDArray[np.float32]:
    """The cross-entropy of each row as it is recorded, `[row]`; NaN where it is not finite."""
    rows = np.arange(len(batch.outputs))
    with np.errstate(all="ignore"):
        if batch.are_probabilities:
            losses = -np.log(np.maximum(batch.outputs[rows, batch.labels], np.finfo(np.float32).tiny))
        else:
            shifted = batch.outputs - batch.outputs.max(axis=1, keepdims=True)
            losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, batch.labels]
    return np.where(np.isfinite(losses), losses, np.nan).astype(np.float32)


def _falls(losses: npt.NDArray[np.float32]) -> bool:
    """Whether the last third is lower than the first one, by more than chance: what is trained on does, at first."""
    losses = losses[~np.isnan(losses)]
    first, last = np.array_split(losses, 3)[::2]
    if not len(last):
        return False
    error = np.sqrt(first.var() / len(first) + last.var() / len(last))
    return bool(first.mean() - last.mean() > max(_LEAST_FALL, 3 * error))


def _unscaled(predicted: npt.NDArray[Any], given: npt.NDArray[Any], n_classes: int) -> str | None:
    """Whether outputs in [-1, 1] predict better than a softmax of such small numbers is ever trained to."""
    right = float(np.mean([(predicted[given == one] == one).mean() for one in np.unique(given)]))
    most = np.e / (np.e + (n_classes - 1) / np.e)  # the largest probability that they can have
    if n_classes < 3 or right < max(0.5, most):
        return None
    return (
        f"the outputs, recorded as logits, stayed in [-1, 1], which gives no class more than {most:.0%}, but predict "
        f"{right:.0%} of the labels of a class: the loss seems to scale them (cosines, CosFace); pass logits= (a "
        "function of the outputs that scales them as the loss does), or outputs='logits' if they are right"
    )


def _columns_without_labels(
    predicted: npt.NDArray[Any], labels: npt.NDArray[np.int32], n_classes: int
) -> str | None:
    used = np.unique(labels[labels >= 0])
    share = 1 - np.isin(predicted, used).mean()
    if share < 0.5:
        return None
    return (
        f"the recorded output has {n_classes} columns, but the labels are {len(used)} classes, and {share:.0%} of the "
        "predictions are none of them; where the loss holds the classifier (ArcFace, metric learning), these are "
        "features and no logits: pass logits= (a function of the outputs that applies the classifier)"
    )


def _constant_shift(predicted: npt.NDArray[Any], given: npt.NDArray[Any]) -> str | None:
    """Whether most classes are predicted as the class a constant number of places further on."""
    shifts, counts = np.unique(predicted - given, return_counts=True)
    shift = int(shifts[counts.argmax()])
    classes = np.unique(given)
    is_shifted = predicted - given == shift
    share = np.mean([is_shifted[given == one].mean() for one in classes])
    if shift == 0 or len(classes) < 2 or share < 0.5 + 0.5 / len(classes):
        return None
    return (
        f"{share:.0%} of the predictions are the label {shift:+d}: the loss seems to shift the labels before it "
        "compares them; pass labels= (for each sample, the column of the output that is its class)"
    )


def _below_chance(predicted: npt.NDArray[Any], given: npt.NDArray[Any], n_classes: int) -> str | None:
    """Whether labels and predictions agree less often than by chance."""
    n = len(given)
    chance = float(
        (np.bincount(predicted, minlength=n_classes) / n) @ (np.bincount(given, minlength=n_classes) / n)
    )
    right = float((predicted == given).mean())
    if right >= chance - _SIGMAS * np.sqrt(chance * (1 - chance) / n):
        return None
    return (
        f"only {right:.0%} of the predictions are the label, fewer than by chance ({chance:.0%}); if the loss gets "
        "other labels or another output than what is recorded, pass labels=, label= or logits="
    )
