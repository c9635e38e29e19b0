"""The recorder against a naive reference, hand-worked numbers, and everything it refuses."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_td_callback import (
    CaptureError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
)
from paddle_td_callback.recording import open_recorders


def record(path: str, epochs: list[list[tuple[Any, ...]]], **options: Any) -> None:
    """Epochs of `(indices, logits, labels)`."""
    with TrainingDynamicsRecorder(path, **options) as recorder:
        for batches in epochs:
            for batch in batches:
                recorder.update(*batch)
            recorder.end_epoch()


def naive(logits: Any, label: int) -> tuple[np.ndarray, float, float, int]:
    """Softmax, probability of the label, margin and prediction of one row, number by number, in float64."""
    z = [float(value) for value in logits]
    largest = max(z)
    powers = [np.exp(value - largest) for value in z]
    p = np.array([power / sum(powers) for power in powers])
    best_other = max(value for k, value in enumerate(z) if k != label)
    return p, p[label], z[label] - best_other, z.index(largest)


def test_hand_worked_numbers(path: str) -> None:
    # e**0 : e**ln2 : e**ln5 = 1 : 2 : 5
    logits = np.log(np.float32([[1, 2, 5], [5, 1, 2]]))
    record(path, [[([4, 1], logits, [1, 0])]], n_samples=6, n_classes=3, dtype="float32")
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [-1, 0, -1, -1, 1, -1]
        np.testing.assert_allclose(store.given_probabilities([4, 1]), [[2 / 8], [5 / 8]], rtol=1e-6)
        np.testing.assert_allclose(store.margins([4, 1]), [[np.log(2 / 5)], [np.log(5 / 2)]], rtol=1e-6)
        assert store.predictions([4, 1]).tolist() == [[2], [0]]
        np.testing.assert_allclose(store.probabilities([4])[0, 0], [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
        assert np.isnan(store.given_probabilities([0, 2, 3, 5])).all()
        assert np.isnan(store.probabilities([0])).all()
        assert store.predictions([0]).tolist() == [[-1]]
        assert store.n_presentations()[:, 0].tolist() == [0, 1, 0, 0, 1, 0]


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    n_samples = draw(st.integers(1, 12))
    n_classes = draw(st.integers(2, 5))
    keep = draw(st.sampled_from(["all", "given", 1, 2]))
    labels = draw(st.lists(st.integers(0, n_classes - 1), min_size=n_samples, max_size=n_samples))
    batch = st.lists(st.integers(0, n_samples - 1), max_size=6)
    epochs = draw(st.lists(st.lists(batch, max_size=4), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    return {"n": n_samples, "c": n_classes, "keep": keep, "labels": labels, "epochs": epochs, "seed": seed}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=runs())
def test_every_order_of_batches_agrees_with_a_naive_reference(run: dict[str, Any], path: str) -> None:
    rng = np.random.default_rng(run["seed"])
    n, c, labels = run["n"], run["c"], np.array(run["labels"])
    last: dict[tuple[int, int], Any] = {}
    times: dict[tuple[int, int], int] = {}
    seen = np.full(n, -1)
    epochs = []
    for epoch, batches in enumerate(run["epochs"]):
        epochs.append([])
        for batch in batches:
            logits = (rng.standard_normal((len(batch), c)) * 5).astype(np.float32)
            epochs[-1].append((np.array(batch, int), logits, labels[batch] if batch else np.zeros(0, int)))
            for sample, row in zip(batch, logits, strict=True):
                last[sample, epoch] = naive(row, labels[sample])
                times[sample, epoch] = times.get((sample, epoch), 0) + 1
                seen[sample] = labels[sample]
    keep = min(run["keep"], c) if isinstance(run["keep"], int) else run["keep"]
    record(path, epochs, n_samples=n, n_classes=c, keep=keep, dtype="float32", overwrite=True)
    with TrainingDynamicsStore(path) as store:
        assert (store.n_samples, store.n_classes, store.n_epochs, store.keep) == (n, c, len(epochs), keep)
        np.testing.assert_array_equal(store.labels, seen)
        given_p, margins, predicted = store.given_probabilities(), store.margins(), store.predictions()
        counts = store.n_presentations()
        for sample in range(n):
            for epoch in range(len(epochs)):
                assert counts[sample, epoch] == times.get((sample, epoch), 0)
                if (sample, epoch) not in last:
                    assert np.isnan([given_p[sample, epoch], margins[sample, epoch]]).all()
                    assert predicted[sample, epoch] == -1
                    continue
                p, own, margin, best = last[sample, epoch]
                np.testing.assert_allclose(given_p[sample, epoch], own, rtol=1e-5, atol=1e-12)
                np.testing.assert_allclose(margins[sample, epoch], margin, rtol=1e-5, atol=1e-5)
                assert predicted[sample, epoch] == best
                if keep == "all":
                    np.testing.assert_allclose(store.probabilities()[sample, epoch], p, rtol=1e-5, atol=1e-12)
                elif keep != "given":
                    classes, top = (array[sample, epoch] for array in store.top())
                    np.testing.assert_allclose(top, sorted(p, reverse=True)[:keep], rtol=1e-5, atol=1e-12)
                    np.testing.assert_allclose(p[classes], top, rtol=1e-5, atol=1e-12)


def test_probabilities_alone_give_margins_of_their_logarithms(path: str) -> None:
    p = np.float32([[0.25, 0.75], [1.0, 0.0]])
    with TrainingDynamicsRecorder(path, n_samples=2, n_classes=2, dtype="float32") as recorder:
        recorder.update([0, 1], labels=[0, 1], probabilities=p)
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        assert store.given_probabilities()[:, 0].tolist() == [0.25, 0.0]
        margins = store.margins()[:, 0]
    np.testing.assert_allclose(margins[0], np.log(0.25 / 0.75), rtol=1e-6)
    assert np.isfinite(margins[1])
    assert margins[1] < -80  # the smallest float32 stands for log 0


def test_a_sample_that_comes_again_replaces_its_row_also_within_a_batch(path: str) -> None:
    first, second, third = np.float32([[0, 0], [3, 0], [0, 3]])
    batches = [([1, 0, 1], [first, first, second], [0, 1, 0]), ([0], [third], [1])]
    record(path, [batches, [([0], [first], [1])]], n_samples=2, n_classes=2)
    with TrainingDynamicsStore(path) as store:
        assert store.margins().tolist() == [[3.0, 0.0], [3.0, pytest.approx(float("nan"), nan_ok=True)]]
        assert store.n_presentations().tolist() == [[2, 1], [2, 0]]


def test_more_presentations_than_a_byte_holds(path: str) -> None:
    row = np.zeros((1, 2), np.float32)
    record(path, [[([0], row, [0])] * 300], n_samples=1, n_classes=2)
    with TrainingDynamicsStore(path) as store:
        assert store.n_presentations().tolist() == [[255]]


def test_epochs_without_rows_and_a_part_of_many_samples(path: str) -> None:
    """Labels of which no chunk but the first was ever seen are no damage."""
    rows = np.zeros((5, 3), np.float32)
    batch = (np.arange(5), rows, np.arange(5) % 3)
    record(path, [[], [batch], []], n_samples=100_000, n_classes=3, keep="given")
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 3
        assert store.labels[:7].tolist() == [0, 1, 2, 0, 1, -1, -1]
        assert (store.labels[5:] == -1).all()
        assert (store.predictions(slice(0, 5)) >= 0).tolist() == [[False, True, False]] * 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["logits", "probabilities"])
def test_nonfinite_rows_are_unseen_counted_and_said_once(value: float, where: str, path: str) -> None:
    good = np.float32([[0.5, 0.5]] * 3)
    bad = good.copy()
    bad[1, 0] = value
    values = {"logits": good, "probabilities": good, where: bad}
    recorder = TrainingDynamicsRecorder(path, n_samples=3, n_classes=2)
    match = "output for sample 2 is NaN or infinite.*unseen.*said once"
    recorder.update([0, 2, 1], labels=[0, 1, 0], **values)
    with pytest.warns(RuntimeWarning, match=match):
        recorder.end_epoch()
    recorder.update([0, 2, 1], labels=[0, 1, 0], **values)  # a second warning would be an error here
    recorder.end_epoch()
    assert recorder.n_nonfinite == 2
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [0, 0, -1]
        assert (store.predictions() >= 0).tolist() == [[True, True], [True, True], [False, False]]


def test_huge_finite_logits_keep_a_finite_margin(path: str) -> None:
    huge = np.finfo(np.float32).max
    record(path, [[([0], np.float32([[huge, -huge]]), [0])]], n_samples=1, n_classes=2)
    with TrainingDynamicsStore(path) as store:
        assert store.margins().tolist() == [[float(huge)]]
        assert store.given_probabilities().tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["lists", "columns", "int8", "uint64"])
def test_anything_that_numpy_takes(dtype: str, kind: str, path: str) -> None:
    indices: Any = np.array([1, 0])
    labels: Any = np.array([0, 1])
    logits: Any = np.array([[0.5, 1.5], [2.0, 1.0]], dtype)
    if kind == "lists":
        indices, labels = indices.tolist(), labels.tolist()
    elif kind == "columns":
        labels = labels[:, np.newaxis]
    else:
        indices, labels = indices.astype(kind), labels.astype(kind)
    record(path, [[(indices, logits, labels)]], n_samples=2, n_classes=2)
    with TrainingDynamicsStore(path) as store:
        assert store.margins().tolist() == [[-1.0], [-1.0]]
        assert store.labels.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_paddle_tensors(dtype: str, path: str) -> None:
    paddle = pytest.importorskip("paddle")
    logits = paddle.to_tensor([[0.5, 1.5], [2.0, 1.0]], stop_gradient=False).astype(dtype)
    record(
        path,
        [[(paddle.to_tensor([1, 0]), logits.detach(), paddle.to_tensor([[0], [1]]))]],
        n_samples=2,
        n_classes=2,
    )
    with TrainingDynamicsStore(path) as store:
        assert store.margins().tolist() == [[-1.0], [-1.0]]


ROW = np.zeros((1, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([0.0], ROW, [0]), TypeError, "indices must be integers, got float64"),
        (([True], ROW, [0]), TypeError, "indices must be integers, got bool"),
        (([0], ROW, [0.5]), TypeError, "labels must be integers, got float64"),
        (([0], ROW, [[0.1, 0.2, 0.7]]), TypeError, "labels must be integers"),
        (
            ([0], ROW, [[0, 0, 1]]),
            ValueError,
            r"labels must have shape \[row\] or \[row, 1\], got \(1, 3\)",
        ),
        (([0], ROW, [0, 1]), ValueError, "epoch 0: 2 labels for 1 indices"),
        (([0, 1], ROW, [0, 1]), ValueError, r"logits must have shape \(2, 3\) \[row, class\], got \(1, 3\)"),
        (([0], ROW[:, :2], [0]), ValueError, r"logits must have shape \(1, 3\) \[row, class\], got \(1, 2\)"),
        (([0], ROW.astype(int), [0]), TypeError, "logits must be floating point, got int64"),
        (([0], None, [0]), ValueError, r"update\(\) needs logits or probabilities"),
        (([0], ROW, None), (TypeError, ValueError), "labels"),
        (([5], ROW, [0]), ValueError, r"epoch 0: indices must be in \[0, 5\), got index 5 in row 0"),
        (([-1], ROW, [0]), ValueError, r"indices must be in \[0, 5\), got index -1 in row 0"),
    ],
)
def test_batches_that_are_refused_leave_no_trace(arguments: Any, error: Any, match: str, path: str) -> None:
    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3) as recorder:
        with pytest.raises(error, match=match):
            recorder.update(*arguments)
        recorder.update([2], ROW, [1])
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [-1, -1, 1, -1, -1]
        assert store.n_presentations()[:, 0].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("label", [3, -1, -100, 2**40])
def test_a_label_that_is_no_class_costs_its_row(label: int, path: str) -> None:
    recorder = TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    for _ in range(2):
        recorder.update([4, 2], np.zeros((2, 3), np.float32), [label, 1])
    match = rf"labels must be in \[0, 3\), got {label} for sample 4; .*unseen.*skipped_rows.*n_classes="
    with pytest.warns(RuntimeWarning, match=match):
        recorder.end_epoch()
    assert recorder.skipped_rows == 2
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [-1, -1, 1, -1, -1]
        assert store.n_presentations()[:, 0].tolist() == [0, 0, 2, 0, 0]


def test_a_changed_label_costs_its_row_of_that_epoch(path: str) -> None:
    rows = np.zeros((3, 3), np.float32)
    recorder = TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    recorder.update([2, 3, 4], rows, [1, 1, 1])
    recorder.end_epoch()
    recorder.update([2, 3, 4], rows, [0, 1, 1])
    with pytest.warns(RuntimeWarning, match=r"label of sample 2 was 1, now it is 0; .*unseen.*labels="):
        recorder.end_epoch()
    recorder.update([2, 3, 4], rows, [0, 1, 1])  # a second warning would be an error here
    recorder.end_epoch()
    recorder.update([2, 3, 4], rows, [1, 1, 1])
    recorder.end_epoch()
    assert recorder.skipped_rows == 2
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [-1, -1, 1, 1, 1]
        assert (store.predictions([2, 3]) >= 0).tolist() == [[True, False, False, True], [True] * 4]


def test_two_labels_of_a_sample_in_one_epoch(path: str) -> None:
    """The first one is kept, also where both are new."""
    first, second = np.float32([[3, 0], [0, 5]])
    recorder = TrainingDynamicsRecorder(path, n_samples=2, n_classes=2)
    recorder.update([1, 0, 1], [first, first, second], [0, 1, 1])
    with pytest.warns(RuntimeWarning, match="label of sample 1 was 0, now it is 1"):
        recorder.end_epoch()
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == [1, 0]
        assert store.margins().tolist() == [[-3.0], [3.0]]
        assert store.n_presentations().tolist() == [[1], [1]]


def test_an_epoch_of_other_labels_is_refused_whole(path: str) -> None:
    """Rows that are not in the order of their indices: most labels are wrong."""
    rows, labels = np.zeros((5, 3), np.float32), np.array([0, 1, 2, 0, 1])
    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3) as recorder:
        recorder.update(np.arange(5), rows, labels)
        recorder.end_epoch()
        recorder.update(np.arange(5), rows, labels[[1, 2, 0, 3, 4]])
        match = (
            "3 of 5 rows of this epoch have another label than their sample had before: the label of "
            "sample 0 was 0, now it is 1; .*one given label for each sample.*labels=.*no epoch of this"
        )
        with pytest.raises(CaptureError, match=match):
            recorder.end_epoch()
        recorder.update([1], rows[:1], [1])
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        assert store.labels.tolist() == labels.tolist()
        assert store.n_presentations().tolist() == [[1, 0], [1, 1], [1, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1 .* got 0"),
        ({"n_samples": 3.7}, "n_samples must be a whole number, got 3.7"),
        ({"n_samples": "3"}, "n_samples must be a whole number, got '3'"),
        ({"n_classes": 2.9}, "n_classes must be a whole number, got 2.9"),
        ({"n_classes": 1}, "n_classes must be a whole number of at least 2"),
        ({"keep": "some"}, "keep must be 'all', 'given' or a number"),
        ({"keep": 4}, "keep=4 is more than the 3 classes; say keep='all'"),
        ({"dtype": "float64"}, "dtype must be 'float16' or 'float32', got 'float64'"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', got 'test'"),
        ({"compression": "lzf"}, "compression must be 'gzip' or None, got 'lzf'"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise', got 'ignore'"),
        ({"class_names": ["a", "b"]}, "class_names must have 3 names, got 2"),
        ({"resume": True, "overwrite": True}, "resume and overwrite=True contradict"),
        ({"distributed": True}, "distributed=True, but Paddle is in no parallel environment"),
    ],
)
def test_arguments_out_of_range_make_no_file(options: dict[str, Any], match: str, path: str) -> None:
    if options.get("resume"):
        record(path, [[([0], ROW, [1])]], n_samples=5, n_classes=3)
        before = Path(path).read_bytes()
    with pytest.raises(ValueError, match=match):
        TrainingDynamicsRecorder(path, **{"n_samples": 5, "n_classes": 3, **options})
    if options.get("resume"):
        assert Path(path).read_bytes() == before
    else:
        assert not list(Path(path).parent.iterdir())


def test_paths_that_are_refused(path: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_samples": 5, "n_classes": 3}
    record(path, [[([0], ROW, [1])]], **options)
    with pytest.raises(StoreExistsError, match="exists already; resume=True continues"):
        TrainingDynamicsRecorder(path, **options)
    with pytest.raises(StoreNotFoundError, match=r"there is no folder '.*no'; create it first"):
        TrainingDynamicsRecorder(tmp_path / "no" / "run.h5", **options)
    with pytest.raises(StoreNotFoundError, match=r"there is no folder '.*run\.h5'"):
        TrainingDynamicsRecorder(Path(path) / "run.h5", **options)
    with pytest.raises(StoreError, match="is a folder; give the path of a file in it"):
        TrainingDynamicsRecorder(tmp_path, **options)
    text = tmp_path / "notes.txt"
    text.write_text("precious")
    with pytest.raises(StoreError, match=r"notes\.txt' is no HDF5 file"):
        TrainingDynamicsRecorder(text, resume=True, **options)
    assert text.read_text() == "precious"


def test_resuming_what_is_not_there_begins_it(path: str) -> None:
    record(path, [[([0], ROW, [1])]], n_samples=5, n_classes=3, resume=True)
    record(path, [[([1], ROW, [2])]], n_samples=5, n_classes=3, resume=True)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 2
        assert store.labels.tolist() == [1, 2, -1, -1, -1]


def test_labels_are_remembered_over_a_resume(path: str) -> None:
    record(path, [[([0], ROW, [1])]], n_samples=5, n_classes=3)
    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, resume=True) as recorder:
        assert recorder.n_epochs == 1
        recorder.update([0], ROW, [2])
        match = "1 of 1 rows of this epoch have another label .*: the label of sample 0 was 1, now it is 2"
        with pytest.raises(CaptureError, match=match):
            recorder.end_epoch()


@pytest.mark.parametrize("n_kept", [0, -1, 1.5, "2"])
def test_a_number_of_epochs_to_keep_is_checked(n_kept: Any, path: str) -> None:
    with pytest.raises(ValueError, match="resume must be True, False or the number of epochs to keep"):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, resume=n_kept)


def test_epochs_to_keep_of_what_is_not_there(path: str) -> None:
    with pytest.raises(
        StoreNotFoundError, match=r"no recording to keep the first 3 epochs of; .*resume=True"
    ):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, resume=3)
    assert not Path(path).exists()


@pytest.mark.parametrize("n_kept", [1, np.int64(2), 3, True])
def test_a_training_that_goes_on_from_an_older_checkpoint(n_kept: Any, path: str) -> None:
    record(path, [[([epoch], ROW, [1])] for epoch in range(3)], n_samples=5, n_classes=3)
    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, resume=n_kept) as recorder:
        assert recorder.n_epochs == (3 if n_kept is True else n_kept)
        recorder.update([4], ROW, [2])
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        seen = [np.flatnonzero(column).tolist() for column in store.n_presentations().T]
    n_first = 3 if n_kept is True else n_kept
    assert seen == [*[[0], [1], [2]][:n_first], [4]]


def test_more_epochs_to_keep_than_there_are(path: str) -> None:
    record(path, [[([0], ROW, [1])]] * 2, n_samples=5, n_classes=3)
    with pytest.raises(StoreError, match="has 2 epochs, so the first 3 cannot be kept"):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, resume=3)


def test_every_second_epoch(path: str) -> None:
    """Epoch `e` of the file is epoch `2 e` of the training; the others may hold anything."""
    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, every=2) as recorder:
        for epoch in range(5):
            assert recorder.records_epoch == (epoch in (0, 2, 4))
            recorder.update([epoch], ROW if recorder.records_epoch else ROW * np.nan, [1])
            recorder.end_epoch()
        assert recorder.n_epochs == 3
        recorder.update([0], ROW, [1])  # of a skipped epoch, so nothing is missed at the end
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 3
        assert not store.dropped_epochs
        seen = store.predictions() >= 0
    assert seen.tolist() == [[e == s for e in (0, 2, 4)] for s in range(5)]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_is_checked(every: Any, path: str) -> None:
    with pytest.raises(ValueError, match="every must be"):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, every=every)


def test_the_network_s_own_softmax_is_recorded(path: str) -> None:
    def third(logits: Any) -> Any:
        return np.full_like(logits, 1 / 3)

    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, softmax=third, dtype="float32") as recorder:
        recorder.update([1], np.float32([[9, 0, 0]]), [0])
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        assert store.given_probabilities([1])[0, 0] == np.float32(1 / 3)
        assert (store.probabilities([1]) == np.float32(1 / 3)).all()
        assert store.margins([1])[0, 0] == 9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"class_names": {"b", "a", "c"}}, r"class_names must be a list .* got set .*class_names=list"),
        ({"class_names": "abc"}, "class_names must be a list .* got str 'abc'"),
        ({"class_names": (name for name in "abc")}, "class_names must be a list .* got generator"),
        ({"class_names": {"a": 0, "b": 1, "c": 2}}, r"class_names is a mapping from names, .*sorted\(names"),
        ({"sample_ids": {f"s{i}" for i in range(5)}}, r"sample_ids must be a list .* got set"),
        ({"sample_ids": map(str, range(5))}, r"sample_ids must be a list .* got map"),
        ({"sample_ids": dict.fromkeys("abcde", 1).keys()}, r"sample_ids must be a list .* got dict_keys"),
    ],
)
def test_names_without_an_order_make_no_file(options: dict[str, Any], match: str, path: str) -> None:
    with pytest.raises(TypeError, match=match):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3, **options)
    assert not list(Path(path).parent.iterdir())


def test_names_by_index(path: str) -> None:
    class_names = {2: "cow", 0: "cat", 1: "dog"}
    ids = np.array([10, 20, 30, 40, 50])
    record(path, [[]], n_samples=5, n_classes=3, class_names=class_names, sample_ids=ids)
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["cat", "dog", "cow"]
        assert store.sample_ids == ["10", "20", "30", "40", "50"]


def test_the_end_of_a_recording(path: str) -> None:
    recorder = TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    with recorder:
        recorder.update([0], ROW, [1])
        recorder.end_epoch()
        assert recorder.n_epochs == 1
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match=r"the recorder of '.*run\.h5' is closed"):
        recorder.update([0], ROW, [1])
    with pytest.raises(ValueError, match=r"the recorder of '.*run\.h5' is closed"):
        recorder.end_epoch()


def test_rows_behind_the_last_end_epoch_are_missed_aloud(path: str) -> None:
    def forgets_the_last() -> None:
        with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3) as recorder:
            recorder.update([0], ROW, [1])
            recorder.end_epoch()
            recorder.update([0, 1, 2], np.zeros((3, 3), np.float32), [1, 1, 1])

    with pytest.warns(RuntimeWarning, match=r"3 rows came after the last end_epoch\(\) and are not recorded"):
        forgets_the_last()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1


def test_a_loop_that_dies_keeps_its_epochs_and_its_own_exception(path: str) -> None:
    def dies() -> None:
        with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3) as recorder:
            recorder.update([0], ROW, [1])
            recorder.end_epoch()
            recorder.update([1], ROW, [1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dies()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1
        assert store.labels.tolist() == [1, -1, -1, -1, -1]


def test_a_script_that_ends_without_closing_keeps_every_ended_epoch(path: str) -> None:
    code = f"""
import numpy as np
from paddle_td_callback import TrainingDynamicsRecorder
recorder = TrainingDynamicsRecorder({path!r}, n_samples=2000, n_classes=50)
for epoch in range(3):
    recorder.update(np.arange(2000), np.zeros((2000, 50), "f"), np.arange(2000) % 50)
    recorder.end_epoch()
raise KeyboardInterrupt
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 3


def test_nothing_stays_alive(path: str) -> None:
    gc.collect()
    before = threading.active_count()
    record(path, [[([0], ROW, [1])]] * 3, n_samples=5, n_classes=3)
    assert threading.active_count() == before


def records_each_epoch_once(recorder: TrainingDynamicsRecorder, path: str, epochs: range) -> None:
    """Record the rest of three epochs, each of the one sample that has its number."""
    for epoch in epochs:
        recorder.update([epoch], ROW, [1])
        recorder.end_epoch()
    recorder.close()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 3
        assert (store.predictions() >= 0).tolist() == [[e == s for e in range(3)] for s in range(5)]


def test_ctrl_c_where_an_epoch_ends_never_makes_a_second_thread_write(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may raise it while the committing thread starts, which then runs unknown to its pool."""
    recorder = TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    start, main = threading.Thread.start, threading.current_thread()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if threading.current_thread() is main:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    records_each_epoch_once(recorder, path, range(3))


def test_ctrl_c_while_a_commit_is_handed_over(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit runs, but its caller does not know."""
    recorder = TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    submit = ThreadPoolExecutor.submit
    armed = [True]

    def interrupted(pool: Any, *args: Any, **kwargs: Any) -> Any:
        future = submit(pool, *args, **kwargs)
        if armed and threading.current_thread() is threading.main_thread():
            armed.clear()
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    recorder.update([0], ROW, [1])
    with pytest.raises(KeyboardInterrupt):
        recorder.end_epoch()
    records_each_epoch_once(recorder, path, range(1, 3))


def test_an_epoch_that_does_not_fit_in_memory_is_left_out_whole(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise MemoryError("no room for a block")

    with TrainingDynamicsRecorder(path, n_samples=5, n_classes=3) as recorder:
        recorder.update([0], ROW, [1])
        with monkeypatch.context() as patch:
            patch.setattr("paddle_td_callback.recording.batches.stored_values", fail)
            with pytest.raises(MemoryError, match="no room for a block"):
                recorder.end_epoch()
        recorder.update([2], ROW, [1])
        recorder.end_epoch()
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1
        assert np.flatnonzero(store.predictions()[:, 0] >= 0).tolist() == [2]


def test_a_recorder_that_cannot_be_made_leaves_the_path_free(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("paddle_td_callback.recording.recorder.Block", fail)
        with pytest.raises(KeyboardInterrupt):
            TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    record(path, [[([0], ROW, [1])]], n_samples=5, n_classes=3)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1


class Meeting:
    """As `Session`: notes what the other ranks hear."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.heard: list[Any] = []

    def barrier(self, error: Exception | None = None, *, hint: str = "") -> None:
        self.heard.append(error)
        if self.error is not None:
            raise self.error

    def leave(self, reason: str) -> None:
        self.heard.append(reason)


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """That of two ranks, of which this process is rank 0."""
    met = Meeting()
    ranks = SimpleNamespace(rank=0, size=2, session=lambda _kind: met)
    monkeypatch.setattr("paddle_td_callback.recording.recorder.find_ranks", lambda: ranks)
    return met


def test_the_other_ranks_hear_why_one_cannot_record(meeting: Meeting, path: str) -> None:
    Path(path).write_text("the user's")
    with pytest.raises(StoreExistsError) as raised:
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    assert meeting.heard == [raised.value]


def test_a_rank_whose_others_cannot_record_makes_no_file(meeting: Meeting, path: str) -> None:
    meeting.error = CaptureError("rank 1 of 2 cannot record: disk full")
    with pytest.raises(CaptureError, match="rank 1 of 2 cannot record"):
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3)
    assert meeting.heard == [None]
    assert not Path(path).exists()


def test_the_other_ranks_hear_that_a_loop_has_died(meeting: Meeting, path: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        TrainingDynamicsRecorder(path, n_samples=5, n_classes=3),
    ):
        raise ZeroDivisionError("no more of this")
    assert meeting.heard == [None, "its training ended by ZeroDivisionError: no more of this"]


def test_a_recording_that_was_abandoned_and_cannot_be_closed_stops_no_other(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(open_recorders, "_abandoned", [SimpleNamespace(close=fail)])
    with pytest.warns(RuntimeWarning, match="an abandoned recording could not be closed: disk gone; see"):
        record(path, [[([0], ROW, [1])]], n_samples=5, n_classes=3)
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 1
