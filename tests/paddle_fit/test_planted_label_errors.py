import h5py
import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_td_callback import (
    CaptureError,
    PlantedLabelErrors,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
)
from paddle_td_callback.paddle_fit.planted_label_errors import label_shifts_of
from paddle_td_callback.store.verify import salvage, verify

N, CLASSES = 100, 4


def whole(label):
    return np.asarray(label).item()


class Items(paddle.io.Dataset):
    """Items of any form, whose label is their index modulo the classes."""

    def __init__(self, make=lambda x, y: (x, np.int64(y)), n=N):
        self.make, self.n = make, n
        self.classes = ["a", "b", "c", "d"]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.make(np.full(3, i, np.float32), range(self.n)[i] % CLASSES)


def fit(data, path, **options):
    model = paddle.Model(nn.Linear(3, options.pop("n_outputs", CLASSES)))
    optimizer = paddle.optimizer.SGD(1e-3, parameters=model.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss())
    model.fit(data, epochs=2, batch_size=10, verbose=0, callbacks=[TrainingDynamicsCallback(path, **options)])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, np.int64(y)],
        lambda x, y: (x, np.array([y])),
        lambda x, y: (x, x, np.array(y, np.int32)),
        lambda x, y: (x, paddle.to_tensor(y)),
    ],
)
def test_so_many_labels_are_of_another_class_in_the_form_they_had(make):
    plain = Items(make)
    planted = PlantedLabelErrors(plain, CLASSES, 0.1, seed=3)
    moved = 0
    for i in range(N):
        before, after = plain[i], planted[i]
        assert type(after) is type(before)
        assert type(after[-1]) is type(before[-1])
        assert getattr(after[-1], "dtype", None) == getattr(before[-1], "dtype", None)
        assert np.shape(after[-1]) == np.shape(before[-1])
        assert whole(after[-1]) == (whole(before[-1]) + planted.label_shifts[i]) % CLASSES
        moved += whole(after[-1]) != whole(before[-1])
        np.testing.assert_array_equal(before[0], after[0])
    assert moved == (planted.label_shifts > 0).sum() == 10
    assert len(planted) == N


def test_dictionaries_negative_indices_and_labels_of_no_class():
    planted = PlantedLabelErrors(Items(lambda x, y: {"x": x, "y": y}), CLASSES, 0.5, label="y")
    i = int(planted.label_shifts.argmax())
    assert planted[i]["y"] == planted[i - N]["y"] != i % CLASSES
    unlabelled = PlantedLabelErrors(Items(lambda x, y: (x, -100)), CLASSES, 0.5)
    assert {unlabelled[i][1] for i in range(N)} == {-100}


def test_the_seed_settles_which():
    shifts = [PlantedLabelErrors(Items(), CLASSES, seed=seed).label_shifts for seed in (0, 0, 1)]
    np.testing.assert_array_equal(shifts[0], shifts[1])
    assert (shifts[0] != shifts[2]).any()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"fraction=0\.02 of 10 samples is none; give a larger fraction"):
        PlantedLabelErrors(Items(n=10), CLASSES)
    with pytest.raises(ValueError, match=r"fraction must be above 0"):
        PlantedLabelErrors(Items(), CLASSES, 2)
    with pytest.raises(ValueError, match=r"n_classes must be at least 2"):
        PlantedLabelErrors(Items(), 1)
    small = PlantedLabelErrors(Items(), 2, 0.5)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        [small[i] for i in range(N)]


def test_the_recording_says_which(tmp_path):
    planted = PlantedLabelErrors(Items(), CLASSES, 0.1)
    fit(planted, tmp_path / "run.h5")
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        np.testing.assert_array_equal(store.label_shifts, planted.label_shifts)
        np.testing.assert_array_equal((store.labels - store.label_shifts) % CLASSES, np.arange(N) % CLASSES)
        assert store.class_names == ["a", "b", "c", "d"]  # those of the data set within
    assert verify(tmp_path / "run.h5").ok
    salvage(tmp_path / "run.h5", tmp_path / "saved.h5")
    with h5py.File(tmp_path / "run.h5") as file, TrainingDynamicsStore(tmp_path / "saved.h5") as saved:
        np.testing.assert_array_equal(file["label_shifts"][:].astype(int), planted.label_shifts)
        np.testing.assert_array_equal(saved.label_shifts, planted.label_shifts)
    fit(Items(), tmp_path / "plain.h5")
    with TrainingDynamicsStore(tmp_path / "plain.h5") as store:
        assert store.label_shifts is None


def test_a_subset_has_the_shifts_of_its_samples(tmp_path):
    planted = PlantedLabelErrors(Items(), CLASSES, 0.3)
    rows = list(range(99, 0, -2))
    fit(paddle.io.Subset(planted, rows), tmp_path / "run.h5")
    with TrainingDynamicsStore(tmp_path / "run.h5") as store:
        np.testing.assert_array_equal(store.label_shifts, planted.label_shifts[rows])
    inner = paddle.io.Subset(paddle.io.Subset(planted, rows), [3, 1])
    np.testing.assert_array_equal(
        label_shifts_of(inner, 2, planted.n_classes, has_labels=False),
        planted.label_shifts[[rows[3], rows[1]]],
    )


def test_another_number_of_classes_or_labels_of_the_callback_are_refused(tmp_path):
    planted = PlantedLabelErrors(Items(), CLASSES, 0.1)
    with pytest.raises(
        CaptureError, match=r"4 classes, and the network is trained on 100 samples and 5 classes"
    ):
        fit(planted, tmp_path / "run.h5", n_outputs=5)
    with pytest.raises(CaptureError, match=r"with labels= of the callback"):
        fit(planted, tmp_path / "run.h5", labels=np.arange(N) % CLASSES)


def test_resume_wants_the_same_labels_moved(tmp_path):
    path, known = tmp_path / "run.h5", {"n_samples": N, "n_classes": CLASSES}
    planted = PlantedLabelErrors(Items(), CLASSES, 0.1)
    fit(planted, path)
    for shifts in (None, np.zeros(N, int)):
        with pytest.raises(StoreError, match="other label_shifts"):
            TrainingDynamicsRecorder(path, **known, label_shifts=shifts, resume=True)
    TrainingDynamicsRecorder(path, **known, label_shifts=planted.label_shifts, resume=True).close()


def test_shifts_of_a_loop_of_ones_own_are_checked(tmp_path):
    for shifts in (np.zeros(3, int), np.full(N, CLASSES), np.full(N, -1)):
        with pytest.raises(ValueError, match="label_shifts must be"):
            TrainingDynamicsRecorder(tmp_path / "a.h5", n_samples=N, n_classes=CLASSES, label_shifts=shifts)


def test_a_data_set_within_itself_has_no_shifts():
    dataset = Items()
    dataset.dataset, dataset.indices = dataset, range(N)
    assert label_shifts_of(dataset, N, CLASSES, has_labels=False) is None
