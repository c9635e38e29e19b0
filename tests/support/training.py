"""Tiny trainings with a witness: a network that writes down by itself what it said of which sample.

The first feature of every sample is its own index, so the network needs no callback to know it. What it wrote
down is the reference that recordings are compared with, bit by bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddle_td_callback import TrainingDynamicsStore

N_SAMPLES, N_CLASSES, N_FEATURES = 50, 4, 6


class Points(paddle.io.Dataset):
    """`n` samples of small whole numbers, so that no sum in a network of `exact` weights is ever rounded.

    Args:
        n: how many.
        n_classes: labels are in `[0, n_classes)`.
        label_shape: `()` or `(1,)`.
        label_dtype: of the labels.
    """

    def __init__(
        self,
        n: int = N_SAMPLES,
        n_classes: int = N_CLASSES,
        label_shape: tuple[int, ...] = (),
        label_dtype: str = "int64",
    ) -> None:
        rng = np.random.default_rng(7)
        numbers = rng.integers(-3, 4, (n, N_FEATURES))
        self.features = np.concatenate([np.arange(n)[:, np.newaxis], numbers], axis=1).astype(np.float32)
        self.classes = rng.integers(0, n_classes, n)
        self.labels = self.classes.astype(label_dtype).reshape(n, *label_shape)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return self.features[i], self.labels[i]


class Witness(nn.Layer):
    """A network that keeps a log of its training steps, one list an epoch (see `Bell`).

    Args:
        n_outputs: columns of the logits.
        dropout: probability.
        dress: makes what the network returns of its logits `[row, class]`.
        activation: applied to the logits before all else, for networks that end in a softmax or sigmoid.
        exact: weights of few bits, so that a sample's logits do not depend on its batch.
    """

    def __init__(
        self,
        n_outputs: int = N_CLASSES,
        *,
        dropout: float = 0.0,
        dress: Callable[[Any], Any] = lambda logits: logits,
        activation: Callable[[Any], Any] = lambda logits: logits,
        exact: bool = True,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, n_outputs)
        )
        self._dress = dress
        self._activation = activation
        self.epochs: list[list[tuple[npt.NDArray[np.int64], Any]]] = []
        self.listening = False
        if exact:
            rng = np.random.default_rng(3)
            for parameter in self.parameters():
                parameter.set_value(rng.integers(-4, 5, parameter.shape).astype(np.float32) / 8)

    def logits(self, x: Any) -> Any:
        """`[row, class]`, of samples `[row, feature]` with their indices."""
        return self._activation(self.body(x[:, 1:]))

    def forward(self, x: Any) -> Any:
        logits = self.logits(x)
        if self.training and self.listening:
            indices = x[:, 0].astype("float32").numpy().astype(np.int64)
            self.epochs[-1].append((indices, logits.detach().clone()))
        return self._dress(logits)


class Bell(paddle.callbacks.Callback):
    """Tells the witness that an epoch begins or ends."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.network.epochs.append([])
        self.model.network.listening = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.network.listening = False


class Recorded(NamedTuple):
    """A recording, or what it should be; axes as in the store's readers."""

    given: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]
    n_presentations: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


def softmax(values: Any, kind: str = "logits") -> npt.NDArray[np.float32]:
    """Paddle's softmax in float32 of `[row, class]`; with one column, both classes of its sigmoid."""
    values = values.astype("float32")
    if values.shape[1] == 1:
        positive = (values if kind == "probabilities" else F.sigmoid(values)).numpy()
        return np.concatenate([1 - positive, positive], axis=1)
    return (values if kind == "probabilities" else F.softmax(values, axis=-1)).numpy()


def logits_of(values: Any, kind: str = "logits") -> npt.NDArray[np.float32]:
    """The logits `[row, class]` of which margins are taken."""
    if kind == "probabilities":
        return np.log(np.maximum(softmax(values, kind), np.finfo(np.float32).tiny))
    array = values.astype("float32").numpy()
    return np.concatenate([np.zeros_like(array), array], axis=1) if array.shape[1] == 1 else array


def expected(
    epochs: list[list[tuple[npt.NDArray[np.int64], Any]]],
    labels: npt.ArrayLike,
    *,
    n_classes: int = N_CLASSES,
    kind: str = "logits",
) -> Recorded:
    """What a recording of these logged steps must be, sample by sample.

    Args:
        epochs: `(indices, outputs)` of each step of each epoch.
        labels: `[sample]`; a negative one is never to be seen.
        n_classes: number of classes.
        kind: "logits" or "probabilities".
    """
    given = np.asarray(labels).reshape(-1)
    shape = (len(given), len(epochs))
    want = Recorded(
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32),
        np.full(shape, -1, np.int32),
        np.full((*shape, n_classes), np.nan, np.float32),
        np.zeros(shape, np.uint8),
        np.full(len(given), -1, np.int32),
    )
    for epoch, steps in enumerate(epochs):
        for indices, values in steps:
            for sample, p, z in zip(indices, softmax(values, kind), logits_of(values, kind), strict=True):
                label = given[sample]
                if label < 0:
                    continue
                others = [z[c] for c in range(n_classes) if c != label]
                want.given[sample, epoch] = p[label]
                want.margins[sample, epoch] = z[label] - max(others)
                want.predicted[sample, epoch] = np.argmax(z)
                want.probabilities[sample, epoch] = p
                want.n_presentations[sample, epoch] += 1
                want.labels[sample] = label
    return want


def read(path: str) -> Recorded:
    """All of a recording made with `keep="all", dtype="float32"`."""
    with TrainingDynamicsStore(path) as store:
        return Recorded(
            store.given_probabilities(),
            store.margins(),
            store.predictions(),
            store.probabilities(),
            store.n_presentations(),
            store.labels,
        )


def assert_same(got: Recorded, want: Recorded) -> None:
    """Every array the same, bit by bit, NaN where NaN."""
    for name, mine, theirs in zip(Recorded._fields, got, want, strict=True):
        assert mine.shape == theirs.shape, name
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def model_of(
    network: nn.Layer,
    loss: Any = None,
    *,
    learning_rate: float = 0.0,
    metrics: Any = None,
    amp: Any = None,
    model_class: type[paddle.Model] = paddle.Model,
    optimizer: type = paddle.optimizer.Adam,
) -> paddle.Model:
    """A prepared `paddle.Model`; its loss is cross-entropy unless another is given."""
    model = model_class(network)
    model.prepare(
        optimizer(learning_rate, parameters=network.parameters()),
        nn.CrossEntropyLoss() if loss is None else loss,
        metrics,
        amp_configs=amp,
    )
    return model


def seed_all(seed: int) -> None:
    """Seed every global random stream."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the stream that Paddle's samplers draw from)
    paddle.seed(seed)


def assert_untapped(model: paddle.Model, loader: Any = None, sampler: Any = None) -> None:
    """Nothing of the recording is left on the model, its loss, the loader or its persistent iterator."""
    ours = [
        f"{name}: {value!r}"
        for name, value in vars(model).items()
        if (getattr(value, "__module__", None) or "").startswith("paddle_td_callback")
        or type(value).__module__.startswith("paddle_td_callback")
    ]
    assert not ours
    assert not {"_run_one_epoch", "train_batch"} & set(vars(model))
    if isinstance(model._loss, nn.Layer):
        assert not model._loss._forward_pre_hooks
    assert not any(
        layer._forward_pre_hooks or layer._forward_post_hooks for layer in model.network.sublayers(True)
    )
    if loader is not None:
        assert loader.batch_sampler is sampler
        iterator = getattr(loader, "_iterator", None)
        assert iterator is None or iterator._batch_sampler is sampler
