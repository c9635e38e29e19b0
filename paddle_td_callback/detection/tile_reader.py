"""TileReader: some samples of a recording, each field read at most once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.border import RecordingReader


class TileReader:
    """The fields of some samples, read from the file when they are first asked for.

    Args:
        store: a recording.
        samples: which samples.
    """

    def __init__(self, store: RecordingReader, samples: slice) -> None:
        self._store, self.samples = store, samples
        self.keep, self.n_classes = store.keep, store.n_classes

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """`[sample]`, -1 = never seen."""
        return self._store.labels[self.samples]

    @cached_property
    def given_probabilities(self) -> npt.NDArray[np.float32]:
        """`[sample, epoch]`, NaN = unseen."""
        return self._store.given_probabilities(self.samples)

    @cached_property
    def margins(self) -> npt.NDArray[np.float32]:
        """`[sample, epoch]`, NaN = unseen."""
        return self._store.margins(self.samples)

    @cached_property
    def predictions(self) -> npt.NDArray[np.int32]:
        """`[sample, epoch]`, -1 = unseen."""
        return self._store.predictions(self.samples)

    @cached_property
    def probabilities(self) -> npt.NDArray[Any]:
        """`[sample, epoch, class]`, NaN = unseen; only with `keep="all"`."""
        return self._store.probabilities(self.samples)

    @cached_property
    def top(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Classes and probabilities `[sample, epoch, k]`; only with `keep=k`."""
        return self._store.top(self.samples)
