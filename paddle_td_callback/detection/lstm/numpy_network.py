"""The detector's network without gradients, for CPUs: two to four times as fast as Paddle's LSTM there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .config import FEATURE_LIMIT, Weights

Floats = NDArray[np.float32]

ROWS = 512  # samples at once: their gates stay in the cache


def log_odds(channels: Floats, features: Floats, weights: Weights, n_layers: int) -> Floats:
    """What `network.Network` gives: log-odds `[sample]`.

    Args:
        channels: `[sample, step, channel]` float32.
        features: `[sample, feature]` float32.
        weights: as `Architecture.shapes` names them.
        n_layers: of the LSTM.
    """
    if "features_mean" in weights:
        scaled = (features - weights["features_mean"]) / weights["features_scale"]
        features = np.clip(scaled, -FEATURE_LIMIT, FEATURE_LIMIT)
    state = np.concatenate([last_state(channels, weights, n_layers), features], axis=1, dtype=np.float32)
    for number in range(sum(name.startswith("mix_weight_") for name in weights)):
        state = _linear(state, weights[f"mix_weight_{number}"], weights[f"mix_bias_{number}"])
        np.maximum(state, 0, out=state)
    return _linear(state, weights["head_weight"], weights["head_bias"])[:, 0]


def _linear(inputs: Floats, weight: Floats, bias: Floats) -> Floats:
    """In blocks of one size, so that a sample's numbers do not depend on how many come with it."""
    outputs = np.empty((len(inputs), weight.shape[1]), np.float32)
    block = np.zeros((ROWS, inputs.shape[1]), np.float32)
    for start in range(0, len(inputs), ROWS):
        part = inputs[start : start + ROWS]
        block[: len(part)] = part
        outputs[start : start + ROWS] = (block @ weight + bias)[: len(part)]
    return outputs


def last_state(channels: Floats, weights: Weights, n_layers: int) -> Floats:
    """The last layer's state after the last step, `[sample, unit]` float32.

    Args:
        channels: `[sample, step, channel]` float32.
        weights: `weight_ih_l0` and so on, as `Architecture.shapes` names them.
        n_layers: number of layers.
    """
    layers = [_joined(weights, layer) for layer in range(n_layers)]
    n_samples, n_steps, n_channels = channels.shape
    states = np.empty((n_samples, len(layers[-1]) // 4), np.float32)
    for start in range(0, n_samples, ROWS):
        part = channels[start : start + ROWS]
        outputs = np.zeros((n_steps, n_channels, ROWS), np.float32)
        outputs[:, :, : len(part)] = part.transpose(1, 2, 0)
        for joined in layers:
            outputs = _outputs(outputs, joined)
        states[start : start + ROWS] = outputs[-1, :, : len(part)].T
    return states


def _joined(weights: Weights, layer: int) -> Floats:
    """All weights of a layer, `[gate, input and state and 1]`.

    Those of the sigmoids come first and are halved: sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so one tanh does all.
    """
    bias = weights[f"bias_ih_l{layer}"] + weights[f"bias_hh_l{layer}"]
    joined = np.hstack([weights[f"weight_ih_l{layer}"], weights[f"weight_hh_l{layer}"], bias[:, np.newaxis]])
    into, forget, cell, out = np.split(joined, 4)
    return np.vstack([into / 2, forget / 2, out / 2, cell]).astype(np.float32)


def _outputs(inputs: Floats, joined: Floats) -> Floats:
    """The states of a layer, `[step, unit, row]`, from inputs `[step, input, row]`."""
    n_steps, n_inputs, n_rows = inputs.shape
    size = len(joined) // 4
    outputs, gates = np.empty((n_steps, size, n_rows), np.float32), np.empty((4 * size, n_rows), np.float32)
    read = np.zeros((joined.shape[1], n_rows), np.float32)
    read[-1] = 1
    into, forget, out, new = np.split(gates, 4)
    cell, temporary = np.zeros((size, n_rows), np.float32), np.empty((size, n_rows), np.float32)
    for step in range(n_steps):
        read[:n_inputs] = inputs[step]
        np.matmul(joined, read, out=gates)
        np.tanh(gates, out=gates)
        gates[: 3 * size] *= 0.5
        gates[: 3 * size] += 0.5
        cell *= forget
        cell += np.multiply(into, new, out=temporary)
        np.multiply(out, np.tanh(cell, out=temporary), out=outputs[step])
        read[n_inputs:-1] = outputs[step]
    return outputs
