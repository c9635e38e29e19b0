"""verify finds every damage and names the first bad epoch and sample; salvage saves the rest."""

import contextlib
import functools
import zlib

import h5py
import numpy as np
import pytest
from support.forging import forge, newest
from support.recordings import (
    assert_same_epochs,
    make_epoch,
    make_labels,
    read_epochs,
    unseen_epoch,
    write_recording,
)

from paddle_td_callback import StoreError, StoreNotFoundError, TrainingDynamicsRecorder, TrainingDynamicsStore
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store.blocks import ARRAY, FRAME_BYTES, START, Frame
from paddle_td_callback.store.hdf5_format import SLACK_BYTES
from paddle_td_callback.store.schema import Layout
from paddle_td_callback.store.verify import salvage, verify

LAYOUTS = [
    Layout(300, 5),
    Layout(300, 5, gzip_level=1),
    Layout(300, 50, keep=7, dtype="float32"),
    Layout(300, 5, keep="given"),
    Layout(20_000, 3, keep=2),
    Layout(1200, 1000),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def damage(path, at, value=0x55):
    content = bytearray(path.read_bytes())
    content[at] ^= value
    path.write_bytes(content)


def chunk_at(path, field, epoch, start):
    """Byte in the middle of a chunk, found by its contents."""
    with h5py.File(path) as file:
        dataset = file[field]
        at = (epoch, start) + (0,) * (dataset.ndim - 2)
        stored = dataset.id.read_direct_chunk(at)[1]
    return path.read_bytes().index(stored) + len(stored) // 2


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_good_recording_is_good(layout, path):
    write_recording(path, layout, 3)
    report = verify(path)
    assert report.ok, str(report)
    assert (report.n_epochs, report.good_epochs) == (3, [0, 1, 2])
    assert str(report).startswith(f"'{path}' is good: 3 epochs, ")
    assert report.n_bytes == path.stat().st_size - SLACK_BYTES


def test_recordings_by_the_recorder_are_good(path):
    rng = np.random.default_rng(0)
    for dtype in ("float16", "float32"):
        with TrainingDynamicsRecorder(
            path, n_samples=400, n_classes=300, dtype=dtype, overwrite=True
        ) as recorder:
            for scale in (0.01, 3, 1000):
                rows = rng.permutation(400)[:390]
                recorder.update(rows, (rng.normal(size=(390, 300)) * scale).astype(np.float32), rows % 300)
                recorder.end_epoch()
        report = verify(path)
        assert report.ok, str(report)


def test_a_list_of_dropped_epochs_that_is_no_list_of_numbers_is_damage(path):
    layout = Layout(300, 5)
    labels = make_labels(layout, 1)
    with contextlib.closing(StoreWriter.create(path, layout)) as writer:
        for index in (0, 2):
            writer.commit_epoch(index, make_epoch(layout, labels, index), labels)
    content = bytearray(path.read_bytes())
    places = range(START + FRAME_BYTES, newest(path).state, 8)
    frames = ((at, Frame.unpack(bytes(content[at - FRAME_BYTES : at]), at - FRAME_BYTES)) for at in places)
    at, frame = next((at, frame) for at, frame in frames if frame and frame.kind == ARRAY)
    body = bytes(content[at : at + frame.n_bytes - 1])
    frame = frame._replace(n_bytes=len(body), checksum=zlib.crc32(body))
    content[at - FRAME_BYTES : at] = frame.pack(at - FRAME_BYTES)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"run\.h5' is damaged: the list of dropped epochs"):
        TrainingDynamicsStore(path)
    with pytest.raises(StoreError, match=r"run\.h5' is damaged: the list of dropped epochs"):
        StoreWriter.resume(path)
    assert "the list of dropped epochs is damaged" in str(verify(path))


def test_a_long_checksum_is_cut_in_the_report(path):
    write_recording(path, Layout(300, 5), 1)
    forge(path, change_state=lambda facts: facts.update(labels="9" * 5000))
    assert len(str(verify(path))) < 1000


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_dropped_epoch_is_no_good_one_where_the_newest_state_is_lost(layout, path, tmp_path):
    labels = make_labels(layout, 1)
    with contextlib.closing(StoreWriter.create(path, layout)) as writer:
        for index in (0, 2, 3):
            writer.commit_epoch(index, make_epoch(layout, labels, index), labels)
    state = newest(path).state
    path.write_bytes(path.read_bytes()[:state])
    report = salvage(path, tmp_path / "saved.h5")
    assert report.good_epochs == [0, 2, 3]
    with TrainingDynamicsStore(tmp_path / "saved.h5") as store:
        assert store.dropped_epochs == [1]


def test_dropped_epochs_are_said_and_are_no_damage(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(2, make_epoch(layout, labels, 0), labels)
    writer.close()
    report = verify(path)
    assert report.ok
    assert report.good_epochs == [2]
    assert "epochs [0, 1] were never written and read as unseen" in str(report)


@pytest.mark.parametrize(("field", "start"), [("probabilities", 360), ("margin", 0), ("predicted", 0)])
def test_the_first_bad_epoch_and_sample_are_named_and_the_good_ones_saved(field, start, path, tmp_path):
    layout = Layout(1200, 1000)
    written = write_recording(path, layout, 4)
    damage(path, chunk_at(path, field, 2, start))
    report = verify(path)
    first = next(problem for problem in report.problems if problem.epoch is not None)
    assert (first.epoch, first.sample) == (2, start)
    assert report.good_epochs == [0, 1, 3]
    text = str(report)
    assert f"epoch 2, sample {start}: '{field}' from here on is lost" in text
    assert "3 of 4 epochs are good and can be written to a new file: paddle-td verify --salvage OUT" in text
    out = tmp_path / "out.h5"
    assert str(salvage(path, out)) == text  # what is read again to be saved is not counted again
    assert verify(out).ok
    found, _ = read_epochs(out)
    assert_same_epochs(found, [written[0], written[1], unseen_epoch(layout), written[3]])
    with pytest.raises(StoreError, match="exists already"):
        salvage(path, out)


def test_hdf5s_own_structure_gone_every_epoch_is_saved(path, tmp_path):
    layout = Layout(300, 5, gzip_level=1)
    written = write_recording(path, layout, 4, class_names=list("abcde"))
    content = bytearray(path.read_bytes())
    content[:START] = bytes(START)  # the superblock
    state = newest(path).state
    content[state : state + 300] = bytes(300)
    path.write_bytes(content)
    report = salvage(path, tmp_path / "out.h5")
    assert not report.ok
    assert report.good_epochs == [0, 1, 2, 3]
    found, labels = read_epochs(tmp_path / "out.h5")
    assert_same_epochs(found, written)
    np.testing.assert_array_equal(labels, make_labels(layout))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_off_keeps_what_comes_before_the_cut(share, path, tmp_path):
    layout = Layout(3000, 20)
    written = write_recording(path, layout, 5)
    content = path.read_bytes()
    path.write_bytes(content[: int(START + share * (len(content) - START))])
    report = salvage(path, tmp_path / "out.h5")
    assert "cut off" in str(report)
    n_good = len(report.good_epochs)
    assert report.good_epochs == list(range(n_good))
    assert n_good in (int(5 * share), int(5 * share) - 1)  # the checksums come behind the data
    assert_same_epochs(read_epochs(tmp_path / "out.h5")[0], written[:n_good])


CONTRADICTIONS = {
    "is not in [0, 1]": ("given_probability", lambda a: 1.5),
    "the margin contradicts the predicted class": ("margin", lambda a: -a),
    "the predicted class is outside the classes": ("predicted", lambda a: 77),
    "a probability is not in [0, 1]": ("probabilities", lambda a: a * 0 - 1),
    "do not sum to 1": ("probabilities", lambda a: a / 2),
    "it was seen, but has no label": ("labels", lambda a: -1),
    "the margin is no number": ("margin", lambda a: np.nan),
    "another class has a larger probability than the predicted": ("probabilities", lambda a: np.roll(a, 1)),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_numbers_that_cannot_be(message, path):
    """Sound to the last checksum, but not what a training gives."""
    layout, labels = Layout(40, 4), make_labels(Layout(40, 4))
    writer = StoreWriter.create(path, layout)
    epochs = [make_epoch(layout, labels, index, missing=0) for index in range(3)]
    field, change = CONTRADICTIONS[message]
    target = labels if field == "labels" else epochs[1][field]
    target[17] = change(target[17])
    for index, epoch in enumerate(epochs):
        writer.commit_epoch(index, epoch, labels)
    writer.close()
    report = verify(path)
    found = [problem for problem in report.problems if message in problem.message]
    assert found, str(report)
    assert (found[0].epoch, found[0].sample) == (0 if field == "labels" else 1, 17)


def test_files_that_are_no_recordings(path, tmp_path):
    with pytest.raises(StoreNotFoundError, match="there is no such file"):
        verify(path)
    with pytest.raises(StoreError, match="is a folder"):
        verify(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="is empty"):
        verify(path)
    path.write_bytes(bytes(300_000))
    with pytest.raises(StoreError, match=r"run\.h5'"):
        salvage(path, tmp_path / "out.h5")
    writer = StoreWriter.create(tmp_path / "empty.h5", Layout(30, 3))
    assert verify(tmp_path / "empty.h5").ok
    with pytest.raises(StoreError, match="holds no good epoch, so there is nothing to salvage"):
        salvage(tmp_path / "empty.h5", tmp_path / "out.h5")
    writer.close()
    assert not (tmp_path / "out.h5").exists()


def test_a_recording_may_be_verified_while_it_goes_on(path):
    layout, labels = Layout(300, 5), make_labels(Layout(300, 5))
    writer = StoreWriter.create(path, layout)
    for index in range(4):
        writer.commit_epoch(index, make_epoch(layout, labels, index), labels)
        report = verify(path)
        assert report.ok, str(report)
        assert report.n_epochs == index + 1
    writer.close()


def test_hdf5_is_not_asked_to_follow_what_is_forged(path, monkeypatch):
    """Sound checksums, but nodes or a superblock that lead HDF5 elsewhere; libhdf5 has crashed on such nodes."""

    def opens(*arguments, **options):
        raise AssertionError("libhdf5 was asked")

    write_recording(path, Layout(30, 3), 3)
    content = path.read_bytes()
    monkeypatch.setattr("paddle_td_callback.store.verify.h5py.File", opens)
    with pytest.raises(AssertionError):
        verify(path)
    for place, value in (
        (24, 9),  # stored bytes
        (28, 1),  # filter mask
        (8, 0),  # sibling
        (24 + 3 * 8, 8),  # element size
    ):

        def change(nodes, place=place, value=value):
            nodes[nodes.index(b"TREE") + place] = value

        path.write_bytes(content)
        forge(path, change_nodes=change)
        assert not verify(path).ok
    for at, message in ((64, "the address at byte 64 leads to no commit"), (40, None)):
        changed = bytearray(content)
        changed[at : at + 8] = (8192).to_bytes(8, "little")
        path.write_bytes(changed)
        assert message is None or message in str(verify(path))


def test_labels_and_chunks_that_are_nowhere(path):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    epoch = make_epoch(layout, labels, 0)
    labels[3] = 1_000_000
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(0, epoch, labels)
    writer.close()
    assert "label 1000000 is outside the classes" in str(verify(path))

    def before_the_file(nodes):
        at = nodes.index(b"TREE\x01\x00") + 24 + 8 + 8 * 3  # the first chunk's address
        nodes[at : at + 8] = (4).to_bytes(8, "little")

    forge(path, change_nodes=before_the_file)
    with TrainingDynamicsStore(path) as store, pytest.raises(StoreError, match="there is no chunk of"):
        store.given_probabilities()


def test_a_tree_that_leads_to_the_chunk_of_another_epoch(path):
    """Each chunk is sound, but its frame says which one it is."""
    write_recording(path, Layout(30, 3), 3)

    def swap(nodes):
        first, second = (nodes.index(b"TREE\x01\x00") + 24 + 32 + at for at in (0, 40))  # of two chunks
        nodes[first : first + 8] = nodes[second : second + 8]

    forge(path, change_nodes=swap)
    with TrainingDynamicsStore(path) as store, pytest.raises(StoreError, match="is of epoch 1, not 0"):
        store.given_probabilities()
    report = verify(path)
    assert report.good_epochs == [1, 2]


def test_of_many_problems_the_first_are_listed(path):
    layout, labels = Layout(300, 4), make_labels(Layout(300, 4))
    writer = StoreWriter.create(path, layout)
    for index in range(60):
        epoch = make_epoch(layout, labels, index, missing=0)
        epoch["margin"][:] = np.nan
        writer.commit_epoch(index, epoch, labels)
    writer.close()
    report = verify(path)
    assert report.n_problems == 60
    assert len(report.problems) < 60
    assert str(report).splitlines()[-2] == f"  and {60 - len(report.problems)} more"


def test_a_disk_that_takes_no_salvaged_epoch_is_said(path, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    write_recording(path, Layout(300, 5), 2)
    monkeypatch.setattr(StoreWriter, "commit_epoch", full)
    with pytest.raises(StoreError, match=r"out\.h5' cannot be written: .*No space left.*; give another path"):
        salvage(path, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_wide_rows_are_checked_by_their_own_chunks(path, monkeypatch):
    monkeypatch.setattr("paddle_td_callback.store.verify._TILE_BYTES", 1)
    write_recording(path, Layout(1200, 700), 2)
    good = verify(path)
    assert good.ok
    damage(path, chunk_at(path, "probabilities", 1, 0))
    report = verify(path)
    assert report.good_epochs == [0]


def test_what_other_programs_read_is_compared(path, monkeypatch):
    """A fault of this package, which no file can show: HDF5 is led to other numbers than those that are checked."""
    write_recording(path, Layout(30, 3), 1)
    with h5py.File(path) as file:
        arrays = {name: np.array(dataset) for name, dataset in file.items()}

    class Changed(contextlib.nullcontext):
        def __init__(self, name, _path):
            changed = arrays[name].copy()
            changed[(0,) * changed.ndim] += 1
            super().__init__({**arrays, name: changed})

    for name, message in (("labels", "h5py reads other labels"), ("margin", "h5py reads another 'margin'")):
        monkeypatch.setattr("paddle_td_callback.store.verify.h5py.File", functools.partial(Changed, name))
        assert [problem.message for problem in verify(path).problems] == [message]


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_hdf5_cannot_open_is_damage_unless_a_writer_has_gone_on(goes_on, path, monkeypatch):
    layout, labels = Layout(30, 3), make_labels(Layout(30, 3))
    writer = StoreWriter.create(path, layout)
    writer.commit_epoch(0, make_epoch(layout, labels, 0), labels)

    def fail(_path):
        if goes_on:
            writer.commit_epoch(1, make_epoch(layout, labels, 1), labels)
        raise OSError("no HDF5")

    monkeypatch.setattr("paddle_td_callback.store.verify.h5py.File", fail)
    assert [problem.message for problem in verify(path).problems] == (
        [] if goes_on else ["h5py cannot read it: no HDF5"]
    )
    writer.close()
