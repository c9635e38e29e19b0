"""Signs that a recording is not what it claims: warned of in the first epoch, with the argument that solves each."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from .outputs import Batch

_SUM_TOLERANCE = 1e-2  # bfloat16 keeps no more
_N_ROWS = 10_000  # the last of the epoch are checked
_LEAST_ROWS = 30
_SIGMAS = 4.0


class Plausibility:
    """Checks the rows of the first epoch.

    Args:
        outputs: "logits" or "probabilities" where the user says so; "auto" otherwise.
    """

    def __init__(self, outputs: str) -> None:
        self._is_given = outputs != "auto"
        self._may_be_sigmoid = not self._is_given  # so far
        self._largest = 0.0
        self._rows: deque[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = deque()
        self._n_rows = 0

    def check_batch(self, batch: Batch) -> str | None:
        """Take a batch; returns what is odd about the first one."""
        outputs, is_first = batch.outputs, not self._n_rows
        self._n_rows += len(outputs)
        self._largest = max(self._largest, float(np.abs(outputs).max(initial=0)))
        self._are_logits = not (self._is_given or batch.are_probabilities)
        self._rows.append((outputs.argmax(axis=1), batch.labels))
        while sum(len(labels) for _, labels in self._rows) - len(self._rows[0][1]) >= _N_ROWS:
            self._rows.popleft()
        z = outputs[:, 1]
        is_like_sigmoid = batch.has_one_column and not batch.are_probabilities and ((z >= 0) & (z <= 1)).all()
        self._may_be_sigmoid &= bool(is_like_sigmoid)
        if self._is_given or batch.are_probabilities or not len(outputs):
            return None
        if not is_first or outputs.min() < 0 or np.abs(outputs.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            return None
        return (
            "the network's outputs are recorded as logits, as the loss takes them, but each row sums to 1 like "
            "probabilities; pass outputs='probabilities' if they are, or outputs='logits' if they are not"
        )

    def check_epoch(self, labels: npt.NDArray[np.int32], n_classes: int) -> list[str]:
        """What is odd about the epoch; `labels` `[sample]` are all that were seen, -1 = unseen."""
        messages = []
        if self._may_be_sigmoid and self._n_rows:
            messages.append(
                "the network's one output is recorded as a logit, as the loss takes it, but stayed in [0, 1] "
                "through the first epoch, like a sigmoid's; pass outputs='probabilities' if it is one, or "
                "outputs='logits' if it is not"
            )
        if sum(len(given) for _, given in self._rows) >= _LEAST_ROWS:
            predicted, given = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
            odd = (
                _columns_without_labels(predicted, labels, n_classes)
                or _constant_shift(predicted, given)
                or _below_chance(predicted, given, n_classes)
            )
            if odd is None and self._are_logits and self._largest <= 1 + _SUM_TOLERANCE:
                odd = _unscaled(predicted, given, n_classes)
            messages += [odd] if odd else []
        self._rows.clear()
        return messages


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
