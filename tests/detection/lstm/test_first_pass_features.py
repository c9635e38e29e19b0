"""Features of the first stage: hand-worked numbers, what must not matter, and two stages in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_td_callback.detection.dataset_features import feature_table
from paddle_td_callback.detection.feature_table import FeatureTable
from paddle_td_callback.detection.lstm.detector import NoiseDetector
from paddle_td_callback.detection.lstm.first_pass_features import feature_names, with_first_pass
from paddle_td_callback.detection.sample_features import LOG_UNIT
from paddle_td_callback.errors import DetectorError

NAMES = feature_names()


def table_of(labels: list[int], others: list[int]) -> FeatureTable:
    return FeatureTable({}, {}, np.array(labels), np.array(others))


def column(table: FeatureTable, name: str) -> np.ndarray:
    return table.columns([name])[:, 0] * LOG_UNIT


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_numbers_by_hand() -> None:
    # class 0: two taken for 1 with chances .8 and .6, one for none with .1; class 1: one taken for 0 with .5
    table = with_first_pass(
        table_of([0, 0, 0, 1], [1, 1, -1, 0]), [logit(0.8), logit(0.6), logit(0.1), logit(0.5)]
    )
    np.testing.assert_allclose(
        column(table, "first_odds"), [logit(p) for p in (0.8, 0.6, 0.1, 0.5)], atol=1e-5
    )
    np.testing.assert_allclose(column(table, "first_head"), -np.log([0.875, 0.625, 0.125, 0.375]), atol=1e-5)
    np.testing.assert_allclose(column(table, "first_tail"), -np.log([0.125, 0.375, 0.875, 0.625]), atol=1e-5)
    np.testing.assert_allclose(
        column(table, "first_class_tail"), -np.log([1 / 6, 1 / 2, 5 / 6, 1 / 2]), atol=1e-5
    )
    np.testing.assert_allclose(
        column(table, "first_pair_tail"), -np.log([1 / 4, 3 / 4, 1 / 2, 1 / 2]), atol=1e-5
    )
    np.testing.assert_allclose(column(table, "first_class_odds"), [0, 0, 0, 0], atol=1e-5)
    pair = [logit(0.7), logit(0.7), logit(0.1), logit(0.5)]
    np.testing.assert_allclose(column(table, "first_pair_odds"), pair, atol=1e-5)
    np.testing.assert_allclose(column(table, "first_pair_count"), np.log([2.4, 2.4, 1.1, 1.5]), atol=1e-5)
    share = np.log([1.5 / 1.6, 1.5 / 1.6, 0.2 / 1.6, 1.0])
    np.testing.assert_allclose(column(table, "first_pair_share"), share, atol=1e-5)
    lift = np.log([1.5 / 0.6, 1.5 / 0.6, 0.2 / 0.1, 0.6 / 1.5])
    np.testing.assert_allclose(column(table, "first_pair_lift"), lift, atol=1e-5)
    # by chance: what leaves the class times what is taken for the other, over all wrong ones
    excess = np.log(
        [1.9 / (1.5 * 1.4 / 2 + 0.5)] * 2 + [0.6 / (1.5 * 0.1 / 2 + 0.5), 1.0 / (0.5 * 0.5 / 2 + 0.5)]
    )
    np.testing.assert_allclose(column(table, "first_pair_excess"), excess, atol=1e-5)
    np.testing.assert_allclose(column(table, "first_mean_odds"), logit(0.5), atol=1e-5)
    assert table.of_recording["first_flagged"] == 0.5
    assert table.of_recording["first_flagged_mean"] == pytest.approx(0.7)
    assert table.of_recording["first_unflagged_mean"] == pytest.approx(0.3)


def test_neither_order_nor_numbers_of_classes_matter() -> None:
    rng = np.random.default_rng(0)
    labels, others, odds = rng.integers(0, 7, 300), rng.integers(-1, 7, 300), rng.normal(size=300)
    whole = with_first_pass(FeatureTable({}, {}, labels, others), odds).columns(NAMES)
    order, numbers = rng.permutation(300), np.append(rng.permutation(20)[:7], -1)
    moved = with_first_pass(FeatureTable({}, {}, numbers[labels[order]], numbers[others[order]]), odds[order])
    np.testing.assert_allclose(moved.columns(NAMES), whole[order], atol=1e-5)


def test_samples_never_seen_are_nan_and_touch_no_other() -> None:
    rng = np.random.default_rng(0)
    labels, others, odds = rng.integers(0, 3, 50), rng.integers(-1, 3, 50), rng.normal(size=50)
    whole = with_first_pass(FeatureTable({}, {}, labels, others), odds)
    more = with_first_pass(FeatureTable({}, {}, np.r_[labels, -1], np.r_[others, -1]), np.r_[odds, np.nan])
    np.testing.assert_array_equal(more[:50].columns(NAMES), whole.columns(NAMES))
    assert np.isnan(more[50:].columns(list(whole.of_sample))).all()
    assert np.isnan(with_first_pass(table_of([-1], [-1]), [np.nan]).columns(NAMES)).all()


@pytest.mark.parametrize("value", [-50.0, 0.0, 50.0])
def test_a_first_stage_that_is_sure_of_all_stays_finite(value: float) -> None:
    assert np.isfinite(with_first_pass(table_of([0, 1, 1], [1, 0, -1]), [value] * 3).columns(NAMES)).all()


def test_log_odds_of_another_recording_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_odds must be \[sample\] \(2,\), got \(3,\)"):
        with_first_pass(table_of([0, 1], [1, 0]), [0.0, 0.0, 0.0])


@pytest.fixture
def recording() -> tuple[np.ndarray, np.ndarray, FeatureTable]:
    """Class 0 gets a third of class 1's samples; what one sample shows is weak, what the pair shows is not."""
    rng = np.random.default_rng(3)
    n, n_epochs = 600, 8
    truth = rng.integers(0, 4, n)
    wrong = (truth == 1) & (rng.random(n) < 0.35)
    labels = np.where(wrong, 0, truth)
    right = rng.random((n, n_epochs)) < np.where(wrong, 0.35, 0.65)[:, np.newaxis]
    given = np.where(right, 0.6, 0.2).astype(np.float32)
    instead = np.where(wrong, truth, (labels + rng.integers(1, 4, n)) % 4)[:, np.newaxis]
    predictions = np.where(right, labels[:, np.newaxis], instead)
    margins = np.where(right, 1.0, -1.0).astype(np.float32)
    raw = np.stack([given, 0.8 - given, right], axis=2).astype(np.float32)
    return raw, wrong, feature_table(given, margins, predictions, labels)


def detector(
    first: NoiseDetector | None = None, names: tuple[str, ...] = ("margin_rank",), **options: int
) -> NoiseDetector:
    return NoiseDetector(
        ("given",), 4, 8, 1, dataset_features=names, mix_sizes=(12, 6), first_stage=first, **options
    )


def test_two_stages_find_more_than_one_and_go_through_a_file(
    recording: tuple[np.ndarray, np.ndarray, FeatureTable], tmp_path: Path
) -> None:
    raw, wrong, table = recording
    options = {"epochs": 15, "learning_rate": 1e-2, "progress": False}
    one = detector().fit(raw, wrong, dataset_features=table, ranking=0.3, **options)
    first = detector(n_members=2)
    first.members = one.members * 2
    np.testing.assert_array_equal(
        first.predict_proba(raw, dataset_features=table), one.predict_proba(raw, dataset_features=table)
    )
    two = detector(first, ("margin_rank", "first_odds", "first_pair_odds", "first_pair_lift"))
    two.fit([raw, raw], [wrong, wrong], dataset_features=[table, table], ranking=0.3, **options)
    assert two.needs_features

    def ranked(made: NoiseDetector) -> float:
        score = made.predict_proba(raw, dataset_features=table)
        return float((score[wrong][:, np.newaxis] > score[~wrong]).mean())

    assert ranked(two) > ranked(one) + 0.02
    two.save(tmp_path / "two.weights")
    again = NoiseDetector.load(tmp_path / "two.weights")
    assert again.first_stage is not None
    assert (again.config.mix_sizes, again.first_stage.config.n_members) == ((12, 6), 2)
    score = two.predict_proba(raw, dataset_features=table)
    np.testing.assert_array_equal(again.predict_proba(raw, dataset_features=table), score)
    with pytest.warns(UserWarning, match="none are given") as said:
        assert np.isfinite(again.predict_proba(raw)).all()  # from trajectories alone
    assert len(said) == 1

    tiles = [slice(0, 250), slice(250, 600)]
    complete = again.run_first_stage(((raw[tile], table[tile]) for tile in tiles), table)
    parts = [again.predict_proba(raw[tile], dataset_features=complete[tile]) for tile in tiles]
    np.testing.assert_allclose(np.concatenate(parts), score, atol=1e-6)
    with pytest.raises(ValueError, match="make them with run_first_stage"):
        again.predict_proba(raw[:250], dataset_features=table[:250])
    assert one.run_first_stage([], table) is table
    halves = [slice(0, 300), slice(300, 600)]
    for wrong_tiles in (halves[::-1], [slice(0, 300), slice(0, 300)]):
        with pytest.raises(ValueError, match=r"samples 0 to 300 holds others|samples 300 to 600 holds"):
            again.run_first_stage(((raw[tile], table[tile]) for tile in wrong_tiles), table)
    for few in ([], halves[:1]):
        with pytest.raises(
            ValueError, match=r"tiles hold (0|300) of 600 samples; give run_first_stage all of them"
        ):
            again.run_first_stage([(raw[tile], table[tile]) for tile in few], table)
    with pytest.raises(
        ValueError,
        match="dataset_features are those of 300 of 600 samples; give run_first_stage those of the whole",
    ):
        again.run_first_stage([(raw[:300], table[:300])], table[:300])


def test_what_does_not_fit_together_is_refused(
    recording: tuple[np.ndarray, np.ndarray, FeatureTable],
) -> None:
    raw, wrong, table = recording
    one = detector().fit(raw, wrong, dataset_features=table, epochs=1, progress=False)
    with pytest.raises(ValueError, match="got 'first_odds'"):
        detector(None, ("first_odds",))
    with pytest.raises(DetectorError, match="no weights"):
        detector(detector())
    with pytest.raises(ValueError, match=r"ranking must be a number in \[0, inf\), got -1.0"):
        detector().fit(raw, wrong, dataset_features=table, ranking=-1.0)
    with pytest.raises(ValueError, match="got ndarray"):
        one.predict_proba(raw, dataset_features=np.zeros((600, 3)))  # type: ignore[arg-type]


def test_no_more_stages_than_a_file_may_hold(
    recording: tuple[np.ndarray, np.ndarray, FeatureTable], tmp_path: Path
) -> None:
    raw, wrong, table = recording
    made = None
    for _ in range(4):
        made = detector(made).fit(raw, wrong, dataset_features=table, epochs=1, progress=False)
    made.save(tmp_path / "made.weights")
    assert NoiseDetector.load(tmp_path / "made.weights").first_stage is not None
    with pytest.raises(ValueError, match="first_stage has 4 stages already; a detector may have at most 4"):
        detector(made)
