"""The border of the store: what recording writes to, and what detection and export read from, on one page."""

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
    def n_epochs(self) -> int:
        """Committed epochs, dropped ones included."""

    def commit_epoch(
        self, index: int, epoch: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.int32]
    ) -> None:
        """Write one epoch; when this returns it is durable, if it raises nothing has changed."""

    def close(self) -> None:
        """Release the file."""


class RecordingReader(Protocol):
    """Gives committed epochs. `TrainingDynamicsStore(path)` opens one of a file."""

    path: str
    layout: Layout
    n_samples: int
    n_classes: int
    n_epochs: int
    keep: Keep

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """`[sample]`, -1 = never seen."""

    def tiles(self, max_bytes: int = 1 << 26, *, wide: bool = False) -> Iterator[slice]:
        """Slices over all samples, each as large as may be read at once."""

    def given_probabilities(self, samples: Any = None) -> npt.NDArray[np.float32]:
        """`[sample, epoch]`, NaN = unseen."""

    def margins(self, samples: Any = None) -> npt.NDArray[np.float32]:
        """`[sample, epoch]`, NaN = unseen."""

    def predictions(self, samples: Any = None) -> npt.NDArray[np.int32]:
        """`[sample, epoch]`, -1 = unseen."""

    def probabilities(self, samples: Any = None) -> npt.NDArray[Any]:
        """`[sample, epoch, class]`, NaN = unseen."""

    def top(self, samples: Any = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """The k most probable classes and their probabilities, `[sample, epoch, k]`."""

    def close(self) -> None:
        """Release the file."""
