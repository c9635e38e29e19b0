"""For cleanlab: its columns, and `pred_probs` of the recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..detection.label_issues import LabelIssues
from ..store import TrainingDynamicsStore


def to_cleanlab(issues: LabelIssues) -> dict[str, npt.NDArray[Any]]:
    """The columns that cleanlab's users know, each `[sample]`; `pandas.DataFrame(to_cleanlab(issues))` has them all.

    Returns:
        `is_label_issue`, `label_quality` (low = bad, NaN = never seen), `given_label`, and `predicted_label`, which is
        the suggested one where the label looks wrong and the given one elsewhere.
    """
    wrong = issues.is_label_issue & (issues.suggested_label >= 0)
    return {
        "is_label_issue": issues.is_label_issue,
        "label_quality": issues.label_quality,
        "given_label": issues.given_label,
        "predicted_label": np.where(wrong, issues.suggested_label, issues.given_label),
    }


def pred_probs(store: TrainingDynamicsStore, epochs: Any = None) -> npt.NDArray[np.float32]:
    """Class probabilities for cleanlab's `find_label_issues(labels, pred_probs)` and `Datalab.find_issues`.

    Which epochs: cleanlab expects probabilities of samples that were not trained on. These are of samples that
    were, so a network that fits its labels is sure of wrong ones too, and more so with every epoch. The mean over
    all epochs, the default, keeps the early ones, in which wrong labels are not fitted yet. On 20,000 samples of
    Fashion-MNIST with a tenth of the labels changed, cleanlab's ranking had an average precision of 0.948 by
    the mean of all epochs, 0.946 by that of the first half, 0.937 by that of the second half, and 0.908 by the last
    epoch alone. For a network that fits everything soon, give the epochs before that, such as `range(5)`. Probabilities
    by cross-validation are what cleanlab recommends, and cost several trainings.

    Args:
        store: a recording with `keep="all"`.
        epochs: None for all, one number (-1 is the last), a slice, or several numbers.

    Returns:
        `[sample, class]` float32, rows sum to 1; NaN for samples that were not seen in these epochs.

    Raises:
        StoreError: the recording does not hold the probabilities of all classes.
        ValueError: no such epochs.
    """
    every = np.arange(store.n_epochs)
    try:
        chosen = np.atleast_1d(
            every if epochs is None else every[epochs if isinstance(epochs, slice) else np.asarray(epochs)]
        )
    except IndexError:
        chosen = every[:0]
    if not len(chosen):
        raise ValueError(
            f"epochs={epochs!r} names none of the {store.n_epochs} epochs of '{store.path}'; give some of them"
        )
    result = np.full((store.n_samples, store.n_classes), np.nan, np.float32)
    for tile in store.tiles(wide=True):
        probabilities = store.probabilities(tile)
        total = np.zeros((tile.stop - tile.start, store.n_classes), np.float32)
        for epoch in chosen:  # one at a time: float32 of all epochs would be twice what is read
            total += np.nan_to_num(probabilities[:, epoch].astype(np.float32))
        sums = total.sum(axis=1, keepdims=True)
        np.divide(total, sums, out=result[tile], where=sums > 0)
    return result
