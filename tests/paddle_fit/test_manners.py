"""What a guest in someone else's training owes its host, whatever else happens there."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    Witness,
    assert_same,
    assert_untapped,
    expected,
    model_of,
    read,
)

from paddle_td_callback import (
    CaptureError,
    LabelIssuesCallback,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
)
from paddle_td_callback.paddle_fit.replacement import replace

BATCH = 8


def fit(data: Any, callbacks: Any, *, network: Any = None, loss: Any = None, **options: Any) -> Any:
    """One short training; the model."""
    model = model_of(Witness() if network is None else network, loss)
    model.fit(data, batch_size=BATCH, verbose=0, callbacks=callbacks, **{"epochs": 1, **options})
    return model


COLLECTED_UNDER_THE_LOCK = """
import faulthandler, gc, sys
faulthandler.dump_traceback_later(30, exit=True)
import h5py
import numpy as np
from paddle_td_callback import TrainingDynamicsRecorder, TrainingDynamicsStore

n = 50_000
recorder = TrainingDynamicsRecorder(sys.argv[1], n_samples=n, n_classes=100)
for epoch in range(2):
    recorder.update(np.arange(n), np.zeros((n, 100), np.float32), np.arange(n) % 100)
    recorder.end_epoch()
with h5py._hl.base.phil:  # what any call of h5py holds while Python may collect garbage
    del recorder
    gc.collect()
options = {"n_samples": n, "n_classes": 100, "resume": True}
with TrainingDynamicsRecorder(sys.argv[1], **options) as recorder:  # the file is free again
    assert recorder.n_epochs == 2
print("done")
"""


def test_a_forgotten_recorder_never_blocks_who_collects_it(path: str) -> None:
    command = [sys.executable, "-c", COLLECTED_UNDER_THE_LOCK, path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert ran.stdout == "done\n", ran.stderr


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


class ChangesFolder(paddle.callbacks.Callback):
    """What trainers with a folder for each run do, in their own time."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            os.makedirs("elsewhere")
            os.chdir("elsewhere")


def test_relative_paths_stay_where_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finder = LabelIssuesCallback("run.h5", method="aum", csv="issues.csv")
    fit(Points(), [ChangesFolder(), TrainingDynamicsCallback("run.h5"), finder], epochs=3)
    assert finder.issues is not None
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "issues.csv", "run.h5"]
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        assert store.n_epochs == 3


def test_a_loop_that_changes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TrainingDynamicsRecorder("run.h5", n_samples=2, n_classes=2) as recorder:
        for folder in ("a", "b"):
            os.mkdir(folder)
            os.chdir(folder)
            recorder.update([0, 1], np.eye(2, dtype=np.float32), [0, 1])
            recorder.end_epoch()
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        assert store.n_epochs == 2


class Replays(paddle.callbacks.Callback):
    """Trains on some samples once more, within a step of `fit` or around it, where the network does not log it."""

    def __init__(self, *moments: str) -> None:
        super().__init__()
        self.moments = moments

    def _replay(self) -> None:
        points = Points()
        self.model.network.listening = False
        self.model.train_batch(
            [paddle.to_tensor(points.features[3:9])], [paddle.to_tensor(points.labels[3:9])]
        )
        self.model.network.listening = True

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        if "begin" in self.moments:
            self._replay()

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        if "end" in self.moments:
            self._replay()


@pytest.mark.parametrize("first", [True, False], ids=["before-ours", "after-ours"])
@pytest.mark.parametrize("moments", [("begin",), ("end",), ("begin", "end")], ids="-".join)
def test_steps_of_other_callbacks_are_not_taken_for_those_of_fit(
    moments: tuple[str, ...], first: bool, path: str
) -> None:
    network = Witness()
    ours: list[Any] = [Bell(), TrainingDynamicsCallback(path, dtype="float32")]
    theirs = [Replays(*moments)]
    model = fit(Points(), theirs + ours if first else ours + theirs, network=network, epochs=2)
    assert_same(read(path), expected(network.epochs, Points().classes))
    assert_untapped(model)


def test_the_same_callback_twice_is_refused(path: str) -> None:
    callback = TrainingDynamicsCallback(path)
    with pytest.raises(CaptureError, match="this callback is twice among the callbacks of fit; give it once"):
        fit(Points(), [callback, callback])
    assert not os.path.exists(path)


class Tells(paddle.callbacks.Callback):
    """A callback made of others, that hands on what most of them listen to."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__()
        self.callbacks = callbacks


def _hand_on(name: str) -> Any:
    return lambda self, *arguments: [getattr(callback, name)(*arguments) for callback in self.callbacks]


for _event in ("train_begin", "train_end", "epoch_begin", "epoch_end", "train_batch_end"):
    setattr(Tells, f"on_{_event}", _hand_on(f"on_{_event}"))
for _setter in ("set_model", "set_params"):
    setattr(Tells, _setter, _hand_on(_setter))


def test_a_callback_that_hears_of_everything_twice(path: str) -> None:
    network = Witness()
    callback = TrainingDynamicsCallback(path, dtype="float32")
    fit(Points(), [Bell(), Tells(callback), callback], network=network, epochs=2)
    assert_same(read(path), expected(network.epochs, Points().classes))


def record(path: str, *, epochs: int = 1, **options: Any) -> None:
    """An earlier training."""
    fit(Points(), TrainingDynamicsCallback(path, **options), epochs=epochs)


@pytest.mark.parametrize("finder_first", [True, False])
def test_a_recording_of_an_earlier_fit_is_not_ranked_as_this_ones(finder_first: bool, path: str) -> None:
    record(path, epochs=2)
    finder = LabelIssuesCallback(path, method="aum")
    callbacks = [TrainingDynamicsCallback(path, overwrite=True), finder]
    with pytest.warns(RuntimeWarning) as said:
        fit(Points(BATCH - 1), callbacks[:: -1 if finder_first else 1], drop_last=True)
    messages = sorted(str(one.message) for one in said)
    assert len(messages) == 2
    assert "no training step was seen, so nothing is recorded" in messages[0]
    assert "nothing of this fit was recorded there, so its label issues were not found" in messages[1]
    assert finder.issues is None
    fit(Points(), callbacks, epochs=2)
    assert finder.issues is not None


def test_ranking_an_older_recording_is_said(path: str) -> None:
    record(path, epochs=2)
    finder = LabelIssuesCallback(path, method="aum")
    with pytest.warns(RuntimeWarning, match=r"nothing is recorded in this fit, .* the older recording"):
        fit(Points(), finder)
    assert finder.issues is not None


def test_one_callback_never_mixes_two_networks(path: str) -> None:
    callback = TrainingDynamicsCallback(path, dtype="float32", overwrite=True)
    network = Witness()
    fit(Points(), [Bell(), callback], network=network)
    with pytest.raises(CaptureError, match=r"run.h5' holds the training of another network, .*resume=True"):
        fit(Points(), callback, network=Witness())
    fit(Points(), [Bell(), callback], network=network)  # another Model around the same network trains it on
    assert_same(read(path), expected(network.epochs, Points().classes))
    assert len(network.epochs) == 2


def test_two_networks_in_one_file_on_purpose(path: str) -> None:
    callback = TrainingDynamicsCallback(path, resume=True)
    for network in (Witness(), Witness()):
        fit(Points(), callback, network=network)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_corrected_labels_cannot_be_appended(mode: str, path: str) -> None:
    record(path, mode=mode)
    corrected = Points()
    corrected.labels = (corrected.labels + 1) % N_CLASSES
    network = Witness()
    model = model_of(network)
    callbacks = [Bell(), TrainingDynamicsCallback(path, resume=True, mode=mode)]
    match = "label of sample 0 was .* corrected, record to another path or with overwrite=True; .*labels="
    with pytest.raises(CaptureError, match=match):
        model.fit(corrected, batch_size=BATCH, shuffle=False, epochs=3, verbose=0, callbacks=callbacks)
    assert len(network.epochs) == 1
    assert_untapped(model)
    record(path, mode=mode, resume=True)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_corrected_label_costs_that_sample(mode: str, path: str) -> None:
    record(path, mode=mode)
    corrected = Points()
    corrected.labels[40] = (corrected.labels[40] + 1) % N_CLASSES
    callback = TrainingDynamicsCallback(path, resume=True, mode=mode)
    with pytest.warns(RuntimeWarning, match="label of sample 40 was .* corrected, record to another path"):
        fit(corrected, callback, epochs=2)
    with TrainingDynamicsStore(path) as store:
        seen = store.predictions() >= 0
    assert seen[40].tolist() == [True, False, False]
    assert seen[:40].all()
    assert seen[41:].all()


def test_a_callback_made_of_others(path: str) -> None:
    network = Witness()
    finder = LabelIssuesCallback(path, method="aum")
    together = Tells(Bell(), TrainingDynamicsCallback(path, dtype="float32"), finder)
    model = fit(Points(), together, network=network, epochs=2)
    assert_same(read(path), expected(network.epochs, Points().classes))
    assert_untapped(model)
    assert finder.issues is not None


def test_a_callback_made_of_others_that_tells_too_little(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tells, "set_params", paddle.callbacks.Callback.set_params)
    callback = TrainingDynamicsCallback(path)
    callback.set_params({})
    with pytest.warns(
        RuntimeWarning, match="no training step was seen, .*must hand on set_model, set_params"
    ):
        fit(Points(), Tells(callback))


def own_binary_loss(p: Any, labels: Any) -> Any:
    return -(labels * paddle.log(p) + (1 - labels) * paddle.log(1 - p)).mean()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_sigmoid_that_a_users_loss_takes_is_warned_of_once(mode: str, path: str) -> None:
    points = Points(n_classes=2, label_shape=(1,), label_dtype="float32")
    options: dict[str, Any] = {"loss": own_binary_loss, "epochs": 3}
    match = r"one output is recorded as a logit, .* in \[0, 1\] .*outputs='probabilities'.*outputs='logits'"
    network = Witness(1, activation=F.sigmoid)
    with pytest.warns(RuntimeWarning, match=match) as said:
        fit(points, TrainingDynamicsCallback(path, mode=mode), network=network, **options)
    assert [one.category for one in said].count(RuntimeWarning) == 1
    for outputs in ("probabilities", "logits"):
        callback = TrainingDynamicsCallback(path, overwrite=True, outputs=outputs, mode=mode)
        fit(points, callback, network=Witness(1, activation=F.sigmoid), **options)


def test_logits_of_which_only_some_are_in_the_unit_interval_give_no_warning(path: str) -> None:
    points = Points(n_classes=2, label_shape=(1,), label_dtype="float32")
    network = Witness(1, activation=lambda z: paddle.clip(4 * z, 0, 1.01))
    assert bool((network.logits(paddle.to_tensor(points.features)) > 1).any())
    fit(points, TrainingDynamicsCallback(path), network=network, loss=nn.BCEWithLogitsLoss())


def test_probabilities_are_warned_of_in_evaluation_mode_too(path: str) -> None:
    network = Witness(activation=F.softmax)
    with pytest.warns(RuntimeWarning, match="each row sums to 1 like probabilities") as said:
        fit(Points(), TrainingDynamicsCallback(path, mode="eval"), network=network, epochs=2)
    assert len([one for one in said if "run.h5" in str(one.message)]) == 1  # Paddle has warnings of its own


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_samples": "53"}, "n_samples must be a whole number of at least 1, got '53'"),
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1, got 0"),
        ({"n_samples": 5.0}, "n_samples must be a whole number of at least 1, got 5.0"),
        ({"n_samples": 50, "labels": [0] * 49}, "labels= has 49 entries for 50 samples"),
        ({"sample_ids": ["a", "b"], "labels": [0] * 3}, "labels= has 3 entries for 2 samples"),
        ({"dtype": "float64"}, "dtype must be 'float16' or 'float32', got 'float64'"),
        ({"keep": 2.0}, "keep must be 'all', 'given' or a number of classes of at least 1, got 2.0"),
        ({"keep": True}, "keep must be 'all', 'given' or a number of classes of at least 1, got True"),
    ],
)
def test_arguments_are_checked_before_training(options: dict[str, Any], match: str, path: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainingDynamicsCallback(path, **options)


@pytest.mark.parametrize("n_labels", [3, 49, 51])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_labels_of_another_number_than_samples(mode: str, n_labels: int, path: str) -> None:
    callback = TrainingDynamicsCallback(path, labels=[0] * n_labels, mode=mode)
    match = f"labels= has {n_labels} entries for a data set of 50 samples; give one for each"
    with pytest.raises(CaptureError, match=match):
        fit(Points(), callback)
    assert not os.path.exists(path)


def test_labels_and_a_number_of_samples_that_are_too_few(path: str) -> None:
    callback = TrainingDynamicsCallback(path, labels=[0] * 10, n_samples=np.int64(10))
    with pytest.raises(ValueError, match=r"indices must be in \[0, 10\), got index \d+; pass n_samples="):
        fit(Points(), callback)
    assert not os.path.exists(path)


def test_keep_may_be_an_integer_of_numpy(path: str) -> None:
    record(path, keep=np.int64(3), n_samples=np.int32(N_SAMPLES))
    with TrainingDynamicsStore(path) as store:
        assert store.keep == 3


COPIES = {"pickle": lambda one: pickle.loads(pickle.dumps(one)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_callbacks_can_be_copied_before_their_training(copied: Any, path: str) -> None:
    network = Witness()
    labels = Points().classes
    callback = copied(TrainingDynamicsCallback(path, dtype="float32", labels=labels, class_names=[*"abcd"]))
    finder = copied(LabelIssuesCallback(path, method="aum"))
    fit(Points(), [Bell(), callback, finder], network=network, epochs=2)
    assert_same(read(path), expected(network.epochs, labels))
    assert finder.issues is not None


class Copies(paddle.callbacks.Callback):
    """Takes a copy of the sampler in the middle of an epoch, as who sends one to another process does."""

    def __init__(self, loader: Any, copied: Any) -> None:
        super().__init__()
        self.loader, self.copied = loader, copied
        self.samplers: list[Any] = []

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        if step == 1:
            self.samplers.append(self.copied(self.loader.batch_sampler))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_the_sampler_in_the_middle_of_an_epoch_is_a_sampler(copied: Any, path: str) -> None:
    sampler = paddle.io.BatchSampler(Points(), batch_size=BATCH)
    loader = paddle.io.DataLoader(Points(), batch_sampler=sampler)
    network = Witness()
    copies = Copies(loader, copied)
    callbacks = [Bell(), TrainingDynamicsCallback(path, dtype="float32"), copies]
    model_of(network).fit(loader, epochs=1, verbose=0, callbacks=callbacks)
    assert [len(list(one)) for one in copies.samplers] == [len(sampler)]
    assert all(type(one) is paddle.io.BatchSampler and one is not sampler for one in copies.samplers)
    assert_same(read(path), expected(network.epochs, Points().classes))


class Steps:
    """As much of a model as can be copied: Paddle's own holds a device, which cannot."""

    def train_batch(self) -> Any:
        return self


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_tapped_model_trains_itself(copied: Any) -> None:
    one = Steps()
    override = replace(one, "train_batch", lambda original: original())
    twin = copied(one)
    assert one.train_batch() is one
    assert twin.train_batch() is twin
    override.remove()
    assert not vars(one)


def test_rows_that_are_not_finite_are_counted_to_the_end(path: str) -> None:
    class Spoilt(Witness):
        def logits(self, x: Any) -> Any:
            return super().logits(x) + paddle.where(x[:, :1] == 3, float("nan") * x[:, 1:2], 0 * x[:, 1:2])

    def of_finite_rows(logits: Any, labels: Any) -> Any:
        finite = paddle.isfinite(logits).all(axis=1).astype("float32")
        return (F.cross_entropy(paddle.nan_to_num(logits), labels, reduction="none") * finite).mean()

    callback = TrainingDynamicsCallback(path)
    with pytest.warns(RuntimeWarning) as said:
        fit(Points(), callback, network=Spoilt(), loss=of_finite_rows, epochs=2)
    messages = [str(one.message) for one in said if one.category is RuntimeWarning]
    assert len(messages) == 1
    assert "run.h5': the network's output for sample 3 is NaN or infinite" in messages[0]
    assert callback.n_nonfinite == 2


def test_other_class_names_are_not_dropped_silently(path: str) -> None:
    record(path, class_names=["ant", "bee", "cat", "dog"])
    match = r"recorded with class_names \['ant', 'bee', .*\], got \['a', 'b', .*\]; resume keeps those"
    with pytest.raises(StoreError, match=match):
        record(path, class_names=["a", "b", "c", "d"], resume=True)
    record(path, class_names=np.array(["ant", "bee", "cat", "dog"]), resume=True)
    record(path, resume=True)
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["ant", "bee", "cat", "dog"]
        assert store.n_epochs == 3


def test_class_names_for_a_file_without_are_not_dropped_silently(path: str) -> None:
    record(path)
    with pytest.raises(StoreError, match=r"recorded without class_names, got \['a', 'b'"):
        record(path, class_names=["a", "b", "c", "d"], resume=True)


def test_rows_in_another_order_than_the_samplers_show_as_changed_labels(path: str) -> None:
    """A collate function that permutes rows cannot be seen, only its labels: then no epoch is to be trusted."""
    rng = np.random.default_rng(0)

    def shuffling(batch: list[Any]) -> Any:
        features, labels = zip(*[batch[i] for i in rng.permutation(len(batch))], strict=True)
        return np.stack(features), np.stack(labels)

    loader = paddle.io.DataLoader(Points(), batch_size=BATCH, shuffle=True, collate_fn=shuffling)
    match = "label of sample .* not in the order of the sampler's indices, no epoch of this recording"
    with pytest.warns(RuntimeWarning, match=match):
        fit(loader, TrainingDynamicsCallback(path), epochs=2)
    assert "permutes" in str(TrainingDynamicsCallback.__doc__)
