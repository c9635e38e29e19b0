"""Whether what is recorded is what the network said: real fits against the network's own log, bit by bit."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from support.training import (
    N_CLASSES,
    N_SAMPLES,
    Bell,
    Points,
    Recorded,
    Witness,
    assert_same,
    assert_untapped,
    expected,
    model_of,
    read,
    seed_all,
    softmax,
)

from paddle_td_callback import CaptureError, TrainingDynamicsCallback, TrainingDynamicsStore
from paddle_td_callback.paddle_fit.internals import memory_of

BATCH = 8  # does not divide the 50 samples: the last batch of an epoch is short


class ObjectLoss:
    """A loss that is neither function nor layer, with state of its own."""

    scale = 2.0

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, logits: Any, labels: Any) -> Any:
        self.n_calls += 1
        return F.cross_entropy(logits, labels) * self.scale


class YieldedAs(paddle.io.BatchSampler):
    """Batches in a fixed, odd order, each turned into another kind of container by `form`."""

    def __init__(self, form: Callable[[list[int]], Any], n: int = N_SAMPLES) -> None:
        self.order = np.random.default_rng(5).permutation(n)
        self.form = form
        self.batch_size = BATCH

    def __len__(self) -> int:
        return -(-len(self.order) // BATCH)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.order), BATCH):
            yield self.form([int(i) for i in self.order[start : start + BATCH]])


class RefilledList(YieldedAs):
    """Yields one list object and fills it again each time."""

    def __init__(self) -> None:
        super().__init__(list)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for fresh in super().__iter__():
            batch[:] = fresh
            yield batch
            batch[:] = [0] * len(batch)


def loader(dataset: Any = None, **options: Any) -> paddle.io.DataLoader:
    if "batch_sampler" not in options:
        options.setdefault("batch_size", BATCH)
    return paddle.io.DataLoader(Points() if dataset is None else dataset, **options)


class Data(NamedTuple):
    """How training data reach `fit`."""

    make: Callable[[], Any] = Points
    fit: dict[str, Any] = {}  # noqa: RUF012
    callbacks: Callable[[], list[Any]] = list


DATA = {
    "dataset-shuffled": Data(),
    "dataset-in-order": Data(fit={"shuffle": False}),
    "dataset-drop_last": Data(fit={"drop_last": True}),
    "dataset-workers": Data(fit={"num_workers": 2}),
    "loader": Data(loader),
    "loader-shuffled": Data(lambda: loader(shuffle=True)),
    "loader-drop_last": Data(lambda: loader(shuffle=True, drop_last=True)),
    "loader-workers": Data(lambda: loader(shuffle=True, num_workers=2)),
    "loader-1-worker": Data(lambda: loader(shuffle=True, num_workers=1)),
    "loader-3-workers": Data(lambda: loader(shuffle=True, num_workers=3)),
    "accumulate-workers": Data(fit={"accumulate_grad_batches": 3, "num_workers": 2}),
    "evaluation-persistent_workers": Data(
        lambda: loader(shuffle=True, num_workers=2, persistent_workers=True), fit={"eval_data": Points(20)}
    ),
    "loader-persistent_workers": Data(lambda: loader(shuffle=True, num_workers=2, persistent_workers=True)),
    "accumulate_grad_batches": Data(fit={"accumulate_grad_batches": 3}),
    "num_iters": Data(fit={"num_iters": 10}),
    "num_iters-workers": Data(fit={"num_iters": 10, "num_workers": 2}),
    "evaluation": Data(fit={"eval_data": Points(20), "eval_freq": 1}),
    "evaluation-workers": Data(fit={"eval_data": Points(20), "num_workers": 2}),
    "early-stopping": Data(
        fit={"eval_data": Points(20)},
        callbacks=lambda: [paddle.callbacks.EarlyStopping("loss", patience=1, verbose=0)],
    ),
    "sampler-refills-its-list": Data(lambda: loader(batch_sampler=RefilledList())),
    "sampler-yields-arrays": Data(lambda: loader(batch_sampler=YieldedAs(np.array))),
    "sampler-yields-tuples": Data(lambda: loader(batch_sampler=YieldedAs(tuple))),
    "sampler-yields-iterators": Data(lambda: loader(batch_sampler=YieldedAs(iter))),
    "sampler-yields-tensors": Data(lambda: loader(batch_sampler=YieldedAs(paddle.to_tensor))),
    "sampler-repeats-samples": Data(
        lambda: loader(batch_sampler=YieldedAs(lambda batch: [batch[0], *batch, batch[0] // 2, 3]))
    ),
}


class Way(NamedTuple):
    """What the network gives and the loss takes."""

    loss: Callable[[], Any] = nn.CrossEntropyLoss
    network: Callable[[], Witness] = Witness
    points: Callable[[], Points] = Points
    callback: dict[str, Any] = {}  # noqa: RUF012
    kind: str = "logits"
    n_classes: int = N_CLASSES
    amp: Any = None


binary = functools.partial(Points, n_classes=2, label_shape=(1,), label_dtype="float32")


class TwoLabels(Points):
    """The class stands second; the first label is a number of another kind."""

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        return features, np.float32(i), label


def in_place_loss(logits: Any, labels: Any) -> Any:
    loss = F.cross_entropy(logits.scale_(-2.0), labels.clone())
    labels.zero_()
    return loss


def in_float32(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits.astype("float32"), labels)


def smooth(logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits, F.label_smooth(F.one_hot(labels, N_CLASSES)), soft_label=True)


WAYS = {
    "loss-layer": Way(),
    "loss-function": Way(loss=lambda: F.cross_entropy),
    "loss-object": Way(loss=ObjectLoss),
    "loss-partial": Way(loss=lambda: functools.partial(F.cross_entropy, reduction="mean")),
    "loss-in-place": Way(loss=lambda: in_place_loss),
    "loss-weighted": Way(loss=lambda: nn.CrossEntropyLoss(weight=paddle.to_tensor([1.0, 0.0, 2.0, 0.5]))),
    "loss-smooths-labels-itself": Way(loss=lambda: smooth),
    "labels-column": Way(points=functools.partial(Points, label_shape=(1,))),
    "labels-int32": Way(points=functools.partial(Points, label_dtype="int32")),
    "probabilities-use_softmax-False": Way(
        loss=lambda: nn.CrossEntropyLoss(use_softmax=False),
        network=functools.partial(Witness, activation=F.softmax),
        kind="probabilities",
    ),
    "probabilities-partial-use_softmax-False": Way(
        loss=lambda: functools.partial(F.cross_entropy, use_softmax=False),
        network=functools.partial(Witness, activation=F.softmax),
        kind="probabilities",
    ),
    "probabilities-said": Way(
        loss=lambda: lambda p, labels: F.nll_loss(paddle.log(p), labels),
        network=functools.partial(Witness, activation=F.softmax),
        callback={"outputs": "probabilities"},
        kind="probabilities",
    ),
    "log-probabilities": Way(
        loss=nn.NLLLoss,
        network=functools.partial(Witness, activation=functools.partial(F.log_softmax, axis=-1)),
    ),
    "binary-BCEWithLogitsLoss": Way(
        loss=nn.BCEWithLogitsLoss, network=functools.partial(Witness, 1), points=binary, n_classes=2
    ),
    "binary-BCELoss": Way(
        loss=nn.BCELoss,
        network=functools.partial(Witness, 1, activation=F.sigmoid),
        points=binary,
        kind="probabilities",
        n_classes=2,
    ),
    "binary-binary_cross_entropy": Way(
        loss=lambda: F.binary_cross_entropy,
        network=functools.partial(Witness, 1, activation=F.sigmoid),
        points=binary,
        kind="probabilities",
        n_classes=2,
    ),
    "binary-flat-output-and-labels": Way(
        loss=nn.BCEWithLogitsLoss,
        network=functools.partial(Witness, 1, dress=lambda logits: logits.squeeze(1)),
        points=functools.partial(Points, n_classes=2, label_dtype="float32"),
        n_classes=2,
    ),
    "outputs-first-of-two": Way(
        loss=lambda: lambda logits, _other, labels: F.cross_entropy(logits, labels),
        network=functools.partial(Witness, dress=lambda logits: (logits, logits * 0)),
    ),
    "outputs-second-of-two": Way(
        loss=lambda: lambda _other, logits, labels: F.cross_entropy(logits, labels),
        network=functools.partial(Witness, dress=lambda logits: [logits * 0, logits]),
        callback={"logits": 1},
    ),
    "outputs-last-of-two": Way(
        loss=lambda: lambda _other, logits, labels: F.cross_entropy(logits, labels),
        network=functools.partial(Witness, dress=lambda logits: [logits * 0, logits]),
        callback={"logits": -1},
    ),
    "outputs-key": Way(
        loss=lambda: lambda outputs, labels: F.cross_entropy(outputs["head"], labels),
        network=functools.partial(Witness, dress=lambda logits: {"aux": logits * 0, "head": logits}),
        callback={"logits": "head"},
    ),
    "outputs-function": Way(
        loss=lambda: lambda a, b, labels: F.cross_entropy(a + b, labels),
        network=functools.partial(Witness, dress=lambda logits: (logits * 2, -logits)),
        callback={"logits": lambda a, b: a + b},
    ),
    "labels-second-of-two": Way(
        loss=lambda: lambda logits, _number, labels: F.cross_entropy(logits, labels),
        points=TwoLabels,
        callback={"label": 1},
    ),
    "float16-logits": Way(
        loss=lambda: in_float32,
        network=functools.partial(Witness, activation=lambda logits: logits.astype("float16")),
    ),
    "bfloat16-logits": Way(
        loss=lambda: in_float32,
        network=functools.partial(Witness, activation=lambda logits: logits.astype("bfloat16")),
    ),
    "float64-logits": Way(network=functools.partial(Witness, activation=lambda z: z.astype("float64"))),
    # On a CPU Paddle itself switches hapi's AMP off and says so; bfloat16 above is what it would hand over.
    "amp-O1": Way(amp="O1"),
    "amp-O2": Way(amp={"level": "O2"}),
}
AMP_WARNING = "ignore:.*can only be enabled on CUDAPlace:UserWarning"


def record(
    path: str, data: Data, way: Way, *, epochs: int = 3, network: Witness | None = None, **options: Any
) -> Witness:
    """One fit under `TrainingDynamicsCallback`; its network, with the log."""
    network = way.network() if network is None else network
    model = model_of(network, way.loss(), amp=way.amp, **options)
    train_data = way.points() if data.make is Points else data.make()
    recorder = TrainingDynamicsCallback(path, dtype="float32", **way.callback)
    model.fit(
        train_data,
        epochs=epochs,
        batch_size=BATCH,
        verbose=0,
        callbacks=[Bell(), recorder, *data.callbacks()],
        **data.fit,
    )
    return network


def assert_recorded(path: str, network: Witness, way: Way = Way()) -> Recorded:  # noqa: B008
    """The recording is the network's log; and, since it did not learn, what it says of each sample now."""
    points = way.points()
    want = expected(network.epochs, points.classes, n_classes=way.n_classes, kind=way.kind)
    assert_same(read(path), want)
    now = softmax(network.logits(paddle.to_tensor(points.features)), way.kind)
    for epoch in range(want.given.shape[1]):
        seen = want.predicted[:, epoch] >= 0
        np.testing.assert_array_equal(want.probabilities[seen, epoch], now[seen])
    return want


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_every_way_of_dealing_samples(data: Data, path: str) -> None:
    network = record(path, data, Way())
    want = assert_recorded(path, network)
    n_seen = (want.predicted >= 0).sum(axis=0).tolist()
    if "num_iters" in data.fit:
        assert n_seen == [N_SAMPLES, 3 * BATCH]
    elif data is DATA["early-stopping"]:
        assert n_seen == [N_SAMPLES] * 2  # stopped early
    elif data is DATA["dataset-drop_last"] or data is DATA["loader-drop_last"]:
        assert n_seen == [N_SAMPLES // BATCH * BATCH] * 3
    else:
        assert n_seen == [N_SAMPLES] * 3


@pytest.mark.filterwarnings(AMP_WARNING)
@pytest.mark.parametrize(
    ("way", "data"),
    [
        pytest.param(way, data, id=f"{name}-{data}")
        for name, way in WAYS.items()
        for data in ("dataset-shuffled", "evaluation", "accumulate_grad_batches", "num_iters")
        if (name, data) != ("outputs-key", "evaluation")  # Paddle cannot evaluate dictionaries of outputs
    ],
)
def test_every_network_and_loss(way: Way, data: str, path: str) -> None:
    options = DATA[data]
    if data == "evaluation":
        options = options._replace(fit={"eval_data": way.points()})
    network = record(path, options, way, epochs=2)
    assert_recorded(path, network, way)


@pytest.mark.parametrize("way", ["loss-layer", "loss-function", "loss-object", "binary-BCELoss"])
@pytest.mark.parametrize("persistent", [False, True], ids=["workers", "persistent_workers"])
def test_losses_with_workers(way: str, persistent: bool, path: str) -> None:
    chosen = WAYS[way]
    data = Data(
        lambda: loader(chosen.points(), shuffle=True, num_workers=2, persistent_workers=persistent),
        {"log_freq": 1},
    )
    assert_recorded(path, record(path, data, chosen, epochs=2), chosen)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["plain", "dropout"])
def test_training_recorded_is_a_loop_written_by_hand(dropout: float, workers: int, path: str) -> None:
    points, epochs, rate = Points(), 4, 0.05

    def network_and_seeds() -> Witness:
        seed_all(1)
        return Witness(dropout=dropout, exact=False)

    recorded = record(
        path,
        Data(fit={"num_workers": workers}),
        Way(),
        epochs=epochs,
        network=network_and_seeds(),
        learning_rate=rate,
    )

    by_hand = network_and_seeds()
    optimizer = paddle.optimizer.Adam(rate, parameters=by_hand.parameters())
    sampler = paddle.io.DistributedBatchSampler(points, BATCH, shuffle=True)
    batches = paddle.io.DataLoader(points, batch_sampler=sampler, num_workers=workers)
    log: list[Any] = []
    for _ in range(epochs):
        log.append([])
        for features, labels in batches:
            by_hand.train()
            logits = by_hand(features)
            log[-1].append((features[:, 0].numpy().astype(int), logits.detach().clone()))
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.clear_grad()
    assert_same(read(path), expected(log, points.classes))
    assert not np.array_equal(read(path).given[:, 0], read(path).given[:, -1])  # it did learn
    for mine, theirs in zip(recorded.parameters(), by_hand.parameters(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.parametrize("workers", [0, 2], ids=["loader", "persistent_workers"])
def test_a_loader_used_before_between_and_after(workers: int, path: str) -> None:
    """The iterator of persistent workers is older than the callback, and outlives it."""
    options = {"num_workers": workers, "persistent_workers": True} if workers else {}
    batches = loader(shuffle=True, **options)
    sampler = batches.batch_sampler
    network = Witness()
    model = model_of(network)
    recorder = TrainingDynamicsCallback(path, dtype="float32")
    fit = functools.partial(model.fit, batches, verbose=0)

    fit(epochs=1)
    iterator = batches._iterator
    fit(epochs=2, callbacks=[Bell(), recorder])
    assert_untapped(model, batches, sampler)
    fit(epochs=1)
    fit(epochs=2, callbacks=[recorder, Bell()])
    # The last, as Paddle's persistent workers do not survive an epoch that ends early.
    fit(epochs=1, num_iters=3, callbacks=[Bell(), recorder])
    assert_untapped(model, batches, sampler)
    assert batches._iterator is iterator
    want = assert_recorded(path, network)
    assert (want.predicted >= 0).sum(axis=0).tolist() == [N_SAMPLES] * 4 + [3 * BATCH]


class TwoInputs(Witness):
    def forward(self, x: Any, sign: Any) -> Any:
        return super().forward(paddle.concat([x[:, :1], x[:, 1:] * sign], axis=1))


class SignedPoints(Points):
    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        return features, np.ones(1, np.float32), label


@pytest.mark.parametrize("specified", [True, False], ids=["input-specs", "by-signature"])
def test_a_network_of_two_inputs(specified: bool, path: str) -> None:
    network = TwoInputs()
    spec = paddle.static.InputSpec
    inputs = [spec([None, 7], "float32", "x"), spec([None, 1], "float32", "sign")]
    model = paddle.Model(network, *([inputs, [spec([None], "int64", "label")]] if specified else []))
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), [paddle.metric.Accuracy(topk=(1, 2))])
    callbacks = [Bell(), TrainingDynamicsCallback(path, dtype="float32")]
    model.fit(SignedPoints(), SignedPoints(9), epochs=2, batch_size=BATCH, verbose=0, callbacks=callbacks)
    assert_recorded(path, network)


class Positions(paddle.io.Dataset):
    """Points whose index feature is their place in a subset."""

    def __init__(self, subset: paddle.io.Dataset) -> None:
        self.subset = subset

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = self.subset[i]
        return np.concatenate([[np.float32(i)], features[1:]]).astype(np.float32), label


def test_indices_are_places_in_the_data_set_that_fit_was_given(path: str) -> None:
    points = Points()
    chosen = [40, 3, 17, 8, 22, 35, 1, 0, 49, 30, 12]
    network = record(path, Data(lambda: Positions(paddle.io.Subset(points, chosen))), Way(), epochs=2)
    assert_same(read(path), expected(network.epochs, points.classes[chosen]))


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (nn.CrossEntropyLoss, -100),
        (lambda: nn.CrossEntropyLoss(ignore_index=1), 1),
        (lambda: nn.CrossEntropyLoss(ignore_index=255), 255),
        (lambda: functools.partial(F.cross_entropy, ignore_index=-7), -7),
        (lambda: lambda logits, labels: F.cross_entropy(logits, labels), -100),
    ],
    ids=["default", "a-class", "255", "partial", "function"],
)
def test_rows_that_the_loss_ignores_are_unseen(loss: Callable[[], Any], ignored: int, path: str) -> None:
    points = Points()
    for out in (points.labels, points.classes):
        out[::3] = ignored
        out[16:32] = ignored  # two whole batches
    network = record(path, Data(lambda: points, {"shuffle": False}), Way(loss), epochs=2)
    given = np.where(points.classes == ignored, -1, points.classes)
    assert_same(read(path), expected(network.epochs, given))
    assert (read(path).labels == -1).sum() >= 16


def test_given_labels_stand_for_soft_ones(path: str) -> None:
    """Mixup as it is done by hand in a data set: the loss never sees a class."""
    points = Points()
    points.labels = np.eye(N_CLASSES, dtype=np.float32)[points.classes] * 0.7 + np.float32(0.3 / N_CLASSES)
    way = Way(lambda: nn.CrossEntropyLoss(soft_label=True), callback={"labels": points.classes})
    network = record(path, Data(lambda: points), way, epochs=2)
    assert_same(read(path), expected(network.epochs, points.classes))


class TwoSteps(paddle.Model):
    """Sharpness-aware training: every batch goes through network and loss twice."""

    def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> Any:
        super().train_batch(inputs, labels, update=False)
        with paddle.no_grad():
            for parameter in self.network.parameters():
                parameter.set_value(parameter + 1.0)
        out = super().train_batch(inputs, labels, update)
        with paddle.no_grad():
            for parameter in self.network.parameters():
                parameter.set_value(parameter - 1.0)
        return out


class OwnEpoch(paddle.Model):
    """A subclass with an epoch loop of its own around Paddle's."""

    def _run_one_epoch(self, data_loader: Any, callbacks: Any, mode: str, logs: Any = {}) -> Any:  # noqa: B006
        self.n_own_epochs = getattr(self, "n_own_epochs", 0) + (mode == "train")
        return super()._run_one_epoch(data_loader, callbacks, mode, logs)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, ObjectLoss], ids=["layer", "object"])
def test_a_model_whose_steps_ask_the_loss_twice_is_recorded_at_the_first(loss: Any, path: str) -> None:
    network = record(path, Data(), Way(loss), epochs=2, model_class=TwoSteps)
    network.epochs = [epoch[::2] for epoch in network.epochs]
    assert_recorded(path, network)


def test_a_model_with_an_epoch_loop_of_its_own(path: str) -> None:
    network = Witness()
    model = model_of(network, model_class=OwnEpoch)
    recorder = TrainingDynamicsCallback(path, dtype="float32")
    model.fit(Points(), epochs=2, batch_size=BATCH, verbose=0, callbacks=[Bell(), recorder])
    assert_recorded(path, network)
    assert model.n_own_epochs == 2


class Exchanges(paddle.callbacks.Callback):
    """Gives the model another loss in the middle of epochs and between them."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.losses = [self.model._loss, F.cross_entropy, ObjectLoss(), nn.CrossEntropyLoss(reduction="sum")]
        self.turn = 0

    def _exchange(self) -> None:
        self.turn += 1
        self.model._loss = self.losses[self.turn % len(self.losses)]

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        if step in (1, 4):
            self._exchange()

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        assert (
            self.model._loss is self.losses[self.turn % len(self.losses)]
        )  # the original, not a replacement
        if step == 2:
            self._exchange()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._exchange()


@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
def test_a_callback_that_exchanges_the_loss(first: bool, path: str) -> None:
    network = Witness()
    model = model_of(network)
    exchanges = Exchanges()
    ours: list[Any] = [Bell(), TrainingDynamicsCallback(path, dtype="float32")]
    callbacks = [exchanges, *ours] if first else [*ours, exchanges]
    model.fit(Points(), epochs=3, batch_size=BATCH, verbose=0, callbacks=callbacks)
    assert_recorded(path, network)
    assert model._loss is exchanges.losses[exchanges.turn % 4]
    assert all(not loss._forward_pre_hooks for loss in exchanges.losses if isinstance(loss, nn.Layer))


class AsksSampler(paddle.callbacks.Callback):
    """What trainers do to a loader's sampler while an epoch runs."""

    def __init__(self, batches: paddle.io.DataLoader) -> None:
        super().__init__()
        self.batches = batches

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        sampler = self.batches.batch_sampler
        assert isinstance(sampler, paddle.io.DistributedBatchSampler)
        assert sampler.batch_size == BATCH
        assert sampler.shuffle is True
        assert len(sampler) == len(self.batches) == 7
        assert hasattr(sampler, "set_epoch")
        assert not hasattr(sampler, "no_such_attribute")
        sampler.mark = step
        if step == 2:
            assert (
                sum(len(batch) for batch in sampler) == N_SAMPLES
            )  # looking ahead leaves the recording alone

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.batches.batch_sampler.set_epoch(40 - epoch)


def test_others_may_use_the_sampler_while_it_is_tapped(path: str) -> None:
    points = Points()
    sampler = paddle.io.DistributedBatchSampler(points, BATCH, shuffle=True)
    batches = loader(points, batch_sampler=sampler)
    network = Witness()
    callbacks = [Bell(), TrainingDynamicsCallback(path, dtype="float32"), AsksSampler(batches)]
    model_of(network).fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    assert_recorded(path, network)
    assert sampler.mark == 6
    assert batches.batch_sampler is sampler
    order = [np.concatenate([indices for indices, _ in epoch]).tolist() for epoch in network.epochs]
    assert order[1] == np.random.RandomState(40).permutation(N_SAMPLES).tolist()


def test_nonfinite_outputs_are_unseen_counted_and_said_once(path: str) -> None:
    points = Points()
    bad = {3: np.nan, 4: np.inf, 30: -np.inf}

    class Spoilt(Witness):
        def logits(self, x: Any) -> Any:
            odd = paddle.to_tensor(
                [[bad.get(int(i), 0.0), 0.0, 0.0, 0.0] for i in x[:, 0].numpy()], "float32"
            )
            return super().logits(x) + odd

    def over_finite_rows(logits: Any, labels: Any) -> Any:
        finite = paddle.to_tensor(np.flatnonzero(np.isfinite(logits.numpy()).all(axis=1)))
        return F.cross_entropy(paddle.gather(logits, finite), paddle.gather(labels, finite))

    with pytest.warns(RuntimeWarning) as said:
        network = record(path, Data(lambda: points), Way(lambda: over_finite_rows, Spoilt), epochs=3)
    (first,) = (str(warning.message) for warning in said)
    assert re.search("sample .* NaN or infinite.*unseen and counted.*said once", first)
    given = points.classes.copy()
    given[list(bad)] = -1
    assert_same(read(path), expected(network.epochs, given))


def refuse(path: str, data: Any, way: Way, match: str, **options: Any) -> None:
    """The first step raises, with the way out, and leaves neither hook nor file."""
    model = model_of(way.network(), way.loss())
    batches = data if isinstance(data, paddle.io.DataLoader) else paddle.io.DataLoader(data, batch_size=BATCH)
    sampler = batches.batch_sampler
    recorder = TrainingDynamicsCallback(path, **way.callback)
    with pytest.raises(CaptureError, match=match):
        model.fit(batches, epochs=2, verbose=0, callbacks=[Bell(), recorder], **options)
    assert_untapped(model, batches, sampler)
    with pytest.raises(FileNotFoundError):
        TrainingDynamicsStore(path)


class Stream(paddle.io.IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        points = Points()
        return (points[i] for i in range(len(points)))


def test_a_stream_has_no_indices(path: str) -> None:
    match = "IterableDataset, which has no sample indices; .*map-style.*TrainingDynamicsRecorder"
    refuse(path, paddle.io.DataLoader(Stream(), batch_size=BATCH), Way(), match)


def test_a_loader_without_batches_has_no_indices(path: str) -> None:
    batches = paddle.io.DataLoader(Points(label_shape=(1,)), batch_size=None)
    refuse(path, batches, Way(), r"no batch sampler \(batch_size=None\?\).*TrainingDynamicsRecorder")


def test_a_generator_has_no_indices(path: str) -> None:
    batches = list(loader())
    with pytest.raises(CaptureError, match=r"training data \(list\) has no batch sampler"):
        model_of(Witness()).fit(batches, verbose=0, callbacks=[TrainingDynamicsCallback(path)])


def doubling_collate(batch: list[Any]) -> Any:
    features, labels = zip(*batch, strict=True)
    return np.stack([*features, *features]), np.stack([*labels, *labels])


def test_a_collate_function_that_adds_rows(path: str) -> None:
    match = r"saw 16 rows and 16 labels, but the batch sampler gave 8 indices; a collate function"
    refuse(path, loader(collate_fn=doubling_collate), Way(), match)


def test_a_sampler_that_deals_no_indices(path: str) -> None:
    class Named(Points):
        def __getitem__(self, i: Any) -> tuple[Any, ...]:
            return super().__getitem__(int(i))

    sampler = YieldedAs(lambda batch: [str(i) for i in batch])
    match = r"batch sampler gave \['.*wanted a list of integers; .*TrainingDynamicsRecorder"
    refuse(path, loader(Named(), batch_sampler=sampler), Way(), match)


def test_an_index_outside_the_data_set(path: str) -> None:
    sampler = YieldedAs(lambda batch: [i - N_SAMPLES for i in batch])
    model = model_of(Witness())
    with pytest.raises(ValueError, match=r"indices must be in \[0, 50\), got index -\d+; pass n_samples="):
        model.fit(loader(batch_sampler=sampler), verbose=0, callbacks=[TrainingDynamicsCallback(path)])
    with pytest.raises(FileNotFoundError):
        TrainingDynamicsStore(path)


BAD_OUTPUTS = {
    "tokens": (
        Way(
            lambda: lambda logits, labels: logits.mean(),
            functools.partial(Witness, dress=lambda z: z.unsqueeze(1).tile([1, 3, 1])),
        ),
        r"shape \[batch, class\], got \[8, 3, 4\]: .*not one for each token",
    ),
    "multi-label": (
        Way(nn.BCEWithLogitsLoss),
        r"multi-hot \[8, 4\]: multi-label tasks have no single given label",
    ),
    "mixup": (
        Way(lambda: nn.CrossEntropyLoss(soft_label=True)),
        r"labels of shape \[8, 4\], wanted \[batch\].*soft \(mixup.*labels=",
    ),
    "float-labels": (
        Way(lambda: lambda logits, labels: F.cross_entropy(logits, labels.astype("int64"))),
        r"labels of type float32, wanted integers: regression is not supported; .*labels=",
    ),
    "regression": (
        Way(nn.MSELoss, functools.partial(Witness, 1)),
        r"one output, so labels must be 0 or 1, got 2\.5: regression is not supported; .*labels=",
    ),
    "no-such-place": (Way(callback={"logits": 2}), "logits=2, but the network has 1 outputs; pass logits="),
    "no-such-key": (
        Way(callback={"logits": "head"}),
        r"logits='head' names a key, but the network's outputs are \['a tensor \[8, 4\] of float32'\]",
    ),
    "outputs-dictionary": (
        Way(
            lambda: lambda outputs, labels: F.cross_entropy(outputs["b"], labels),
            functools.partial(Witness, dress=lambda z: {"b": z, "a": z}),
        ),
        r"must be a floating-point tensor, got a dictionary with keys \['a', 'b'\]; pass logits=",
    ),
    "no-such-label": (Way(callback={"label": 1}), "label=1, but the loss gets 1 labels; pass label="),
    "logits-function-fails": (
        Way(callback={"logits": lambda outputs: outputs["x"]}),
        "the loss's arguments cannot be read: .*TrainingDynamicsRecorder",
    ),
}
BAD_LABELS = {
    "multi-label": np.tile(np.float32([1, 1, 0, 0]), (N_SAMPLES, 1)),
    "mixup": np.tile(np.float32([0.7, 0.3, 0, 0]), (N_SAMPLES, 1)),
    "float-labels": np.ones(N_SAMPLES, np.float32),
    "regression": np.full((N_SAMPLES, 1), 2.5, np.float32),
}


@pytest.mark.parametrize("kind", BAD_OUTPUTS)
@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_recorded_is_refused_at_the_first_step(kind: str, workers: int, path: str) -> None:
    way, match = BAD_OUTPUTS[kind]
    points = Points()
    points.labels = BAD_LABELS.get(kind, points.labels)
    refuse(path, loader(points, num_workers=workers), way, match)


def test_a_model_that_never_calls_its_loss(path: str) -> None:
    class OwnLoss(paddle.Model):
        def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> Any:
            loss = F.cross_entropy(self.network(*inputs), labels[0])
            return [loss.item()]

    model = model_of(Witness(), model_class=OwnLoss)
    with pytest.raises(CaptureError, match=r"the model's loss was not called; .*TrainingDynamicsRecorder"):
        model.fit(Points(), batch_size=BATCH, verbose=0, callbacks=[TrainingDynamicsCallback(path)])


def test_memory_of_a_tensor_whose_rows_do_not_follow_each_other() -> None:
    tensor = paddle.to_tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    for view in (tensor.t(), tensor[:, 1:3], tensor):
        np.testing.assert_array_equal(memory_of(view.detach()), view.numpy())
