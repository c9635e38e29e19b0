"""The sizes of the network, and from them the name and shape of every weight. NumPy only."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
