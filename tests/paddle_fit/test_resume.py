"""Interrupted, loaded and resumed: the store is that of an uninterrupted training, to the last bit."""

import os
import random
import warnings

import numpy as np
import pytest
from support.recordings import assert_same_epochs, read_epochs

pytest.importorskip("paddle")

import paddle

from paddle_td_callback import CaptureError, StoreError, TrainingDynamicsCallback
from paddle_td_callback.store.verify import verify

N_SAMPLES, N_CLASSES = 90, 4


class Data(paddle.io.Dataset):
    def __init__(self, shift=0):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(N_SAMPLES, 6)).astype("float32")
        self.labels = (rng.integers(0, N_CLASSES, N_SAMPLES) + shift) % N_CLASSES

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    def __len__(self):
        return N_SAMPLES


@pytest.fixture(autouse=True)
def _names():
    """Give Paddle's names back after the tests."""
    names = paddle.utils.unique_name.switch()
    yield
    paddle.utils.unique_name.switch(*names)


def make_model(seed=0):
    paddle.seed(seed)
    paddle.utils.unique_name.switch()  # parameters are called as in a new process, where load finds them
    network = paddle.nn.Sequential(
        paddle.nn.Linear(6, 16), paddle.nn.ReLU(), paddle.nn.Dropout(0.3), paddle.nn.Linear(16, N_CLASSES)
    )
    model = paddle.Model(network)
    # A schedule too, whose state must come back with the optimizer's.
    rate = paddle.optimizer.lr.StepDecay(0.05, step_size=8)
    optimizer = paddle.optimizer.Adam(rate, parameters=network.parameters())
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss())
    return model


def random_states():
    return paddle.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def set_random_states(states):
    paddle.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


class RandomStates(paddle.callbacks.Callback):
    """Keeps the random streams as each epoch left them, and goes on from given ones at the first.

    Setting them before `fit` is too early: `fit` draws from NumPy's stream itself before its first epoch.
    """

    def __init__(self, start=None):
        super().__init__()
        self.start, self.states = start, None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0 and self.start is not None:
            set_random_states(self.start)

    def on_epoch_end(self, epoch, logs=None):
        self.states = random_states()


def make_loader(first_epoch=0):
    """A loader in the order of that epoch: fit's own counts from 0 in every fit."""
    sampler = paddle.io.DistributedBatchSampler(Data(), 16, num_replicas=1, rank=0, shuffle=True)
    sampler.set_epoch(first_epoch)
    return paddle.io.DataLoader(Data(), batch_sampler=sampler)


def fit(model, path, epochs, *, first_epoch=0, start=None, **options):
    """Return the random streams as the last epoch left them."""
    callback, random_streams = TrainingDynamicsCallback(path, dtype="float32", **options), RandomStates(start)
    model.fit(make_loader(first_epoch), epochs=epochs, verbose=0, callbacks=[callback, random_streams])
    return random_streams.states


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_load_and_resume_leave_the_store_of_an_uninterrupted_training(compression, tmp_path):
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    fit(make_model(), whole, 5, compression=compression)

    model = make_model()
    states = fit(model, parts, 3, compression=compression)
    model.save(str(tmp_path / "checkpoint"))

    model = make_model(seed=99)
    model.load(str(tmp_path / "checkpoint"))
    fit(model, parts, 2, first_epoch=3, start=states, compression=compression, resume=True)

    found, labels = read_epochs(parts)
    wanted, wanted_labels = read_epochs(whole)
    assert_same_epochs(found, wanted)
    np.testing.assert_array_equal(labels, wanted_labels)
    assert verify(parts).ok


def test_a_fit_that_died_is_resumed_after_its_last_whole_epoch(tmp_path):
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    fit(make_model(), whole, 4)

    class Checkpoint(paddle.callbacks.Callback):
        """Saves weights and random streams after each epoch; stops the training in the middle of the third."""

        def on_epoch_end(self, epoch, logs=None):
            self.model.save(str(tmp_path / "checkpoint"))
            self.states = random_states()

        def on_train_batch_end(self, step, logs=None):
            if step == 2 and getattr(self, "n_done", 0) == 2:
                raise KeyboardInterrupt
            self.n_done = getattr(self, "n_done", 0) + (step == 5)

    model, checkpoint = make_model(), Checkpoint()
    callback = TrainingDynamicsCallback(parts, dtype="float32")
    with pytest.raises(KeyboardInterrupt):
        model.fit(make_loader(), epochs=4, verbose=0, callbacks=[callback, checkpoint])
    model = make_model(seed=99)
    model.load(str(tmp_path / "checkpoint"))
    fit(model, parts, 2, first_epoch=2, start=checkpoint.states, resume=True)
    assert_same_epochs(read_epochs(parts)[0], read_epochs(whole)[0])


def test_resume_of_another_recording_is_refused_at_the_first_step(tmp_path):
    path = tmp_path / "run.h5"
    fit(make_model(), path, 1)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="recorded with keep='all', this training has 'given'"):
        fit(make_model(), path, 1, keep="given", resume=True)
    assert path.read_bytes() == before


def test_resume_with_other_labels_is_refused_in_the_first_epoch(tmp_path):
    path = tmp_path / "run.h5"
    fit(make_model(), path, 1)
    callback = TrainingDynamicsCallback(path, dtype="float32", resume=True)
    with pytest.raises(CaptureError, match=r"the label of sample \d+ was \d, now it is \d"):
        make_model().fit(Data(shift=1), epochs=1, batch_size=16, verbose=0, callbacks=[callback])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify(path).ok
        fit(make_model(), path, 1, resume=True)  # nothing of it stayed: no lock, no labels
    assert verify(path).n_epochs == 2


def test_a_recording_the_disk_has_no_room_for_is_refused_at_the_first_step(tmp_path, monkeypatch):
    from paddle_td_callback.store import paths as preflight

    usage = preflight.shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    path = tmp_path / "run.h5"
    with pytest.raises(StoreError, match=r"10000 epochs of 90 samples with keep='all'.*no keep= fits"):
        fit(make_model(), path, 10_000)
    assert not os.path.exists(path)
