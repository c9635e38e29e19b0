"""One test for each way of training that the README's table names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from support.training import (
    N_CLASSES,
    N_FEATURES,
    N_SAMPLES,
    Bell,
    Points,
    Witness,
    assert_same,
    expected,
    model_of,
    read,
    seed_all,
)

from paddle_td_callback import (
    CaptureError,
    LabelIssuesCallback,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)

TESTS = Path(__file__).parents[1]
BATCH = 8
CLASSES = Points().classes


def fit(
    data: Any,
    path: str,
    *,
    network: Any = None,
    loss: Any = None,
    epochs: int = 2,
    record: bool = True,
    callbacks: Any = (),
    fit_options: dict[str, Any] | None = None,
    amp: Any = None,
    witness: Any = None,
    model_class: Any = paddle.Model,
    **options: Any,
) -> Any:
    """Train and record; the network comes back with what it logged."""
    seed_all(2)
    network = Witness(exact=False) if network is None else network
    witness = network if witness is None else witness

    class Ring(Bell):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            witness.epochs.append([])
            witness.listening = True

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            witness.listening = False

    ours = [TrainingDynamicsCallback(path, dtype="float32", **options)] if record else []
    model = model_of(network, loss, learning_rate=0.05, amp=amp, model_class=model_class)
    model.fit(
        data,
        epochs=epochs,
        batch_size=BATCH,
        verbose=0,
        callbacks=[Ring(), *ours, *callbacks],
        **fit_options or {},
    )
    return witness


def assert_recorded(path: str, witness: Witness, labels: Any = CLASSES) -> None:
    assert_same(read(path), expected(witness.epochs, labels))


def assert_same_weights(one: nn.Layer, other: nn.Layer) -> None:
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def batches_of(sampler: Any) -> Any:
    return paddle.io.DataLoader(
        Points(), batch_sampler=paddle.io.BatchSampler(sampler=sampler, batch_size=BATCH)
    )


# --- subsets and samplers


def test_subset(path: str) -> None:
    chosen = list(range(40, 10, -1))

    class Local(Points):
        def __getitem__(self, i: int) -> Any:
            x, label = super().__getitem__(i)
            x = x.copy()
            x[0] = chosen.index(i)  # the sample index is the place in what fit was given
            return x, label

    witness = fit(paddle.io.Subset(Local(), chosen), path)
    assert_recorded(path, witness, CLASSES[chosen])


def test_weighted_random_sampler(path: str) -> None:
    weights = np.where(np.arange(N_SAMPLES) < 10, 5.0, 0.1)
    weights[20:30] = 0
    witness = fit(batches_of(paddle.io.WeightedRandomSampler(weights, N_SAMPLES)), path)
    assert_recorded(path, witness)
    with TrainingDynamicsStore(path) as store:
        assert store.n_presentations().max() > 1
        assert (store.labels[20:30] == -1).all()


def test_subset_random_sampler(path: str) -> None:
    assert_recorded(path, fit(batches_of(paddle.io.SubsetRandomSampler(range(5, 33))), path))


class ClassBalanced(paddle.io.BatchSampler):
    """Two random samples of each class in every batch."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            yield [int(i) for c in range(N_CLASSES) for i in self.rng.choice(np.flatnonzero(c == CLASSES), 2)]

    def __len__(self) -> int:
        return 6


def test_custom_batch_sampler(path: str) -> None:
    class Pairs(paddle.io.BatchSampler):
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[list[int]]:
            return ([i, N_SAMPLES - 1 - i] for i in range(20))

        def __len__(self) -> int:
            return 20

    assert_recorded(path, fit(paddle.io.DataLoader(Points(), batch_sampler=Pairs()), path))


def test_class_balanced_sampler(path: str) -> None:
    assert_recorded(path, fit(paddle.io.DataLoader(Points(), batch_sampler=ClassBalanced()), path))


def test_oversampling(path: str) -> None:
    class Twice(paddle.io.Sampler):
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[int]:
            return iter([*range(N_SAMPLES), *range(10)])

        def __len__(self) -> int:
            return N_SAMPLES + 10

    witness = fit(batches_of(Twice()), path)
    assert_recorded(path, witness)  # the last presentation
    with TrainingDynamicsStore(path) as store:
        assert (store.n_presentations()[:10] == 2).all()
        assert (store.n_presentations()[10:] == 1).all()


def test_samples_never_drawn(path: str) -> None:
    finder = LabelIssuesCallback(path, method="aum")
    fit(batches_of(paddle.io.SubsetRandomSampler(range(30))), path, callbacks=[finder])
    assert finder.issues is not None
    assert finder.issues.unscored.tolist() == list(range(30, N_SAMPLES))
    assert sorted(finder.issues.ranking) == list(range(30))


# --- streams and ids


class Stream(paddle.io.IterableDataset):
    """The points in an order of its own, each with what names it.

    Args:
        name: of sample `i`, None = no name.
    """

    def __init__(self, name: Callable[[int], Any] | None) -> None:
        self.name = name

    def __iter__(self) -> Iterator[Any]:
        points = Points()
        for i in np.random.default_rng(3).permutation(N_SAMPLES):
            x, label = points[i]
            yield (x, label) if self.name is None else (x, label, self.name(int(i)))


def stream(name: Callable[[int], Any] | None, **options: Any) -> Any:
    return paddle.io.DataLoader(Stream(name), batch_size=BATCH, **options)


def test_iterable_dataset(path: str) -> None:
    witness = fit(stream(int), path, index_field=-1, n_samples=N_SAMPLES)
    assert_recorded(path, witness)
    plain = fit(stream(None), path, record=False)
    assert_same_weights(witness, plain)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_field_is_taken_out_after_recording_has_ended(path: str, mode: str) -> None:
    class Changing(Points):
        n_read = 0

        def __getitem__(self, i: int) -> Any:
            self.n_read += 1
            x, label = super().__getitem__(i)
            return x, label if self.n_read <= 2 * N_SAMPLES else (label + 1) % N_CLASSES, i

    n_steps = 0

    class Count(paddle.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            nonlocal n_steps
            n_steps += 1

    callback = TrainingDynamicsCallback(path, mode=mode, index_field=-1)
    with pytest.warns(RuntimeWarning, match="recording ends here, committed epochs stay, training goes on"):
        model_of(Witness()).fit(
            Changing(), epochs=5, batch_size=BATCH, verbose=0, callbacks=[callback, Count()]
        )
    assert n_steps == 5 * -(-N_SAMPLES // BATCH)
    assert callback.n_recorded == (2 if mode == "train" else 1)


def test_loader_without_a_batch_sampler(path: str) -> None:
    class Batches(paddle.io.Dataset):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> Any:
            points, rows = Points(), np.arange(5 * i, 5 * i + 5)
            return rows, points.features[rows], points.labels[rows]

    data = paddle.io.DataLoader(Batches(), batch_size=None)
    assert_recorded(path, fit(data, path, index_field=0, n_samples=N_SAMPLES))


def test_plain_list_of_batches(path: str) -> None:
    points = Points()
    parts = np.array_split(np.random.default_rng(0).permutation(N_SAMPLES), 7)
    data = [[paddle.to_tensor(v) for v in (points.features[p], points.labels[p], p)] for p in parts]
    assert_recorded(path, fit(data, path, index_field=-1, n_samples=N_SAMPLES))


def test_dictionary_batches(path: str) -> None:
    class Dictionaries(Points):
        def __getitem__(self, i: int) -> Any:
            x, label = super().__getitem__(i)
            return {"a_image": x, "b_label": label, "index": i}

    witness = fit(Dictionaries(), path, index_field="index")
    assert_recorded(path, witness)


NAMES = [f"img/{i:03d}-é.png" for i in range(N_SAMPLES)]


@pytest.mark.parametrize("form", ["string", "bytes", "number"])
def test_string_ids(path: str, form: str, tmp_path: Path) -> None:
    name: Callable[[int], Any] = {
        "string": lambda i: NAMES[i],
        "bytes": lambda i: NAMES[i].encode(),
        "number": lambda i: 10_000 - i,
    }[form]
    ids = [10_000 - i for i in range(N_SAMPLES)] if form == "number" else NAMES
    finder = LabelIssuesCallback(path, method="aum", csv=str(tmp_path / "issues.csv"))
    witness = fit(stream(name), path, index_field=-1, sample_ids=ids, callbacks=[finder])
    assert_recorded(path, witness)
    with TrainingDynamicsStore(path) as store:
        assert store.sample_ids == [str(one) for one in ids]
    assert finder.issues is not None
    first = str(ids[int(finder.issues.ranking[0])])
    rows = (tmp_path / "issues.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("sample,sample_id,rank")
    assert rows[1].split(",")[1] == first
    assert first in repr(finder.issues)
    assert finder.issues.to_dataframe().sort_index()["sample_id"].tolist() == [str(one) for one in ids]


def test_ids_of_a_map_style_data_set(path: str) -> None:
    witness = fit(Points(), path, sample_ids=NAMES)
    assert_recorded(path, witness)
    with TrainingDynamicsStore(path) as store:
        assert store.sample_ids == NAMES
    assert find_label_issues(path, method="aum", progress=False).sample_ids == NAMES


def test_ids_that_do_not_fit_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"sample_ids holds 'a' twice"):
        TrainingDynamicsCallback(path, sample_ids=["a", "b", "a"])
    with pytest.raises(ValueError, match="n_samples=4, but there are 2 sample_ids"):
        TrainingDynamicsCallback(path, sample_ids=["a", "b"], n_samples=4)
    with pytest.raises(CaptureError, match=r"holds strings such as .* sample_ids="):
        fit(stream(lambda i: NAMES[i]), path, index_field=-1, n_samples=N_SAMPLES)
    with pytest.raises(CaptureError, match="which is not among the 50 sample_ids"):
        fit(stream(lambda i: f"other{i}"), path, index_field=-1, sample_ids=NAMES)
    with pytest.raises(CaptureError, match=r"index_field=7, but a batch of the data is 3 fields"):
        fit(
            stream(int), path, index_field=7, n_samples=N_SAMPLES, loss=lambda z, y, *_: F.cross_entropy(z, y)
        )
    fit(Points(), path, sample_ids=NAMES)
    with pytest.raises(StoreError, match="with other sample_ids"):
        fit(Points(), path, sample_ids=NAMES[::-1], resume=True)


# --- checkpoints and restarts


def test_fit_twice(path: str) -> None:
    network = Witness(exact=False)
    model = model_of(network, learning_rate=0.05)
    callback = TrainingDynamicsCallback(path, dtype="float32")
    for _ in range(2):
        model.fit(Points(), epochs=2, batch_size=BATCH, verbose=0, callbacks=[Bell(), callback])
    assert len(network.epochs) == 4
    assert_recorded(path, network)


RESTART = """
import sys
from support.training import *
from paddle_td_callback import TrainingDynamicsCallback
path, checkpoint, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
class Reseed(paddle.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        seed_all(first + epoch)
seed_all(9)
model = model_of(Witness(exact=False), learning_rate=0.05)
if first:
    model.load(checkpoint)
data = paddle.io.DataLoader(Points(), batch_size=8, shuffle=True)
callback = TrainingDynamicsCallback(path, dtype="float32", resume=True)
model.fit(data, epochs=last - first, verbose=0, callbacks=[Reseed(), callback])
model.save(checkpoint)
"""


def test_new_process_loads_a_checkpoint_and_resumes(path: str, tmp_path: Path) -> None:
    whole = str(tmp_path / "whole.h5")
    for runs in ([(whole, "w", 0, 3)], [(path, "p", 0, 2), (path, "p", 2, 3)]):
        for file, checkpoint, first, last in runs:
            arguments = [file, str(tmp_path / checkpoint), str(first), str(last)]
            subprocess.run(
                [sys.executable, "-c", RESTART, *arguments],
                check=True,
                timeout=120,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
            )
    assert_same(read(path), read(whole))


# --- networks


def test_auxiliary_heads(path: str) -> None:
    def loss(main: Any, aux: Any, labels: Any) -> Any:
        return F.cross_entropy(main, labels) + 0.3 * F.cross_entropy(aux, labels)

    network = Witness(exact=False, dress=lambda logits: (logits, logits * 0.5))
    assert_recorded(path, fit(Points(), path, network=network, loss=loss))


def test_dictionary_of_outputs(path: str) -> None:
    network = Witness(exact=False, dress=lambda logits: {"features": logits * 2, "logits": logits})
    witness = fit(
        Points(),
        path,
        network=network,
        loss=lambda outputs, labels: F.cross_entropy(outputs["logits"], labels),
        logits=lambda outputs: outputs["logits"],
    )
    assert_recorded(path, witness)


def test_gradient_accumulation(path: str) -> None:
    options = {"accumulate_grad_batches": 3}
    witness = fit(Points(), path, fit_options=options)
    assert_recorded(path, witness)
    assert_same_weights(witness, fit(Points(), path, record=False, fit_options=options))


@pytest.mark.filterwarnings("ignore:.*can only be enabled on CUDAPlace:UserWarning")
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_amp(path: str, level: str) -> None:
    witness = fit(Points(), path, amp={"level": level})
    assert_recorded(path, witness)
    assert_same_weights(witness, fit(Points(), path, amp={"level": level}, record=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_outputs(path: str, dtype: str) -> None:
    # What AMP hands over on a device that has it; on a CPU Paddle switches AMP off.
    network = Witness(exact=False, activation=lambda logits: logits.astype(dtype))
    witness = fit(Points(), path, network=network, loss=lambda z, y: F.cross_entropy(z.astype("float32"), y))
    assert witness.epochs[0][0][1].dtype == getattr(paddle, dtype)
    assert_recorded(path, witness)


class Bfloat16Witness(Witness):
    """Products, sums and their gradients in bfloat16 of weights in float32, as O1 has it; a CPU can do few more."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.weight = self.create_parameter(
            [1, N_FEATURES, N_CLASSES], default_initializer=nn.initializer.Normal(std=0.3)
        )

    def logits(self, x: Any) -> Any:
        return (x[:, 1:].astype("bfloat16").unsqueeze(2) * self.weight.astype("bfloat16")).sum(axis=1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_mixed_precision_in_bfloat16(path: str, mode: str) -> None:
    def trained(record: bool) -> Any:
        seed_all(5)
        return fit(
            Points(),
            path,
            network=Bfloat16Witness(),
            loss=lambda z, y: F.cross_entropy(z.astype("float32"), y),
            record=record,
            mode=mode,
        )

    witness, plain = trained(True), trained(False)
    assert witness.epochs[0][0][1].dtype == paddle.bfloat16
    assert_same_weights(witness, plain)
    first, last = (witness.epochs[epoch][0][1].astype("float32").numpy() for epoch in (0, 1))
    assert not np.array_equal(first, last)
    if mode == "train":
        assert_recorded(path, witness)
    else:
        with TrainingDynamicsStore(path) as store:
            margins = store.margins()[:, -1]
        logits = witness.logits(paddle.to_tensor(Points().features)).astype("float32").numpy()
        others = np.where(np.arange(N_CLASSES) == CLASSES[:, None], -np.inf, logits)
        np.testing.assert_array_equal(margins, logits[np.arange(N_SAMPLES), CLASSES] - others.max(axis=1))


class Perceptron(nn.Layer):
    """A network without a log, for what cannot trace one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(N_FEATURES + 1, 8)
        self.drop = nn.Dropout(0.5)
        self.outer = nn.Linear(8, N_CLASSES)
        self.epochs: list[Any] = []

    def forward(self, x: Any) -> Any:
        return self.outer(self.drop(F.relu(self.inner(x))))


class Recompute(Perceptron):
    def forward(self, x: Any) -> Any:
        from paddle.distributed.fleet.utils import recompute

        return self.outer(recompute(lambda y: self.drop(F.relu(self.inner(y))), x))


class SeesTheLoss(nn.CrossEntropyLoss):
    """Notes what it was given, as a log."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[tuple[Any, Any]]] = []

    def forward(self, logits: Any, labels: Any) -> Any:
        self.epochs[-1].append((None, logits.detach().clone()))
        return super().forward(logits, labels)


def with_specs(network: Any) -> paddle.Model:
    """A model that is told its inputs, as Paddle needs where it cannot read them off `forward`."""
    spec = paddle.static.InputSpec
    return paddle.Model(network, spec([None, N_FEATURES + 1], "float32", "x"), spec([None], "int64", "label"))


def in_order(make: Callable[[], Any], path: str, **options: Any) -> None:
    """Record such a network on data in order, hold it against what its loss was given, and its weights too."""
    networks = []
    for record in (True, False):
        seed_all(0)
        network, loss = make(), SeesTheLoss()
        options_of_fit = {"fit_options": {"shuffle": False}, "model_class": with_specs, **options}
        fit(Points(), path, network=network, loss=loss, record=record, witness=loss, **options_of_fit)
        networks.append(network)
        if record:
            places = [np.arange(N_SAMPLES)[i : i + BATCH] for i in range(0, N_SAMPLES, BATCH)]
            log = [[(p, z) for p, (_, z) in zip(places, epoch, strict=True)] for epoch in loss.epochs]
            assert_same(read(path), expected(log, CLASSES))
    assert_same_weights(*networks)


@pytest.mark.filterwarnings("ignore")
def test_to_static(path: str) -> None:
    in_order(lambda: paddle.jit.to_static(Perceptron()), path)


@pytest.mark.filterwarnings("ignore")
def test_data_parallel(path: str) -> None:
    in_order(lambda: paddle.DataParallel(Perceptron()), path)


@pytest.mark.filterwarnings("ignore")
def test_recompute(path: str) -> None:
    in_order(Recompute, path)


# --- loops of users


def test_plain_loop(path: str) -> None:
    network = Witness(exact=False)
    network.listening = True
    optimizer = paddle.optimizer.Adam(0.05, parameters=network.parameters())

    class Indexed(Points):
        def __getitem__(self, i: int) -> Any:
            return (i, *super().__getitem__(i))

    loader = paddle.io.DataLoader(Indexed(), batch_size=BATCH, shuffle=True)
    with TrainingDynamicsRecorder(
        path, n_samples=N_SAMPLES, n_classes=N_CLASSES, dtype="float32"
    ) as recorder:
        for _ in range(3):
            network.epochs.append([])
            for indices, x, labels in loader:
                logits = network(x)
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                recorder.update(indices, logits, labels, probabilities=F.softmax(logits))
            recorder.end_epoch()
    assert_recorded(path, network)


class ClasEngine:
    """The steps of PaddleClas's `Engine.train` and `train_epoch`: its loader, its loss layer, its hooks.

    Its training engine is in no package that can be installed, so this stands in for it.
    """

    def __init__(self, network: Any) -> None:
        self.model = network
        self.train_loss_func = nn.CrossEntropyLoss()
        sampler = paddle.io.DistributedBatchSampler(Points(), batch_size=BATCH, shuffle=True)
        self.train_dataloader = paddle.io.DataLoader(Points(), batch_sampler=sampler)
        self.optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
        self.train_epoch_func = self.train_epoch

    def train_epoch(self, engine: ClasEngine, epoch_id: int, print_batch_step: int) -> None:
        for batch in engine.train_dataloader:
            out = engine.model(batch[0])
            loss = engine.train_loss_func(out, batch[1])
            loss.backward()
            engine.optimizer.step()
            engine.optimizer.clear_grad()

    def train(self, epochs: int) -> None:
        for epoch_id in range(1, epochs + 1):
            self.train_epoch_func(self, epoch_id, 10)


def test_engine_in_the_manner_of_paddleclas(path: str) -> None:
    network = Witness(exact=False)
    network.listening = True
    engine = ClasEngine(network)

    # What a user adds: the data set hands out its indices, the epoch function strips and records them.
    class Indexed(Points):
        def __getitem__(self, i: int) -> Any:
            return (*super().__getitem__(i), i)

    engine.train_dataloader = paddle.io.DataLoader(
        Indexed(), batch_sampler=engine.train_dataloader.batch_sampler
    )
    recorder = TrainingDynamicsRecorder(path, n_samples=N_SAMPLES, n_classes=N_CLASSES, dtype="float32")
    current: list[Any] = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for *batch, index in loader:
                current[:] = [index]
                yield batch

    def see(_layer: Any, arguments: Any) -> None:
        logits, labels = arguments
        recorder.update(current[0], logits.detach(), labels, probabilities=F.softmax(logits.detach()))

    loader, engine.train_dataloader = engine.train_dataloader, Loader()
    engine.train_loss_func.register_forward_pre_hook(see)
    plain_epoch = engine.train_epoch_func

    def train_epoch(*arguments: Any) -> None:
        network.epochs.append([])
        plain_epoch(*arguments)
        recorder.end_epoch()

    engine.train_epoch_func = train_epoch
    with recorder:
        engine.train(3)
    assert_recorded(path, network)


class NlpTrainer:
    """PaddleNLP's `Trainer` as far as it matters here: `compute_loss` and the callbacks' `on_epoch_end`."""

    def __init__(self, model: Any, train_dataset: Any, callbacks: Any) -> None:
        self.model, self.train_dataset, self.callbacks = model, train_dataset, callbacks
        self.criterion = nn.CrossEntropyLoss()

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        labels = inputs.pop("labels")
        logits = model(inputs["input_ids"])
        loss = self.criterion(logits, labels)
        return (loss, logits) if return_outputs else loss

    def train(self) -> None:
        optimizer = paddle.optimizer.AdamW(0.01, parameters=self.model.parameters())
        loader = paddle.io.DataLoader(self.train_dataset, batch_size=BATCH, shuffle=True)
        for _ in range(3):
            for callback in self.callbacks:
                callback.on_epoch_begin(None, None, None)
            for inputs in loader:
                self.compute_loss(self.model, inputs).backward()
                optimizer.step()
                optimizer.clear_grad()
            for callback in self.callbacks:
                callback.on_epoch_end(None, None, None)


def test_trainer_in_the_manner_of_paddlenlp(path: str) -> None:
    class Examples(Points):
        def __getitem__(self, i: int) -> Any:
            x, label = super().__getitem__(i)
            return {"input_ids": x, "labels": label, "index": i}

    network = Witness(exact=False)
    network.listening = True
    recorder = TrainingDynamicsRecorder(path, n_samples=N_SAMPLES, n_classes=N_CLASSES, dtype="float32")

    # What a user adds: a subclass that takes the index out and records, a callback that ends the epoch.
    class RecordingTrainer(NlpTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
            index, labels = inputs.pop("index"), inputs["labels"]
            loss, logits = super().compute_loss(model, inputs, return_outputs=True)
            if model.training:
                recorder.update(index, logits.detach(), labels, probabilities=F.softmax(logits.detach()))
            return (loss, logits) if return_outputs else loss

    class EndEpoch:
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            network.epochs.append([])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            recorder.end_epoch()

    with recorder:
        RecordingTrainer(network, Examples(), [EndEpoch()]).train()
    assert_recorded(path, network)


# --- outside


def test_token_task_is_refused(path: str) -> None:
    network = Witness(dress=lambda logits: paddle.stack([logits, logits], axis=1))
    with pytest.raises(CaptureError, match="not one for each token or pixel"):
        fit(Points(), path, network=network, loss=lambda z, y: F.cross_entropy(z[:, 0], y))
    assert not Path(path).exists()


def test_multi_label_task_is_refused(path: str) -> None:
    class MultiHot(Points):
        def __getitem__(self, i: int) -> Any:
            return self.features[i], np.float32([1, 0, i % 2, 1])

    with pytest.raises(CaptureError, match="multi-label tasks have no single given label"):
        fit(MultiHot(), path, loss=nn.BCEWithLogitsLoss())
    assert not Path(path).exists()


def test_every_test_that_the_readme_names_exists() -> None:
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    tests = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", readme)):
        assert f"def {name}(" in tests, name
