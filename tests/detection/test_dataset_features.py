"""Features of a data set: hand-worked numbers, tiles, and what must not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_td_callback.detection.dataset_features import (
    FeatureCollector,
    _band,
    feature_names,
    feature_table,
    feature_table_of_trajectories,
)
from paddle_td_callback.detection.feature_table import FeatureTable
from paddle_td_callback.detection.lstm.detector import NoiseDetector
from paddle_td_callback.detection.trajectories import trajectories_of
from paddle_td_callback.errors import DetectorError

NAMES = feature_names()


def column(table: FeatureTable, name: str) -> np.ndarray:
    return table.columns([name])[:, 0]


@pytest.fixture
def recording() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n_samples, n_epochs, n_classes = 200, 9, 5
    logits = rng.normal(0, 2, (n_samples, n_epochs, n_classes))
    labels = rng.integers(0, n_classes, n_samples)
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    rows = np.arange(n_samples)
    given = np.moveaxis(p, 1, 2)[rows, labels]
    others = logits.copy()
    others[rows, :, labels] = -np.inf
    margins = np.moveaxis(logits, 1, 2)[rows, labels] - others.max(axis=2)
    return {
        "given_probabilities": given.astype(np.float32),
        "margins": margins.astype(np.float32),
        "predictions": logits.argmax(axis=2),
        "labels": labels,
    }


def test_numbers_by_hand() -> None:
    given = np.float32([[0.9] * 4, [0.8] * 4, [0.2] * 4, [0.7, 0.7, 0.2, 0.2]])
    margins = np.log(given) - np.log(1 - given)
    labels = np.array([0, 0, 0, 1])
    predictions = np.array([[0] * 4, [0] * 4, [1] * 4, [1, 1, 0, 0]])
    table = feature_table(given, margins, predictions, labels)
    np.testing.assert_allclose(column(table, "confidence"), [0.9, 0.8, 0.2, 0.45], atol=1e-6)
    np.testing.assert_allclose(column(table, "correctness"), [1, 1, 0, 0.5])
    np.testing.assert_allclose(column(table, "confidence_rank"), [0.875, 0.625, 0.125, 0.375])
    np.testing.assert_allclose(column(table, "confidence_class_rank"), [5 / 6, 0.5, 1 / 6, 0.5], atol=1e-6)
    np.testing.assert_allclose(column(table, "forgetting"), [0, 0, 0, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(column(table, "votes"), [0, 0, 1, 0.5])
    # label 0 is predicted as 1 in 4 of its 12 presentations, label 1 as 0 in 2 of 4
    np.testing.assert_allclose(column(table, "pair"), [0, 0, 1 / 3, 0.5], atol=1e-6)
    np.testing.assert_allclose(column(table, "pair_back"), [0, 0, 0.5, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(column(table, "class_kept"), [2 / 3, 2 / 3, 2 / 3, 0.5], atol=1e-6)


def test_tiles_make_no_difference(recording: dict[str, np.ndarray]) -> None:
    whole = feature_table(**recording)
    tiled = FeatureCollector(n_classes=5)
    for start in range(0, 200, 33):
        tiled.add(**{name: array[start : start + 33] for name, array in recording.items()})
    np.testing.assert_array_equal(tiled.table().columns(NAMES), whole.columns(NAMES))
    assert np.isfinite(whole.columns(NAMES)).all()
    part = whole[50:60]
    np.testing.assert_array_equal(part.columns(NAMES), whole.columns(NAMES)[50:60])
    assert len(part) == 10


def test_neither_order_nor_numbers_of_classes_matter(recording: dict[str, np.ndarray]) -> None:
    whole = feature_table(**recording)
    rng = np.random.default_rng(1)
    order, numbers = rng.permutation(200), rng.permutation(9)
    moved = {name: array[order] for name, array in recording.items()}
    moved["labels"], moved["predictions"] = numbers[moved["labels"]], numbers[moved["predictions"]]
    np.testing.assert_allclose(feature_table(**moved).columns(NAMES), whole[order].columns(NAMES), atol=1e-5)


def test_samples_never_seen_are_nan_and_touch_no_other(recording: dict[str, np.ndarray]) -> None:
    whole = feature_table(**recording)
    more = {
        name: np.concatenate([array, np.full_like(array[:2], np.nan if array.dtype.kind == "f" else -1)])
        for name, array in recording.items()
    }
    table = feature_table(**more)
    np.testing.assert_array_equal(table[:200].columns(NAMES), whole.columns(NAMES))
    assert np.isnan(table[200:].columns(list(whole.of_sample))).all()
    assert (table.labels[200:] == -1).all()


def test_the_order_of_samples_does_not_matter_where_margins_tie(recording: dict[str, np.ndarray]) -> None:
    # Margins of few values, and by their sign the probabilities: a band's end falls among equals that differ else.
    tied = {
        **recording,
        "margins": np.sign(recording["margins"]).mean(axis=1, keepdims=True).repeat(9, axis=1),
    }
    order = np.random.default_rng(1).permutation(200)
    moved = {name: array[order] for name, array in tied.items()}
    np.testing.assert_allclose(
        feature_table(**moved).columns(NAMES),
        feature_table(**tied)[order].columns(NAMES),
        atol=1e-5,
    )


def test_bands_hold_equals_together_and_are_never_empty() -> None:
    assert _band(np.array([2.5, 0.5, 1.5, 3.5]), (0.25, 0.75)).tolist() == [0, 2]
    assert _band(np.array([0.5, 2.0, 2.0, 3.5]), (0.25, 0.75)).tolist() == [1, 2]
    assert _band(np.array([0.5, 2.0, 2.0, 3.5]), (0.5, 0.75)).tolist() == [1, 2]
    assert _band(np.array([0.5, 2.5, 2.5, 2.5]), (0.25, 0.5)).tolist() == [1, 2, 3]  # 1.5 is nobody's middle
    assert _band(np.array([0.5]), (0.1, 0.3)).tolist() == [0]
    assert _band(np.full(100, 50.0), (0.0, 0.03)).tolist() == list(range(100))


def test_the_numbers_of_classes_do_not_matter_where_logits_tie() -> None:
    # As of bfloat16 logits, or of zero logits in the first epochs: the given label ties with the best other one.
    rng = np.random.default_rng(0)
    labels, rows = rng.integers(0, 5, 200), np.arange(200)
    logits = rng.normal(0, 2, (200, 9, 5))
    others = logits.copy()
    others[rows, :, labels] = -np.inf
    tied = rng.random((200, 9)) < 0.3
    logits[rows, :, labels] = np.where(tied, others.max(axis=2), logits[rows, :, labels])
    logits[:, 0] = 0
    logits[5] = 0

    def read(numbers: np.ndarray) -> tuple[FeatureTable, np.ndarray]:
        renumbered = logits[:, :, np.argsort(numbers)]
        given_of = renumbered[rows, :, numbers[labels]]
        rest = renumbered.copy()
        rest[rows, :, numbers[labels]] = -np.inf
        given = np.exp(given_of) / np.exp(renumbered).sum(axis=2)
        margins = given_of - rest.max(axis=2)
        table = feature_table(given, margins, renumbered.argmax(axis=2), numbers[labels])
        return table, trajectories_of(given, margins)

    table, raw = read(np.arange(5))
    for numbers in (np.array([3, 0, 4, 1, 2]), np.array([4, 3, 2, 1, 0])):
        again, raw_again = read(numbers)
        np.testing.assert_allclose(again.columns(NAMES), table.columns(NAMES), atol=1e-5)
        np.testing.assert_allclose(raw_again, raw, atol=1e-6)
    assert (raw[5, :, 2] == 0.5).all()
    assert (column(table, "votes")[5], column(table, "wrong")[5], table.others[5]) == (0, 0.5, -1)


def test_nothing_but_ties() -> None:
    table = feature_table(np.full((4, 3), 0.5), np.zeros((4, 3)), np.zeros((4, 3), int), [0, 0, 1, 1])
    assert np.isfinite(table.columns(NAMES)).all()
    assert (table.others == -1).all()


def test_what_is_predicted_right_tells_where_rounded_probabilities_tie() -> None:
    raw = np.float32([[[0.5, 0.5, 1]] * 4, [[0.5, 0.5, 0]] * 4, [[0.5, 0.5, 0.5]] * 4])
    np.testing.assert_array_equal(column(feature_table_of_trajectories(raw), "correctness"), [1, 0, 0.5])


def test_the_largest_margins_there_are_do_not_overflow(recording: dict[str, np.ndarray]) -> None:
    largest = np.finfo(np.float32).max
    extreme = {**recording, "margins": np.float32(np.where(recording["margins"] > 0, largest, -largest))}
    columns = feature_table(**extreme).columns(NAMES)
    assert np.isfinite(columns).all()
    assert np.abs(columns).max() < 100


@pytest.mark.parametrize("n_epochs", [1, 2, 3])
def test_few_epochs(recording: dict[str, np.ndarray], n_epochs: int) -> None:
    short = {n: a if n == "labels" else a[:, :n_epochs] for n, a in recording.items()}
    assert np.isfinite(feature_table(**short).columns(NAMES)).all()


def test_without_labels_all_samples_stand_for_one_class(recording: dict[str, np.ndarray]) -> None:
    given = recording["given_probabilities"]
    other = np.exp(np.log(given) - recording["margins"])
    right = (recording["predictions"] == recording["labels"][:, np.newaxis]).astype(np.float32)
    blind = feature_table_of_trajectories(np.stack([given, other, right], axis=2))
    whole = feature_table(**recording)
    for name in ("confidence", "correctness", "margin_rank", "aum_tail"):
        np.testing.assert_allclose(column(blind, name), column(whole, name), atol=1e-4)
    np.testing.assert_array_equal(column(blind, "confidence_class_rank"), column(blind, "confidence_rank"))


def test_detector_reads_features_and_keeps_their_names_in_its_file(
    recording: dict[str, np.ndarray], tmp_path: Path
) -> None:
    given = recording["given_probabilities"]
    right = (recording["predictions"] == recording["labels"][:, np.newaxis]).astype(np.float32)
    raw = np.stack([given, np.minimum(np.exp(np.log(given) - recording["margins"]), 1), right], axis=2)
    table, wrong = feature_table(**recording), given.mean(axis=1) < 0.15
    made = NoiseDetector(("given",), 4, 8, 1, dataset_features=("pair", "margin_rank"))
    made.fit(
        [raw, raw],
        [wrong, wrong],
        dataset_features=[table, table],
        epochs=8,
        dropout=0.2,
        balance=0.5,
        progress=False,
    )
    score = made.predict_proba(raw, dataset_features=table)
    assert score[wrong].mean() > score[~wrong].mean()
    for call in (
        made.predict_proba,
        made.log_odds,
        lambda raw: made.fit(raw, wrong, epochs=1, progress=False),
    ):
        with pytest.warns(UserWarning, match="pass dataset_features=detector_features") as said:
            blind = call(raw)
        assert (len(said), said[0].filename) == (1, __file__)
        if call == made.predict_proba:
            assert not np.array_equal(blind, score)
    made.fit([raw], [wrong], dataset_features=[table], epochs=8, progress=False)
    with pytest.warns(UserWarning, match="none are given") as said:
        made.calibrate([raw, raw], [wrong, wrong])
    assert (len(said), said[0].filename) == (1, __file__)
    score = made.predict_proba(raw, dataset_features=table)
    made.save(tmp_path / "made.weights")
    again = NoiseDetector.load(tmp_path / "made.weights")
    assert again.config.dataset_features == ("pair", "margin_rank")
    np.testing.assert_array_equal(again.predict_proba(raw, dataset_features=table), score)
    with pytest.raises(
        ValueError,
        match=r"dataset_features must be a FeatureTable of the 200 samples .* got one of 5 samples",
    ):
        made.predict_proba(raw, dataset_features=table[:5])
    with pytest.raises(ValueError, match="got 'pear'"):
        NoiseDetector(dataset_features=("pear",))
    made.members[0]["features_scale"][0] = 0
    made.save(tmp_path / "made.weights")
    with pytest.raises(DetectorError, match="scale"):
        NoiseDetector.load(tmp_path / "made.weights")
