"""The detector's network in Paddle, for training and for devices. Weights come and go as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from numpy.typing import NDArray

from .config import FEATURE_LIMIT, Architecture, Weights
from .paddle_channels import Tensor


class Network(paddle.nn.Layer):  # type: ignore[misc]  # Paddle is untyped for us
    """LSTM over steps; its last state, with the features through hidden layers, gives one log-odds."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__(dtype="float32")
        zero = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.0))  # draws no random numbers
        self.lstm = paddle.nn.LSTM(
            architecture.n_channels,
            architecture.hidden_size,
            architecture.n_layers,
            weight_ih_attr=zero,
            weight_hh_attr=zero,
            bias_ih_attr=zero,
            bias_hh_attr=zero,
        )
        self.mix = paddle.nn.LayerList(
            [paddle.nn.Linear(n_inputs, n_units, zero, zero) for n_inputs, n_units in architecture.mixed]
        )
        self.head = paddle.nn.Linear(architecture.n_mixed, 1, zero, zero)
        # What brings the features to mean 0 and scale 1; measured, not trained. Files have it by these names.
        self.measured = {
            name: weights[name] for name in ("features_mean", "features_scale") if name in weights
        }
        for name, parameter in self._by_name().items():
            parameter.set_value(weights[name])

    def forward(self, channels: Tensor, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Log-odds [sample] from channels [sample, step, channel] and features [sample, feature].

        `kept` [sample, state and features] multiplies what the last layers are given.
        """
        if self.measured:
            mean = paddle.to_tensor(self.measured["features_mean"])
            scale = paddle.to_tensor(self.measured["features_scale"])
            features = ((features - mean) / scale).clip(-FEATURE_LIMIT, FEATURE_LIMIT)
        state = paddle.concat([self.lstm(channels)[0][:, -1], features], axis=1)
        if kept is not None:
            state = state * kept
        for layer in self.mix:
            state = paddle.nn.functional.relu(layer(state))
        return self.head(state)[:, 0]

    def measure(self, features: Sequence[NDArray[np.float32]]) -> None:
        """Take mean and scale of the features from arrays `[sample, feature]`, if the network reads features."""
        if self.measured:
            values = np.concatenate(features)
            scale = np.maximum(values.std(axis=0), 1e-3)
            self.measured = {"features_mean": values.mean(axis=0), "features_scale": scale}

    def weights(self) -> Weights:
        """Copies of all weights by the names of `Architecture.shapes`."""
        return {name: parameter.numpy().copy() for name, parameter in self._by_name().items()} | self.measured

    def _by_name(self) -> dict[str, Tensor]:
        named = {
            f"{kind}_l{layer}": getattr(self.lstm, f"{kind}_l{layer}")
            for layer in range(self.lstm.num_layers)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        for number, layer in enumerate(self.mix):
            named[f"mix_weight_{number}"], named[f"mix_bias_{number}"] = layer.weight, layer.bias
        named["head_weight"], named["head_bias"] = self.head.weight, self.head.bias
        return named
