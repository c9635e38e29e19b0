"""Names that data sets carry: Paddle's own, PyTorch-like ones, subsets; and nothing is read for them."""

from types import SimpleNamespace

import numpy as np
import pytest

from paddle_td_callback import PlantedLabelErrors
from paddle_td_callback.dataset_names import DatasetNames, names_of
from paddle_td_callback.export.thumbnails import list_images, png

paddle = pytest.importorskip("paddle")


@pytest.fixture
def folder(tmp_path):
    for name in ("owl", "cat"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    return tmp_path


def test_dataset_folder(folder):
    dataset = paddle.vision.datasets.DatasetFolder(str(folder))
    names = names_of(dataset)
    assert names.class_names == ["cat", "owl"]
    assert names.sample_ids == ["cat/0.png", "cat/1.png", "cat/2.png", "owl/0.png", "owl/1.png", "owl/2.png"]
    assert names.paths == [path for path, _ in dataset.samples]
    assert list_images(str(folder)) == names.paths


def test_image_folder_has_no_classes(folder):
    names = names_of(paddle.vision.datasets.ImageFolder(str(folder)))
    assert names.class_names is None
    assert sorted(names.sample_ids) == [
        "cat/0.png",
        "cat/1.png",
        "cat/2.png",
        "owl/0.png",
        "owl/1.png",
        "owl/2.png",
    ]


def test_subsets_of_subsets(folder):
    dataset = paddle.vision.datasets.DatasetFolder(str(folder))
    inner = paddle.io.Subset(dataset, [5, 0, 3])
    names = names_of(paddle.io.Subset(inner, np.array([2, 0])))
    assert names.sample_ids == ["owl/0.png", "owl/2.png"]
    assert names.class_names == ["cat", "owl"]


def test_moved_labels_between_subsets(folder):
    dataset = paddle.vision.datasets.DatasetFolder(str(folder))
    moved = PlantedLabelErrors(paddle.io.Subset(dataset, [5, 0, 3]), n_classes=2, fraction=0.4)
    names = names_of(paddle.io.Subset(moved, [2, 0]))
    assert names == names_of(paddle.io.Subset(dataset, [3, 5]))
    assert names.sample_ids == ["owl/0.png", "owl/2.png"]


def test_random_split(folder):
    parts = paddle.io.random_split(paddle.vision.datasets.DatasetFolder(str(folder)), [4, 2])
    ids = [one for part in parts for one in names_of(part).sample_ids]
    assert sorted(ids) == ["cat/0.png", "cat/1.png", "cat/2.png", "owl/0.png", "owl/1.png", "owl/2.png"]


def test_like_pytorch():
    dataset = SimpleNamespace(
        root="/data/x", imgs=[("/data/x/a/1.png", 0), ("/data/x/b/1.png", 1)], class_to_idx={"b": 1, "a": 0}
    )
    assert names_of(dataset) == DatasetNames(
        ["a/1.png", "b/1.png"], ["a", "b"], ["/data/x/a/1.png", "/data/x/b/1.png"]
    )


def test_anything_with_classes():
    assert names_of(SimpleNamespace(classes=("a", "b"))) == DatasetNames(None, ["a", "b"])


@pytest.mark.parametrize(
    "dataset",
    [
        SimpleNamespace(),
        SimpleNamespace(classes=3),
        SimpleNamespace(classes="ab"),
        SimpleNamespace(classes=[]),
        SimpleNamespace(classes=[None, "b"]),
        SimpleNamespace(classes=np.array([["a"], ["b"]])),
        SimpleNamespace(classes={"a": 0, "b": 2}),
        SimpleNamespace(classes=["a", "b"], class_to_idx={"b": 0, "a": 1}),
        SimpleNamespace(class_to_idx={"a": [0], "b": None}),
        SimpleNamespace(class_to_idx={"a": 0, "b": "1"}),
        SimpleNamespace(dataset="cifar", indices={"a": 0}),
        SimpleNamespace(dataset=SimpleNamespace(samples=["a.png"]), indices=np.zeros((1, 3), int)),
        SimpleNamespace(class_to_idx={"a": 1}),
        SimpleNamespace(samples=[1, 2]),
        SimpleNamespace(samples=[()]),
        SimpleNamespace(samples=np.zeros(3)),
        SimpleNamespace(dataset=SimpleNamespace(samples=["a.png"]), indices=[7]),
        [1, 2],
    ],
)
def test_data_sets_without_names(dataset):
    assert names_of(dataset) == DatasetNames()


def test_texts_are_no_ids():
    assert (
        names_of(SimpleNamespace(samples=[("what a film", 1), ("Never again. Truly", 0)])) == DatasetNames()
    )
    assert names_of(SimpleNamespace(samples=["a b/1.png", "2.jpeg"])).sample_ids == ["a b/1.png", "2.jpeg"]


class Raises:
    """A data set whose attributes are made when they are asked for, and cannot be made."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name} before the download")


class Answers:
    """A data set that has every attribute, as a mock has."""

    def __getattr__(self, name):
        return lambda *_: None


def test_foreign_attributes_are_no_names_and_no_reason_to_fail():
    assert names_of(Raises()) == names_of(Answers()) == DatasetNames()


def test_an_iterator_of_another_meaning_is_not_used_up():
    dataset = SimpleNamespace(dataset=SimpleNamespace(samples=["a.png", "b.png"]), indices=iter([0, 1]))
    assert names_of(dataset) == DatasetNames()
    assert list(dataset.indices) == [0, 1]


@pytest.mark.parametrize(
    "classes", [np.array(["a", "b"]), {0: "a", 1: "b"}, {np.int64(1): "b", 0: "a"}, {"b": 1, "a": 0}]
)
def test_classes_in_every_form(classes):
    assert names_of(SimpleNamespace(classes=classes)).class_names == ["a", "b"]
    assert names_of(SimpleNamespace(classes=classes, class_to_idx={"a": 0, "b": 1})).class_names == ["a", "b"]


def test_numbers_may_be_class_names():
    assert names_of(SimpleNamespace(classes=[3, 7])).class_names == ["3", "7"]


def test_a_file_listed_twice_is_no_id():
    names = names_of(SimpleNamespace(samples=["a.png", "a.png"]))
    assert names.sample_ids is None
    assert names.paths == ["a.png", "a.png"]


def test_no_item_is_read():
    class Dataset:
        classes = ("a", "b")

        def __getitem__(self, index):
            pytest.fail("an item was read")

    assert names_of(Dataset()).class_names == ["a", "b"]


def test_a_data_set_within_itself_ends():
    dataset = SimpleNamespace(indices=[0, 1], classes=["a", "b"])
    dataset.dataset = dataset
    assert names_of(dataset) == DatasetNames(None, ["a", "b"])
