"""The detector's network: where it runs, what it is made of, how it is trained. Weights come and go as numpy."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray

from ...errors import DetectorError
from .channels import Tensor

EVIDENCE_LIMIT = 6.0  # standard deviations
BLOCK = 64  # samples of one recording that the ranking loss compares

Weights = dict[str, NDArray[np.float32]]


class Architecture(NamedTuple):
    """The sizes that settle the shape of every weight."""

    n_channels: int
    hidden_size: int
    n_layers: int
    n_evidence: int
    mix_sizes: tuple[int, ...] = ()  # layers that mix the last state with the evidence

    @property
    def mixed(self) -> list[tuple[int, int]]:
        """Inputs and units of each mixing layer."""
        return list(itertools.pairwise((self.hidden_size + self.n_evidence, *self.mix_sizes)))

    @property
    def n_mixed(self) -> int:
        """What the head reads."""
        return self.mix_sizes[-1] if self.mix_sizes else self.hidden_size + self.n_evidence

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights, in the order in which they are initialised."""
        shapes: dict[str, tuple[int, ...]] = {}
        gates = 4 * self.hidden_size
        for layer in range(self.n_layers):
            shapes[f"weight_ih_l{layer}"] = (gates, self.hidden_size if layer else self.n_channels)
            shapes[f"weight_hh_l{layer}"] = (gates, self.hidden_size)
            shapes[f"bias_ih_l{layer}"] = shapes[f"bias_hh_l{layer}"] = (gates,)
        if self.n_evidence:
            shapes["summary_mean"] = shapes["summary_scale"] = (self.n_evidence,)
        for number, (n_inputs, n_units) in enumerate(self.mixed):
            shapes[_mix_name("weight", number)] = (n_inputs, n_units)
            shapes[_mix_name("bias", number)] = (n_units,)
        return shapes | {"head_weight": (self.n_mixed, 1), "head_bias": (1,)}

    def initial_weights(self, rng: np.random.Generator, log_odds: float) -> Weights:
        """Random weights; the output starts at about `log_odds`."""
        bound = 1 / math.sqrt(self.hidden_size)
        weights = {name: rng.uniform(-bound, bound, shape) for name, shape in self.shapes().items()}
        weights["head_bias"] += log_odds
        if self.n_evidence:
            weights["summary_mean"], weights["summary_scale"] = (
                np.zeros(self.n_evidence),
                np.ones(self.n_evidence),
            )
        return {name: array.astype(np.float32) for name, array in weights.items()}


class Group(NamedTuple):
    """Inputs of equal length, ready for the network."""

    channels: NDArray[np.float32]  # [sample, step, channel]
    evidence: NDArray[np.float32]  # [sample, column]
    targets: NDArray[np.float32]  # [sample], 1 = mislabeled
    weights: NDArray[np.float32]  # [sample], how much each counts; 1 on average
    recordings: NDArray[np.int64]  # [sample], which recording each is of, ascending


class Schedule(NamedTuple):
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float = 0.0  # share of the last state and the evidence that each step goes without
    ranking: float = 0.0  # weight of the loss of wrong labels that rank below right ones of their recording


def _mix_name(kind: str, number: int) -> str:
    return f"mix_{kind}" + (f"_{number}" if number else "")  # files with one layer came first


class Network(paddle.nn.Layer):  # type: ignore[misc]  # Paddle is untyped for us
    """LSTM over steps; its last state, with the evidence through hidden layers, gives one log-odds."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__(dtype="float32")
        zero = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.0))  # draws no random numbers
        self.lstm = paddle.nn.LSTM(
            architecture.n_channels,
            architecture.hidden_size,
            architecture.n_layers,
            weight_ih_attr=zero,
            weight_hh_attr=zero,
            bias_ih_attr=zero,
            bias_hh_attr=zero,
        )
        self.mix = paddle.nn.LayerList(
            [paddle.nn.Linear(n_inputs, n_units, zero, zero) for n_inputs, n_units in architecture.mixed]
        )
        self.head = paddle.nn.Linear(architecture.n_mixed, 1, zero, zero)
        # What brings the evidence to mean 0 and scale 1; measured, not trained. Files have it by these names.
        self.measured = {name: weights[name] for name in ("summary_mean", "summary_scale") if name in weights}
        for name, parameter in self._by_name().items():
            parameter.set_value(weights[name])

    def forward(self, channels: Tensor, evidence: Tensor, kept: Tensor | None = None) -> Tensor:
        """Log-odds [sample] from channels [sample, step, channel] and evidence [sample, column].

        `kept` [sample, state and evidence] multiplies what the last layers are given.
        """
        if self.measured:
            mean, scale = (paddle.to_tensor(array) for array in self.measured.values())
            evidence = ((evidence - mean) / scale).clip(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)
        state = paddle.concat([self.lstm(channels)[0][:, -1], evidence], axis=1)
        if kept is not None:
            state = state * kept
        for layer in self.mix:
            state = paddle.nn.functional.relu(layer(state))
        return self.head(state)[:, 0]

    def measure(self, groups: Sequence[Group]) -> None:
        """Take mean and scale of the evidence from what the network is to be trained on."""
        if self.measured:
            evidence = np.concatenate([group.evidence for group in groups])
            spread = np.maximum(evidence.std(axis=0), 1e-3)
            self.measured = {"summary_mean": evidence.mean(axis=0), "summary_scale": spread}

    def weights(self) -> Weights:
        """Copies of all weights by the names of `Architecture.shapes`."""
        return {name: parameter.numpy().copy() for name, parameter in self._by_name().items()} | self.measured

    def _by_name(self) -> dict[str, Tensor]:
        named = {
            f"{kind}_l{layer}": getattr(self.lstm, f"{kind}_l{layer}")
            for layer in range(self.lstm.num_layers)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        for number, layer in enumerate(self.mix):
            named[_mix_name("weight", number)], named[_mix_name("bias", number)] = layer.weight, layer.bias
        named["head_weight"], named["head_bias"] = self.head.weight, self.head.bias
        return named


def train(
    net: Network,
    groups_of_epoch: Callable[[], Sequence[Group]],
    schedule: Schedule,
    rng: np.random.Generator,
    on_batch: Callable[[int], object],
) -> list[float]:
    """Train with AdamW along a cosine, and return the mean loss of each epoch.

    Args:
        net: changed in place.
        groups_of_epoch: called at the start of each epoch; a batch never mixes groups.
        schedule: how long and how fast.
        rng: draws the order of samples and what is dropped.
        on_batch: called with the size of each batch done.

    Raises:
        DetectorError: the loss or the weights did not stay finite.
    """
    optimizer = paddle.optimizer.AdamW(
        schedule.learning_rate,
        parameters=net.parameters(),
        weight_decay=schedule.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
    )
    losses = []
    for epoch in range(schedule.epochs):
        groups = groups_of_epoch()
        batches = _batches(groups, schedule, rng)
        total, count = 0.0, 0
        for step, (group, rows) in enumerate(batches):
            done = (epoch + step / len(batches)) / schedule.epochs
            optimizer.set_lr(schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * done)))
            channels, evidence, targets, weights = (
                paddle.to_tensor(array[rows]) for array in groups[group][:4]
            )
            kept = None
            if schedule.dropout:  # drawn here: Paddle's own dropout draws from its global generator
                shape = (len(rows), net.lstm.hidden_size + evidence.shape[1])
                mask = (rng.random(shape, np.float32) >= schedule.dropout) / np.float32(1 - schedule.dropout)
                kept = paddle.to_tensor(mask.astype(np.float32))
            odds = net(channels, evidence, kept)
            loss = paddle.nn.functional.binary_cross_entropy_with_logits(odds, targets, weight=weights)
            if schedule.ranking:
                loss = loss + schedule.ranking * _ranking_loss(odds, targets)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            total, count = total + float(loss) * len(rows), count + len(rows)
            if not math.isfinite(total):
                raise DetectorError(
                    f"epoch {epoch}, step {step}: the loss is {float(loss)}; the detector is left as it was; "
                    f"try a learning_rate below {schedule.learning_rate}"
                )
            on_batch(len(rows))
        losses.append(total / count)
    # The loss is taken before a step, so it cannot tell what the last one did.
    if not all(np.isfinite(array).all() for array in net.weights().values()):
        raise DetectorError(
            "the weights are not finite after the last step; the detector is left as it was; "
            f"try a learning_rate below {schedule.learning_rate}"
        )
    return losses


@contextlib.contextmanager
def paddle_on(device: str | None) -> Iterator[None]:
    """Dynamic mode on a device (None = where Paddle is), in float32; afterwards everything is as it was."""
    paddle.get_device()  # settles Paddle's own default, which the guard would otherwise restore as "none"
    try:
        place = None if device is None else paddle.device._convert_to_place(device)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"device {device!r} cannot be used by this Paddle: {error}") from error
    # The guard leaves static mode and brings a table of names of its own: later layers of the caller get the
    # names, and checkpoints the keys, that they would have had. Gradient mode and AMP reach through it.
    with paddle.base.dygraph.guard(place), paddle.amp.auto_cast(enable=False), paddle.enable_grad():
        dtype = paddle.get_default_dtype()
        # Where the caller has set a random global initializer, it is asked for our layers too, and draws.
        random_state = paddle.get_rng_state()
        paddle.set_default_dtype("float32")
        try:
            yield
        finally:
            paddle.set_default_dtype(dtype)
            paddle.set_rng_state(random_state)


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
    groups: Sequence[Group], schedule: Schedule, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64]]]:
    """(group, rows) of one epoch in random order.

    For the ranking loss a batch is made of whole blocks, each of one recording, whose last block takes some of
    its samples twice.
    """
    batches = []
    for number, group in enumerate(groups):
        order = rng.permutation(len(group.targets))
        if schedule.ranking:
            of = group.recordings[order]
            parts = np.split(order[np.argsort(of, kind="stable")], np.flatnonzero(np.diff(np.sort(of))) + 1)
            blocks = np.concatenate([np.resize(part, (-(-len(part) // BLOCK), BLOCK)) for part in parts])
            order = blocks[rng.permutation(len(blocks))].ravel()
        size = max(schedule.batch_size // BLOCK, 1) * BLOCK if schedule.ranking else schedule.batch_size
        batches += [(number, order[start : start + size]) for start in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]
