"""Law 1 over odd trainings: bit-equal with and without the callbacks, and nothing is left behind."""

from __future__ import annotations

import collections
import copy
import functools
import os
import pickle
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from support.training import N_CLASSES, N_FEATURES, Points, assert_untapped, model_of, seed_all

from paddle_td_callback import LabelIssuesCallback, TrainingDynamicsCallback, TrainingDynamicsStore

N, BATCH = 24, 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*can only be enabled on CUDAPlace:UserWarning"),
    pytest.mark.filterwarnings("ignore:When training, we now always track global mean:UserWarning"),
]


class Net(nn.Layer):
    """A small network with everything that has a state of its own."""

    def __init__(self, n_outputs: int = N_CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(N_FEATURES, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, n_outputs)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x[:, 1:]))


class Headless(Net):
    """Gives features, and keeps a head with a state of its own for whoever wants logits."""

    latest: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1D(8), nn.Dropout(0.4), nn.Linear(8, N_CLASSES))
        Headless.latest = weakref.ref(self)

    def forward(self, x: Any) -> Any:
        return self.body(x[:, 1:])


class Recurrent(Net):
    """With an LSTM, whose dropout state has no memory on a CPU, and a sparse tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_CLASSES, N_CLASSES)
        self.edges = paddle.sparse.sparse_coo_tensor([[0, 1, 2], [1, 2, 0]], [1.0, 2.0, 3.0], [3, 3])

    def forward(self, x: Any) -> Any:
        logits = super().forward(x)
        return logits + self.lstm(logits.unsqueeze(1))[0][:, 0]


def doubled(features: Any) -> Any:
    return features.multiply_(paddle.to_tensor(2.0))  # in place, in its own copy


class Counts(Net):
    """Its forward has a state in plain Python, which the weights depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0
        self.means: list[float] = []

    def forward(self, x: Any) -> Any:
        self.n_calls += 1
        self.means.append(float(x.mean()))
        self.latest = self.means[-1]
        return super().forward(x) * (1 + 0.01 * self.n_calls + 0.01 * sum(self.means))


class Rebinds(Net):
    """Its forward replaces a buffer, as a running mean is often written, and changes what lies deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", paddle.zeros([8]))
        self.plain = paddle.zeros([8])
        self.late: Any = None
        self.deep = {"counts": [0, collections.deque([1.0], maxlen=3)], "array": np.zeros(3)}
        self.helper = SimpleNamespace(total=0.0)

    def forward(self, x: Any) -> Any:
        hidden = self.body(x[:, 1:])
        mean = hidden.detach().mean(axis=0)
        self.mean = 0.9 * self.mean + 0.1 * mean
        self.plain = 0.5 * self.plain + mean
        self.late = mean if self.late is None else self.late + mean
        self.deep["counts"][0] += 1
        self.deep["counts"][1].append(float(mean.sum()))
        self.deep["array"] += 1
        self.helper.total += float(mean.mean())
        shift = self.mean + self.plain + self.late
        scale = (
            self.deep["counts"][0]
            + sum(self.deep["counts"][1])
            + self.deep["array"].sum()
            + self.helper.total
        )
        return self.head(hidden - 0.1 * shift) * (1 + 0.01 * float(scale))


class CopiesItsLoss(paddle.Model):  # type: ignore[misc]
    """Computes its step with a changed copy of its loss."""

    def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> Any:
        softer = copy.copy(self._loss)
        softer.reduction = "sum"
        assert self._loss.reduction == "mean"
        return super().train_batch(inputs, labels, update)


OUTER = nn.Sequential(nn.BatchNorm1D(N_CLASSES), nn.Dropout(0.5))


def with_outer_head(logits: Any, *, head: Any) -> Any:
    return head(logits)


class Jittered(Points):
    """Draws from all three global streams for each sample."""

    def __init__(self) -> None:
        super().__init__(N)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        noise = np.random.rand() + random.random()  # noqa: NPY002
        return features + np.float32(noise) * (np.arange(N_FEATURES + 1) > 0).astype(np.float32), label


def loader(data: Any = None, **options: Any) -> Any:
    options = {"batch_size": BATCH, "shuffle": True, **options}
    if "batch_sampler" in options:
        options = {k: v for k, v in options.items() if k not in ("batch_size", "shuffle")}
    return paddle.io.DataLoader(Jittered() if data is None else data, **options)


class Lazy:
    """A batch that draws its samples when it is iterated."""

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(N) for _ in range(BATCH))

    def __len__(self) -> int:
        return BATCH


class ListThatDraws(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[int]:
        return (random.randrange(N) for _ in range(BATCH))


class Deals(paddle.io.BatchSampler):
    """A sampler whose batches are what `make` makes."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return (self.make(k) for k in range(3))

    def __len__(self) -> int:
        return 3


class Strict(Deals):
    """A sampler with special methods, that is no truth and equals only itself."""

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    def __getitem__(self, k: int) -> Any:
        return self.make(k)

    def __contains__(self, batch: Any) -> bool:
        return True

    def __add__(self, other: int) -> int:
        return 3 + other


class Draws(Sequence):  # type: ignore[type-arg]
    """A sequence whose items are drawn when they are read."""

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, place: Any) -> Any:
        if place >= BATCH:
            raise IndexError
        return np.random.randint(N)  # noqa: NPY002


class SeedsItsSampler(paddle.io.DataLoader):  # type: ignore[misc]
    """A loader that tells its sampler which epoch it is, if that is the sampler it knows."""

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.batch_sampler, Seeded):
            self.batch_sampler.epoch += 1
            vars(self.batch_sampler)["seed"] = 7
        return super().__iter__()


class Seeded(paddle.io.BatchSampler):  # type: ignore[misc]
    epoch = seed = 0

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(N).tolist()
        return (order[k : k + BATCH] for k in range(0, N, BATCH))


def run_of(k: int) -> list[int]:
    return list(range(k * BATCH, k * BATCH + BATCH))


class Callback(paddle.callbacks.Callback):
    """What others do to the training while it runs.

    Args:
        hooks: by the event, called with the model.
    """

    def __init__(self, **hooks: Callable[[Any], None]) -> None:
        super().__init__()
        for name, hook in hooks.items():
            setattr(self, f"on_{name}", functools.partial(self._call, hook))

    def _call(self, hook: Callable[[Any], None], *arguments: Any) -> None:
        hook(self.model)


def evaluates(model: Any) -> None:
    model.evaluate(Points(10), batch_size=5, verbose=0)


def predicts(model: Any) -> None:
    model.predict(Points(10), batch_size=5, verbose=0)


def trains_one_batch(model: Any) -> None:
    points = Points(6)
    model.train_batch([paddle.to_tensor(points.features)], [paddle.to_tensor(points.labels)])


def fits_inside(model: Any) -> None:
    if not getattr(model, "is_inside", False):
        model.is_inside = True
        num_iters = model.num_iters
        model.fit(Points(8), epochs=1, batch_size=4, verbose=0)
        model.num_iters, model.is_inside = num_iters, False


def trains_a_copy(model: Any) -> None:
    twin = copy.copy(model)
    twin.network = copy.deepcopy(model.network)
    twin.prepare(paddle.optimizer.SGD(0.1, parameters=twin.network.parameters()), nn.CrossEntropyLoss())
    twin.fit(Points(8), epochs=1, batch_size=4, verbose=0)
    trains_one_batch(twin)


def forks(model: Any) -> None:
    """A child that trains on its own and ends, as a logger or a loader's worker does."""
    child = os.fork()
    if child == 0:
        try:
            trains_one_batch(model)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def evaluates_in_a_thread(model: Any) -> None:
    thread = threading.Thread(target=evaluates, args=(model,))
    thread.start()
    thread.join()


def copies_deeply(model: Any) -> None:
    copy.deepcopy(model.network)
    pickle.dumps(model.network.state_dict()["head.bias"].numpy())


def takes_another_loss(model: Any) -> None:
    model._loss = nn.CrossEntropyLoss(label_smoothing=0.2)


class Wraps(paddle.callbacks.Callback):
    """Wraps a method of the model when training begins or an epoch does, and puts back what it found at the end."""

    def __init__(self, name: str, when: str) -> None:
        super().__init__()
        self.name, self.when = name, when
        self.found: Any = None

    def _wrap(self) -> None:
        if self.found is None:
            self.found = getattr(self.model, self.name)
            found = self.found
            setattr(self.model, self.name, lambda *a, **k: found(*a, **k))

    def on_train_begin(self, logs: Any = None) -> None:
        if self.when == "train":
            self._wrap()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.when == "epoch":
            self._wrap()

    def on_train_end(self, logs: Any = None) -> None:
        if vars(self.model).get(self.name) is not None:
            if getattr(self.found, "__self__", None) is self.model and self.name in vars(type(self.model)):
                setattr(self.model, self.name, self.found)
                del vars(self.model)[self.name]
            else:
                setattr(self.model, self.name, self.found)


class ReadsSampler(paddle.callbacks.Callback):
    """Uses the loader's sampler as trainers do: it is the sampler itself, always."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data, self.sampler = data, data.batch_sampler

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        sampler = self.data.batch_sampler
        assert sampler is self.sampler
        assert sampler == self.sampler
        assert hash(sampler) == hash(self.sampler)
        if isinstance(sampler, Strict):
            assert sampler[1] == run_of(1)
            assert sampler + 1 == 4
            assert 3 in sampler

    on_train_batch_end = on_train_batch_begin


class Sharpened(paddle.Model):
    """Each step goes through the network twice."""

    def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> Any:
        super().train_batch(inputs, labels, update=False)
        return super().train_batch(inputs, labels, update)


class SwapsLoss(paddle.Model):
    """Computes its step with another loss, and puts back what it found."""

    def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> Any:
        found = self._loss
        out = super().train_batch(inputs, labels, update)
        self._loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        super().train_batch(inputs, labels, update)
        self._loss = found
        return out


class OwnEpochs(paddle.Model):
    def _run_one_epoch(self, data_loader: Any, callbacks: Any, mode: str, logs: Any = {}) -> Any:  # noqa: B006
        if mode == "train":
            next(iter(data_loader))  # a look at the data first
        return super()._run_one_epoch(data_loader, callbacks, mode, logs)


class CallsItsLoader(paddle.Model):  # type: ignore[misc]
    """A loop of its own, which asks and tells its loader something."""

    def _run_one_epoch(self, data_loader: Any, callbacks: Any, mode: str, logs: Any = {}) -> Any:  # noqa: B006
        assert isinstance(data_loader, paddle.io.DataLoader)
        data_loader.n_epochs = getattr(data_loader, "n_epochs", 0) + 1
        paddle.seed(data_loader.n_epochs)
        for step, (x, y) in enumerate(data_loader()):
            callbacks.on_batch_begin(mode, step, logs)
            self.train_batch([x], [y])
            callbacks.on_batch_end(mode, step, logs)
        return logs


class InPlace(nn.Layer):
    """A loss that works in place on what it is given."""

    def forward(self, logits: Any, labels: Any) -> Any:
        return F.cross_entropy((logits * 1.0).scale_(0.5), labels)


class Stateful(nn.Layer):
    """A loss that draws random numbers and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, logits: Any, labels: Any) -> Any:
        self.n_calls += 1
        return F.cross_entropy(logits + 0.1 * paddle.randn(logits.shape), labels)


class Noted(paddle.io.IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        data = Jittered()
        return ((*data[i], np.int64(i)) for i in range(N))


class AsGenerator:
    """A loader in plain Python."""

    def __init__(self) -> None:
        self.dataset = Jittered()
        self.batch_sampler = paddle.io.BatchSampler(self.dataset, batch_size=BATCH, shuffle=True)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batch_sampler:
            features, labels = zip(*(self.dataset[i] for i in batch), strict=True)
            yield paddle.to_tensor(np.stack(features)), paddle.to_tensor(np.stack(labels))


class Refills(paddle.io.BatchSampler):
    """Deals one list over and over."""

    def __init__(self) -> None:
        self.batch: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        for k in range(3):
            self.batch[:] = run_of(k)
            yield self.batch

    def __len__(self) -> int:
        return 3


SOFT = nn.CrossEntropyLoss(soft_label=True)


class Mixed(Jittered):
    def __getitem__(self, i: int) -> tuple[Any, ...]:
        features, label = super().__getitem__(i)
        return features, (np.eye(N_CLASSES, dtype=np.float32)[label] * 0.8 + 0.05).astype(np.float32)


class Dictionary(Jittered):
    def __getitem__(self, i: int) -> Any:
        features, label = super().__getitem__(i)
        return {"a": features, "b": label, "index": i}


CLASSES = Points(N).classes

# By name: what differs from the plain training. "others" are callbacks, made for each run from its data.
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "data-set": {"data": Jittered, "batch_size": BATCH},
    "workers": {"data": lambda: loader(num_workers=2)},
    "persistent-workers": {"data": lambda: loader(num_workers=1, persistent_workers=True)},
    "drop-last": {"data": lambda: loader(drop_last=True, batch_size=5)},
    "unbuffered": {"data": lambda: loader(use_buffer_reader=False)},
    "last-batch-of-one": {"data": lambda: loader(batch_size=23)},
    "accumulate": {"accumulate_grad_batches": 2},
    "num-iters": {
        "data": lambda: loader(Points(N)),
        "num_iters": 4,
    },  # the reader is ahead by any number of samples
    "evaluation": {"eval_data": Points(10)},
    "metrics": {"metrics": lambda: paddle.metric.Accuracy()},
    "amp-O1": {"amp": "O1"},
    "amp-O2": {"amp": {"level": "O2"}},
    "function-loss": {"loss": lambda: F.cross_entropy},
    "partial-loss": {"loss": lambda: functools.partial(F.cross_entropy, label_smoothing=0.1)},
    "lambda-loss": {"loss": lambda: lambda z, y: F.cross_entropy(z, y) * 2},
    "in-place-loss": {"loss": InPlace},
    "loss-that-draws": {"loss": Stateful},
    "soft-labels": {"data": lambda: loader(Mixed()), "loss": lambda: SOFT, "options": {"labels": CLASSES}},
    "lazy-batches": {"data": lambda: loader(batch_sampler=Deals(lambda _: Lazy()))},
    "lists-that-draw": {"data": lambda: loader(batch_sampler=Deals(lambda _: ListThatDraws(range(BATCH))))},
    "generators-as-batches": {"data": lambda: loader(batch_sampler=Deals(lambda k: (i for i in run_of(k))))},
    "arrays-as-batches": {"data": lambda: loader(batch_sampler=Deals(lambda k: np.array(run_of(k))))},
    "one-list-refilled": {"data": lambda: loader(batch_sampler=Refills())},
    "list-of-batches": {"data": lambda: loader(batch_sampler=[run_of(2), run_of(0)])},
    "strict-sampler": {
        "data": lambda: loader(batch_sampler=Strict(run_of)),
        "others": lambda d: [ReadsSampler(d)],
    },
    "sampler-is-itself": {"others": lambda d: [ReadsSampler(d)]},
    "distributed-sampler": {
        "data": lambda: loader(
            batch_sampler=paddle.io.DistributedBatchSampler(Points(N), BATCH, shuffle=True)
        )
    },
    "plain-python-loader": {"data": AsGenerator},
    "stream": {
        "data": lambda: loader(Noted(), shuffle=False),
        "options": {"index_field": -1, "n_samples": N},
        "strip": -1,
    },
    "dictionaries": {
        "data": lambda: loader(Dictionary()),
        "options": {"index_field": "index"},
        "strip": "index",
    },
    "evaluates-when-an-epoch-begins": {"others": lambda _: [Callback(epoch_begin=evaluates)]},
    "predicts-when-an-epoch-begins": {"others": lambda _: [Callback(epoch_begin=predicts)]},
    "evaluates-in-steps": {
        "others": lambda _: [Callback(train_batch_begin=evaluates, train_batch_end=predicts)]
    },
    "trains-in-steps": {
        "others": lambda _: [Callback(train_batch_begin=trains_one_batch, train_batch_end=trains_one_batch)]
    },
    "fits-when-an-epoch-begins": {"others": lambda _: [Callback(epoch_begin=fits_inside)]},
    "copies-when-an-epoch-begins": {"others": lambda _: [Callback(epoch_begin=trains_a_copy)]},
    "copies-in-steps": {"others": lambda _: [Callback(train_batch_begin=trains_a_copy)]},
    "forks-in-steps": {"others": lambda _: [Callback(train_batch_begin=forks)]},
    "threads-in-steps": {"others": lambda _: [Callback(train_batch_end=evaluates_in_a_thread)]},
    "deep-copies-in-steps": {"others": lambda _: [Callback(train_batch_begin=copies_deeply)]},
    "another-loss-in-each-epoch": {"others": lambda _: [Callback(epoch_begin=takes_another_loss)]},
    "wraps-train_batch": {"others": lambda _: [Wraps("train_batch", "epoch")]},
    "wraps-train_batch-early": {"others": lambda _: [Wraps("train_batch", "train")]},
    "wraps-the-epoch-loop": {"others": lambda _: [Wraps("_run_one_epoch", "epoch")]},
    "wraps-the-epoch-loop-early": {"others": lambda _: [Wraps("_run_one_epoch", "train")]},
    "wraps-the-loss": {"others": lambda _: [Wraps("_loss", "epoch")]},
    "sharpened": {"model_class": Sharpened},
    "swaps-loss": {"model_class": SwapsLoss},
    "own-epochs": {"data": lambda: loader(Points(N)), "model_class": OwnEpochs},
    "calls-its-loader": {"data": lambda: loader(Points(N)), "model_class": CallsItsLoader},
    "sequences-that-draw": {"data": lambda: loader(batch_sampler=Deals(lambda _: Draws()))},
    "seeds-its-sampler": {"data": lambda: SeedsItsSampler(Jittered(), batch_sampler=Seeded(Jittered()))},
    "logits-by-a-function": {
        "network": Headless,
        "loss": lambda: F.cross_entropy,
        "options": {"logits": lambda features: Headless.latest().head(doubled(features))},
    },
    "copies-its-loss": {"model_class": CopiesItsLoss},
    "recurrent-with-a-function": {"network": Recurrent, "options": {"logits": lambda logits: logits}},
    "recurrent-with-a-pass": {"network": Recurrent, "options": {"mode": "eval"}},
    "logits-by-a-head-outside": {
        "loss": lambda: F.cross_entropy,
        "options": {"logits": functools.partial(with_outer_head, head=OUTER)},
    },
    "logits-by-a-layer-outside": {"loss": lambda: F.cross_entropy, "options": {"logits": OUTER[0]}},
    "evaluation-pass-that-rebinds": {"network": Rebinds, "options": {"mode": "eval"}},
    "evaluation-pass-that-counts": {"network": Counts, "options": {"mode": "eval"}},
    "evaluation-pass-with-a-head-outside": {
        "loss": lambda: F.cross_entropy,
        "options": {"logits": functools.partial(with_outer_head, head=OUTER), "mode": "eval"},
    },
    "evaluation-pass": {"options": {"mode": "eval"}},
    "evaluation-pass-workers": {"data": lambda: loader(num_workers=1), "options": {"mode": "eval"}},
}


class Stripped:
    """A loader without the index field, as the training without the callback has it."""

    def __init__(self, data: Any, key: Any) -> None:
        self.data, self.key = data, key

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            if isinstance(batch, dict):
                yield {key: value for key, value in batch.items() if key != self.key}
            else:
                yield batch[:-1]


def train(path: str | None, others_first: bool, **case: Any) -> dict[str, Any]:
    """One training; everything that must be equal."""
    case = {"data": loader, "loss": nn.CrossEntropyLoss, "others": lambda _: [], **case}
    data, loss = case.pop("data"), case.pop("loss")
    options, strip = case.pop("options", {}), case.pop("strip", None)
    others, metrics = case.pop("others"), case.pop("metrics", lambda: None)
    amp, model_class = case.pop("amp", None), case.pop("model_class", paddle.Model)
    make_network = case.pop("network", Net)
    seed_all(5)
    with paddle.utils.unique_name.guard():
        network, criterion = make_network(), loss()
        model = model_of(
            network, criterion, learning_rate=0.02, metrics=metrics(), amp=amp, model_class=model_class
        )
        batches = data()
        fitted = batches if path is not None or strip is None else Stripped(batches, strip)
        sampler = getattr(batches, "batch_sampler", None)
        theirs, ours = others(batches), []
        if path is not None:
            recorder = TrainingDynamicsCallback(path, **options)
            ours = [recorder, LabelIssuesCallback(recorder, method="aum", progress=False)]
        callbacks = [*theirs, *ours] if others_first else [*ours, *theirs]
        before = set(vars(model))
        model.fit(fitted, epochs=2, verbose=0, callbacks=callbacks, **case)
        allowed = {"num_iters", "stop_training", "is_inside", "_accumulate", "_save_dir", "_test_dataloader"}
        left = set(vars(model)) - before - allowed
        fresh = nn.Linear(2, 2)
    if path is not None:
        assert_untapped(model)
        assert not left & {"_run_one_epoch", "train_batch"} or isinstance(theirs[0], Wraps)
        assert getattr(batches, "batch_sampler", None) is sampler
        with TrainingDynamicsStore(path) as store:
            assert store.n_epochs == 2
            assert (store.n_presentations() > 0).any(axis=0).all()
    return {
        "weights": [p.numpy() for p in network.state_dict().values()],
        "outside": [p.numpy() for p in OUTER.state_dict().values()],
        "optimizer": {k: np.asarray(v) for k, v in model._optimizer.state_dict().items()},
        "streams": [np.random.get_state(), random.getstate()],  # noqa: NPY002
        "draws": [paddle.rand([3]).numpy(), np.random.rand(3), random.random()],  # noqa: NPY002
        "names": [p.name for p in fresh.parameters()],
        "settings": (
            paddle.get_default_dtype(),
            paddle.get_device(),
            paddle.is_grad_enabled(),
            network.training,
        ),
        "calls of the loss": getattr(criterion, "n_calls", None),
    }


@pytest.mark.parametrize("name", TRAININGS)
def test_an_odd_training_is_the_same(name: str, path: str) -> None:
    case = TRAININGS[name]
    without = train(None, True, **case)
    orders = (True, False) if "others" in case else (True,)
    for others_first in orders:
        np.testing.assert_equal(train(f"{path}{others_first}", others_first, **case), without)


def test_there_are_at_least_forty() -> None:
    assert len(TRAININGS) >= 40
