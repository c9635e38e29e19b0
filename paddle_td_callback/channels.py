"""What the detector's LSTM is told: named channels per step and summaries per sample, made on the device.

Everything here takes and gives Paddle tensors. Raw trajectories are [sample, epoch, 3] with the last axis
(probability of the given label, largest other probability, predicted right 0 or 1). No channel knows which
class is which or how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray

from .interpolate import resampling_table

Tensor = Any  # Paddle 2.6 ships no type hints
Context = dict[str, NDArray[np.float32]]

CONTEXT_LIMIT = 10_000  # samples from which the quantile tables are taken
N_QUANTILES = 101
LOG_FLOOR = 1e-7  # what a probability is raised to before its logarithm is taken
LOG_UNIT = 4.0  # nats; keeps logarithms in the range of the other channels


def _log(probability: Tensor) -> Tensor:
    return paddle.log(paddle.clip(probability, min=LOG_FLOOR)) / LOG_UNIT


class _Quantity(NamedTuple):
    columns: tuple[int, ...]  # of the raw trajectories: a sample needs one seen value in each
    of: Callable[..., Tensor]


# Per step, from resampled trajectories [sample, step, (given, largest other, right, seen)].
CHANNELS: dict[str, _Quantity] = {
    "given": _Quantity((0,), lambda x: x[:, :, 0]),
    "largest_other": _Quantity((1,), lambda x: x[:, :, 1]),
    "predicted_right": _Quantity((2,), lambda x: x[:, :, 2]),
    "log_given": _Quantity((0,), lambda x: _log(x[:, :, 0])),
    "log_other": _Quantity((1,), lambda x: _log(x[:, :, 1])),
    "log_not_given": _Quantity((0,), lambda x: _log(1.0 - x[:, :, 0])),
    "log_ratio": _Quantity((0, 1), lambda x: _log(x[:, :, 0]) - _log(x[:, :, 1])),
    "seen": _Quantity((0,), lambda x: x[:, :, 3]),
    "time": _Quantity((), lambda x: _time(x)),
}

# Per sample, from filled trajectories [sample, epoch, 3] and what was seen of them [sample, epoch] (0 or 1).
SUMMARIES: dict[str, _Quantity] = {
    "confidence": _Quantity((0,), lambda x, seen: _mean(x[:, :, 0], seen)),
    "variability": _Quantity((0,), lambda x, seen: _deviation(x[:, :, 0], seen)),
    "other_confidence": _Quantity((1,), lambda x, seen: _mean(x[:, :, 1], seen)),
    "correctness": _Quantity((2,), lambda x, seen: _mean(x[:, :, 2], seen)),
    "mean_log_given": _Quantity((0,), lambda x, seen: _mean(_log(x[:, :, 0]), seen)),
    "mean_log_ratio": _Quantity((0, 1), lambda x, seen: _mean(_log(x[:, :, 0]) - _log(x[:, :, 1]), seen)),
    "forgetting": _Quantity((2,), lambda x, seen: _forgetting(x[:, :, 2], seen)),
}

# What a suffix makes of a quantity, given the quantiles of the whole data set at that step.
STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rank": lambda values, table: _rank(values, table),
    "mean": lambda values, table: _same_for_all(values, (table[:, 1:] + table[:, :-1]).mean(axis=1) / 2),
    "q10": lambda values, table: _same_for_all(values, table[:, 10]),
    "q50": lambda values, table: _same_for_all(values, table[:, 50]),
    "q90": lambda values, table: _same_for_all(values, table[:, 90]),
}


class Inputs:
    """The channels and summaries of one detector, and how to make them.

    A name is a quantity (`given`), or a quantity and a statistic of it over the data set at the same step
    (`given_rank`: where the sample stands among all, from 0 to 1; `given_mean`, `given_q10`, `given_q50`,
    `given_q90`: the same value for every sample).

    Args:
        channels: names per step, at least one; quantities in `CHANNELS`.
        summary: names per sample, any number; quantities in `SUMMARIES`.
        n_steps: length to which trajectories are resampled; None = the epochs as they are.
    """

    def __init__(self, channels: Sequence[str], summary: Sequence[str], n_steps: int | None) -> None:
        self.n_steps = n_steps
        self._channels = [_parse(name, CHANNELS, "channels") for name in channels]
        self._summary = [_parse(name, SUMMARIES, "summary") for name in summary]
        used = [CHANNELS[name] for name, _ in self._channels] + [SUMMARIES[name] for name, _ in self._summary]
        self.columns = sorted({column for quantity in used for column in quantity.columns}) or [0]
        self.context_names = sorted({n for n, statistic in self._channels + self._summary if statistic})

    def context_shapes(self, n_epochs: int) -> dict[str, tuple[int, int]]:
        """The shape of each table of `context` for recordings of `n_epochs`."""
        steps = self.n_steps or n_epochs
        return {name: (steps if name in CHANNELS else 1, N_QUANTILES) for name in self.context_names}

    def context(self, raw: Tensor) -> dict[str, Tensor]:
        """Quantiles of every quantity that has a statistic, [step, quantile] or [1, quantile].

        Args:
            raw: [sample, epoch, 3], samples that were seen at least once.
        """
        resampled, filled, seen = self._prepare(raw)
        tables = {}
        for name in self.context_names:
            values = _value(name, resampled, filled, seen)
            tables[name] = resample(paddle.sort(paddle.transpose(values, [1, 0]), axis=1), N_QUANTILES)
        return tables

    def make(self, raw: Tensor, context: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Channels [sample, step, channel] and summaries [sample, summary].

        Args:
            raw: [sample, epoch, 3], samples that were seen at least once.
            context: tables as `context` gives them.
        """
        resampled, filled, seen = self._prepare(raw)

        def made(name: str, statistic: str | None) -> Tensor:
            values = _value(name, resampled, filled, seen)
            return STATISTICS[statistic](values, context[name]) if statistic else values

        channels = paddle.stack([made(*name) for name in self._channels], axis=2)
        if not self._summary:
            return channels, paddle.zeros([channels.shape[0], 0])
        return channels, paddle.concat([made(*name) for name in self._summary], axis=1)

    def _prepare(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = paddle.logical_not(paddle.isnan(raw[:, :, 0])).astype("float32")
        filled = fill_missed_epochs(raw)
        steps = paddle.concat([filled, seen.unsqueeze(2)], axis=2)
        return (steps if self.n_steps is None else resample(steps, self.n_steps)), filled, seen


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


def context_samples(n_samples: int, limit: int = CONTEXT_LIMIT) -> NDArray[np.int64]:
    """Which samples the quantile tables are taken from: ascending, the same for the same `n_samples`.

    Drawn by a generator of its own, not evenly spaced: data sorted by class has periods.
    """
    if n_samples <= limit:
        return np.arange(n_samples)
    return np.sort(np.random.default_rng(0).choice(n_samples, limit, replace=False, shuffle=False))


def _parse(name: str, quantities: Mapping[str, _Quantity], argument: str) -> tuple[str, str | None]:
    base, _, statistic = str(name).rpartition("_")
    if name in quantities:
        return name, None
    if base in quantities and statistic in STATISTICS:
        return base, statistic
    raise ValueError(
        f"{argument} must be named by {', '.join(quantities)}, each also with "
        f"{', '.join('_' + s for s in STATISTICS)}, got {name!r}"
    )


def _value(name: str, resampled: Tensor, filled: Tensor, seen: Tensor) -> Tensor:
    if name in CHANNELS:
        return CHANNELS[name].of(resampled)
    return SUMMARIES[name].of(filled, seen).unsqueeze(1)


def _on_place_of(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    return paddle.to_tensor(array, place=tensor.place)


def _time(x: Tensor) -> Tensor:
    n_steps = x.shape[1]
    time = np.linspace(0.0, 1.0, n_steps, dtype=np.float32)
    return paddle.expand(_on_place_of(x, time), x.shape[:2])


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    return (values * seen).sum(axis=1) / seen.sum(axis=1).clip(min=1.0)


def _deviation(values: Tensor, seen: Tensor) -> Tensor:
    return _mean((values - _mean(values, seen).unsqueeze(1)) ** 2, seen).sqrt()


def _forgetting(right: Tensor, seen: Tensor) -> Tensor:
    # Filled epochs go straight from one seen value to the next, so the way down is the number of times a
    # sample was right and then wrong; per presentation, so that long and short recordings compare.
    earlier = paddle.concat([right[:, :1], right[:, :-1]], axis=1)  # of one epoch too, where slices are empty
    down = paddle.nn.functional.relu(earlier - right).sum(axis=1)
    return down / (seen.sum(axis=1) - 1.0).clip(min=1.0)


def _same_for_all(values: Tensor, statistic: Tensor) -> Tensor:
    return paddle.expand(statistic.unsqueeze(0), values.shape)


def _rank(values: Tensor, table: Tensor) -> Tensor:
    """Where each value [sample, step] stands between the quantiles [step, quantile], from 0 to 1."""
    wanted = paddle.transpose(values, [1, 0])
    first = paddle.searchsorted(table, wanted)
    last = paddle.searchsorted(table, wanted, right=True)
    upper = first.clip(1, N_QUANTILES - 1)
    below = paddle.take_along_axis(table, upper - 1, axis=1)
    above = paddle.take_along_axis(table, upper, axis=1)
    within = ((wanted - below) / (above - below).clip(min=1e-30)).clip(0.0, 1.0)
    between = (upper - 1).astype("float32") + within
    # Equal values (a network sure of everything gives many) share the middle of their ranks.
    tied = (first + last - 1).astype("float32") / 2.0
    return paddle.transpose(paddle.where(last > first, tied, between) / (N_QUANTILES - 1), [1, 0])
