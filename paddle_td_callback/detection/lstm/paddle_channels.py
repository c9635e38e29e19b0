"""The channels of `channels` on a device: what stands there in NumPy, with Paddle's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from ..interpolate import resampling_table
from .channels import LOG_FLOOR, LOG_UNIT, Inputs

Tensor = Any  # Paddle 2.6 ships no type hints


class PaddleSteps:
    """Steps of resampled trajectories; see `channels.Steps`."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def column(self, place: int) -> Tensor:
        """`[sample, step]`."""
        return self._values[:, :, place]

    def log(self, probability: Tensor) -> Tensor:
        """Logarithm in units of `LOG_UNIT`."""
        return paddle.log(paddle.clip(probability, min=LOG_FLOOR)) / LOG_UNIT

    def time(self) -> Tensor:
        """From 0 in the first step to 1 in the last, `[sample, step]`."""
        time = np.linspace(0.0, 1.0, self._values.shape[1], dtype=np.float32)
        return paddle.expand(_on_place_of(self._values, time), self._values.shape[:2])


def make(inputs: Inputs, raw: Tensor) -> Tensor:
    """Channels `[sample, step, channel]` as `Inputs.make` gives them.

    Args:
        inputs: which channels, and how many steps.
        raw: `[sample, epoch, 3]`, samples that were seen at least once.
    """
    seen = paddle.logical_not(paddle.isnan(raw[:, :, 0])).astype("float32")
    steps = paddle.concat([fill_missed_epochs(raw), seen.unsqueeze(2)], axis=2)
    if inputs.n_steps is not None:
        steps = resample(steps, inputs.n_steps)
    read = PaddleSteps(steps)
    return paddle.stack([channel.of(read) for channel in inputs.channels], axis=2)


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
