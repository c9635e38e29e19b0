"""The detector: what it reads, what it learns, what it leaves alone, what it refuses."""

import collections
import contextlib
import errno
import fcntl
import json
import os
import pickle
import random
import subprocess
import sys
import zlib

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_td_callback import TrainingDynamicsRecorder
from paddle_td_callback.detection import interpolate
from paddle_td_callback.detection.dataset_features import feature_table_of_trajectories
from paddle_td_callback.detection.lstm import (
    channels,
    detector,
    inference,
    paddle_channels,
    training,
    weights_file,
    weights_pickle,
)
from paddle_td_callback.detection.lstm.calibration import platt
from paddle_td_callback.detection.lstm.channels import CHANNELS, Inputs
from paddle_td_callback.detection.lstm.detector import NoiseDetector
from paddle_td_callback.detection.lstm.device import paddle_on
from paddle_td_callback.detection.trajectories import Augmentation
from paddle_td_callback.errors import DetectorError

NAN = np.nan
THREE = ("given", "largest_other", "predicted_right")


def synthetic(n_samples, n_epochs, seed, missing=0.0):
    """Trajectories of a made-up training in which wrong labels are learned later than right ones."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n_samples) < 0.25
    speed = np.where(wrong, 0.3, 1.5) * rng.uniform(0.5, 1.5, n_samples)
    log_odds = speed[:, None] * np.linspace(0.5, 4, n_epochs) - 2 + rng.normal(0, 0.7, (n_samples, n_epochs))
    p = 1 / (1 + np.exp(-log_odds))
    other = (1 - p) * rng.uniform(0.4, 1, p.shape)
    raw = np.stack([p, other, p > other], axis=2).astype(np.float32)
    raw[rng.random(p.shape) < missing] = NAN
    return raw, wrong


def auc(score, wrong):
    return (score[wrong][:, None] > score[~wrong]).mean()


def small(seed=0, **options):
    """A quickly trained detector, and a data set that it has not seen."""
    options = {"n_steps": 8, "hidden_size": 8, "n_layers": 1} | options
    made = NoiseDetector(options.pop("channels", THREE), **options)
    recordings = [synthetic(400, 10, 1), synthetic(300, 6, 2, missing=0.2)]
    made.fit(
        [raw for raw, _ in recordings],
        [wrong for _, wrong in recordings],
        epochs=2,
        batch_size=64,
        learning_rate=0.02,
        seed=seed,
        progress=False,
    )
    return made, *synthetic(200, 12, 3, missing=0.1)


def make(names, raw, n_steps=None):
    inputs, array = Inputs(names, n_steps), np.float32(raw)
    by_numpy = inputs.make(array)
    by_paddle = paddle_channels.make(inputs, paddle.to_tensor(array)).numpy()
    np.testing.assert_allclose(by_paddle, by_numpy, rtol=1e-5, atol=1e-6)
    return by_numpy


# What the LSTM reads


def test_channels_of_one_sample_worked_by_hand():
    raw = [[[0.5, 0.25, 1], [NAN, NAN, NAN], [0.1, 0.4, 0]]]
    steps = make(
        (
            "given",
            "largest_other",
            "predicted_right",
            "log_given",
            "log_other",
            "log_not_given",
            "log_ratio",
            "seen",
            "time",
        ),
        raw,
    )
    log = np.log
    expected = [
        [0.5, 0.25, 1, log(0.5) / 4, log(0.25) / 4, log(0.5) / 4, log(2) / 4, 1, 0],
        [0.3, 0.325, 0.5, log(0.3) / 4, log(0.325) / 4, log(0.7) / 4, log(0.3 / 0.325) / 4, 0, 0.5],
        [0.1, 0.4, 0, log(0.1) / 4, log(0.4) / 4, log(0.9) / 4, log(0.25) / 4, 1, 1],
    ]
    np.testing.assert_allclose(steps[0], expected, rtol=1e-5, atol=1e-7)


def test_logarithms_of_zero_are_those_of_the_floor():
    steps = make(("log_given", "log_other", "log_ratio", "log_not_given"), [[[0.0, 1.0, 0]], [[1.0, 0.0, 1]]])
    floor = np.log(channels.LOG_FLOOR) / channels.LOG_UNIT
    np.testing.assert_allclose(steps[:, 0], [[floor, 0, floor, 0], [0, floor, -floor, floor]], rtol=1e-6)


def test_every_name_works_for_one_epoch_and_for_several():
    for n_epochs, n_steps in ((1, None), (1, 4), (5, None), (5, 3)):
        raw, _ = synthetic(20, n_epochs, 0)
        steps = make(list(CHANNELS), raw, n_steps=n_steps)
        assert steps.shape == (20, n_steps or n_epochs, len(CHANNELS))
        assert np.isfinite(steps).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32))
def test_filling_and_resampling_on_the_device_equal_the_numpy_ones(n_epochs, n_steps, missing, seed):
    rng = np.random.default_rng(seed)
    raw = rng.random((17, n_epochs, 3)).astype(np.float32)
    raw[rng.random(raw.shape) < missing] = NAN
    wanted = interpolate.fill_missed_epochs(raw)
    filled = paddle_channels.fill_missed_epochs(paddle.to_tensor(raw))
    np.testing.assert_allclose(filled.numpy(), wanted, rtol=0, atol=1e-6)
    resampled = paddle_channels.resample(filled, n_steps).numpy()
    np.testing.assert_allclose(resampled, interpolate.resample(wanted, n_steps), rtol=0, atol=1e-6)


def test_a_device_gives_the_scores_of_numpy(monkeypatch):
    made, raw, _ = small(channels=list(CHANNELS), n_members=2)
    by_numpy = made.predict_proba(raw)
    monkeypatch.setattr(inference, "uses_numpy", lambda device: False)  # Paddle's way, on the CPU
    np.testing.assert_allclose(made.predict_proba(raw, device="cpu"), by_numpy, atol=3e-6)


# What it learns


@pytest.mark.parametrize("n_steps", [32, None])
def test_it_finds_the_wrong_labels_of_a_data_set_it_has_not_seen(n_steps):
    made, raw, wrong = small(n_steps=n_steps, hidden_size=16, n_members=2)
    assert auc(made.predict_proba(raw), wrong) > 0.95
    one_epoch, wrong = synthetic(300, 1, 7)
    score = made.predict_proba(one_epoch)
    assert np.isfinite(score).all()
    assert auc(score, wrong) > 0.5


def test_the_papers_form_reads_nothing_but_the_given_probability():
    made, raw, wrong = small(channels=("given",), n_steps=None)
    score = made.predict_proba(raw)
    assert auc(score, wrong) > 0.9
    raw[:, :, 1:] = NAN
    np.testing.assert_array_equal(made.predict_proba(raw), score)


def test_the_network_is_paddles_own_lstm_and_the_last_step_decides():
    made, raw, _ = small(channels=("given",), n_layers=2, n_steps=None)
    raw = raw[~np.isnan(raw).any(axis=(1, 2))]
    weights = made.members[0]
    lstm = paddle.nn.LSTM(1, 8, 2)
    for name, parameter in lstm.named_parameters():
        if name in weights:
            parameter.set_value(weights[name])
    state = lstm(paddle.to_tensor(raw[:, :, :1]))[0].numpy()[:, -1]
    odds = state @ weights["head_weight"][:, 0] + weights["head_bias"]
    np.testing.assert_allclose(made.predict_proba(raw), 1 / (1 + np.exp(-odds)), atol=1e-6)


def test_members_are_averaged_in_log_odds():
    made, raw, _ = small(n_members=3)
    together = made.predict_proba(raw)
    odds = []
    for weights in list(made.members):
        made.members = [weights]
        p = made.predict_proba(raw).astype(float)
        odds.append(np.log(p / (1 - p)))
    np.testing.assert_allclose(together, 1 / (1 + np.exp(-np.mean(odds, axis=0))), atol=1e-5)
    assert not np.allclose(odds[0], odds[1])


def test_a_recording_in_a_list_is_its_own_data_set():
    # The same recording at two brightnesses: ranks within each are the same, so a rank-only detector cannot tell.
    raw, wrong = synthetic(300, 8, 0)
    dim = raw.copy()
    dim[:, :, :2] *= 0.5

    def trained(*raws):
        made = NoiseDetector(("time",), 8, 8, 1, dataset_features=("confidence_rank",))
        tables = [feature_table_of_trajectories(one) for one in raws]
        made.fit(list(raws), [wrong, wrong], dataset_features=tables, epochs=1, progress=False)
        return made.members[0]

    alone, mixed = trained(raw, raw), trained(raw, dim)
    for name, array in alone.items():
        np.testing.assert_allclose(mixed[name], array, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    augment = Augmentation(truncate=0.5, subsample=0.8, missing=0.2, jitter=0.1)
    raw, wrong = synthetic(200, 8, 0)

    def trained(seed):
        made = NoiseDetector(THREE, 8, 8, 1).fit(
            raw, wrong, epochs=2, augment=augment, seed=seed, progress=False
        )
        return made.members[0]

    first, second, other = trained(1), trained(1), trained(2)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert not np.array_equal(first[name], other[name])


def test_fit_goes_on_from_the_weights_there_are_unless_reset():
    made, raw, wrong = small()
    before = made.members[0]["weight_hh_l0"]
    made.fit(raw, wrong, epochs=1, learning_rate=1e-6, progress=False)
    assert np.abs(made.members[0]["weight_hh_l0"] - before).max() < 1e-3
    assert made.provenance["before"]["fit"]["recordings"] == 2
    made.fit(raw, wrong, epochs=1, learning_rate=1e-6, progress=False, reset=True)
    assert np.abs(made.members[0]["weight_hh_l0"] - before).max() > 1e-2
    assert "before" not in made.provenance


def test_fit_undoes_the_calibration_and_keeps_the_weights_it_was_given():
    made, raw, wrong = small()
    weights = {name: array.copy() for name, array in made.members[0].items()}
    kept = made.members[0]
    made.calibrate(raw, wrong).fit(raw, wrong, epochs=1, progress=False)
    assert (made.temperature, made.bias) == (1.0, 0.0)
    for name, array in weights.items():
        np.testing.assert_array_equal(kept[name], array)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fit_leaves_the_detector_and_paddle_as_they_were(monkeypatch, error):
    made, raw, wrong = small()
    score = made.predict_proba(raw)

    def interrupted(*_):
        paddle.set_default_dtype("float64")
        raise error

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(error):
        made.fit(raw, wrong, progress=False)
    assert paddle.get_default_dtype() == "float32"
    np.testing.assert_array_equal(made.predict_proba(raw), score)


def test_a_training_that_explodes_says_so():
    made, raw, wrong = small()
    score = made.predict_proba(raw)
    with pytest.raises(DetectorError, match=r"epoch \d+, step \d+: the loss is .*learning_rate below 1e\+38"):
        made.fit(raw, wrong, learning_rate=1e38, epochs=9, progress=False)
    np.testing.assert_array_equal(made.predict_proba(raw), score)


def test_weights_that_only_the_last_step_spoils_are_not_taken():
    made, raw, wrong = small()
    weights, score = made.members, made.predict_proba(raw)
    with pytest.raises(DetectorError, match="weights are not finite after the last step"):
        made.fit(raw, wrong, learning_rate=1e38, weight_decay=10, epochs=1, batch_size=4096, progress=False)
    assert made.members is weights
    np.testing.assert_array_equal(made.predict_proba(raw), score)


def test_odds_that_are_not_finite_are_no_verdict():
    made, raw, _ = small()
    seen = int((~np.isnan(raw[:, :, 0]).all(axis=1)).sum())
    made.members[0]["head_bias"][:] = np.inf
    with pytest.raises(DetectorError, match=f"log-odds of {seen} of {seen} samples are not finite"):
        made.predict_proba(raw)


def test_augmentation_keeps_order_and_draws_within_its_bounds():
    rng = np.random.default_rng(0)
    raw = np.full((50, 20, 3), 0.5, np.float32)
    raw[:, :, 2] = np.arange(20)
    lengths = []
    for _ in range(200):
        varied = Augmentation(truncate=0.5)(raw, rng)
        lengths.append(varied.shape[1])
        np.testing.assert_array_equal(varied, raw[:, : varied.shape[1]])
    assert (min(lengths), max(lengths)) == (10, 20)
    thinned = Augmentation(subsample=0.25)(raw, rng)
    assert (np.diff(thinned[0, :, 2]) > 0).all()
    holes = np.isnan(Augmentation(missing=0.4)(raw, np.random.default_rng(3)))
    assert 0 < holes.mean() < 0.5
    assert (holes.any(axis=2) == holes.all(axis=2)).all()
    shaken = Augmentation(jitter=0.3)(raw, rng)
    assert 0.25 < np.log(shaken[:, :, 0] / (1 - shaken[:, :, 0])).std() < 0.35
    np.testing.assert_array_equal(shaken[:, :, 2], raw[:, :, 2])
    np.testing.assert_array_equal(Augmentation()(raw, rng), raw)
    assert Augmentation(truncate=0.01, subsample=0.01)(raw[:, :1], rng).shape == (50, 1, 3)


def test_augmentation_may_hide_whole_samples_and_vary_the_number_of_epochs():
    raw, wrong = synthetic(100, 4, 0)
    made = NoiseDetector(THREE, None, 4, 1)
    made.fit([raw, raw], [wrong, wrong], epochs=4, augment=Augmentation(0.2, 1, 1.0), progress=False)
    assert np.isfinite(made.predict_proba(raw)).all()


# How it predicts


def test_never_seen_samples_get_nan_and_change_nothing_for_the_others():
    made, raw, _ = small()
    score = made.predict_proba(raw)
    more = np.concatenate([np.full((2, 12, 3), NAN, np.float32), raw])
    with_unseen = made.predict_proba(more)
    assert np.isnan(with_unseen[:2]).all()
    np.testing.assert_allclose(with_unseen[2:], score, atol=1e-6)
    assert with_unseen.dtype == np.float32
    assert np.isnan(made.predict_proba(more[:2])).all()
    assert made.predict_proba(raw[:0]).shape == (0,)


def test_the_order_of_samples_the_batch_size_and_the_dtype_do_not_matter():
    made, raw, _ = small()
    score = made.predict_proba(raw)
    order = np.random.default_rng(0).permutation(len(raw))
    np.testing.assert_allclose(made.predict_proba(raw[order]), score[order], atol=1e-6)
    np.testing.assert_allclose(made.predict_proba(raw, batch_size=7), score, atol=1e-6)
    np.testing.assert_allclose(made.predict_proba(raw.astype(np.float64)), score, atol=1e-6)
    np.testing.assert_allclose(made.predict_proba(raw.astype(np.float16)), score, atol=0.02)


def test_tiles_equal_the_whole():
    made, raw, _ = small()
    tiles = [made.predict_proba(raw[i : i + 50]) for i in range(0, 200, 50)]
    np.testing.assert_allclose(np.concatenate(tiles), made.predict_proba(raw), atol=1e-6)


def test_the_order_and_the_number_of_classes_do_not_matter():
    made, _, _ = small()
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (60, 9))
    labels = rng.integers(0, 4, 60)

    def raw_of(p, labels):
        given = np.take_along_axis(p, labels[:, None, None], axis=2)[:, :, 0]
        others = p.copy()
        np.put_along_axis(others, labels[:, None, None], -1, axis=2)
        return np.stack([given, others.max(axis=2), p.argmax(axis=2) == labels[:, None]], axis=2)

    order = np.array([2, 0, 3, 1])
    wider = np.concatenate([p[:, :, order], np.zeros((60, 9, 5))], axis=2)
    moved = np.argsort(order)[labels]
    np.testing.assert_array_equal(
        made.predict_proba(raw_of(wider, moved)), made.predict_proba(raw_of(p, labels))
    )


def test_the_device_is_passed_on_and_not_set():
    made, raw, wrong = small()
    before = paddle.get_device()
    np.testing.assert_array_equal(made.predict_proba(raw, device="cpu"), made.predict_proba(raw))
    made.fit(raw, wrong, epochs=1, device="cpu", progress=False).calibrate(raw, wrong, device="cpu")
    for call in (made.predict_proba, lambda x, device: made.fit(x, wrong, device=device)):
        with pytest.raises(ValueError, match="device 'no-such:0' cannot be used: this Paddle computes on"):
            call(raw, device="no-such:0")
    assert paddle.get_device() == before


@pytest.mark.gpu
@pytest.mark.skipif(not paddle.is_compiled_with_cuda(), reason="this Paddle has no CUDA")
def test_a_gpu_gives_the_scores_of_the_cpu():
    made, raw, _ = small()
    on_cpu = made.predict_proba(raw, device="cpu")
    np.testing.assert_allclose(made.predict_proba(raw, device="gpu:0"), on_cpu, atol=1e-4)


def test_progress_bars_are_shown_where_asked_for(capsys):
    made, raw, wrong = small()
    made.predict_proba(raw, progress=True)
    assert "detect: 100%" in capsys.readouterr().err
    made.fit(raw, wrong, epochs=1)
    assert "fit: 100%" in capsys.readouterr().err
    made.predict_proba(raw)
    made.fit(raw, wrong, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


# What it leaves alone


def use_everything():
    made, raw, wrong = small()
    made.calibrate(raw, wrong)
    made.predict_proba(raw)


@pytest.mark.parametrize("initializer", [None, paddle.nn.initializer.Normal()])
def test_no_global_random_generator_is_touched(initializer):
    def draws():
        return paddle.rand([3]).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    def seed_all():
        paddle.seed(7)
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)

    seed_all()
    wanted = draws()
    seed_all()
    paddle.nn.initializer.set_global_initializer(initializer, initializer)
    try:
        use_everything()
    finally:
        paddle.nn.initializer.set_global_initializer(None)
    assert draws() == wanted


def test_later_layers_of_the_user_get_the_names_they_would_have_had():
    def name_after(action):
        with paddle.utils.unique_name.guard():
            action()
            return paddle.nn.LSTM(1, 1).weight_ih_l0.name, paddle.nn.Linear(1, 1).weight.name

    assert name_after(use_everything) == name_after(lambda: None)


def test_it_works_under_the_callers_gradient_mode_and_dtype_and_leaves_them():
    made, raw, _ = small()
    score, weights = made.predict_proba(raw), made.members[0]
    paddle.set_default_dtype("float64")
    try:
        with paddle.no_grad():
            np.testing.assert_array_equal(made.predict_proba(raw), score)
            again, _, _ = small()
            parameter = paddle.ones([1])
            parameter.stop_gradient = False
            assert (parameter * 2).stop_gradient
        assert paddle.get_default_dtype() == "float64"
    finally:
        paddle.set_default_dtype("float32")
    for name, array in weights.items():
        np.testing.assert_array_equal(again.members[0][name], array)
    made.predict_proba(raw)
    assert not (parameter * 2).stop_gradient


def test_mixed_precision_of_the_caller_does_not_reach_in():
    # On a CPU `auto_cast` does nothing, so the level is set by hand, and read where the network would run.
    level = paddle.base.core.AmpLevel
    tracer = paddle.base.framework._dygraph_tracer()
    tracer._amp_level = level.O1
    try:
        with paddle_on(None):
            assert paddle.base.framework._dygraph_tracer()._amp_level == level.O0
        assert tracer._amp_level == level.O1
    finally:
        tracer._amp_level = level.O0


def test_it_works_in_static_mode_and_leaves_it():
    made, raw, _ = small()
    score = made.predict_proba(raw)
    paddle.enable_static()
    try:
        np.testing.assert_array_equal(made.predict_proba(raw), score)
        assert not paddle.in_dynamic_mode()
    finally:
        paddle.disable_static()


# Calibration


def test_calibration_makes_probabilities_of_scores_and_keeps_the_ranking():
    made, raw, wrong = small(hidden_size=32)  # fewer units leave scores that no scale and bias fit
    rng = np.random.default_rng(0)
    raw, wrong = synthetic(4000, 10, 9)
    before = made.predict_proba(raw)
    noisy = np.where(rng.random(4000) < 0.2, rng.random(4000) < 0.5, wrong)
    after = made.calibrate([raw[:2000], raw[2000:]], [noisy[:2000], noisy[2000:]]).predict_proba(raw)
    assert abs(after.mean() - noisy.mean()) < 0.01
    assert (np.diff(after[np.argsort(before, kind="stable")]) >= -1e-6).all()
    assert made.temperature > 0
    bins = np.digitize(after, np.linspace(0, 1, 11)[1:-1])
    error = sum(abs(after[bins == b].sum() - noisy[bins == b].sum()) for b in range(10)) / 4000
    assert error < 0.05


def test_calibration_finds_the_scale_and_bias_that_made_the_labels():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 3, 200_000)
    wrong = rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    scale, bias = platt(odds, wrong)
    assert (scale, bias) == (pytest.approx(0.5, abs=0.01), pytest.approx(-1, abs=0.02))


def test_calibration_on_separable_data_stays_finite():
    odds = np.array([-3.0, -2, -2, 4, 5])
    scale, bias = platt(odds, odds > 0)
    assert 0 < scale < 10
    assert np.isfinite(bias)


def test_calibration_refuses_to_turn_the_ranking_round():
    made, raw, wrong = small()
    with pytest.raises(DetectorError, match="no better than chance"):
        made.calibrate(raw, ~wrong)
    assert (made.temperature, made.bias) == (1.0, 0.0)


# On disk


def test_save_and_load_give_the_same_detector_bit_for_bit(tmp_path):
    made, raw, wrong = small(n_members=2)
    made.calibrate(raw, wrong)
    made.provenance["trained on"] = "synthetic recordings"
    made.save(tmp_path / "detector.weights")
    loaded = NoiseDetector.load(tmp_path / "detector.weights")
    np.testing.assert_array_equal(loaded.predict_proba(raw), made.predict_proba(raw))
    assert repr(loaded) == repr(made)
    assert loaded.provenance == made.provenance
    assert loaded.provenance["fit"]["samples"] == 700
    assert loaded.provenance["calibration"] == {"samples": 200, "mislabeled": int(wrong.sum())}
    assert (loaded.temperature, loaded.bias) == (made.temperature, made.bias)
    assert os.listdir(tmp_path) == ["detector.weights"]
    stage = weights_file.read(tmp_path / "detector.weights")[0]
    assert stage.about["paddle_version"] == paddle.__version__
    assert stage.members[1]["head_weight"].dtype == np.float32


def test_native_epochs_survive_the_file(tmp_path):
    made, _, _ = small(n_steps=None)
    made.save(tmp_path / "detector.weights")
    made.save(tmp_path / "detector.weights")  # replaces
    assert NoiseDetector.load(tmp_path / "detector.weights").config.n_steps is None


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    made, _, _ = small()
    with pytest.raises(DetectorError, match=r"missing/detector.weights': cannot be written"):
        made.save(tmp_path / "missing" / "detector.weights")


def test_a_recording_is_never_replaced_by_a_detector(tmp_path):
    made, _, _ = small()
    path = tmp_path / "run.h5"
    with TrainingDynamicsRecorder(path, n_samples=2, n_classes=2) as recorder:
        recorder.update([0, 1], np.eye(2, dtype=np.float32), [0, 1])
        recorder.end_epoch()
    for content in (path.read_bytes(), path.read_bytes()[:-100], b"sample,rank\n"):
        path.write_bytes(content)
        with pytest.raises(DetectorError, match=r"run.h5': a file of another kind.*another path"):
            made.save(path)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["run.h5"]
    path.write_bytes(b"")
    made.save(path)
    made.save(path)
    with pytest.raises(DetectorError, match="is a folder; give the path of a file in it"):
        made.save(tmp_path)


def test_a_missing_file_is_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*nothing.weights': no such file"):
        NoiseDetector.load(tmp_path / "nothing.weights")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pdparams': no such file"):
        NoiseDetector.load_interpretdl(tmp_path / "nothing.pdparams")


def write_header(path, header, arrays):
    """A file whose checksum fits, whatever is in it."""
    body = len(header).to_bytes(4, "little") + header + arrays
    path.write_bytes(weights_file.MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)


def in_stage(*keys, value):
    def change(header):
        target = header["stages"][0]
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda header: header.update(version=2),
            "version 2, this package reads 1; upgrade paddle_td_callback",
        ),
        (lambda header: header.pop("version"), "header cannot be understood"),
        (lambda header: header.update(stages=[]), "claims arrays of 0 bytes"),
        (lambda header: header.update(stages=3), "header cannot be understood"),
        (
            in_stage("about", "config", "channels", value=["nonsense"]),
            "channels must be names of .* got 'nonsense'",
        ),
        (in_stage("about", "config", "channels", value="given"), "channels must be a list or tuple"),
        (
            in_stage("about", "config", "hidden_size", value=2**40),
            "hidden_size must be a whole number from 1 to 4096",
        ),
        (in_stage("about", "config", "hidden_size", value=4), "arrays .* its configuration says"),
        (in_stage("about", "config", "n_layers", value=2), "arrays .* its configuration says"),
        (in_stage("about", "config", "n_members", value=2), "1 members, its configuration says 2"),
        (in_stage("about", "config", value={}), "KeyError: 'channels'"),
        (in_stage("about", "temperature", value=-1.0), "calibration -1.0, 0.0"),
        (in_stage("about", "bias", value=10**400), "holds no detector of this version"),
        (in_stage("about", "bias", value=NAN), "calibration 1.0, nan"),
        (in_stage("about", "provenance", value="3"), "holds no detector of this version"),
        (in_stage("about", value=[]), "header cannot be understood"),
        (in_stage("n_members", value=10**30), "claims arrays of"),
        (in_stage("n_members", value=0), "header cannot be understood"),
        (in_stage("n_members", value=True), "header cannot be understood"),
        (in_stage("arrays", 0, 1, value=[0, 10**9]), "header cannot be understood"),
        (in_stage("arrays", 0, 1, value=[-4, -4]), "header cannot be understood"),
        (in_stage("arrays", 0, 1, value=[10**12]), "claims arrays of"),
        (in_stage("arrays", 0, 0, value="head_bias"), "header cannot be understood"),
        (in_stage("arrays", value=[]), "header cannot be understood"),
    ],
)
def test_what_a_header_claims_is_compared_before_it_is_believed(tmp_path, change, message):
    path = tmp_path / "detector.weights"
    made, _, _ = small()
    made.save(path)
    data = path.read_bytes()
    n_header = int.from_bytes(data[12:16], "little")
    header = json.loads(data[16 : 16 + n_header])
    change(header)
    write_header(path, json.dumps(header).encode(), data[16 + n_header :])
    with pytest.raises(DetectorError, match=f"detector.weights': .*(?:{message})"):
        NoiseDetector.load(path)


def test_headers_that_are_no_json_and_weights_that_are_no_numbers(tmp_path):
    path = tmp_path / "detector.weights"
    made, _, _ = small()
    made.save(path)
    data = path.read_bytes()
    n_header = int.from_bytes(data[12:16], "little")
    header, arrays = data[16 : 16 + n_header], data[16 + n_header :]
    for broken in (b"", b"[", b"[" * 100_000, b"\xff", b"9" * 5000, b"null"):
        write_header(path, broken, arrays)
        with pytest.raises(DetectorError, match="header cannot be understood"):
            NoiseDetector.load(path)
    write_header(path, header, np.float32(NAN).tobytes() + arrays[4:])
    with pytest.raises(DetectorError, match="weights that are not finite"):
        NoiseDetector.load(path)
    path.write_bytes(data[:12] + (2**32 - 1).to_bytes(4, "little") + data[16:])
    with pytest.raises(DetectorError, match="checksum"):
        NoiseDetector.load(path)
    body = (2**32 - 1).to_bytes(4, "little") + data[16:]
    path.write_bytes(data[:8] + zlib.crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(DetectorError, match="header claims 4294967295 bytes"):
        NoiseDetector.load(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A detector's file, its header and its arrays."""
    path = tmp_path_factory.mktemp("detector") / "detector.weights"
    small()[0].save(path)
    data = path.read_bytes()
    n_header = int.from_bytes(data[12:16], "little")
    return path, data[16 : 16 + n_header], data[16 + n_header :]


@settings(max_examples=300, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=6), st.integers(0, 6)), max_size=4))
def test_mutated_headers_with_a_right_checksum_raise_our_own_error_or_none(saved, changes):
    path, header, arrays = saved
    for place, fresh, n_lost in changes:
        place %= len(header)
        header = header[:place] + fresh + header[place + n_lost :]
    write_header(path, header, arrays)
    with contextlib.suppress(DetectorError):
        NoiseDetector.load(path)


def test_no_flipped_byte_is_read(tmp_path):
    path = tmp_path / "detector.weights"
    made, _, _ = small()
    made.save(path)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in [*range(600), *rng.integers(0, len(data), 400)]:
        byte = data[place]
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(DetectorError, match=r"detector.weights': "):
            NoiseDetector.load(path)
        data[place] = byte
    for length in (0, 7, 8, 15, 16, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DetectorError, match=r"is no detector|checksum"):
            NoiseDetector.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(DetectorError, match="checksum"):
        NoiseDetector.load(path)


def test_other_kinds_of_files_are_refused(tmp_path):
    path = tmp_path / "detector.weights"
    for content in (b"not a detector at all", pickle.dumps({}), b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(DetectorError, match=r"detector.weights': is no detector"):
            NoiseDetector.load(path)
    with pytest.raises(DetectorError, match="is no regular file"):
        NoiseDetector.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for load in (NoiseDetector.load, NoiseDetector.load_interpretdl):
        with pytest.raises(DetectorError, match="is no regular file"):
            load(tmp_path / "pipe")


def test_a_detector_is_read_where_files_cannot_be_locked(monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert NoiseDetector.pretrained().is_trained


def test_pretrained_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "PRETRAINED", tmp_path / "noise_detector.weights")
    with pytest.raises(
        DetectorError, match=r"noise_detector.weights': this installation lacks the shipped weights"
    ):
        NoiseDetector.pretrained()
    made, raw, _ = small()
    made.save(tmp_path / "noise_detector.weights")
    np.testing.assert_array_equal(NoiseDetector.pretrained().predict_proba(raw), made.predict_proba(raw))


# InterpretDL's weights


class InterpretDLNet(paddle.nn.Layer):
    """The same layers as InterpretDL's: an LSTM, a linear layer with two outputs, softmax."""

    def __init__(self, n_channels=1, hidden_size=6, outputs=2):
        super().__init__()
        self.classifier = paddle.nn.Linear(hidden_size, outputs)
        self.lstm = paddle.nn.LSTM(n_channels, hidden_size, 2)

    def forward(self, x):
        return paddle.nn.functional.softmax(self.classifier(self.lstm(x)[0][:, -1]))


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("protocol", [2, 4])
def test_interpretdl_weights_give_interpretdl_scores(tmp_path, n_channels, protocol):
    net = InterpretDLNet(n_channels)
    path = tmp_path / "noise_detector_trained.pdparams"
    paddle.save(net.state_dict(), str(path), protocol=protocol)
    raw, _ = synthetic(50, 9, 0)
    made = NoiseDetector.load_interpretdl(path)
    assert made.config.channels == ("given", "largest_other")[:n_channels]
    assert made.config.n_steps is None
    wanted = net(paddle.to_tensor(raw[:, :, :n_channels])).numpy()[:, 1]
    np.testing.assert_allclose(made.predict_proba(raw), wanted, atol=1e-6)
    made.save(tmp_path / "copy.h5")
    np.testing.assert_array_equal(
        NoiseDetector.load(tmp_path / "copy.h5").predict_proba(raw), made.predict_proba(raw)
    )


@pytest.mark.parametrize("family", ["flat", "cell"])
def test_either_of_the_two_names_of_an_array_is_enough(tmp_path, family):
    net = InterpretDLNet()
    state = {k: v for k, v in net.state_dict().items() if "cell" not in k or family == "cell"}
    state = {k: v for k, v in state.items() if "_l" not in k or family == "flat"}
    assert len(state) == 10
    paddle.save(state, str(tmp_path / "half.pdparams"))
    raw, _ = synthetic(20, 5, 0)
    wanted = net(paddle.to_tensor(raw[:, :, :1])).numpy()[:, 1]
    np.testing.assert_allclose(
        NoiseDetector.load_interpretdl(tmp_path / "half.pdparams").predict_proba(raw), wanted, atol=1e-6
    )


class Harmful:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Harmful(os.system, ("touch harmed",)), r"asks for posix.system"),
        ({"lstm.weight_ih_l0": Harmful(eval, ("1",))}, r"asks for builtins.eval"),
        (Harmful(np.load, ("x",)), r"asks for numpy.load"),
        ({"a": np.array([object()])}, r"asks for builtins.object|dtype 'O8' are refused"),
        ({"a": np.zeros(3, np.int64)}, r"dtype 'i8' are refused"),
        ([1, 2], r"holds a list, wanted a dictionary"),
        ({}, r"wanted an LSTM and one linear layer"),
        ({"lstm.weight_ih_l0": np.zeros((8, 1), np.float32)}, r"wanted an LSTM and one linear layer"),
        ({"c.weight": np.zeros((4, 2)), "c.bias": np.zeros(2)}, r"wanted an LSTM, got"),
    ],
)
def test_anything_but_weights_is_refused_and_not_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(DetectorError, match=rf"weights\.pdparams': .*(?:{message})"):
        NoiseDetector.load_interpretdl(path)
    assert os.listdir(tmp_path) == ["weights.pdparams"]


def test_networks_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "weights.pdparams"
    for net, message in (
        (InterpretDLNet(3), "reads 3 channels; known are 1"),
        (InterpretDLNet(outputs=3), "one linear layer with two outputs"),
        (paddle.nn.Linear(2, 2), "wanted an LSTM"),
    ):
        paddle.save(net.state_dict(), str(path))
        with pytest.raises(DetectorError, match=message):
            NoiseDetector.load_interpretdl(path)
    state = InterpretDLNet().state_dict()
    paddle.save({k: v for k, v in state.items() if "bias_hh" not in k}, str(path))
    with pytest.raises(DetectorError, match=r"wanted .*bias_hh_l0"):
        NoiseDetector.load_interpretdl(path)
    paddle.save({k: v * NAN for k, v in state.items()}, str(path))
    with pytest.raises(DetectorError, match="not finite"):
        NoiseDetector.load_interpretdl(path)


def test_torn_and_foreign_pickles_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pdparams"
    paddle.save(InterpretDLNet().state_dict(), str(path))
    whole = path.read_bytes()
    for content in (whole[:-100], b"", b"\x80\x04garbage", b"\x80\x04\x8c\x01aQ."):
        path.write_bytes(content)
        with pytest.raises(DetectorError, match=r"weights\.pdparams': "):
            NoiseDetector.load_interpretdl(path)
    path.write_bytes(whole.replace(b"latin1", b"rot_13"))
    paddle.save(InterpretDLNet().state_dict(), str(path), protocol=2)
    path.write_bytes(path.read_bytes().replace(b"latin1", b"rot_13"))
    with pytest.raises(DetectorError, match="encoding 'rot_13' is refused"):
        NoiseDetector.load_interpretdl(path)
    monkeypatch.setattr("paddle_td_callback.detection.lstm.interpretdl_weights.MAX_BYTES", 10)
    with pytest.raises(DetectorError, match="a detector has at most 10"):
        NoiseDetector.load_interpretdl(path)


def bomb(levels):
    """A dictionary whose only key is a tuple of 2^levels nested tuples."""
    doubled = b"".join(
        b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) + b"0" for k in range(levels)
    )
    return b"\x80\x04\x8c\x01aq\x000" + doubled + b"}(h" + bytes([levels]) + b"\x8c\x01bu."


def nested(levels, end):
    return bomb(levels).partition(b"}(")[0] + b"h" + bytes([levels]) + end


def many_copies():
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\x000"
    call = b"c_codecs\nencode\nq\x010" + b"X\x06\0\0\0latin1q\x020"
    return b"\x80\x02" + text + call + b"h\x01h\x00h\x02\x86R" * 100_000 + b"."


def array_copies():
    data = b"B" + (1 << 20).to_bytes(4, "little") + b"\0" * (1 << 20) + b"q\x000"
    make = b"cnumpy.core.multiarray\n_reconstruct\n)Rq\x010cnumpy\ndtype\n\x8c\x02f4\x85Rq\x020"
    state = b"(K\x01J\0\0\x04\0\x85h\x02\x89h\x00tq\x030"
    return b"\x80\x04" + data + make + state + b"h\x01h\x03b0" * 100_000 + b"h\x01."


@pytest.mark.parametrize(
    "content",
    [
        bomb(60),
        nested(60, b"h<\x93."),  # the name of a function
        b"\x80\x04cnumpy\ndtype\n" + nested(60, b"\x85R.")[2:],  # the name of a type
        nested(60, b"."),  # the result
        many_copies(),
        array_copies(),
        b"\x80\x04" + b"]" * 100_000 + b".",
        b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x04\x8e" + (2**63).to_bytes(8, "little") + b"x.",
        b"\x80\x04\x8a\xff" + b"\xff" * 255 + b".",
        b"\x80\x04}" + b"2" * 1000 + b".",
    ],
    ids=[
        "key",
        "name",
        "type",
        "result",
        "texts",
        "arrays",
        "lists",
        "tuples",
        "length",
        "number",
        "operation",
    ],
)
def test_a_hostile_pickle_takes_neither_time_nor_memory(tmp_path, content):
    path = tmp_path / "weights.pdparams"
    path.write_bytes(content)
    code = f"""
import resource
from paddle_td_callback.detection.lstm.weights_pickle import read_arrays
data = open({str(path)!r}, "rb").read()
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_arrays(data)
    print("read")
except Exception as error:
    print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kind, mebibytes = done.stdout.split()
    assert kind == "DetectorError"
    assert int(mebibytes) < 64


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
FLOATS = b"cnumpy\ndtype\n\x8c\x02f4\x85R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"NNt.", "an operation lacks its mark"),
        (b"NNb.", "a state for something that has none"),
        (b"cnumpy\nndarray\n)R.", "it calls numpy.ndarray, which weights do not need; refused"),
        (FLOATS + b"(K\x03\x8c\x01xtb.", "byte order 'x' is refused"),
        (ARRAY + b"(K\x01K\x01\x85" + FLOATS + b"\x89Ntb.", "an array without its bytes"),
        (ARRAY + b"(K\x01N" + FLOATS + b"\x89C\x04\0\0\0\0tb.", "an array whose shape is none"),
        (
            ARRAY + b"(K\x01(" + b"K\x01" * 9 + b"t" + FLOATS + b"\x89C\x04\0\0\0\0tb.",
            "an array whose shape is none",
        ),
    ],
)
def test_what_no_writer_of_weights_writes_is_refused(content, message):
    with pytest.raises(DetectorError, match=message):
        weights_pickle.read_arrays(b"\x80\x04" + content)


def test_an_ordered_dictionary_is_a_dictionary():
    weights = collections.OrderedDict(a=np.arange(3, dtype=np.float32))
    np.testing.assert_array_equal(
        weights_pickle.read_arrays(pickle.dumps(weights, protocol=4))["a"], [0, 1, 2]
    )


def test_a_network_of_no_size_is_refused(tmp_path):
    empty = {f"lstm.{name}_l0": np.zeros(0, np.float32) for name in ("bias_ih", "bias_hh")}
    empty |= {
        "lstm.weight_ih_l0": np.zeros((0, 1), np.float32),
        "lstm.weight_hh_l0": np.zeros((0, 0), np.float32),
    }
    empty |= {"classifier.weight": np.zeros((0, 2), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    path = tmp_path / "empty.pdparams"
    path.write_bytes(pickle.dumps(empty, protocol=4))
    with pytest.raises(DetectorError, match=r"empty\.pdparams': hidden_size must be"):
        NoiseDetector.load_interpretdl(path)


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_mutated_pickles_raise_our_own_error_or_none(content, place):
    whole = pickle.dumps({"a.weight_ih_l0": np.zeros((4, 1), np.float32), "name": ("b", 1)}, protocol=4)
    for data in (b"\x80\x04" + content, whole[:place] + content + whole[place:], whole[:place] + content):
        with contextlib.suppress(DetectorError):
            weights_pickle.read_arrays(data)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ("given", "nonsense")}, "channels must be names of given, .*got 'nonsense'"),
        ({"channels": ("confidence",)}, "channels must be names of"),
        ({"channels": ("given_rank",)}, "got 'given_rank'"),
        ({"channels": ()}, "at least one name"),
        ({"channels": "given"}, "channels must be a list or tuple of names"),
        ({"n_steps": 0}, "n_steps must be a whole number from 1 to 10000, got 0"),
        ({"n_steps": 2.5}, "n_steps must be a whole number"),
        ({"hidden_size": -1}, "hidden_size must be"),
        ({"n_layers": True}, "n_layers must be"),
        ({"mix_sizes": 8}, "mix_sizes must be a sequence of whole numbers, got 8"),
        ({"mix_sizes": (0,)}, "mix_sizes must be a whole number"),
        ({"n_members": 65}, "n_members must be a whole number from 1 to 64, got 65"),
    ],
)
def test_wrong_architectures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseDetector(**arguments)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 4)), r"trajectories must be floats \[sample, epoch, 3\] .* got float64 \(3, 4\)"),
        (np.zeros((3, 4, 2)), r"got float64 \(3, 4, 2\)"),
        (np.zeros((3, 0, 3)), "at least one epoch"),
        (np.zeros((3, 4, 3), int), r"got int64"),
        (np.full((3, 4, 3), -0.1), r"must lie in \[0, 1\] or be NaN, got -0.1 to 0"),
        (np.full((3, 4, 3), np.inf), r"got 0.0 to inf"),
    ],
)
def test_wrong_trajectories_are_refused(raw, message):
    made, _, _ = small()
    for call in (made.predict_proba, lambda raw: made.fit(raw, np.array([0, 1, 0]))):
        with pytest.raises(ValueError, match=message):
            call(raw)


def test_wrong_labels_are_refused():
    made, raw, wrong = small()
    for call in (made.fit, made.calibrate):
        with pytest.raises(
            ValueError, match=r"recording 0: is_mislabeled must be 0 or 1 for each of 200 samples"
        ):
            call(raw, wrong[:5])
        with pytest.raises(ValueError, match=r"recording 1: is_mislabeled must be 0 or 1"):
            call([raw, raw], [wrong, wrong + 0.5])
        with pytest.raises(ValueError, match="got 2 recordings and 1 arrays"):
            call([raw, raw], [wrong])
        with pytest.raises(ValueError, match="got 0 recordings"):
            call([], [])
        with pytest.raises(ValueError, match=r"marks 0 of 200 seen samples: .*needs both"):
            call(raw, np.zeros(200))
        with pytest.raises(ValueError, match=r"marks 0 of 0 seen samples"):
            call(np.full_like(raw, NAN), wrong)


def test_augmentations_that_are_none_are_refused():
    for name, bad in {"truncate": 2, "subsample": -0.1, "missing": NAN, "jitter": NAN}.items():
        with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, (1\]|inf\)), got {bad}"):
            Augmentation(**{name: bad})


def test_a_recording_of_no_samples_teaches_nothing_and_is_no_error():
    _, raw, wrong = small()
    table = feature_table_of_trajectories(raw)

    def trained(raws, wrongs, tables):
        made = NoiseDetector(("given",), 4, 4, 1, dataset_features=("confidence",))
        return made.fit(
            raws, wrongs, dataset_features=tables, epochs=9, learning_rate=0.02, batch_size=64, progress=False
        )

    made = trained([raw, raw[:0]], [wrong, wrong[:0]], [table, feature_table_of_trajectories(raw[:0])])
    np.testing.assert_array_equal(
        made.predict_proba(raw, dataset_features=table),
        trained([raw], [wrong], [table]).predict_proba(raw, dataset_features=table),
    )
    assert made.predict_proba(raw[:0], dataset_features=table[:0]).shape == (0,)
    made.calibrate([raw, raw[:0]], [wrong, wrong[:0]], dataset_features=[table, table[:0]])
    shipped = NoiseDetector.pretrained()
    assert shipped.predict_proba(raw[:0], dataset_features=feature_table_of_trajectories(raw[:0])).shape == (
        0,
    )
    for call in (made.fit, made.calibrate):
        with pytest.raises(ValueError, match="marks 0 of 0 seen samples"):
            call([raw[:0]], [wrong[:0]], dataset_features=[table[:0]])


def test_wrong_options_are_refused():
    made, raw, wrong = small()
    with pytest.raises(TypeError, match=r"augment must be an Augmentation or None, got float"):
        made.fit(raw, wrong, augment=0.5)
    with pytest.raises(TypeError, match="first_stage must be a trained NoiseDetector or None, got str"):
        NoiseDetector(first_stage="x")
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        made.fit(raw, wrong, epochs=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        made.fit(raw, wrong, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        made.predict_proba(raw, batch_size=0)
    for name, bad in {
        "learning_rate": (NAN, 0, -1, np.inf, "fast", None, True),
        "weight_decay": (NAN, -1, np.inf),
        "dropout": (1, NAN, -0.1),
        "balance": (2, NAN),
        "ranking": (NAN, np.inf, -1),
    }.items():
        for value in bad:
            with pytest.raises(ValueError, match=rf"{name} must be a number in [\[(]0, (1|inf)[\])], got "):
                made.fit(raw, wrong, **{name: value})
    made.fit(raw, wrong, epochs=1, learning_rate=1, weight_decay=0, ranking=np.float32(0), progress=False)


def test_samples_of_weight_zero_teach_nothing():
    _, raw, wrong = small()
    more, rows = np.concatenate([raw, raw[:50]]), np.r_[np.ones(len(raw)), np.zeros(50)]
    turned = np.concatenate([wrong, ~wrong[:50]])
    one = NoiseDetector(("given",), 4, 8, 1).fit(raw, wrong, epochs=20, progress=False)
    two = NoiseDetector(("given",), 4, 8, 1).fit(more, turned, sample_weight=rows, epochs=20, progress=False)
    three = NoiseDetector(("given",), 4, 8, 1).fit(more, turned, epochs=20, progress=False)
    for_sure = np.abs(np.stack([made.predict_proba(raw) for made in (two, three)]) - one.predict_proba(raw))
    assert for_sure[0].mean() < for_sure[1].mean()


@pytest.mark.parametrize("weight", [np.ones(3), np.full(120, -1.0), np.full(120, np.nan), [np.ones(120)] * 2])
def test_wrong_weights_are_refused(weight):
    _, raw, wrong = small()
    with pytest.raises(ValueError, match="sample_weight must be finite numbers of at least 0 for recordings"):
        NoiseDetector().fit(raw[:120], wrong[:120], sample_weight=weight)


def test_without_weights_there_is_nothing_to_predict_or_save(tmp_path):
    made = NoiseDetector()
    raw, wrong = synthetic(5, 4, 0)
    for call in (
        lambda: made.predict_proba(raw),
        lambda: made.calibrate(raw, wrong),
        lambda: made.save(tmp_path / "x.h5"),
    ):
        with pytest.raises(DetectorError, match="no weights yet; call fit"):
            call()
    assert "without weights" in repr(made)
    assert not os.listdir(tmp_path)
