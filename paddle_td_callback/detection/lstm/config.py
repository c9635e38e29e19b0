"""What a NoiseDetector reads and how large its network is: names and sizes, checked, and the shapes of the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import whole
from ..dataset_features import feature_names
from . import first_pass_features
from .channels import CHANNELS, Inputs

MAX_STAGES = 4
FEATURE_LIMIT = 6.0  # standard deviations that a feature may be off its mean
Weights = dict[str, NDArray[np.float32]]


class Architecture(NamedTuple):
    """The sizes that settle the shape of every weight."""

    n_channels: int
    hidden_size: int
    n_layers: int
    n_features: int
    mix_sizes: tuple[int, ...] = ()  # layers that mix the last state with the features of the data set

    @property
    def mixed(self) -> list[tuple[int, int]]:
        """Inputs and units of each mixing layer."""
        return list(itertools.pairwise((self.hidden_size + self.n_features, *self.mix_sizes)))

    @property
    def n_mixed(self) -> int:
        """What the head reads."""
        return self.mix_sizes[-1] if self.mix_sizes else self.hidden_size + self.n_features

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights, in the order in which they are initialised."""
        shapes: dict[str, tuple[int, ...]] = {}
        gates = 4 * self.hidden_size
        for layer in range(self.n_layers):
            shapes[f"weight_ih_l{layer}"] = (gates, self.hidden_size if layer else self.n_channels)
            shapes[f"weight_hh_l{layer}"] = (gates, self.hidden_size)
            shapes[f"bias_ih_l{layer}"] = shapes[f"bias_hh_l{layer}"] = (gates,)
        if self.n_features:
            shapes["features_mean"] = shapes["features_scale"] = (self.n_features,)
        for number, (n_inputs, n_units) in enumerate(self.mixed):
            shapes[f"mix_weight_{number}"] = (n_inputs, n_units)
            shapes[f"mix_bias_{number}"] = (n_units,)
        return shapes | {"head_weight": (self.n_mixed, 1), "head_bias": (1,)}

    def initial_weights(self, rng: np.random.Generator, log_odds: float) -> Weights:
        """Random weights; the output starts at about `log_odds`."""
        bound = 1 / math.sqrt(self.hidden_size)
        weights = {name: rng.uniform(-bound, bound, shape) for name, shape in self.shapes().items()}
        weights["head_bias"] += log_odds
        if self.n_features:
            weights["features_mean"], weights["features_scale"] = (
                np.zeros(self.n_features),
                np.ones(self.n_features),
            )
        return {name: array.astype(np.float32) for name, array in weights.items()}


@dataclass(frozen=True)
class DetectorConfig:
    """Names and sizes of one stage of a detector; the arguments are those of `NoiseDetector`.

    Raises:
        ValueError: an unknown name, or a size out of its range.
    """

    channels: tuple[str, ...]
    n_steps: int | None
    hidden_size: int
    n_layers: int
    n_members: int
    dataset_features: tuple[str, ...]
    mix_sizes: tuple[int, ...]

    @classmethod
    def checked(
        cls,
        *,
        channels: Iterable[str],
        n_steps: int | None,
        hidden_size: int,
        n_layers: int,
        n_members: int,
        dataset_features: Iterable[str],
        mix_sizes: Iterable[int] | None,
        is_first: bool,
    ) -> DetectorConfig:
        """The configuration, or a ValueError that names what is wrong.

        Args:
            channels: see `NoiseDetector`, and so are the others.
            n_steps: see there.
            hidden_size: see there.
            n_layers: see there.
            n_members: see there.
            dataset_features: see there.
            mix_sizes: see there.
            is_first: whether no stage runs before this one.
        """
        known = (*feature_names(), *(() if is_first else first_pass_features.feature_names()))
        hidden_size = whole(hidden_size, "hidden_size")
        features = _names(dataset_features, "dataset_features", known)
        if mix_sizes is None:
            mix_sizes = (hidden_size,) if features else ()
        if not hasattr(mix_sizes, "__iter__"):
            raise ValueError(f"mix_sizes must be a sequence of whole numbers, got {mix_sizes!r}")
        config = cls(
            channels=_names(channels, "channels", tuple(CHANNELS)),
            n_steps=None if n_steps is None else whole(n_steps, "n_steps"),
            hidden_size=hidden_size,
            n_layers=whole(n_layers, "n_layers"),
            n_members=whole(n_members, "n_members"),
            dataset_features=features,
            mix_sizes=tuple(whole(size, "mix_sizes") for size in mix_sizes),
        )
        if not config.channels:
            raise ValueError("channels is empty; give at least one name")
        return config

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], *, is_first: bool) -> DetectorConfig:
        """The configuration that `as_json` gave, checked as if a user had written it.

        Raises:
            KeyError: a field is missing.
            ValueError: a field is wrong.
        """
        return cls.checked(**{field.name: stored[field.name] for field in fields(cls)}, is_first=is_first)

    def as_json(self) -> dict[str, Any]:
        """What a detector's file holds of it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def architecture(self) -> Architecture:
        """The sizes of the network."""
        return Architecture(
            n_channels=len(self.channels),
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            n_features=len(self.dataset_features),
            mix_sizes=self.mix_sizes,
        )

    @property
    def inputs(self) -> Inputs:
        """What makes the channels."""
        return Inputs(self.channels, self.n_steps)


def _names(names: Any, argument: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise ValueError(f"{argument} must be a list or tuple of names, got {names!r}")
    allowed = frozenset(known)
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise ValueError(f"{argument} must be names of {', '.join(known)}, got {name!r}")
    return tuple(names)
