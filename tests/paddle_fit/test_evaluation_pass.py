"""`mode="eval"`: a pass in evaluation mode after each epoch, which training must not notice."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import random
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from support.training import N_CLASSES, N_FEATURES, Points, Witness, model_of

from paddle_td_callback import CaptureError, TrainingDynamicsCallback, TrainingDynamicsStore
from paddle_td_callback.paddle_fit.evaluation_pass import EvaluationPass, random_streams_kept, undisturbed
from paddle_td_callback.paddle_fit.outputs import OutputReader

N = 53
_module_stream = np.random.default_rng(11)

pytestmark = [
    pytest.mark.filterwarnings("ignore:When training, we now always track global mean:UserWarning"),
]


class Jittered(Points):
    """Random augmentation from a generator of its own, wherever that is kept.

    Args:
        where: "own", "module", "closure", "numpy", "python", "paddle" or "legacy".
    """

    def __init__(self, where: str) -> None:
        super().__init__(N)
        own, legacy, python = np.random.default_rng(5), np.random.RandomState(5), random.Random(5)
        self.draw: Any = {
            "own": own.normal,
            "module": lambda: _module_stream.normal(),
            "closure": lambda: own.random(),
            "numpy": np.random.normal,
            "python": random.random,
            "own-python": python.random,
            "legacy": legacy.normal,
            "paddle": lambda: paddle.rand([1]).item(),
        }[where]

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        x, label = super().__getitem__(i)
        x = x.copy()
        x[1:] += np.float32(self.draw())
        return x, label


def network(dropout: float = 0.4) -> nn.Layer:
    return nn.Sequential(
        nn.Linear(N_FEATURES + 1, 12),
        nn.BatchNorm1D(12),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(12, 12),
        nn.BatchNorm1D(12, use_global_stats=False),
        nn.Linear(12, N_CLASSES),
    )


def train(
    data: Any, callbacks: Any, *, epochs: int = 3, dropout: float = 0.4, **fit_options: Any
) -> tuple[Any, ...]:
    """Weights, statistics and the state of every global random stream after a fit."""
    global _module_stream
    _module_stream = np.random.default_rng(11)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    paddle.seed(1)
    model = model_of(network(dropout), learning_rate=0.02, metrics=paddle.metric.Accuracy())
    model.fit(data(), epochs=epochs, batch_size=8, verbose=0, callbacks=callbacks, **fit_options)
    state = {key: value.numpy() for key, value in model.network.state_dict().items()}
    drawn = [random.random(), np.random.random(), paddle.rand([1]).item(), _module_stream.random()]  # noqa: NPY002
    return state, drawn, [layer.training for layer in model.network.sublayers(include_self=True)]


def assert_same_training(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for key, value in one[0].items():
        np.testing.assert_array_equal(value, other[0][key], err_msg=key)
    assert one[1:] == other[1:]


STREAMS = ["own", "module", "closure", "numpy", "python", "own-python", "legacy", "paddle"]


@pytest.mark.parametrize("where", STREAMS)
def test_training_is_the_same_whatever_the_augmentation_draws_from(path: str, where: str) -> None:
    # Paddle's loader reads in a thread: what draws from Paddle's stream there races with dropout, callback or not.
    dropout = 0.0 if where == "paddle" else 0.4
    plain = train(lambda: Jittered(where), [], dropout=dropout)
    callback = TrainingDynamicsCallback(path, mode="eval")
    recorded = train(lambda: Jittered(where), [callback], dropout=dropout)
    assert_same_training(plain, recorded)
    with TrainingDynamicsStore(path) as store:
        assert (store.mode, store.n_epochs) == ("eval", 3)
        assert (store.n_presentations() == 1).all()


@pytest.mark.parametrize(
    "options", [{"num_workers": 2}, {"num_iters": 9}, {"eval_data": Points(20)}, {"drop_last": True}]
)
def test_training_is_the_same_with(path: str, options: dict[str, Any]) -> None:
    # Where num_iters breaks an epoch off, the loader's thread reads on into the next training: not what both share.
    where = "own" if "num_iters" in options else "numpy"
    plain = train(lambda: Jittered(where), [], **options)
    recorded = train(lambda: Jittered(where), [TrainingDynamicsCallback(path, mode="eval")], **options)
    assert_same_training(plain, recorded)


def test_training_is_the_same_with_persistent_workers(path: str) -> None:
    def loader() -> Any:
        return paddle.io.DataLoader(
            Points(N), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
        )

    plain = train(loader, [])
    recorded = train(loader, [TrainingDynamicsCallback(path, mode="eval")])
    assert_same_training(plain, recorded)


class ByHand(paddle.callbacks.Callback):
    """The evaluation pass as one would write it."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data
        self.epochs: list[npt.NDArray[np.float32]] = []
        self.other = network()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        own, other = self.model.network, self.other
        with random_streams_kept(), paddle.no_grad():
            other.set_state_dict({k: v.clone() for k, v in own.state_dict().items()})
            other.eval()
            loader = paddle.io.DataLoader(self.data, batch_size=8, shuffle=False, num_workers=0)
            self.epochs.append(np.concatenate([F.softmax(other(x)).numpy() for x, _ in loader]))


@pytest.mark.parametrize("where", ["own", "numpy", "paddle"])
def test_probabilities_equal_a_pass_written_by_hand(path: str, where: str) -> None:
    data = Jittered(where)
    by_hand = ByHand(data)
    train(lambda: data, [TrainingDynamicsCallback(path, mode="eval", dtype="float32"), by_hand])
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(store.probabilities(), np.stack(by_hand.epochs, axis=1))
        np.testing.assert_array_equal(store.labels, data.classes)
        given = np.take_along_axis(store.probabilities(), data.classes[:, None, None], axis=2)[..., 0]
        np.testing.assert_array_equal(store.given_probabilities(), given)
        np.testing.assert_array_equal(store.predictions(), np.stack(by_hand.epochs, 1).argmax(-1))


def test_samples_never_drawn_in_training_are_evaluated_too(path: str) -> None:
    def loader() -> Any:
        sampler = paddle.io.BatchSampler(sampler=paddle.io.SubsetRandomSampler(range(10)), batch_size=4)
        return paddle.io.DataLoader(Points(N), batch_sampler=sampler)

    train(loader, [TrainingDynamicsCallback(path, mode="eval")])
    with TrainingDynamicsStore(path) as store:
        assert not np.isnan(store.margins()).any()


class TwoMinds(nn.Layer):
    """One part in evaluation mode for good, and a switch that also swaps weights."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1D(N_FEATURES + 1)
        self.body = nn.Linear(N_FEATURES + 1, N_CLASSES)
        self.swapped = False

    def train(self) -> None:
        super().train()
        self.frozen.eval()
        self.swapped = False

    def eval(self) -> None:
        super().eval()
        self.swapped = True

    def forward(self, x: Any) -> Any:
        return self.body(self.frozen(x))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_every_sublayer_is_left_in_its_own_mode(error: type[BaseException] | None) -> None:
    net = TwoMinds()
    net.train()
    net.body.training = False  # unlike what train() sets
    before = [layer.training for layer in net.sublayers(include_self=True)]
    assert len(set(before)) == 2
    with pytest.raises(error) if error else warnings.catch_warnings(), undisturbed(net):
        assert not any(layer.training for layer in net.sublayers(include_self=True))
        assert net.swapped
        if error is not None:
            raise error
    assert [layer.training for layer in net.sublayers(include_self=True)] == before
    assert not net.swapped


def test_buffers_that_a_pass_changes_are_put_back() -> None:
    norm = nn.BatchNorm1D(3, use_global_stats=False)
    before = norm._mean.numpy().copy()
    with undisturbed(norm):
        norm(paddle.ones([4, 3]) * 7)
        assert (norm._mean.numpy() != before).any()
    np.testing.assert_array_equal(norm._mean.numpy(), before)


def test_random_streams_are_put_back_after_an_error() -> None:
    own = np.random.default_rng(0)
    draws = (own.random, random.random, np.random.random, lambda: paddle.rand([1]).item())
    first = []
    with contextlib.suppress(ZeroDivisionError), random_streams_kept():
        first += [draw() for draw in draws]
        raise ZeroDivisionError
    assert [draw() for draw in draws] == first


class Raises(random.Random):
    """A stream that does not give its state away."""

    def getstate(self) -> Any:
        raise ValueError("no state")


def test_what_only_looks_like_a_random_stream_is_let_alone() -> None:
    asked = []

    class StandIn:
        @property
        def __class__(self) -> Any:
            asked.append(self)
            return random.Random

    bits, odd, stand_in = np.random.PCG64(0), Raises(1), StandIn()
    dead = weakref.proxy(Raises(2))
    with random_streams_kept():
        first = bits.random_raw()
    assert bits.random_raw() == first
    assert not asked
    assert dead is not None
    assert odd.random() == random.Random(1).random()
    assert stand_in is not None


class HalfWay(nn.Layer):
    """A network whose own method raises after it has begun."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1D(2, use_global_stats=False))
        self._raising = name

    def eval(self) -> None:
        super().eval()
        if self._raising == "eval":
            raise RuntimeError("half way")

    def train(self) -> None:
        if self._raising == "train":
            raise RuntimeError("half way")
        super().train()


@pytest.mark.parametrize("name", ["eval", "train"])
def test_a_network_whose_method_raises_is_left_as_it_was(name: str) -> None:
    net = HalfWay(name)
    statistics = net.body[1]._mean
    before = statistics.numpy().copy()
    with pytest.raises(RuntimeError, match="half way"), undisturbed(net):
        net.body(paddle.ones([4, 2]) * 7)
    assert all(layer.training for layer in net.sublayers(include_self=True))
    np.testing.assert_array_equal(statistics.numpy(), before)


class FailsLater(Points):
    """Raises when sample 30 is asked for after the first `n_good` reads of it."""

    def __init__(self, n_good: int) -> None:
        super().__init__(N)
        self.n_good = n_good

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        if i == 30:
            self.n_good -= 1
            if self.n_good < 0:
                raise OSError("the disk is gone")
        return super().__getitem__(i)


def test_a_pass_that_fails_ends_the_recording_not_the_training(path: str) -> None:
    def loader() -> Any:
        sampler = paddle.io.BatchSampler(sampler=paddle.io.SubsetRandomSampler(range(20)), batch_size=4)
        return paddle.io.DataLoader(FailsLater(2), batch_sampler=sampler)

    plain = train(loader, [], epochs=4)
    with pytest.warns(RuntimeWarning, match=r"the disk is gone; recording ends here, committed epochs stay"):
        recorded = train(loader, [TrainingDynamicsCallback(path, mode="eval")], epochs=4)
    assert_same_training(plain, recorded)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2


def test_data_that_carry_their_index_are_evaluated_without_it(path: str) -> None:
    class Indexed(Points):
        def __getitem__(self, i: int) -> tuple[Any, ...]:
            return (*super().__getitem__(i), f"id{i}")

    ids = [f"id{i}" for i in range(N)]
    train(lambda: Indexed(N), [TrainingDynamicsCallback(path, mode="eval", index_field=-1, sample_ids=ids)])
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(store.labels, Points(N).classes)
        assert not np.isnan(store.margins()).any()
        assert store.sample_ids == ids


def test_rows_that_the_loss_ignores_are_left_out(path: str) -> None:
    class Ignored(Points):
        def __getitem__(self, i: int) -> tuple[Any, ...]:
            x, label = super().__getitem__(i)
            return x, np.int64(-100 if i % 5 == 0 else label)

    train(lambda: Ignored(N), [TrainingDynamicsCallback(path, mode="eval")])
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(np.isnan(store.margins()[:, 0]), np.arange(N) % 5 == 0)


class Numbers(paddle.io.IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        for i in range(8):
            yield np.float32([i] * (N_FEATURES + 1)), np.int64(0), i


def test_data_without_indices_are_refused_before_the_first_step(path: str) -> None:
    callback = TrainingDynamicsCallback(path, mode="eval", index_field=-1, n_samples=8)
    with pytest.raises(CaptureError, match="mode='eval' reads the training data once more by sample index"):
        train(lambda: paddle.io.DataLoader(Numbers(), batch_size=4), [callback])


def test_soft_labels_are_refused_at_the_first_step(path: str) -> None:
    class Soft(Points):
        def __getitem__(self, i: int) -> tuple[Any, ...]:
            return self.features[i], np.full(N_CLASSES, 1 / N_CLASSES, np.float32)

    model = model_of(network(), nn.CrossEntropyLoss(soft_label=True))
    with pytest.raises(CaptureError, match="labels="):
        model.fit(Soft(), batch_size=8, verbose=0, callbacks=[TrainingDynamicsCallback(path, mode="eval")])


def test_the_progress_bar_follows_verbose(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    for verbose in (0, 1):
        callback = TrainingDynamicsCallback(path, mode="eval", overwrite=True)
        model_of(network()).fit(Points(N), batch_size=8, verbose=verbose, callbacks=[callback])
        assert ("training dynamics, epoch 1" in capfd.readouterr().err) == bool(verbose)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_another_rank_ends_computes_no_more(num_workers: int) -> None:
    counted = Witness()
    n_forwards = 0

    def count(*_: Any) -> None:
        nonlocal n_forwards
        n_forwards += 1

    counted.register_forward_pre_hook(count)
    loader = paddle.io.DataLoader(Points(), batch_size=8, num_workers=num_workers)
    reader = OutputReader(logits=0, label=0, outputs="auto", reads_labels=True)
    model = paddle.Model(counted, [paddle.static.InputSpec([None, N_FEATURES + 1], name="x")])
    model.prepare(loss=nn.CrossEntropyLoss())
    evaluation = EvaluationPass(model, loader, reader, n_ranks=2)
    recorded: list[Any] = []
    answers = iter([True, False])
    before = set(multiprocessing.active_children())
    evaluation.run(recorded.append, agree=lambda well: next(answers))
    assert (n_forwards, len(recorded)) == (2, 2)
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_workers_of_a_pass_that_ctrl_c_ends_do_not_stay() -> None:
    loader = paddle.io.DataLoader(Points(), batch_size=8, num_workers=2)
    reader = OutputReader(logits=0, label=0, outputs="auto", reads_labels=True)
    model = paddle.Model(Witness(), [paddle.static.InputSpec([None, N_FEATURES + 1], name="x")])
    model.prepare(loss=nn.CrossEntropyLoss())

    def interrupt(_batch: Any) -> None:
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt) as held:  # with its frames, as a notebook holds it
        EvaluationPass(model, loader, reader).run(interrupt)
    assert held.tb is not None
    assert set(multiprocessing.active_children()) <= before


def test_a_network_that_is_in_evaluation_mode_stays_in_it() -> None:
    net = TwoMinds()
    net.eval()
    with undisturbed(net):
        pass
    assert net.swapped
    assert not any(layer.training for layer in net.sublayers(include_self=True))


def test_a_rank_without_a_sample_still_takes_part_in_every_step() -> None:
    loader = paddle.io.DataLoader(Points(2), batch_size=8)
    reader = OutputReader(logits=0, label=0, outputs="auto", reads_labels=True)
    model = paddle.Model(Witness(), [paddle.static.InputSpec([None, N_FEATURES + 1], name="x")])
    model.prepare(loss=nn.CrossEntropyLoss())
    answers: list[bool] = []
    recorded: list[Any] = []
    for rank in range(3):
        EvaluationPass(model, loader, reader, rank=rank, n_ranks=3).run(
            recorded.append, agree=lambda well: answers.append(well) or True
        )
    assert answers == [True] * 3
    assert [batch.indices.tolist() for batch in recorded] == [[0], [1]]


class Complaining(Witness):
    def forward(self, x: Any) -> Any:
        if not self.training:
            warnings.warn("this network is slow in evaluation mode", stacklevel=1)
        return super().forward(x)


@pytest.mark.expects_unraised
def test_a_warning_of_the_network_that_a_filter_makes_an_error_is_printed(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = TrainingDynamicsCallback(path, mode="eval")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "To copy construct from a tensor")  # of Paddle's own `train_batch`
        model_of(Complaining()).fit(Points(), batch_size=8, epochs=2, verbose=0, callbacks=[recorder])
    assert capsys.readouterr().err.count("this network is slow in evaluation mode") == 2
    assert recorder.n_recorded == 0
