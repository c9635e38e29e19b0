"""Trajectories made whole: fill the epochs a sample missed, stretch any number of epochs to one length."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]

_BLOCK_ENTRIES = 1 << 16


def fill_missed_epochs(values: ArrayLike) -> FloatArray:
    """Fill unseen entries linearly along epochs, each trailing channel by itself.

    Before the first and after the last epoch in which a sample was seen, its nearest seen value is held.
    A sample (or a channel of it) that was never seen stays NaN.

    Args:
        values: float16, float32 or float64, [sample, epoch] or [sample, epoch, ...]; NaN = unseen.

    Returns:
        float32, the shape of `values`; what was seen is only cast.
    """
    trajectories, filled = _checked(values)
    missed = np.isnan(filled)
    gaps = np.flatnonzero(missed.any(axis=tuple(range(1, missed.ndim))))
    # Most samples of most recordings miss nothing: work on the others alone, in blocks that stay in cache.
    rows = max(1, _BLOCK_ENTRIES // max(1, math.prod(filled.shape[1:])))
    for start in range(0, gaps.size, rows):
        block = gaps[start : start + rows]
        filled[block] = _fill(trajectories[block], ~missed[block])
    return filled


def resample(values: ArrayLike, n_steps: int) -> FloatArray:
    """Stretch or shrink the epoch axis to `n_steps` evenly spaced points, linearly, both ends included.

    One epoch gives a constant, `n_steps` equal to the number of epochs gives the values themselves, and
    `n_steps=1` gives the first epoch. NaN spreads to the points next to it: fill first.

    Args:
        values: float16, float32 or float64, [sample, epoch] or [sample, epoch, ...].
        n_steps: length of the new axis, at least 1.

    Returns:
        float32, [sample, step] or [sample, step, ...].
    """
    trajectories, exact = _checked(values)
    left, right, weight = resampling_table(trajectories.shape[1], n_steps)
    resampled = np.empty((exact.shape[0], len(left), *exact.shape[2:]), np.float32)
    for step, (before, after, share) in enumerate(zip(left, right, weight, strict=True)):
        if before == after:
            resampled[:, step] = exact[:, before]
        else:
            start = trajectories[:, before].astype(np.float64)
            resampled[:, step] = start + (trajectories[:, after] - start) * share
    return resampled


def resampling_table(
    n_epochs: int, n_steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Where each step of `resample` lies: `value[left] + (value[right] - value[left]) * weight`.

    For twins of `resample` in other array libraries. Worked out in integers, so that a step that falls on
    an epoch is that epoch (`left == right`, weight 0) and not its neighbour by a rounding error.

    Args:
        n_epochs: number of recorded epochs, at least 1.
        n_steps: number of steps wanted, at least 1.

    Returns:
        `left` and `right` epoch [step], and the `weight` of the right one [step], in [0, 1).
    """
    n_epochs = _positive(n_epochs, "n_epochs")
    n_steps = _positive(n_steps, "n_steps")
    intervals = max(n_steps - 1, 1)
    left, remainder = np.divmod(np.arange(n_steps, dtype=np.int64) * (n_epochs - 1), intervals)
    return left, left + (remainder > 0), remainder / intervals


def _fill(values: NDArray[Any], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    n_epochs = values.shape[1]
    epoch = np.arange(n_epochs).reshape(-1, *[1] * (values.ndim - 2))
    before = np.maximum.accumulate(np.where(seen, epoch, -1), axis=1)
    after = np.minimum.accumulate(np.where(seen, epoch, n_epochs)[:, ::-1], axis=1)[:, ::-1]
    # Ends are held by using their one neighbour twice. Without any neighbour, any epoch will do: all are NaN.
    left = np.where(before < 0, after % n_epochs, before)
    right = np.where(after == n_epochs, left, after)
    # In float64: rounded to float32 afterwards, a filled value never leaves the range of its neighbours.
    start = np.take_along_axis(values, left, axis=1).astype(np.float64)
    end = np.take_along_axis(values, right, axis=1)
    return np.asarray(start + (end - start) * ((epoch - left) / np.maximum(right - left, 1)), np.float64)


def _checked(values: ArrayLike) -> tuple[NDArray[Any], FloatArray]:
    """The values as they came, to calculate with, and a float32 copy of them."""
    array = np.asarray(values)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"values must be float16, float32 or float64, got {array.dtype}; cast them first")
    if array.ndim < 2:
        raise ValueError(f"values must be [sample, epoch] or [sample, epoch, ...], got shape {array.shape}")
    if array.shape[1] == 0:
        raise ValueError(f"values must hold at least one epoch, got shape {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below, by name
        exact = array.astype(np.float32)
    infinite = np.isinf(exact)
    if infinite.any():
        where = tuple(int(i) for i in np.argwhere(infinite)[0])
        raise ValueError(
            f"values must be finite in float32, or NaN for unseen, got {array[where]} "
            f"for sample {where[0]}, epoch {where[1]}"
        )
    return array, exact


def _positive(number: int, name: str) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {number!r}") from None
    if whole < 1:
        raise ValueError(f"{name} must be at least 1, got {whole}")
    return whole
