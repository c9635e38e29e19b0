"""The store: what is written is what is read, and bad input is refused with the way out."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.recordings import assert_same_epochs, make_epoch, make_labels, read_epochs, write_recording

from paddle_td_callback import (
    StoreError,
    StoreNotFoundError,
    TrainingDynamicsStore,
)
from paddle_td_callback.store.journal import Journal
from paddle_td_callback.store.schema import EPOCH_FIELDS, SCHEMA_VERSION, Layout, label_checksum
from paddle_td_callback.store.store import StoreWriter

FIXTURE = Path(__file__).parents[1] / "fixtures" / "schema_v1.h5"
LAYOUTS = [
    Layout(1, 2),
    Layout(300, 5),
    Layout(300, 5, gzip_level=1),
    Layout(50, 7, dtype="float32", mode="eval"),
    Layout(120, 9, keep=3),
    Layout(120, 9, keep=9, dtype="float32", gzip_level=9),
    Layout(120, 9, keep="given"),
    Layout(20_000, 2, keep=1),
    Layout(1200, 700),  # several chunks of the wide dataset, the last one short
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def edit(path, change):
    """Change a recording as its writer would, so that its checksums fit."""
    journal = Journal(path)
    with journal.transaction() as transaction:
        change(transaction.h5)
    journal.close()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_written_is_read(layout, path):
    written = write_recording(path, layout, 3)
    found, labels = read_epochs(path)
    assert_same_epochs(found, written)
    np.testing.assert_array_equal(labels, make_labels(layout))
    with TrainingDynamicsStore(path) as store:
        assert store.layout == layout
        assert (store.n_epochs, store.dropped_epochs, store.class_names) == (3, [], None)
        assert store.label_checksum == label_checksum(labels)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_hdf5_reader_with_stock_filters_reads_it(layout, path):
    written = write_recording(path, layout, 2)
    with h5py.File(path) as file:
        for field in layout.fields:
            dataset = file[field.name]
            assert dataset.fletcher32
            assert dataset.dtype == np.dtype(field.dtype)
            np.testing.assert_array_equal(dataset[:], np.stack([epoch[field.name] for epoch in written]))
        assert file.attrs["committed_epochs"] == 2


def test_slices_index_arrays_and_masks(path):
    layout = Layout(40_000, 2, keep="given")
    written = write_recording(path, layout, 2)
    whole = np.stack([epoch["margin"] for epoch in written], axis=1)
    rng = np.random.default_rng(0)
    with TrainingDynamicsStore(path) as store:
        for samples in (
            None,
            slice(10, 20),
            slice(None, None, 7),
            slice(30_000, 10, -3),
            [3, 1, 39_999, 3],
            rng.integers(0, 40_000, 50),
            rng.random(40_000) < 0.01,
            np.zeros(0, int),
        ):
            wanted = whole if samples is None else whole[samples]
            np.testing.assert_array_equal(store.margins(samples), wanted)
        for samples in ([-1], [40_000], np.zeros(3, bool)):
            with pytest.raises(IndexError):
                store.margins(samples)
        with pytest.raises(TypeError):
            store.margins([0.5])
        tiles = list(store.tiles(max_bytes=1))
        assert tiles[0] == slice(0, layout.chunk_rows(EPOCH_FIELDS[0]))
        np.testing.assert_array_equal(np.concatenate([store.margins(tile) for tile in tiles]), whole)


def test_a_rewritten_sample_counts_only_where_n_presentations_says_so(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    epoch = make_epoch(layout, labels, 0, missing=0)
    epoch["n_presentations"][5] = 0  # rubbish of an earlier epoch in the buffer
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(0, epoch, labels)
    writer.close()
    found = read_epochs(path)[0][0]
    assert np.isnan(found["given_probability"][5])
    assert np.isnan(found["probabilities"][5]).all()
    assert found["predicted"][5] == -1


def test_a_gap_is_dropped_epochs_and_an_epoch_committed_twice_is_left_alone(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    epochs = [make_epoch(layout, labels, index) for index in range(5)]
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(1, epochs[1], labels)
    writer.commit_epoch(1, epochs[0], labels)
    writer.commit_epoch(4, epochs[4], labels)
    writer.close()
    with TrainingDynamicsStore(path) as store:
        assert (store.n_epochs, store.dropped_epochs) == (5, [0, 2, 3])
    found, _ = read_epochs(path)
    unseen = layout.unseen_epoch()
    assert_same_epochs(found, [unseen, epochs[1], unseen, unseen, epochs[4]])


def test_the_epochs_of_a_store_are_those_of_its_opening(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    writer = StoreWriter.create(path, layout)
    with TrainingDynamicsStore(path) as empty:
        writer.commit_epoch(0, make_epoch(layout, labels, 0), labels)
        with TrainingDynamicsStore(path) as store:
            writer.commit_epoch(1, make_epoch(layout, labels, 1), labels)
            assert store.margins().shape == (30, 1)
            assert empty.margins().shape == (30, 0)
            assert (empty.labels == -1).all()
    writer.close()


def test_class_names_and_sample_ids_come_back(path):
    names, ids = ["Äpfel", "pears", "图"], [f"img_{i}.png" for i in range(30)]
    write_recording(path, Layout(30, 3), 1, class_names=names, sample_ids=ids)
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == names
        assert store.sample_ids == ids
    with pytest.raises(ValueError, match="got 2 class names for 3 classes"):
        StoreWriter.create(path, Layout(30, 3), class_names=["a", "b"], overwrite=True)


def test_files_that_are_no_recordings(path, tmp_path):
    with pytest.raises(StoreNotFoundError, match="there is no such file"):
        TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match="is a folder"):
        TrainingDynamicsStore(tmp_path)
    path.write_text("sample,label\n")
    with pytest.raises(StoreError, match=r"run\.h5' cannot be opened as HDF5"):
        TrainingDynamicsStore(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match="is an HDF5 file, but no recording of training dynamics"):
        TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match="no recording of training dynamics"):
        StoreWriter.resume(path)


def test_a_truncated_file(path):
    write_recording(path, Layout(300, 5), 3)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(StoreError, match=r"run\.h5' is damaged: it is cut off.*`paddle-td verify` says"):
        TrainingDynamicsStore(path)


def test_a_newer_schema(path):
    write_recording(path, Layout(30, 3), 1)
    edit(path, lambda h5: h5.attrs.modify("schema_version", SCHEMA_VERSION + 1))
    with pytest.raises(StoreError, match=r"run\.h5': schema 2, this version reads up to 1; upgrade"):
        TrainingDynamicsStore(path)


FORGERIES = {
    "another format": lambda h5: h5.attrs.modify("format", "something else"),
    "no samples": lambda h5: h5.attrs.modify("n_samples", 0),
    "2^60 samples": lambda h5: h5.attrs.modify("n_samples", 2**60),
    "more epochs": lambda h5: h5.attrs.modify("committed_epochs", 2**60),
    "2^60 epochs": lambda h5: h5["margin"].resize(2**60, axis=0),
    "fewer epochs": lambda h5: h5["margin"].resize(1, axis=0),
    "an odd keep": lambda h5: h5.attrs.modify("keep", "most"),
    "no labels": lambda h5: h5.pop("labels"),
    "a group": lambda h5: (h5.pop("margin"), h5.create_group("margin")),
    "another dtype": lambda h5: (h5.pop("predicted"), h5.create_dataset("predicted", data=np.zeros((2, 30)))),
    "no data": lambda h5: (
        h5.pop("probabilities"),
        h5.create_dataset("probabilities", (2, 30, 3), "f2", chunks=(1, 30, 3)),
    ),
    "no attribute": lambda h5: h5.attrs.pop("dtype"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_recording_is_refused_whatever_its_checksums(forgery, path):
    write_recording(path, Layout(30, 3), 2)
    edit(path, FORGERIES[forgery])
    with pytest.raises(StoreError, match=r"run\.h5'"):
        TrainingDynamicsStore(path)


def test_what_another_program_changed_is_refused_or_not_seen(path):
    written = write_recording(path, Layout(30, 3), 2)
    with h5py.File(path, "r+") as file:  # HDF5 puts the chunk elsewhere, which is not in our commit
        file["given_probability"][0, 0] = 0.25
    assert_same_epochs(read_epochs(path)[0], written)
    with h5py.File(path, "r+") as file:
        file["labels"].id.write_direct_chunk((0,), bytes(124))
    with pytest.raises(StoreError, match="or another program has changed the file"):
        TrainingDynamicsStore(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 31}, "recorded with n_samples=30, this training has 31"),
        ({"n_classes": 4}, "n_classes=3, this training has 4"),
        ({"keep": "given"}, "keep='all', this training has 'given'"),
        ({"mode": "eval"}, "mode='train', this training has 'eval'"),
        ({"dtype": "float32"}, "dtype='float16', this training has 'float32'"),
    ],
)
def test_resume_refuses_another_recording(change, message, path):
    write_recording(path, Layout(30, 3), 1)
    before = path.read_bytes()
    facts = {"n_samples": 30, "n_classes": 3, **change}
    with pytest.raises(StoreError, match=message):
        StoreWriter.resume(path, Layout(**facts))
    assert path.read_bytes() == before
    StoreWriter.resume(path, Layout(30, 3, gzip_level=1)).close()  # compression is the file's own


def test_resume_refuses_labels_that_are_not_their_checksum(path):
    write_recording(path, Layout(30, 3), 1)
    edit(path, lambda h5: h5["labels"].write_direct(np.ones(30, "i4")))
    with pytest.raises(StoreError, match="the labels do not match their checksum"):
        StoreWriter.resume(path)


def test_what_was_not_kept_is_refused_by_name(path):
    write_recording(path, Layout(30, 3, keep="given"), 1)
    with TrainingDynamicsStore(path) as store:
        with pytest.raises(StoreError, match=r"recorded with keep='given'.*record with keep='all'"):
            store.probabilities()
        with pytest.raises(StoreError, match="not with keep=k"):
            store.top()
    with pytest.raises(ValueError, match="is closed"):
        store.margins()


def test_a_recording_without_epochs_of_a_huge_data_set(path):
    """No bytes back its size, so its labels are not made up."""
    n_samples = 2**24 + 1
    StoreWriter.create(path, Layout(n_samples, 3, keep="given")).close()
    store = TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match=f"holds no committed epoch of its {n_samples} samples yet"):
        _ = store.labels
    store.close()
    StoreWriter.resume(path).close()


def test_a_file_of_schema_version_1_is_read_for_ever():
    wanted = json.loads(FIXTURE.with_suffix(".json").read_text())
    with TrainingDynamicsStore(FIXTURE) as store:
        assert [store.n_samples, store.n_classes, store.n_epochs] == wanted["sizes"]
        assert (store.class_names, store.sample_ids) == (wanted["class_names"], wanted["sample_ids"])
        assert (store.keep, store.mode, store.dropped_epochs) == ("all", "train", [1])
        assert store.labels.tolist() == wanted["labels"]
        for name, found in (
            ("given_probabilities", store.given_probabilities()),
            ("margins", store.margins()),
            ("predictions", store.predictions()),
            ("n_presentations", store.n_presentations()),
            ("probabilities", store.probabilities()),
        ):
            expected = np.array(wanted[name], found.dtype)
            np.testing.assert_array_equal(found, expected, err_msg=name)
