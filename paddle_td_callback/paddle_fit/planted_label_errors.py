"""PlantedLabelErrors: a data set in which a known, random share of the labels is wrong on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from ..dataset_names import nested
from ..errors import CaptureError


class PlantedLabelErrors(paddle.io.Dataset):  # type: ignore[misc]
    """A data set whose labels are as they were, but for a small random share that the training sees moved.

    How this very training treats labels that are known to be wrong tells what its scores mean. The recording notes
    which labels were moved, and `find_label_issues` calibrates the noise rate and the probabilities by them. The files
    of the data set stay as they are. Samples with a moved label are not scored, and test accuracy falls a little,
    since so many labels more are wrong.

    Make it the data set that `fit` gets, or the one of a `paddle.io.Subset`: within another wrapper, the recording
    cannot know of it, and its labels count as mistakes of the data.

    Example:
        ::

            model.fit(PlantedLabelErrors(train_data, n_classes=10), callbacks=[TrainingDynamicsCallback("run.h5")], ...)
            print(find_label_issues("run.h5"))

    Args:
        dataset: with items `(input, ..., label)` or dictionaries, read by index.
        n_classes: number of classes.
        fraction: share of the samples whose label is moved to another class, above 0 and at most 0.5.
        seed: of which samples and classes these are.
        label: where an item holds its label: a place such as -1, the last, or a key.

    Attributes:
        label_shifts: int64 `[sample]`, by how many classes a label is moved, 0 = not: the training sees
            `(label + label_shifts) % n_classes`.

    Raises:
        ValueError: an argument out of range, or so few samples that none would be moved.
        TypeError: a data set without a length.
    """

    def __init__(
        self, dataset: Any, n_classes: int, fraction: float = 0.02, *, seed: int = 0, label: int | str = -1
    ) -> None:
        super().__init__()
        if not 0 < fraction <= 0.5:
            raise ValueError(f"fraction must be above 0 and at most 0.5, got {fraction}")
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        n_moved = round(fraction * len(dataset))
        if n_moved < 1:
            raise ValueError(
                f"fraction={fraction} of {len(dataset)} samples is none; give a larger fraction, such as "
                f"fraction={1 / max(2, len(dataset)):.2g}"
            )
        rng = np.random.default_rng(seed)
        moved = rng.permutation(len(dataset))[:n_moved]
        self.dataset, self.n_classes, self.label = dataset, n_classes, label
        self.label_shifts = np.zeros(len(dataset), np.int64)
        self.label_shifts[moved] = rng.integers(1, n_classes, n_moved)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item, shift = self.dataset[index], int(self.label_shifts[index])
        if not shift:
            return item
        if isinstance(item, Mapping):
            return {**item, self.label: self._moved(item[self.label], shift, index)}
        fields = list(item)
        place = range(len(fields))[int(self.label)]
        fields[place] = self._moved(fields[place], shift, index)
        return type(item)(fields) if type(item) in (tuple, list) else tuple(fields)

    def _moved(self, label: Any, shift: int, index: int) -> Any:
        """The label of another class, in the form that it had."""
        old = int(np.asarray(label).item())
        if old < 0:  # of no class, as `ignore_index`
            return label
        if old >= self.n_classes:
            raise ValueError(
                f"labels must be in [0, {self.n_classes}), got {old} for sample {index}; give n_classes= of the data"
            )
        new = (old + shift) % self.n_classes
        if isinstance(label, paddle.Tensor):
            return paddle.full_like(label, new)
        if isinstance(label, np.ndarray):
            return np.full_like(label, new)
        return type(label)(new)


def label_shifts_of(
    dataset: Any, n_samples: int, n_classes: int, *, has_labels: bool
) -> npt.NDArray[np.int64] | None:
    """The label shifts of a `PlantedLabelErrors`, or of a subset of one; None = of another data set.

    Args:
        dataset: that is trained on.
        n_samples: of the recording.
        n_classes: of the network.
        has_labels: whether the callback was given `labels=`.

    Raises:
        CaptureError: they are not those of what is recorded.
    """
    for planted, chosen, _ in nested(dataset):
        if isinstance(planted, PlantedLabelErrors):
            shifts = planted.label_shifts if chosen is None else planted.label_shifts[chosen]
            if len(shifts) == n_samples and planted.n_classes == n_classes and not has_labels:
                return shifts
            raise CaptureError(
                f"PlantedLabelErrors moves labels of {len(shifts)} samples and {planted.n_classes} classes, and the "
                f"network is trained on {n_samples} samples and {n_classes} classes"
                f"{', with labels= of the callback' if has_labels else ''}; give it the whole data set and n_classes= "
                "of the network, and leave out labels="
            )
    return None
