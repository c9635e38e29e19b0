"""The border of the store: what recording writes to, and what detection and export read from, on one page."""

# ruff: noqa: D102 (methods are described in `commits.py` and `reader.py`)
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .schema import Keep, Layout


class RecordingWriter(Protocol):
    """Takes whole epochs. `StoreWriter.create` and `StoreWriter.resume` make one of a file."""

    path: str
    layout: Layout
    labels: npt.NDArray[np.int32]  # [sample], -1 = never seen

    @property
    def n_epochs(self) -> int: ...
    def commit_epoch(
        self, index: int, epoch: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.int32]
    ) -> None: ...
    def close(self) -> None: ...


class RecordingReader(Protocol):
    """Gives committed epochs. `TrainingDynamicsStore(path)` opens one of a file.

    Numbers are `[sample, epoch]`, probabilities `[sample, epoch, class]`, top `[sample, epoch, k]`, of all samples or
    of those asked for. What was not seen is NaN or -1.
    """

    path: str
    layout: Layout
    n_samples: int
    n_classes: int
    n_epochs: int
    keep: Keep

    @property
    def labels(self) -> npt.NDArray[np.int32]: ...  # [sample], -1 = never seen
    def tiles(self, max_bytes: int = 1 << 26, *, wide: bool = False) -> Iterator[slice]: ...
    def given_probabilities(self, samples: Any = None) -> npt.NDArray[np.float32]: ...
    def margins(self, samples: Any = None) -> npt.NDArray[np.float32]: ...
    def predictions(self, samples: Any = None) -> npt.NDArray[np.int32]: ...
    def probabilities(self, samples: Any = None) -> npt.NDArray[Any]: ...
    def top(self, samples: Any = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]: ...
    def close(self) -> None: ...
