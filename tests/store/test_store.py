"""The store: what is written is what is read, and bad input is refused with the way out."""

import contextlib
import gc
import json
import os
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.forging import forge, frame_of, newest, put_block
from support.recordings import (
    assert_same_epochs,
    make_epoch,
    make_labels,
    read_epochs,
    unseen_epoch,
    write_recording,
)

from paddle_td_callback import (
    StoreError,
    StoreNotFoundError,
    TrainingDynamicsStore,
)
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.blocks import CHUNK, FRAME_BYTES, STATE, scan
from paddle_td_callback.store.disk import RawFile
from paddle_td_callback.store.schema import SCHEMA_VERSION, Layout
from paddle_td_callback.store.state import newest_state
from paddle_td_callback.store.verify import salvage, verify

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


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_written_is_read(layout, path):
    written = write_recording(path, layout, 3)
    found, labels = read_epochs(path)
    assert_same_epochs(found, written)
    np.testing.assert_array_equal(labels, make_labels(layout))
    with TrainingDynamicsStore(path) as store:
        assert store.layout == layout
        assert (store.n_epochs, store.dropped_epochs, store.class_names) == (3, [], None)
        assert store.label_checksum == f"{zlib.crc32(labels.tobytes()):08x}"


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


def test_a_store_that_is_forgotten_is_closed(path):
    """At once, not when the garbage collector comes by."""
    write_recording(path, Layout(40, 3, keep="all"), 2)
    gc.collect()
    gc.disable()
    try:
        store = TrainingDynamicsStore(path)
        store.margins()
        store.probabilities()
        fd = store._file.fd
        del store
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    finally:
        gc.enable()


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
        assert tiles[0] == slice(0, layout.fields[0].chunk_rows)
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
    unseen = unseen_epoch(layout)
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
    with pytest.raises(ValueError, match="class_names must have 3 names, got 2"):
        StoreWriter.create(path, Layout(30, 3), class_names=["a", "b"], overwrite=True)


def test_files_that_are_no_recordings(path, tmp_path):
    with pytest.raises(StoreNotFoundError, match="there is no such file"):
        TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match="is a folder"):
        TrainingDynamicsStore(tmp_path)
    path.write_text("sample,label\n")
    with pytest.raises(
        StoreError, match=r"run\.h5' is no HDF5 file; it is no recording of training dynamics"
    ):
        TrainingDynamicsStore(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(
        StoreError, match="is an HDF5 file, but no recording of training dynamics as this package"
    ):
        TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match="no recording of training dynamics as this package"):
        StoreWriter.resume(path)


def test_a_truncated_file(path):
    written = write_recording(path, Layout(300, 5), 3)
    content = path.read_bytes()
    path.write_bytes(content[:-4600])  # the end of the newest state is gone
    with pytest.warns(
        RuntimeWarning, match="its newest commit is damaged .* these are the 2 epochs of the commit before"
    ):
        assert_same_epochs(read_epochs(path)[0], written[:2])
    with pytest.raises(StoreError, match="is damaged"):
        StoreWriter.resume(path)
    path.write_bytes(content[: len(content) // 4])
    with pytest.raises(StoreError, match=r"run\.h5' is damaged.*`paddle-td verify` says"):
        TrainingDynamicsStore(path)


def test_a_newer_schema(path):
    write_recording(path, Layout(30, 3), 1)
    forge(path, change_state=lambda head: head.update(schema_version=SCHEMA_VERSION + 1))
    for reads in (TrainingDynamicsStore, StoreWriter.resume, verify):
        with pytest.raises(StoreError, match=r"run\.h5' has a later schema than 1; upgrade"):
            reads(path)


def of_layout(**facts):
    return {"change_state": lambda head: head["layout"].update(facts)}


FORGERIES = {
    "no samples": of_layout(n_samples=0),
    "2^60 samples": of_layout(n_samples=2**60),
    "2^39 samples": of_layout(n_samples=2**39),
    "2^30 classes": of_layout(n_classes=2**30),
    "samples that are text": of_layout(n_samples="30"),
    "samples that are a list": of_layout(n_samples=[30]),
    "an odd keep": of_layout(keep="most"),
    "a fact nobody knows": of_layout(evil=1),
    "gzip that is none": of_layout(gzip_level=1),
    "no layout": {"change_state": lambda head: head.pop("layout")},
    "a layout that is a number": {"change_state": lambda head: head.update(layout=3)},
    "names nobody knows": {"change_state": lambda head: head.update(names={"x": [1, 2, 3]})},
    "names without end": {"change_state": lambda head: head.update(names={"class_names": [4128, 2**61]})},
    "more epochs": {"change_state": lambda state: state.update(n_epochs=2**31)},
    "one more epoch": {"change_state": lambda state: state.update(n_epochs=3)},
    "fewer epochs": {"change_state": lambda state: state.update(n_epochs=1)},
    "epochs that are text": {"change_state": lambda state: state.update(n_epochs="2")},
    "epochs that are true": {"change_state": lambda state: state.update(n_epochs=True)},
    "dropped epochs elsewhere": {"change_state": lambda state: state.update(dropped=[4128, 1])},
    "dropped epochs beyond the file": {"change_state": lambda state: state.update(dropped=[2**40, 2**31])},
    "no roots": {"change_state": lambda state: state.update(roots=[])},
    "a root beyond the file": {"change_state": lambda state: state["roots"].__setitem__(1, 2**50)},
    "another field's root": {"change_state": lambda state: state["roots"].__setitem__(1, state["roots"][-1])},
    "constants that are nowhere": {"change_state": lambda state: state.update(constants_at=2**40)},
    "labels of another checksum": {"change_state": lambda state: state["labels"].__setitem__(1, 0)},
    "labels that are another block": {"change_state": lambda state: state.update(labels=[4128, 0])},
    "text that a terminal obeys": {"change_state": lambda state: state.update(created="\x1b[2J")},
    "names of another kind": {"change_state": lambda state: state.update(names={"x": [4128, 4128]})},
    "text that is none": {"change_state": lambda state: state.update(created=3)},
    "no facts": {"change_state": lambda state: state.clear()},
}


def test_a_state_whose_facts_are_longer_than_itself(path):
    write_recording(path, Layout(30, 3), 2)
    at, content = newest(path).state, bytearray(path.read_bytes())
    frame = frame_of(content, at)
    state = content[at : at + frame.n_bytes - 4] + struct.pack("<I", 2**31)
    put_block(content, at - FRAME_BYTES, STATE, bytes(state), frame.number, frame.run)
    path.write_bytes(content)
    with (
        pytest.warns(RuntimeWarning, match="is damaged .*2147483648 bytes of facts in a block of"),
        TrainingDynamicsStore(path) as store,
    ):
        assert store.n_epochs == 1


def test_names_that_are_those_of_something_else(path):
    ids = [str(i) for i in range(30)]
    write_recording(path, Layout(30, 3), 1, class_names=list("abc"), sample_ids=ids)
    forge(path, lambda state: state["names"].update(class_names=state["names"]["sample_ids"]))
    with (
        TrainingDynamicsStore(path) as store,
        pytest.raises(StoreError, match="there are 30 of 3 class_names"),
    ):
        _ = store.class_names


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        (["1", "-1", "0"], "label_shifts are no numbers"),
        (["\u0661", "0", "0"], "label_shifts are no numbers"),
        (["0", "2", "0"], "label_shifts must be below 2, got 2"),
    ],
)
def test_label_shifts_that_are_none(shifts, message, path):
    write_recording(path, Layout(3, 2), 1, label_shifts=shifts)
    with TrainingDynamicsStore(path) as store, pytest.raises(StoreError, match=f"is damaged: {message}"):
        _ = store.label_shifts


def test_a_prediction_that_is_no_class_is_damage(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    epoch = make_epoch(layout, labels, 0)
    epoch["predicted"][:] = 3
    with contextlib.closing(StoreWriter.create(path, layout)) as writer:
        writer.commit_epoch(0, epoch, labels)
    with (
        TrainingDynamicsStore(path) as store,
        pytest.raises(
            StoreError, match=r"the chunk of 'predicted' at byte .* holds numbers outside the classes"
        ),
    ):
        store.predictions()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_recording_is_refused_whatever_its_checksums(forgery, path):
    write_recording(path, Layout(30, 3), 2)
    forge(path, **FORGERIES[forgery])
    if forgery != "gzip that is none":  # chunks are read by readers alone
        with pytest.raises(StoreError, match=r"run\.h5' is damaged"):
            StoreWriter.resume(path)
    with pytest.raises(StoreError, match=r"run\.h5' is damaged"), TrainingDynamicsStore(path) as store:
        _ = store.class_names, store.margins(), store.probabilities(), store.labels


def test_an_index_whose_nodes_lead_in_a_circle(path):
    write_recording(path, Layout(30, 3, keep="given"), 20)

    def point_back(nodes):
        at = nodes.index(b"TREE\x01\x01")  # a node above the leaves
        nodes[at + 56 : at + 64] = (newest(path).state + at).to_bytes(8, "little")

    forge(path, change_nodes=point_back)
    with (
        TrainingDynamicsStore(path) as store,
        pytest.raises(StoreError, match="chunk index of 'given_probability'"),
    ):
        store.given_probabilities()
    assert not verify(path).ok


def test_a_forged_file_cannot_make_hdf5_open_another(path):
    """Our reader takes its facts, not the metadata that it holds for other programs; verify compares the two."""
    written = write_recording(path, Layout(30, 3), 2)

    def no_group(metadata):
        metadata[24:32] = bytes(8)  # the address of the root group's members

    forge(path, change_metadata=no_group)
    assert_same_epochs(read_epochs(path)[0], written)
    assert "are not what was committed" in str(verify(path))


def test_what_another_program_changed_is_not_seen(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    written = write_recording(path, layout, 2)
    with h5py.File(path, "r+") as file:  # HDF5 writes over what it takes for its own
        file.attrs["committed_epochs"] = 1
        file.attrs["a note"] = "by the user"
    assert_same_epochs(read_epochs(path)[0], written)
    assert "another program has changed the metadata for HDF5" in str(verify(path))
    writer = StoreWriter.resume(path)
    writer.commit_epoch(2, make_epoch(layout, labels, 2), labels)
    writer.close()
    assert len(read_epochs(path)[0]) == 3
    with h5py.File(path, "r+") as file:  # HDF5 puts the chunk in its place, and it is not what was committed
        file["given_probability"][0, 0] = 0.25
    with pytest.raises(StoreError, match=r"is damaged.*`paddle-td verify` says"):
        read_epochs(path)
    salvage(path, path.with_name("out.h5"))
    assert_same_epochs(read_epochs(path.with_name("out.h5"))[0][1:2], written[1:])


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


def test_resume_keeps_the_first_epochs_and_goes_on_from_there(path):
    layout, labels = Layout(300, 5), make_labels(Layout(300, 5))
    epochs = [make_epoch(layout, labels, index) for index in range(30)]
    writer = StoreWriter.create(path, layout)
    for index, epoch in enumerate(epochs):
        if index != 4:
            writer.commit_epoch(index, epoch, labels)
    writer.close()
    for n_kept in (20, 3, 0):
        writer = StoreWriter.resume(path, n_epochs=n_kept)
        assert writer.n_epochs == n_kept
        wanted = [
            unseen_epoch(layout) if index == 4 else epoch for index, epoch in enumerate(epochs[:n_kept])
        ]
        n_before = 30 if n_kept == 20 else {3: 21, 0: 4}[n_kept]
        assert len(read_epochs(path)[0]) == n_before  # until the first commit
        writer.commit_epoch(n_kept, epochs[29], labels)
        writer.close()
        found, found_labels = read_epochs(path)
        assert_same_epochs(found, [*wanted, epochs[29]])
        np.testing.assert_array_equal(found_labels, labels)
        assert verify(path).ok
    with pytest.raises(StoreError, match="has 1 epochs, so the first 2 cannot be kept"):
        StoreWriter.resume(path, n_epochs=2)


def test_epochs_that_resume_would_drop_stay_without_a_commit(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    writer = StoreWriter.create(path, layout)
    for index in range(3):
        writer.commit_epoch(index, make_epoch(layout, labels, index), labels)
    writer.close()
    for n_kept in (2, 0):
        StoreWriter.resume(path, n_epochs=n_kept).close()
        assert len(read_epochs(path)[0]) == 3
    writer = StoreWriter.resume(path, n_epochs=2)
    writer.drop_others()
    writer.close()
    assert len(read_epochs(path)[0]) == 2
    assert verify(path).ok


def test_a_recording_without_epochs_leaves_nothing_behind(path):
    writer = StoreWriter.create(path, Layout(30, 3))
    assert path.exists()
    writer.close()
    assert list(path.parent.iterdir()) == []
    writer = StoreWriter.create(path, Layout(30, 3))
    path.unlink()
    path.write_text("another process's")  # what is removed is what was made, whatever has its name now
    writer.close()
    assert path.read_text() == "another process's"


def test_overwrite_replaces_a_file_once_an_epoch_is_committed(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    written = write_recording(path, layout, 3)
    writer = StoreWriter.create(path, layout, overwrite=True)
    assert_same_epochs(read_epochs(path)[0], written)
    with pytest.raises(StoreError, match="is being recorded by another process, or by another recorder"):
        StoreWriter.create(path, layout, overwrite=True)
    writer.close()
    assert [one.name for one in path.parent.iterdir()] == ["run.h5"]
    assert_same_epochs(read_epochs(path)[0], written)
    writer = StoreWriter.create(path, layout, overwrite=True)
    writer.commit_epoch(0, written[2], labels)
    assert_same_epochs(read_epochs(path)[0], written[2:])
    with pytest.raises(StoreError, match="is being recorded"):
        StoreWriter.create(path, layout, overwrite=True)
    writer.commit_epoch(1, written[1], labels)
    writer.close()
    assert_same_epochs(read_epochs(path)[0], [written[2], written[1]])
    assert [one.name for one in path.parent.iterdir()] == ["run.h5"]


def test_one_long_id_costs_its_own_bytes(path):
    ids = ["x" * 1_000_000, *map(str, range(29_999))]
    write_recording(path, Layout(30_000, 2, keep="given"), 1, sample_ids=ids)
    assert path.stat().st_size < 4_000_000
    with TrainingDynamicsStore(path) as store:
        assert store.sample_ids == ids
    with h5py.File(path) as file:
        assert file["sample_ids"].asstr()[[0, 29_999]].tolist() == [ids[0], ids[29_999]]


@pytest.mark.parametrize("name", ["", "a\0b", "\udce9t\udce9", "图" * 1000, "\ud800"])
def test_names_of_any_kind_come_back(name, path):
    write_recording(path, Layout(30, 3), 1, class_names=["a", name, "b"])
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["a", name if name != "\ud800" else "\\ud800", "b"]


def test_what_was_not_kept_is_refused_by_name(path):
    write_recording(path, Layout(30, 3, keep="given"), 1)
    with TrainingDynamicsStore(path) as store:
        with pytest.raises(StoreError, match=r"recorded with keep='given'.*record with keep='all'"):
            store.probabilities()
        with pytest.raises(StoreError, match="not with keep=k"):
            store.top()
    with pytest.raises(ValueError, match="is closed"):
        store.margins()


def test_a_recording_without_epochs_has_labels(path):
    writer = StoreWriter.create(path, Layout(30, 3, keep="given"))
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_array_equal(store.labels, np.full(30, -1))
    writer.close()


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


@pytest.mark.parametrize("fill", [0, 255])
def test_no_sector_of_a_chunk_may_be_another(fill, path):
    """HDF5's fletcher32 takes words of 0xffff, of which a chunk of unseen samples is made, for zeros."""
    layout = Layout(400, 3, keep="given")
    with contextlib.closing(StoreWriter.create(path, layout)) as writer:
        for index in (0, 2):  # epoch 1 is dropped
            epoch = unseen_epoch(layout)
            epoch["predicted"][::2], epoch["n_presentations"][::2] = fill % 2, 1
            writer.commit_epoch(index, epoch, np.zeros(400, np.int32))
    whole = path.read_bytes()
    file = RawFile(str(path), os.O_RDONLY)
    chunks = [(at, frame) for at, frame in scan(file, newest_state(file)[0].end) if frame.kind == CHUNK]
    file.close()
    assert len(chunks) == 3 * len(layout.fields)
    for at, frame in chunks:
        for start in range(at, at + frame.n_bytes, 512):
            stop = min(start + 512, at + frame.n_bytes)
            changed = whole[:start] + bytes([fill]) * (stop - start) + whole[stop:]
            if changed == whole:
                continue
            path.write_bytes(changed)
            with (
                TrainingDynamicsStore(path) as store,
                pytest.raises(StoreError, match="its checksum is wrong"),
            ):
                store.given_probabilities(), store.margins(), store.predictions(), store.n_presentations()


@pytest.mark.parametrize("taken", [0, 3, 4, 5, 9, None])
@pytest.mark.parametrize("has_pwrite", [True, False])
def test_a_write_that_the_system_takes_in_part_is_completed(taken, has_pwrite, tmp_path, monkeypatch):
    write = os.pwrite
    if not has_pwrite:
        for name in ("pread", "pwrite", "posix_fadvise"):
            monkeypatch.delattr(os, name)
    file = RawFile(str(tmp_path / "x"), os.O_RDWR | os.O_CREAT)
    parts = [b"abcd", np.frombuffer(b"efgh", "<u2"), b"", b"i"]
    if taken is None:
        monkeypatch.delattr(os, "pwritev", raising=False)
    else:

        def in_part(fd, views, offset):
            return write(fd, b"".join(views)[:taken], offset)

        monkeypatch.setattr(os, "pwritev", in_part, raising=False)
    file.write(2, *parts)
    file.write_behind(0, 20)
    assert file.read(0, 20) == b"\0\0abcdefghi"
    file.close()
