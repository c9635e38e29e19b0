"""What the detector's LSTM reads: named channels per step.

Raw trajectories are [sample, epoch, 3] with the last axis (probability of the given label, largest other probability,
predicted right 0 or 1). No channel knows which class is which or how many there are. Here they are made with NumPy, in
`paddle_channels` on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..interpolate import fill_missed_epochs, resample

LOG_FLOOR = 1e-7  # what a probability is raised to before its logarithm is taken
LOG_UNIT = 4.0  # nats; keeps logarithms in the range of the other channels


class Steps(Protocol):
    """Resampled trajectories `[sample, step, (given, largest other, right, seen)]`, in some array library."""

    def column(self, place: int) -> Any:
        """`[sample, step]`."""

    def log(self, probability: Any) -> Any:
        """Logarithm in units of `LOG_UNIT`."""

    def time(self) -> Any:
        """From 0 in the first step to 1 in the last, `[sample, step]`."""


class Channel(NamedTuple):
    """One number per step.

    Attributes:
        columns: of the raw trajectories: a sample needs one seen value in each.
        of: makes it of the steps.
    """

    columns: tuple[int, ...]
    of: Callable[[Steps], Any]


CHANNELS: dict[str, Channel] = {
    "given": Channel((0,), lambda x: x.column(0)),
    "largest_other": Channel((1,), lambda x: x.column(1)),
    "predicted_right": Channel((2,), lambda x: x.column(2)),
    "log_given": Channel((0,), lambda x: x.log(x.column(0))),
    "log_other": Channel((1,), lambda x: x.log(x.column(1))),
    "log_not_given": Channel((0,), lambda x: x.log(1.0 - x.column(0))),
    "log_ratio": Channel((0, 1), lambda x: x.log(x.column(0)) - x.log(x.column(1))),
    "seen": Channel((0,), lambda x: x.column(3)),
    "time": Channel((), lambda x: x.time()),
}


class NumpySteps:
    """Steps as a NumPy array, float32."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def column(self, place: int) -> NDArray[np.float32]:
        """`[sample, step]`."""
        return self._values[:, :, place]

    def log(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logarithm in units of `LOG_UNIT`."""
        logarithm: NDArray[np.float32] = np.log(np.maximum(probability, np.float32(LOG_FLOOR)))
        return logarithm / np.float32(LOG_UNIT)

    def time(self) -> NDArray[np.float32]:
        """From 0 in the first step to 1 in the last, `[sample, step]`."""
        n_samples, n_steps = self._values.shape[:2]
        return np.broadcast_to(np.linspace(0.0, 1.0, n_steps, dtype=np.float32), (n_samples, n_steps))


class Inputs:
    """The channels of one detector, and how to make them.

    Args:
        channels: names in `CHANNELS`, at least one.
        n_steps: length to which trajectories are resampled; None = the epochs as they are.
    """

    def __init__(self, channels: Sequence[str], n_steps: int | None) -> None:
        self.n_steps = n_steps
        self.channels = [CHANNELS[name] for name in channels]
        self.columns = sorted({column for channel in self.channels for column in channel.columns}) or [0]

    def scored(self, raw: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples [sample] of [sample, epoch, 3] were seen at least once, in every column that is read."""
        seen = ~np.isnan(raw[:, :, self.columns])
        scored: NDArray[np.bool_] = np.all(seen.any(axis=1), axis=1)
        return scored

    def make(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Channels `[sample, step, channel]`.

        Args:
            raw: `[sample, epoch, 3]`, samples that were seen at least once.
        """
        seen = ~np.isnan(raw[:, :, :1])
        steps = np.concatenate([fill_missed_epochs(raw), seen], axis=2, dtype=np.float32)
        if self.n_steps is not None:
            steps = resample(steps, self.n_steps)
        read = NumpySteps(steps)
        return np.stack([channel.of(read) for channel in self.channels], axis=2)
