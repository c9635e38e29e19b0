"""Labelled recordings made ready for training: channels, features, and how much each sample counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..trajectories import Array
from .channels import Inputs

TYPICAL_RATE = 0.2  # of wrong labels, that balanced training brings each recording to
PREPARE_SAMPLES = 16_384  # that are made into channels at once


class Labelled(NamedTuple):
    """A recording whose wrong labels are known, without samples that were never seen."""

    raw: Array  # [sample, epoch, 3] trajectories
    wrong: Array  # [sample], 1 = mislabeled
    features: Array  # [sample, feature]
    weight: Array  # [sample], how much each counts


class Group(NamedTuple):
    """Inputs of equal length, ready for the network."""

    channels: NDArray[np.float32]  # [sample, step, channel]
    features: NDArray[np.float32]  # [sample, feature]
    targets: NDArray[np.float32]  # [sample], 1 = mislabeled
    weights: NDArray[np.float32]  # [sample], how much each counts; 1 on average
    recordings: NDArray[np.int64]  # [sample], which recording each is of, ascending


def groups_of(inputs: Inputs, recordings: Sequence[Labelled], balance: float) -> list[Group]:
    """Inputs of all recordings, a group for each number of steps.

    Args:
        inputs: the channels to make.
        recordings: what to learn from.
        balance: as for `NoiseDetector.fit`.
    """
    mean_size = float(np.mean([len(one.wrong) for one in recordings]))
    by_steps: dict[int, list[Group]] = {}
    for number, one in enumerate(recordings):
        scored = inputs.scored(one.raw)  # augmentation may have hidden all of a sample
        some = Labelled(one.raw[scored], one.wrong[scored], one.features[scored], one.weight[scored])
        weights = _weights(some, mean_size, balance)
        for start in range(0, len(some.raw), PREPARE_SAMPLES):
            rows = slice(start, start + PREPARE_SAMPLES)
            channels = inputs.make(some.raw[rows])
            group = Group(
                channels=channels,
                features=some.features[rows],
                targets=some.wrong[rows],
                weights=weights[rows],
                recordings=np.full(len(channels), number),
            )
            by_steps.setdefault(channels.shape[1], []).append(group)
    return [
        Group(*(np.concatenate(arrays) for arrays in zip(*groups, strict=True)))
        for _, groups in sorted(by_steps.items())
    ]


def _weights(recording: Labelled, mean_size: float, balance: float) -> NDArray[np.float32]:
    """How much each trajectory of a recording counts; see `sample_weight` and `balance` of `fit`."""
    weights, wrong = recording.weight.astype(np.float64), recording.wrong
    if balance and weights.sum():
        rate = float((weights * wrong).sum() / weights.sum())
        weights[wrong > 0] *= (TYPICAL_RATE / max(rate, 0.01)) ** balance
        weights *= (mean_size / len(wrong)) ** balance
    return weights.astype(np.float32)
