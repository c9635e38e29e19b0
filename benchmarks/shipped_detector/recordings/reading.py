"""What is kept of a recorded training: the arrays that detectors read, and the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = ("labels", "given_probabilities", "margins", "predictions", "right_labels")


@dataclass(frozen=True)
class Recording:
    """One recorded training whose right labels are known.

    Args:
        labels: int32 [sample], as given to the training.
        given_probabilities: float32 [sample, epoch].
        margins: float32 [sample, epoch].
        predictions: int32 [sample, epoch].
        right_labels: int32 [sample].
        about: Cell, recipe, group, number of classes, seconds.
    """

    labels: np.ndarray
    given_probabilities: np.ndarray
    margins: np.ndarray
    predictions: np.ndarray
    right_labels: np.ndarray
    about: dict[str, Any]

    @property
    def group(self) -> str:
        """What is left out together with it."""
        return str(self.about["group"])

    @property
    def is_mislabeled(self) -> np.ndarray:
        """Bool [sample]."""
        return self.labels != self.right_labels


def save(path: Path, recording: Recording) -> None:
    """Write a recording, whole or not at all."""
    fresh = path.with_suffix(".new.npz")
    arrays = {name: getattr(recording, name) for name in ARRAYS}
    np.savez_compressed(fresh, **arrays, about=np.array(json.dumps(recording.about)))
    fresh.replace(path)


def read(path: Path) -> Recording:
    """One recording."""
    with np.load(path) as file:
        return Recording(**{name: file[name] for name in ARRAYS}, about=json.loads(str(file["about"])))


def read_about(path: Path) -> dict[str, Any]:
    """What a recording is of, without its arrays."""
    with np.load(path) as file:
        about: dict[str, Any] = json.loads(str(file["about"]))
    return about


def recorded(folder: Path, pattern: str = "*") -> list[Path]:
    """The finished recordings of a folder, in the order of their names."""
    return sorted(path for path in folder.glob(f"{pattern}.npz") if not path.name.endswith(".new.npz"))
