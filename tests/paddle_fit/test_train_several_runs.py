import random

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_td_callback import StoreError, TrainingDynamicsStore, find_label_issues, train_several_runs
from paddle_td_callback.detection.learning_clock import LearningClock

N, CLASSES = 120, 3


class Blobs(paddle.io.Dataset):
    """Three clouds that a network separates at once, and four wrong labels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.right = rng.integers(0, CLASSES, N)
        self.labels = self.right.copy()
        self.labels[:4] = (self.labels[:4] + 1) % CLASSES
        centres = rng.normal(0, 4, (CLASSES, 5))
        self.inputs = (centres[self.right] + rng.normal(size=(N, 5))).astype(np.float32)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.inputs[i], np.int64(self.labels[i])


def make_model():
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(0.02, parameters=network.parameters()), nn.CrossEntropyLoss())
    return model


def runs(folder, **options):
    given = {"n_runs": 3, "epochs": 12, "batch_size": 16, "verbose": 0} | options
    return train_several_runs(make_model, Blobs(), folder / "run.h5", **given)


def arrays(path):
    with TrainingDynamicsStore(path) as store:
        return store.labels, store.given_probabilities(), store.margins()


def test_every_run_ends_with_the_epoch_that_fitted_the_labels(tmp_path):
    paths = runs(tmp_path)
    assert [path.rsplit("/", 1)[1] for path in paths] == ["run-1.h5", "run-2.h5", "run-3.h5"]
    for path in paths:
        with TrainingDynamicsStore(path) as store:
            shares = LearningClock.of(store).fitted
            assert (shares[:-1] < 0.95).all()
            assert shares[-1] >= 0.95
            assert store.n_epochs < 12
    issues = find_label_issues(paths, progress=False)
    assert issues.n_runs == 3
    assert set(issues.ranking[:4].tolist()) == {0, 1, 2, 3}


def test_the_same_seed_records_the_same_bits_and_every_run_has_its_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = runs(tmp_path / "a", seed=5), runs(tmp_path / "b", seed=5)
    for one, other in zip(first, second, strict=True):
        for left, right in zip(arrays(one), arrays(other), strict=True):
            np.testing.assert_array_equal(left, right)
    assert not np.array_equal(arrays(first[0])[1][:, 0], arrays(first[1])[1][:, 0])
    third = runs(tmp_path, seed=6, n_runs=1)
    np.testing.assert_array_equal(arrays(third[0])[1], arrays(first[1])[1])


def test_random_streams_of_the_process_stay_where_they_were(tmp_path):
    paddle.seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    wanted = paddle.rand([4]).tolist(), np.random.random(4).tolist(), random.random()  # noqa: NPY002
    paddle.seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    runs(tmp_path, n_runs=1)
    assert (paddle.rand([4]).tolist(), np.random.random(4).tolist(), random.random()) == wanted  # noqa: NPY002


def test_epochs_of_the_user_are_the_most_and_seeds_are_said(tmp_path, capsys):
    paths = runs(tmp_path, fitted=1.0, epochs=2, n_runs=2, seed=7, verbose=1, callbacks=paddle.callbacks.Callback(),
                 recording={"keep": "given"})  # fmt: skip
    for path in paths:
        with TrainingDynamicsStore(path) as store:
            assert store.n_epochs == 2
            assert store.keep == "given"
    out = capsys.readouterr().out
    assert "run 1 of 2: seed 7" in out
    assert "run 2 of 2: seed 8" in out


def test_earlier_runs_are_kept(tmp_path):
    first = [arrays(one) for one in runs(tmp_path, n_runs=2, epochs=2, fitted=1)]
    with pytest.warns(RuntimeWarning, match="the earlier recording there is kept as 'run-[12]-1.h5'"):
        runs(tmp_path, n_runs=2, epochs=2, fitted=1, seed=9)
    for number, kept in enumerate(first, 1):
        np.testing.assert_equal(arrays(tmp_path / f"run-{number}-1.h5"), kept)


def test_what_is_wrong_is_said_before_the_first_run(tmp_path):
    with pytest.raises(ValueError, match="n_runs must be at least 1, got 0"):
        runs(tmp_path, n_runs=0)
    with pytest.raises(ValueError, match="fitted must be a share"):
        runs(tmp_path, fitted=95)
    (tmp_path / "run-3.h5").write_bytes(b"")
    with pytest.raises(StoreError, match=r"run-3\.h5.*exists already"):
        runs(tmp_path)
    assert not (tmp_path / "run-1.h5").exists()


def test_a_network_that_comes_twice_is_refused(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="network of an earlier run again as run 2"):
        train_several_runs(lambda: model, Blobs(), tmp_path / "run.h5", n_runs=2, epochs=1, verbose=0)


def test_a_recording_that_cannot_be_read_does_not_end_the_run(tmp_path, monkeypatch):
    from paddle_td_callback.paddle_fit import train_several_runs as module

    def broken(path):
        raise StoreError("no")

    monkeypatch.setattr(module, "TrainingDynamicsStore", broken)
    with pytest.warns(RuntimeWarning, match="trained for all its epochs"):
        paths = runs(tmp_path, n_runs=1, epochs=3)
    with TrainingDynamicsStore(paths[0]) as store:
        assert store.n_epochs == 3
