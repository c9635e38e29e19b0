"""FeatureTable: named features of the samples of a recording. Every column is found by its name, never by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureTable:
    """Features of each sample, and of the recording as a whole.

    A slice of samples keeps what was computed from all of them.

    Args:
        of_sample: float32 `[sample]` by name, NaN where a sample was never seen.
        of_recording: one number by name.
        labels: integers `[sample]`, the given labels; -1 = never seen.
        others: integers `[sample]`, the wrong class that was predicted most often; -1 = none.
        n_whole: number of samples in the recording; None = as many as there are here.
    """

    of_sample: Mapping[str, Array]
    of_recording: Mapping[str, float]
    labels: Ints
    others: Ints
    n_whole: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, samples: slice | ArrayLike) -> FeatureTable:
        rows = samples if isinstance(samples, slice) else np.asarray(samples)
        of_sample = {name: column[rows] for name, column in self.of_sample.items()}
        n_whole = len(self) if self.n_whole is None else self.n_whole
        return FeatureTable(of_sample, self.of_recording, self.labels[rows], self.others[rows], n_whole)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all features, those of single samples first."""
        return (*self.of_sample, *self.of_recording)

    @property
    def is_slice(self) -> bool:
        """Whether samples of the recording are missing here."""
        return self.n_whole is not None and len(self) != self.n_whole

    def agrees(self, other: FeatureTable) -> bool:
        """Whether these are the same samples: equal labels, and equal numbers in all features that both have."""
        names = self.of_sample.keys() & other.of_sample.keys()
        return (
            np.array_equal(self.labels, other.labels)
            and np.array_equal(self.others, other.others)
            and all(np.array_equal(self.of_sample[n], other.of_sample[n], equal_nan=True) for n in names)
        )

    def with_more(self, of_sample: Mapping[str, Array], of_recording: Mapping[str, float]) -> FeatureTable:
        """The same table with further features."""
        return replace(
            self,
            of_sample={**self.of_sample, **of_sample},
            of_recording={**self.of_recording, **of_recording},
        )

    def columns(self, names: Sequence[str]) -> Array:
        """float32 `[sample, name]`.

        Raises:
            KeyError: the table has no feature of that name.
        """
        made = np.empty((len(self), len(names)), np.float32)
        for k, name in enumerate(names):
            made[:, k] = self.of_recording[name] if name in self.of_recording else self.of_sample[name]
        return made


def spread_over(known: Ints, n_samples: int, values: NDArray[Any]) -> Array:
    """One feature of all samples: float32 `[sample]`, `values` at the samples `known`, NaN elsewhere."""
    column = np.full(n_samples, np.nan, np.float32)
    column[known] = values
    return column
