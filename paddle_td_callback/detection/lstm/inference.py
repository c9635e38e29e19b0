"""Log-odds of samples by the trained members of one stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DetectorError
from ..feature_table import FeatureTable
from .config import DetectorConfig, Weights
from .device import paddle_on, uses_numpy
from .numpy_network import log_odds

Compute = Callable[[NDArray[Any], NDArray[np.float32]], NDArray[Any]]


def mean_log_odds(
    config: DetectorConfig,
    members: Sequence[Weights],
    raw: NDArray[Any],
    features: FeatureTable,
    *,
    batch_size: int,
    device: str | None,
    on_batch: Callable[[int], object] = lambda n_samples: None,
) -> NDArray[np.float64]:
    """The mean of the members' log-odds that the label is wrong, `[sample]`; NaN = never seen.

    Args:
        config: of the stage.
        members: weights of each member.
        raw: trajectories `[sample, epoch, 3]`, checked.
        features: of these samples, with all features that the stage reads.
        batch_size: samples on the device at once.
        device: any Paddle device string; None = where Paddle is now.
        on_batch: called with the size of each batch done.

    Raises:
        DetectorError: the log-odds are not finite.
    """
    inputs = config.inputs
    scored = np.flatnonzero(inputs.scored(raw))
    odds = np.full(len(raw), np.nan)
    if not len(scored):
        return odds
    with _computing(config, members, device) as compute:
        for start in range(0, len(scored), batch_size):
            rows = scored[start : start + batch_size]
            odds[rows] = compute(raw[rows], network_features(config, features[rows]))
            on_batch(len(rows))
    n_bad = int((~np.isfinite(odds[scored])).sum())
    if n_bad:  # NaN would say that these were never seen
        raise DetectorError(
            f"the log-odds of {n_bad} of {len(scored)} samples are not finite: the weights are too large or "
            "damaged; train the detector again with a smaller learning_rate"
        )
    return odds


@contextlib.contextmanager
def _computing(config: DetectorConfig, members: Sequence[Weights], device: str | None) -> Iterator[Compute]:
    """What gives the members' mean log-odds `[sample]` of trajectories and features: NumPy, or Paddle on a device."""
    inputs, n_layers = config.inputs, config.n_layers
    if uses_numpy(device):

        def by_numpy(raw: NDArray[Any], features: NDArray[np.float32]) -> NDArray[Any]:
            channels = inputs.make(np.ascontiguousarray(raw, np.float32))
            return _mean([log_odds(channels, features, weights, n_layers) for weights in members])

        yield by_numpy
        return
    import paddle

    from .network import Network
    from .paddle_channels import as_tensor, make

    with paddle_on(device), paddle.no_grad():
        nets = [Network(config.architecture, weights) for weights in members]

        def by_paddle(raw: NDArray[Any], features: NDArray[np.float32]) -> NDArray[Any]:
            channels, columns = make(inputs, as_tensor(raw)), as_tensor(features)
            return _mean([net(channels, columns).numpy() for net in nets])

        yield by_paddle


def _mean(odds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.mean(odds, axis=0)
    return mean


def network_features(config: DetectorConfig, features: FeatureTable) -> NDArray[np.float32]:
    """What a stage's network reads of a table, `[sample, feature]`; 0 where a sample was never seen."""
    return np.nan_to_num(features.columns(config.dataset_features))
