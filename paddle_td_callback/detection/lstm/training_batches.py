"""Labelled recordings made ready for training: channels, evidence, and how much each sample counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from numpy.typing import NDArray

from ..trajectories import Array
from .channels import Inputs, as_tensor
from .network import Group

TYPICAL_RATE = 0.2  # of wrong labels, that balanced training brings each recording to
PREPARE_SAMPLES = 16_384  # that are made into channels at once


def groups_of(inputs: Inputs, recordings: Sequence[tuple[Array, ...]], balance: float) -> list[Group]:
    """Inputs of all recordings, a group for each number of steps.

    Args:
        inputs: the channels to make.
        recordings: of each, trajectories [sample, epoch, 3], 1 = wrong label [sample], evidence [sample, column]
            and weights [sample].
        balance: as for `NoiseDetector.fit`.
    """
    mean_size = np.mean([len(wrong) for _, wrong, *_ in recordings])
    by_steps: dict[int, list[Group]] = {}
    with paddle.no_grad():
        for number, (raw, wrong, table, weight) in enumerate(recordings):
            scored = inputs.scored(raw)  # augmentation may have hidden all of a sample
            raw, wrong, table, weight = raw[scored], wrong[scored], table[scored], weight[scored]
            weights = _weights(wrong, weight, float(mean_size), balance)
            for start in range(0, len(raw), PREPARE_SAMPLES):
                rows = slice(start, start + PREPARE_SAMPLES)
                channels = inputs.make(as_tensor(raw[rows])).numpy()
                of = np.full(len(channels), number)
                group = Group(channels, table[rows], wrong[rows], weights[rows], of)
                by_steps.setdefault(channels.shape[1], []).append(group)
    return [
        Group(*(np.concatenate(arrays) for arrays in zip(*groups, strict=True)))
        for _, groups in sorted(by_steps.items())
    ]


def _weights(wrong: Array, own: Array, mean_size: float, balance: float) -> NDArray[np.float32]:
    """How much each trajectory of a recording counts; see `sample_weight` and `balance` of `fit`."""
    weights = own.astype(np.float64)
    if balance and weights.sum():
        rate = float((weights * wrong).sum() / weights.sum())
        weights[wrong > 0] *= (TYPICAL_RATE / max(rate, 0.01)) ** balance
        weights *= (mean_size / len(wrong)) ** balance
    return weights.astype(np.float32)
