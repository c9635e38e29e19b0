"""Names by themselves: a folder of pictures gives ids and class names, and the page shows the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.vision.datasets import DatasetFolder

from paddle_td_callback import (
    LabelIssuesCallback,
    StoreError,
    TrainingDynamicsCallback,
    TrainingDynamicsStore,
)

CLASSES = ("apple", "pear")


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number in range(24):
        place = tmp_path / "data" / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + 100 * (number % 2)
        image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    return DatasetFolder(
        str(tmp_path / "data"),
        loader=lambda path: np.asarray(image.open(path), np.float32).reshape(-1) / 255,
        extensions=(".png",),
    )


def fit(dataset: Any, *callbacks: Any, verbose: int = 0) -> None:
    network = paddle.nn.Linear(64, 2)
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-2, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    model.fit(dataset, epochs=3, batch_size=8, verbose=verbose, callbacks=list(callbacks))


def test_a_folder_of_pictures_gives_ids_and_class_names(
    folder: DatasetFolder, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    recorder = TrainingDynamicsCallback(path)
    finder = LabelIssuesCallback(recorder, method="aum", report=page)
    fit(folder, recorder, finder, verbose=1)
    assert "sample_ids and class_names are those of the data set; sample_ids=False" in capsys.readouterr().out
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == list(CLASSES)
        assert store.sample_ids is not None
        assert store.sample_ids[:2] == ["apple/00.png", "apple/02.png"]
    text = page.read_text(encoding="utf-8")
    assert "apple/00.png" in text
    assert "data:image/" in text
    assert finder.issues is not None
    assert finder.issues.sample_ids is not None


def test_a_subset_takes_its_part_of_the_names(folder: DatasetFolder, path: str) -> None:
    fit(paddle.io.Subset(folder, [20, 3, 5, 7]), TrainingDynamicsCallback(path))
    with TrainingDynamicsStore(path) as store:
        names = [name for name, _ in folder.samples]
        assert store.sample_ids is not None
        assert [Path(one).name for one in store.sample_ids] == [Path(names[i]).name for i in (20, 3, 5, 7)]


def test_names_are_left_out_on_demand(folder: DatasetFolder, path: str) -> None:
    fit(folder, TrainingDynamicsCallback(path, sample_ids=False))
    with TrainingDynamicsStore(path) as store:
        assert (store.sample_ids, store.class_names) == (None, None)


def test_names_that_do_not_fit_are_left_out_aloud(
    folder: DatasetFolder, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.classes = ["apple", "plum", "none"]
    folder.class_to_idx = None
    fit(folder, TrainingDynamicsCallback(path), verbose=1)
    said = (
        "the data set has 3 class_names for 2 outputs of the network, so they are left out; pass class_names="
    )
    assert said in capsys.readouterr().out
    with TrainingDynamicsStore(path) as store:
        assert store.class_names is None


def test_the_way_to_resume_without_ids_is_named(folder: DatasetFolder, path: str) -> None:
    fit(folder, TrainingDynamicsCallback(path, sample_ids=False))
    with pytest.raises(
        StoreError, match=r"recorded without sample_ids; .* pass sample_ids=False to the callback"
    ):
        fit(folder, TrainingDynamicsCallback(path, resume=True))
    fit(folder, TrainingDynamicsCallback(path, resume=True, sample_ids=False))
    with TrainingDynamicsStore(path) as store:
        assert store.n_epochs == 6


def test_names_that_are_given_count(folder: DatasetFolder, path: str) -> None:
    fit(folder, TrainingDynamicsCallback(path, class_names=["a", "b"], sample_ids=range(100, 124)))
    with TrainingDynamicsStore(path) as store:
        assert store.class_names == ["a", "b"]
        assert store.sample_ids is not None
        assert store.sample_ids[0] == "100"


def test_a_report_that_cannot_be_written_is_refused_before_training(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is the recording itself"):
        LabelIssuesCallback(path, report=path)
    with pytest.raises(ValueError, match="report='' names no file"):
        LabelIssuesCallback(path, report="")
