"""What the detector's LSTM reads: named channels per step, made on the device.

Everything here takes and gives Paddle tensors. Raw trajectories are [sample, epoch, 3] with the last axis
(probability of the given label, largest other probability, predicted right 0 or 1). No channel knows which
class is which or how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray

from ..interpolate import resampling_table

Tensor = Any  # Paddle 2.6 ships no type hints

LOG_FLOOR = 1e-7  # what a probability is raised to before its logarithm is taken
LOG_UNIT = 4.0  # nats; keeps logarithms in the range of the other channels


def _log(probability: Tensor) -> Tensor:
    return paddle.log(paddle.clip(probability, min=LOG_FLOOR)) / LOG_UNIT


class _Channel(NamedTuple):
    columns: tuple[int, ...]  # of the raw trajectories: a sample needs one seen value in each
    of: Callable[..., Tensor]


# Per step, from resampled trajectories [sample, step, (given, largest other, right, seen)].
CHANNELS: dict[str, _Channel] = {
    "given": _Channel((0,), lambda x: x[:, :, 0]),
    "largest_other": _Channel((1,), lambda x: x[:, :, 1]),
    "predicted_right": _Channel((2,), lambda x: x[:, :, 2]),
    "log_given": _Channel((0,), lambda x: _log(x[:, :, 0])),
    "log_other": _Channel((1,), lambda x: _log(x[:, :, 1])),
    "log_not_given": _Channel((0,), lambda x: _log(1.0 - x[:, :, 0])),
    "log_ratio": _Channel((0, 1), lambda x: _log(x[:, :, 0]) - _log(x[:, :, 1])),
    "seen": _Channel((0,), lambda x: x[:, :, 3]),
    "time": _Channel((), lambda x: _time(x)),
}


class Inputs:
    """The channels of one detector, and how to make them.

    Args:
        channels: names in `CHANNELS`, at least one.
        n_steps: length to which trajectories are resampled; None = the epochs as they are.
    """

    def __init__(self, channels: Sequence[str], n_steps: int | None) -> None:
        self.n_steps = n_steps
        self._channels = [CHANNELS[name] for name in channels]
        self.columns = sorted({column for channel in self._channels for column in channel.columns}) or [0]

    def scored(self, raw: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples [sample] of [sample, epoch, 3] were seen at least once, in every column that is read."""
        seen = ~np.isnan(raw[:, :, self.columns])
        scored: NDArray[np.bool_] = np.all(seen.any(axis=1), axis=1)
        return scored

    def make(self, raw: Tensor) -> Tensor:
        """Channels [sample, step, channel].

        Args:
            raw: [sample, epoch, 3], samples that were seen at least once.
        """
        seen = paddle.logical_not(paddle.isnan(raw[:, :, 0])).astype("float32")
        steps = paddle.concat([fill_missed_epochs(raw), seen.unsqueeze(2)], axis=2)
        if self.n_steps is not None:
            steps = resample(steps, self.n_steps)
        return paddle.stack([channel.of(steps) for channel in self._channels], axis=2)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array as float32, where Paddle is."""
    return paddle.to_tensor(np.ascontiguousarray(array, np.float32))


def fill_missed_epochs(values: Tensor) -> Tensor:
    """The same as `interpolate.fill_missed_epochs`, on the device: [sample, epoch, channel]."""
    seen = paddle.logical_not(paddle.isnan(values))
    if bool(seen.all()):
        return values
    n_epochs = values.shape[1]
    epoch = paddle.arange(n_epochs, dtype="int64").reshape([1, n_epochs, 1])
    epochs = paddle.expand(epoch, values.shape)
    before = paddle.cummax(paddle.where(seen, epochs, paddle.full_like(epochs, -1)), axis=1)[0]
    backwards = paddle.flip(paddle.where(seen, -epochs, paddle.full_like(epochs, -n_epochs)), axis=[1])
    after = -paddle.flip(paddle.cummax(backwards, axis=1)[0], axis=[1])
    # Ends are held by using their one neighbour twice; a channel without any neighbour stays NaN.
    left = paddle.where(before < 0, after, before).clip(0, n_epochs - 1)
    right = paddle.where(after >= n_epochs, before, after).clip(0, n_epochs - 1)
    weight = (epochs - left).astype("float32") / (right - left).clip(min=1).astype("float32")
    start = paddle.take_along_axis(values, left, axis=1)
    stop = paddle.take_along_axis(values, right, axis=1)
    return paddle.where(seen, values, start + (stop - start) * weight)


def resample(values: Tensor, n_steps: int) -> Tensor:
    """The same as `interpolate.resample`, on the device: axis 1 becomes `n_steps` long."""
    left, right, weight = resampling_table(values.shape[1], n_steps)
    share = weight.astype(np.float32).reshape(-1, *[1] * (len(values.shape) - 2))
    start = paddle.index_select(values, _on_place_of(values, left), axis=1)
    stop = paddle.index_select(values, _on_place_of(values, right), axis=1)
    return start + (stop - start) * _on_place_of(values, share)


def _on_place_of(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    return paddle.to_tensor(array, place=tensor.place)


def _time(x: Tensor) -> Tensor:
    n_steps = x.shape[1]
    time = np.linspace(0.0, 1.0, n_steps, dtype=np.float32)
    return paddle.expand(_on_place_of(x, time), x.shape[:2])
