"""The network for CPUs gives what Paddle's gives."""

import numpy as np
import paddle
import pytest

from paddle_td_callback.detection.lstm.config import Architecture
from paddle_td_callback.detection.lstm.network import Network
from paddle_td_callback.detection.lstm.numpy_network import ROWS, last_state, log_odds


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


@pytest.mark.parametrize("mix_sizes", [(), (7,), (16, 3)])
@pytest.mark.parametrize("n_features", [0, 4])
def test_the_whole_network_gives_what_paddles_gives(n_features: int, mix_sizes: tuple[int, ...]) -> None:
    architecture = Architecture(5, 32, 2, n_features, mix_sizes)
    rng = np.random.default_rng(0)
    weights = architecture.initial_weights(rng, -1.0)
    if n_features:
        weights["features_mean"] = rng.normal(size=n_features).astype(np.float32)
        weights["features_scale"] = rng.uniform(0.01, 2, n_features).astype(np.float32)  # some are clipped
    channels = rng.normal(size=(ROWS + 9, 6, 5)).astype(np.float32)
    features = rng.normal(size=(ROWS + 9, n_features)).astype(np.float32)
    with paddle.no_grad():
        wanted = Network(architecture, weights)(
            paddle.to_tensor(channels), paddle.to_tensor(features)
        ).numpy()
    found = log_odds(channels, features, weights, 2)
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    some = [3, ROWS + 2, 5]  # alone, a sample has the same score to the last bit
    np.testing.assert_array_equal(log_odds(channels[some], features[some], weights, 2), found[some])


def test_a_sample_that_is_no_number_spoils_no_other() -> None:
    network = network_of(5, 32, 1, 1)
    channels = np.zeros((20, 4, 5), np.float32)
    wanted = last_state(channels, network.weights(), 1)
    channels[7, 2, 3] = np.nan
    found = last_state(channels, network.weights(), 1)
    assert np.isnan(found[7]).all()
    np.testing.assert_array_equal(np.delete(found, 7, axis=0), np.delete(wanted, 7, axis=0))
