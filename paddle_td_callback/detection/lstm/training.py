"""How the detector's network is trained: AdamW along a cosine, on batches that never mix numbers of steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import DetectorError
from ...messages import Forgiving
from ..arguments import real, whole
from ..trajectories import Augmentation
from .config import DetectorConfig, Weights
from .device import paddle_on
from .network import Network
from .paddle_channels import Tensor
from .training_batches import Group, Labelled, groups_of

BLOCK = 64  # samples of one recording that the ranking loss compares


@dataclass(frozen=True)
class FitOptions:
    """How to train; the arguments are those of `NoiseDetector.fit`.

    Raises:
        ValueError: a number out of its range.
        TypeError: `augment` is no `Augmentation`.
    """

    epochs: int = 10
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    dropout: float = 0.0
    ranking: float = 0.0
    balance: float = 0.0
    augment: Augmentation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checked = {
            "epochs": whole(self.epochs, "epochs"),
            "batch_size": whole(self.batch_size, "batch_size"),
            "learning_rate": real(self.learning_rate, "learning_rate", open_at=0),
            "weight_decay": real(self.weight_decay, "weight_decay"),
            "dropout": real(self.dropout, "dropout", most=1, open_at=1),
            "ranking": real(self.ranking, "ranking"),
            "balance": real(self.balance, "balance", most=1),
        }
        for name, value in checked.items():  # as Python's own numbers, which Paddle and JSON take
            object.__setattr__(self, name, value)
        if not (self.augment is None or isinstance(self.augment, Augmentation)):
            raise TypeError(
                f"augment must be an Augmentation or None, got {type(self.augment).__name__}; make one with "
                "detection.trajectories.Augmentation"
            )


def train_members(
    config: DetectorConfig,
    recordings: Sequence[Labelled],
    options: FitOptions,
    *,
    start: Sequence[Weights],
    device: str | None,
    progress: bool,
) -> tuple[list[Weights], list[list[float]]]:
    """Train each member by itself.

    Args:
        config: what is trained.
        recordings: what to learn from.
        options: how.
        start: weights of each member to go on from; empty = random ones.
        device: any Paddle device string; None = where Paddle is now.
        progress: show a bar.

    Returns:
        The weights of each member, and its mean loss in each epoch.
    """
    n_samples = sum(len(one.wrong) for one in recordings)
    n_wrong = sum(int(one.wrong.sum()) for one in recordings)
    inputs, architecture, n_members = config.inputs, config.architecture, config.n_members
    members, losses = [], []
    total = options.epochs * n_members * n_samples
    bar = tqdm(
        total=total,
        desc="fit",
        unit="trajectory",
        unit_scale=True,
        disable=not progress,
        file=Forgiving(sys.stderr),
    )
    with bar, paddle_on(device):
        fixed = None if options.augment else groups_of(inputs, recordings, options.balance)
        for member in range(n_members):
            rng = np.random.default_rng([options.seed, member])

            def groups(rng: np.random.Generator = rng) -> list[Group]:
                if fixed is not None:
                    return fixed
                assert options.augment is not None
                varied = [one._replace(raw=options.augment(one.raw, rng)) for one in recordings]
                return groups_of(inputs, varied, options.balance)

            before = start[member] if start else None
            first_weights = before or architecture.initial_weights(
                rng, math.log(n_wrong / (n_samples - n_wrong))
            )
            net = Network(architecture, first_weights)
            if before is None:
                net.measure([group.features for group in groups()])
            losses.append(train(net, groups, options, rng, bar.update))
            members.append(net.weights())
    return members, losses


def train(
    net: Network,
    groups_of_epoch: Callable[[], Sequence[Group]],
    options: FitOptions,
    rng: np.random.Generator,
    on_batch: Callable[[int], object],
) -> list[float]:
    """Train with AdamW along a cosine, and return the mean loss of each epoch.

    Args:
        net: changed in place.
        groups_of_epoch: called at the start of each epoch; a batch never mixes groups.
        options: how long and how fast.
        rng: draws the order of samples and what is dropped.
        on_batch: called with the size of each batch done.

    Raises:
        DetectorError: the loss or the weights did not stay finite.
    """
    optimizer = paddle.optimizer.AdamW(
        options.learning_rate,
        parameters=net.parameters(),
        weight_decay=options.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
    )
    losses = []
    for epoch in range(options.epochs):
        groups = groups_of_epoch()
        batches = _batches(groups, options, rng)
        total, count = 0.0, 0
        for step, (group, rows) in enumerate(batches):
            done = (epoch + step / len(batches)) / options.epochs
            optimizer.set_lr(options.learning_rate * 0.5 * (1 + math.cos(math.pi * done)))
            batch = groups[group]
            channels = paddle.to_tensor(batch.channels[rows])
            features = paddle.to_tensor(batch.features[rows])
            targets = paddle.to_tensor(batch.targets[rows])
            weights = paddle.to_tensor(batch.weights[rows])
            kept = None
            if options.dropout:  # drawn here: Paddle's own dropout draws from its global generator
                shape = (len(rows), net.lstm.hidden_size + features.shape[1])
                mask = (rng.random(shape, np.float32) >= options.dropout) / np.float32(1 - options.dropout)
                kept = paddle.to_tensor(mask.astype(np.float32))
            odds = net(channels, features, kept)
            loss = paddle.nn.functional.binary_cross_entropy_with_logits(odds, targets, weight=weights)
            if options.ranking:
                loss = loss + options.ranking * _ranking_loss(odds, targets)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            total, count = total + float(loss) * len(rows), count + len(rows)
            if not math.isfinite(total):
                raise DetectorError(
                    f"epoch {epoch}, step {step}: the loss is {float(loss)}; the detector is left as it was; "
                    f"try a learning_rate below {options.learning_rate}"
                )
            on_batch(len(rows))
        losses.append(total / count)
    # The loss is taken before a step, so it cannot tell what the last one did.
    if not all(np.isfinite(array).all() for array in net.weights().values()):
        raise DetectorError(
            "the weights are not finite after the last step; the detector is left as it was; "
            f"try a learning_rate below {options.learning_rate}"
        )
    return losses


def _ranking_loss(odds: Tensor, targets: Tensor) -> Tensor:
    """How far each wrong label is from standing above all right ones of its block.

    The loss of a wrong label is that of choosing it among the right ones by softmax, so the right ones that
    rank highest, which cost most of the average precision, count most.
    """
    odds, wrong = odds.reshape([-1, BLOCK]), targets.reshape([-1, BLOCK])
    rivals = paddle.logsumexp(odds - 1e9 * wrong, axis=1, keepdim=True)
    n_wrong = wrong.sum(axis=1)
    of_block = (paddle.nn.functional.softplus(rivals - odds) * wrong).sum(axis=1) / n_wrong.clip(min=1.0)
    ranked = ((n_wrong > 0) & (n_wrong < BLOCK)).astype("float32")
    return (of_block * ranked).sum() / ranked.sum().clip(min=1.0)


def _batches(
    groups: Sequence[Group], options: FitOptions, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64]]]:
    """(group, rows) of one epoch in random order.

    For the ranking loss a batch is made of whole blocks, each of one recording, whose last block takes some of
    its samples twice.
    """
    batches = []
    for number, group in enumerate(groups):
        order = rng.permutation(len(group.targets))
        if options.ranking:
            of = group.recordings[order]
            parts = np.split(order[np.argsort(of, kind="stable")], np.flatnonzero(np.diff(np.sort(of))) + 1)
            blocks = np.concatenate([np.resize(part, (-(-len(part) // BLOCK), BLOCK)) for part in parts])
            order = blocks[rng.permutation(len(blocks))].ravel()
        size = max(options.batch_size // BLOCK, 1) * BLOCK if options.ranking else options.batch_size
        batches += [(number, order[start : start + size]) for start in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]
