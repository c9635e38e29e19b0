"""The LSTM for CPUs gives what Paddle's gives."""

import numpy as np
import paddle
import pytest

from paddle_td_callback.detection.lstm.config import Architecture
from paddle_td_callback.detection.lstm.network import Network
from paddle_td_callback.detection.lstm.numpy_lstm import ROWS, last_state


def network_of(n_channels: int, hidden_size: int, n_layers: int, scale: int) -> Network:
    architecture = Architecture(n_channels, hidden_size, n_layers, 0)
    weights = architecture.initial_weights(np.random.default_rng(0), 0.0)
    return Network(architecture, {name: scale * array for name, array in weights.items()})


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("n_channels", "hidden_size", "n_layers"), [(5, 32, 1), (1, 64, 2), (3, 1, 3)])
@pytest.mark.parametrize(("n_samples", "n_steps"), [(1, 1), (ROWS, 12), (ROWS + 1, 3)])
def test_it_gives_what_paddle_gives(
    n_channels: int, hidden_size: int, n_layers: int, n_samples: int, n_steps: int, scale: int
) -> None:
    network = network_of(n_channels, hidden_size, n_layers, scale)
    rng = np.random.default_rng(1)
    channels = rng.normal(size=(n_samples, n_steps, n_channels)).astype(np.float32)
    wanted = network.lstm(paddle.to_tensor(channels))[0][:, -1].numpy()
    found = last_state(channels, network.weights(), n_layers)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6 * scale**3)


def test_a_network_without_gradients_uses_it() -> None:
    network = network_of(5, 32, 1, 1)
    channels = paddle.to_tensor(np.random.default_rng(1).normal(size=(700, 9, 5)).astype(np.float32))
    features = paddle.zeros([700, 0])
    with_gradients = network(channels, features)
    with paddle.no_grad():
        without = network(channels, features)
    assert not with_gradients.stop_gradient
    np.testing.assert_allclose(without.numpy(), with_gradients.numpy(), atol=2e-6)


def test_a_sample_that_is_no_number_spoils_no_other() -> None:
    network = network_of(5, 32, 1, 1)
    channels = np.zeros((20, 4, 5), np.float32)
    wanted = last_state(channels, network.weights(), 1)
    channels[7, 2, 3] = np.nan
    found = last_state(channels, network.weights(), 1)
    assert np.isnan(found[7]).all()
    np.testing.assert_array_equal(np.delete(found, 7, axis=0), np.delete(wanted, 7, axis=0))
