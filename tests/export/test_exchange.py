"""Files for and from other tools: what is written is read back as the same numbers; test_peers has their own code."""

import contextlib
import csv
import json
import os
import re
import shutil
import tempfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.noisy_recording import record

from paddle_td_callback import StoreError, StoreNotFoundError, TrainingDynamicsStore, find_label_issues
from paddle_td_callback.csv_cells import from_cell, to_cell
from paddle_td_callback.export.cartography import import_cartography, write_cartography
from paddle_td_callback.export.fiftyone import write_fiftyone
from paddle_td_callback.export.import_arrays import import_arrays, import_npz
from paddle_td_callback.export.interpretdl_npz import import_interpretdl, write_interpretdl
from paddle_td_callback.export.label_studio import labeling_config, write_label_studio
from paddle_td_callback.export.tables import write_parquet


@pytest.fixture
def recording(path):
    """The path, as tests want a store of it, which must be closed."""
    record(
        path, sample_ids=[f"class/{i}.png" for i in range(300)], class_names=["=cat", "dög", "<b>", "d\u202e"]
    )
    with TrainingDynamicsStore(path) as store:
        yield store


def aum(store):
    return find_label_issues(store, method="aum", progress=False)


def assert_same_recording(one, other, *, atol, epochs_filled):
    """`other` holds what `one` does; where epochs were filled, a superset of it."""
    np.testing.assert_array_equal(one.labels, other.labels)
    first, second = one.given_probabilities(), other.given_probabilities()
    seen = ~np.isnan(first)
    assert (np.isnan(second[seen])).sum() == 0
    np.testing.assert_allclose(first[seen], second[seen], atol=atol)
    if not epochs_filled:
        np.testing.assert_array_equal(np.isnan(first), np.isnan(second))
    np.testing.assert_allclose(
        one.probabilities().astype(np.float32)[seen],
        other.probabilities().astype(np.float32)[seen],
        atol=atol,
    )


# ---- InterpretDL


def test_interpretdl_npz_has_the_given_label_first_and_the_rest_by_falling_mean(recording, tmp_path):
    write_interpretdl(recording, tmp_path / "td.npz", label_flip=np.zeros(300, bool))
    with np.load(tmp_path / "td.npz", allow_pickle=False) as npz:
        td, labels, flip = npz["td"], npz["labels"], npz["label_flip"]
    assert (td.dtype, labels.dtype, flip.dtype) == (np.float16, np.int16, bool)
    assert td.shape == (300, 6, 4)
    seen = recording.labels >= 0
    np.testing.assert_array_equal(labels[seen, 0], recording.labels[seen])
    assert (np.diff(td[seen, :, 1:].mean(axis=1, dtype=np.float32), axis=1) <= 1e-6).all()
    given = recording.given_probabilities()
    known = ~np.isnan(given)
    np.testing.assert_allclose(td[:, :, 0][known], given[known], atol=1e-3)
    assert np.isnan(td[~seen]).all()
    assert (labels[~seen] == -1).all()


def test_interpretdl_both_ways(recording, tmp_path):
    write_interpretdl(recording, tmp_path / "td.npz")
    import_interpretdl(tmp_path / "td.npz", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as back:
        assert_same_recording(recording, back, atol=1e-3, epochs_filled=True)


def test_interpretdl_rows_that_its_interpolation_made_up_are_unseen(tmp_path):
    td = np.full((2, 3, 3), 1 / 3, np.float16)
    td[0, 1] = [0.3, 0.3, 0.3]
    np.savez(tmp_path / "td.npz", td=td, labels=np.array([[0, 1, 2], [2, 0, 1]], np.int16))
    import_interpretdl(tmp_path / "td.npz", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as back:
        np.testing.assert_array_equal(
            np.isnan(back.given_probabilities()), [[False, True, False], [False] * 3]
        )


def test_interpretdl_pickled_arrays_are_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    td, labels = np.full((2, 3, 2), 0.5, np.float16), np.array([[0, 1], [1, 0]], np.int16)
    flip = np.array([Bomb()], object)
    np.savez(tmp_path / "td.npz", td=td, labels=labels, label_flip=flip)
    import_npz(tmp_path / "td.npz", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as back:
        assert back.n_epochs == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"td": np.zeros((2, 3), np.float16), "labels": np.zeros((2, 3), np.int16)}, "td must be"),
        ({"td": np.zeros((2, 3, 2), np.float16), "labels": np.zeros((2, 2), np.int16)}, "every class once"),
        ({"td": np.zeros((2, 3, 2), np.float16)}, "lacks"),
        ({"x": np.zeros(2)}, "wanted 'labels'"),
        ({"probabilities": np.zeros(2), "labels": np.zeros(2, int)}, "must be \\[epoch"),
        ({"probabilities": np.ones((1, 2, 2)), "labels": np.zeros(2, int)}, "no probabilities"),
        ({"probabilities": np.ones((1, 2, 2)) / 2, "labels": np.zeros(2)}, "must be integers"),
        (
            {
                "probabilities": np.ones((1, 2, 2)) / 2,
                "labels": np.zeros(2, int),
                "indices": np.array([0, 7]),
            },
            "in \\[0, 2",
        ),
        ({"probabilities": np.ones((1, 2, 2)) / 2, "labels": np.zeros(3, int)}, "one row"),
        ({"probabilities": np.ones((0, 2, 2)), "labels": np.zeros(2, int)}, "none of them empty"),
    ],
)
def test_npz_that_is_not_as_wanted_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises((ValueError, TypeError), match=message):
        import_npz(tmp_path / "x.npz", tmp_path / "back.h5")


def test_a_folder_or_a_pipe_is_no_npz(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    odd = {tmp_path: "is a folder, not a file", tmp_path / "pipe": "is a device or a pipe"}
    for path, what in odd.items():
        with pytest.raises(StoreError, match=f"{what}; give an npz file"):
            import_npz(path, tmp_path / "run.h5")


def test_npz_that_claims_more_than_it_holds_is_refused(tmp_path):
    np.savez(tmp_path / "good.npz", labels=np.zeros(2, int), probabilities=np.ones((1, 2, 2)) / 2)
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name).replace(b"(2,), }", b"(2222222222,), }"))
    for name, data in (("bad.npz", None), ("text.npz", b"no zip")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as an npz of plain arrays"):
            import_npz(tmp_path / name, tmp_path / "back.h5")


def test_npz_that_blows_up_is_refused_before_it_is_unpacked(tmp_path):
    zeros = np.zeros((2, 3_000_000, 3), np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", probabilities=zeros, labels=np.zeros(3_000_000, np.int8))
    assert os.path.getsize(tmp_path / "bomb.npz") < 100_000
    with pytest.raises(ValueError, match=r"bomb\.npz.* wanted at most 100 times as many.* numpy\.savez"):
        import_npz(tmp_path / "bomb.npz", tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["bomb.npz"]


def test_npz_whose_header_claims_two_gigabytes_takes_no_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("labels.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}")
    tracemalloc.start()
    with pytest.raises(ValueError, match="a header of 2147483647 bytes, its file has 14"):
        import_npz(tmp_path / "odd.npz", tmp_path / "out.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("name", ["logits", "td"])
def test_npz_of_endless_epochs_is_refused_at_once(tmp_path, name):
    arrays = {"logits": np.zeros((62_500, 4, 3), np.float32), "labels": np.zeros(4, int)}
    if name == "td":
        order = np.tile(np.arange(3, dtype=np.int16), (4, 1))
        arrays = {"td": np.zeros((4, 62_500, 3), np.float16), "labels": order}
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    with pytest.raises(ValueError, match=r"bomb\.npz.*not more epochs than are needed"):
        import_npz(tmp_path / "bomb.npz", tmp_path / "out.h5")


@pytest.mark.parametrize("count", [50_000_000, 10**9])
def test_npz_of_few_rows_and_many_samples_is_refused(tmp_path, count):
    arrays = {"probabilities": np.full((1, 2, 2), 0.5), "indices": np.arange(2)}
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)
        with archive.open("labels.npy", "w") as file:
            facts = {"descr": "|i1", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, facts)
            for _ in range(count // 50_000_000 if count < 10**9 else 0):
                file.write(bytes(50_000_000))
    with pytest.raises(ValueError, match=r"bomb\.npz.*numpy\.savez"):
        import_npz(tmp_path / "bomb.npz", tmp_path / "out.h5")


@pytest.mark.parametrize(
    "header", ["{'descr': '<i8', 'shape': (12,(, }", "[" * 300, "{'a': \\", "1", "(" * 5000]
)
def test_npz_whose_header_is_no_header_is_refused(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        text = header.encode() + b"\n"
        archive.writestr("labels.npy", b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text)
    with pytest.raises(
        ValueError, match=r"odd\.npz' cannot be read as an npz of plain arrays \(\w+: .*numpy\.savez"
    ):
        import_npz(tmp_path / "odd.npz", tmp_path / "out.h5")


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_npz_with_changed_bytes_is_read_or_refused(at, change):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "odd.npz")
        np.savez(path, probabilities=np.full((1, 2, 2), 0.5), labels=np.zeros(2, np.int64))
        content = bytearray(path.read_bytes())
        content[-at - len(change) : len(content) - at] = change
        path.write_bytes(content)
        with contextlib.suppress(ValueError, TypeError):
            import_npz(path, Path(folder, "out.h5"))


def test_npz_that_unpacks_to_more_than_the_disk_holds_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", labels=np.zeros(2, int), probabilities=np.ones((1, 2, 2)) / 2)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="set TMPDIR"):
        import_npz(tmp_path / "x.npz", tmp_path / "back.h5")


# ---- arrays


def test_arrays_with_indices_equal_a_recorder(tmp_path, path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), (4, 50)).astype(np.float32)
    labels, order = rng.integers(0, 3, 60), np.stack([rng.permutation(60)[:50] for _ in range(4)])
    np.savez(
        tmp_path / "x.npz",
        labels=labels,
        probabilities=probabilities,
        indices=order,
        class_names=np.array(["a", "b", "ü"]),
        sample_ids=np.array([f"s{i}" for i in range(60)]),
    )
    import_npz(tmp_path / "x.npz", path)
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["a", "b", "ü"]
        assert store.sample_ids[59] == "s59"
        found = store.given_probabilities()
        for epoch in range(4):
            wanted = np.full(60, np.nan, np.float32)
            wanted[order[epoch]] = probabilities[epoch, np.arange(50), labels[order[epoch]]]
            np.testing.assert_allclose(found[:, epoch], wanted, rtol=1e-6)


def test_logits_and_unlabelled_samples(path):
    logits = np.array([[[5.0, 0.0], [0.0, 5.0], [1.0, 1.0]]], np.float32)
    import_arrays(path, logits, np.array([0, 1, -1]), logits=True)
    with TrainingDynamicsStore(path) as store:
        np.testing.assert_allclose(store.margins()[:, 0], [5, 5, np.nan])


# ---- cartography


def test_cartography_both_ways(recording, tmp_path):
    paths = write_cartography(recording, tmp_path / "training_dynamics")
    assert len(paths) == 6
    first = json.loads(Path(paths[3]).read_text().splitlines()[0])
    assert set(first) == {"guid", "logits_epoch_3", "gold"}
    import_cartography(tmp_path / "training_dynamics", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as back:
        assert back.n_samples == 298  # without the two that were never seen
        assert back.sample_ids == recording.sample_ids[:298]
        seen = ~np.isnan(recording.given_probabilities()[:298])
        np.testing.assert_allclose(
            back.given_probabilities()[seen], recording.given_probabilities()[:298][seen], atol=1e-3
        )


def test_cartography_of_indices_has_no_ids(path, tmp_path):
    record(path, never_seen=0)
    with TrainingDynamicsStore(path) as store:
        write_cartography(store, tmp_path / "td")
    import_cartography(tmp_path / "td", tmp_path / "back.h5")
    with TrainingDynamicsStore(tmp_path / "back.h5") as back:
        assert back.sample_ids is None


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "{}",
        "[" * 5000,
        '{"guid": 1, "gold": 5, "logits_epoch_0": [1, 2]}',
        '{"guid": 1, "gold": 0, "logits_epoch_0": 3}',
        '{"guid": 1, "gold": 0, "logits_epoch_0": {"0": 0.5, "1": 2}}',
        '{"guid": 1, "gold": 0, "logits_epoch_0": "12"}',
        '{"guid": 1, "gold": 0, "logits_epoch_0": [true, 2]}',
    ],
)
def test_cartography_lines_that_are_not_as_wanted_are_refused(tmp_path, line):
    (tmp_path / "dynamics_epoch_0.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1"):
        import_cartography(tmp_path, tmp_path / "back.h5")


def test_cartography_lines_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "dynamics_epoch_0.jsonl").write_bytes(b'{"guid": "\x8e"}')
    with pytest.raises(
        ValueError, match=r"line 1: wanted an object with .*UnicodeDecodeError.*give a folder"
    ):
        import_cartography(tmp_path, tmp_path / "out.h5")


def test_cartography_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "dynamics_epoch_0.jsonl")
    with pytest.raises(StoreError, match="is a device or a pipe; give cartography's files"):
        import_cartography(tmp_path, tmp_path / "out.h5")


def test_cartography_wants_all_epochs_and_a_line(tmp_path):
    for epoch in (0, 2):
        line = {"guid": 1, "gold": 0, f"logits_epoch_{epoch}": [1, 2]}
        (tmp_path / f"dynamics_epoch_{epoch}.jsonl").write_text(json.dumps(line))
    with pytest.raises(StoreError, match=r"lacks dynamics_epoch_1.jsonl; give all files of one training"):
        import_cartography(tmp_path, tmp_path / "out.h5")
    (tmp_path / "dynamics_epoch_2.jsonl").unlink()
    (tmp_path / "dynamics_epoch_0.jsonl").write_text("")
    with pytest.raises(ValueError, match="the first epoch's file holds no line"):
        import_cartography(tmp_path, tmp_path / "out.h5")


def test_sample_ids_are_all_different(path):
    with pytest.raises(ValueError, match="sample_ids holds 'a' more than once"):
        import_arrays(path, [np.full((3, 2), 0.5)], [0, 1, 0], sample_ids=["a", "b", "a"])


def test_cartography_does_not_mix_two_trainings(recording, tmp_path):
    (tmp_path / "td").mkdir()
    (tmp_path / "td" / "dynamics_epoch_17.jsonl").write_text("")
    with pytest.raises(
        StoreError, match=r"'dynamics_epoch_17.jsonl' of another training.*remove it, or give another"
    ):
        write_cartography(recording, tmp_path / "td")


@pytest.mark.parametrize(
    ("epochs", "labels", "message"),
    [
        ([[[0, 1], np.full((2, 2), 0.5)]], [0, 1], "epoch 0: wanted values .* or a tuple of sample indices"),
        ([(3, np.full((2, 2), 0.5))], [0, 1], "epoch 0: wanted values .*got indices of shape \\(\\)"),
        ([([0], np.full((1, 2), 0.5), 7)], [0, 1], "epoch 0: wanted values"),
        ([None], [0, 1], "epoch 0: wanted values"),
        (
            [np.full((2, 2), 0.5)],
            [0, 5],
            "labels must be in \\[-1, 2\\), got 5 for sample 1; give one column",
        ),
        ([np.full((2, 2), np.nan)], [0, 1], "no sample has both a label and values"),
        ([np.full((2, 2), 0.5)], [-1, -1], "no sample has both a label and values"),
    ],
)
def test_arrays_of_another_form_are_refused(path, epochs, labels, message):
    with pytest.raises(ValueError, match=message):
        import_arrays(path, epochs, labels)
    assert not os.path.exists(path)


def test_masked_values_are_unseen(path):
    values = np.ma.masked_array(np.full((3, 2), 0.5), mask=[[0, 0], [1, 1], [0, 0]])
    import_arrays(path, [values, np.full((3, 2), 0.5)], [0, 1, 0])
    with TrainingDynamicsStore(path) as store:
        assert np.isnan(store.given_probabilities()).tolist() == [
            [False, False],
            [True, False],
            [False, False],
        ]


def test_indices_that_do_not_fit_the_values_are_refused(tmp_path):
    for indices in (np.zeros((2, 4), int), np.int64(3), np.zeros((3, 5), int)):
        np.savez(
            tmp_path / "a.npz", probabilities=np.full((3, 4, 2), 0.5), labels=[0, 1, 0, 1], indices=indices
        )
        with pytest.raises(ValueError, match=r"indices must be .*; save one index for each row"):
            import_npz(tmp_path / "a.npz", tmp_path / "back.h5")


def test_label_studio_addresses_are_quoted(recording, tmp_path):
    paths = [f"a b/{i}#?&+é.png" for i in range(299)] + ["https://x/y z.png"]
    issues = find_label_issues(recording, method="aum", progress=False)
    write_label_studio(issues, tmp_path / "t.json", paths=paths, top=300)
    tasks = {
        task["data"]["sample"]: task["data"]["image"]
        for task in json.loads((tmp_path / "t.json").read_text())
    }
    assert tasks[5] == "/data/local-files/?d=a%20b/5%23%3F%26%2B%C3%A9.png"
    assert tasks.get(299, "https://x/y z.png") == "https://x/y z.png"


def test_cartography_folder_without_files(tmp_path):
    with pytest.raises(StoreNotFoundError, match="dynamics_epoch_0"):
        import_cartography(tmp_path, tmp_path / "back.h5")


# ---- cleanlab


def test_pred_probs_are_the_mean_over_seen_epochs(recording):
    found = recording.pred_probs()
    assert found.dtype == np.float32
    seen = recording.labels >= 0
    np.testing.assert_allclose(found[seen].sum(axis=1), 1, atol=1e-5)
    wanted = np.nanmean(recording.probabilities([5]).astype(np.float32), axis=1)[0]
    np.testing.assert_allclose(found[5], wanted / wanted.sum(), atol=1e-6)
    assert np.isnan(found[~seen]).all()
    last = recording.probabilities()[:, -1].astype(np.float32)
    np.testing.assert_allclose(recording.pred_probs(-1), last / last.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(recording.pred_probs(slice(0, 2)), recording.pred_probs(range(2)))


@pytest.mark.parametrize("epochs", [99, slice(0, 0), []])
def test_pred_probs_of_no_epoch_are_refused(recording, epochs):
    with pytest.raises((ValueError, IndexError), match="names none"):
        recording.pred_probs(epochs)


def test_cleanlab_columns(recording):
    issues = aum(recording)
    columns = issues.to_cleanlab()
    assert list(columns) == ["is_label_issue", "label_quality", "given_label", "predicted_label"]
    differs = columns["predicted_label"] != columns["given_label"]
    np.testing.assert_array_equal(differs, issues.is_label_issue)


def test_all_classes_are_needed(path, tmp_path):
    record(path, keep="given")
    with TrainingDynamicsStore(path) as store:
        for write in (lambda: write_interpretdl(store, tmp_path / "x"), lambda: store.pred_probs()):
            with pytest.raises(StoreError, match="keep='all'"):
                write()
    assert not (tmp_path / "x").exists()
    assert not [one for one in tmp_path.iterdir() if one.name.endswith(".part")]


# ---- tables


def test_parquet_reads_back(recording, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)  # newest ones need NumPy 2
    issues = aum(recording)
    write_parquet(issues, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["sample"][:298] == issues.ranking.tolist()
    assert table["rank"] == [*range(1, 299), None, None]
    np.testing.assert_array_equal(table["noise_score"][:298], issues.noise_score[issues.ranking])
    assert table["sample_id"][0] == issues.sample_ids[issues.ranking[0]]
    assert set(table["given_name"]) == {"=cat", "dög", "<b>", "d\u202e", ""}


def test_parquet_of_samples_without_ids_and_names(path, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    record(path)
    write_parquet(find_label_issues(path, method="aum", progress=False), tmp_path / "x.parquet")
    names = pq.read_table(tmp_path / "x.parquet").column_names
    assert names[:3] == ["sample", "rank", "noise_score"]
    assert not {"sample_id", "given_name", "suggested_name"} & set(names)


@given(st.text() | st.text("'=+-@12.\t", max_size=6))
@settings(deadline=None)
def test_cells_read_back_and_are_no_formulas(text):
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert not cell.startswith(("=", "@", "\t", "\r", "\n"))
    assert not cell.startswith(("+", "-")) or re.fullmatch(r"[+-]\d+(\.\d+)?", cell)


# ---- FiftyOne and Label Studio


def test_fiftyone_labels(recording, tmp_path):
    issues = aum(recording)
    write_fiftyone(issues, tmp_path / "labels.json")
    found = json.loads((tmp_path / "labels.json").read_text())
    assert found["classes"] == ["=cat", "dög", "<b>", "d\u202e"]
    assert len(found["labels"]) == 298
    head = found["labels"][issues.sample_ids[issues.ranking[0]].removesuffix(".png")]
    assert head["attributes"]["rank"] == 1
    assert head["confidence"] == pytest.approx(issues.label_quality[issues.ranking[0]], abs=1e-6)
    with pytest.raises(ValueError, match="tells pictures apart"):
        write_fiftyone(issues, tmp_path / "x.json", paths=["a.png", "a.jpg"] * 150)
    with pytest.raises(ValueError, match="got 1 paths"):
        write_fiftyone(issues, tmp_path / "x.json", paths=["a.png"])


def test_label_studio_tasks(recording, tmp_path):
    issues = aum(recording)
    write_label_studio(issues, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == issues.is_label_issue.sum()
    sample = int(issues.ranking[0])
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d=class/{sample}.png"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {
        "choices": [issues.label_name(int(issues.suggested_label[sample]))]
    }
    write_label_studio(issues, tmp_path / "texts.json", texts=["<x>"] * 300, top=3)
    assert [task["data"]["text"] for task in json.loads((tmp_path / "texts.json").read_text())] == ["<x>"] * 3
    assert '<Choice value="&lt;b&gt;"/>' in labeling_config(issues)


def test_a_task_without_a_suggestion_has_no_prediction(recording, tmp_path):
    issues = aum(recording)
    first = issues.ranking[0]
    suggested = issues.suggested_label.copy()
    suggested[first] = -1
    write_label_studio(replace(issues, suggested_label=suggested), tmp_path / "tasks.json", top=2)
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    assert "predictions" not in first
    assert second["predictions"]


def test_paths_are_needed(path, tmp_path):
    record(path)
    issues = find_label_issues(path, method="aum", progress=False)
    with pytest.raises(ValueError, match="no sample ids"):
        write_fiftyone(issues, tmp_path / "x.json")
    with pytest.raises(ValueError, match="no sample ids"):
        write_label_studio(issues, tmp_path / "x.json")


def test_csv_module_reads_a_cell_with_everything(tmp_path):
    text = '=1+1,"\r\n\u202e'
    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.writer(file).writerow([to_cell(text)])
    with open(tmp_path / "x.csv", newline="") as file:
        assert from_cell(next(csv.reader(file))[0]) == text
