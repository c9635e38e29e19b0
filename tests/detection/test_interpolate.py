import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paddle_td_callback.detection import interpolate
from paddle_td_callback.detection.interpolate import fill_missed_epochs, resample, resampling_table

NAN = np.nan
FLOATS = (np.float16, np.float32, np.float64)


# Hand-worked numbers


def test_each_class_is_filled_by_itself():
    filled = fill_missed_epochs([[[0.7, 0.2, 0.1], [NAN, NAN, NAN], [0.5, 0.3, 0.2]]])
    np.testing.assert_allclose(filled[0, 1], [0.6, 0.25, 0.15], rtol=1e-6)


def test_gaps_are_linear_and_ends_are_held():
    filled = fill_missed_epochs([[NAN, NAN, 1, NAN, NAN, 4, NAN, 2, NAN]])
    assert filled.tolist() == [[1, 1, 1, 2, 3, 4, 3, 2, 2]]


def test_a_sample_never_seen_stays_nan_and_leaves_the_others_alone():
    filled = fill_missed_epochs([[NAN, NAN, NAN], [0, NAN, 1], [5, 6, 7]])
    np.testing.assert_array_equal(filled, [[NAN, NAN, NAN], [0, 0.5, 1], [5, 6, 7]])


def test_a_channel_never_seen_stays_nan_beside_one_that_was():
    filled = fill_missed_epochs([[[1, NAN], [NAN, NAN], [3, NAN]]])
    np.testing.assert_array_equal(filled, [[[1, NAN], [2, NAN], [3, NAN]]])


def test_resample_keeps_both_ends_and_is_linear_between():
    assert resample([[0.0, 1.0, 4.0]], 5).tolist() == [[0, 0.5, 1, 2.5, 4]]
    assert resample([[0.0, 1.0, 2.0, 3.0, 10.0]], 2).tolist() == [[0, 10]]
    assert resample([[0.0, 1.0, 2.0, 3.0, 10.0]], 3).tolist() == [[0, 2, 10]]


def test_resample_one_epoch_is_constant_and_one_step_is_the_first_epoch():
    assert resample([[3.0], [4.0]], 3).tolist() == [[3, 3, 3], [4, 4, 4]]
    assert resample([[3.0, 5.0]], 1).tolist() == [[3]]
    assert resample([[3.0]], 1).tolist() == [[3]]


def test_resample_spreads_nan_to_neighbours_only():
    np.testing.assert_array_equal(resample([[0.0, NAN, 2.0]], 5), [[0, NAN, NAN, NAN, 2]])
    np.testing.assert_array_equal(resample([[0.0, 1.0, NAN]], 5), [[0, 0.5, 1, NAN, NAN]])


def test_table_says_where_each_step_lies():
    left, right, weight = resampling_table(3, 5)
    assert left.tolist() == [0, 0, 1, 1, 2]
    assert right.tolist() == [0, 1, 1, 2, 2]
    assert weight.tolist() == [0, 0.5, 0, 0.5, 0]


# Against naive loops


def naive_fill(values):
    filled = np.full(values.shape, NAN, np.float32)
    epochs = np.arange(values.shape[1])
    for sample in range(values.shape[0]):
        for channel in np.ndindex(values.shape[2:]):
            row = values[(sample, slice(None), *channel)].astype(np.float64)
            seen = ~np.isnan(row)
            if seen.any():
                filled[(sample, slice(None), *channel)] = np.interp(epochs, epochs[seen], row[seen])
    return filled


def naive_resample(values, n_steps):
    n_epochs = values.shape[1]
    resampled = np.empty((values.shape[0], n_steps, *values.shape[2:]), np.float32)
    for sample in range(values.shape[0]):
        for channel in np.ndindex(values.shape[2:]):
            row = values[(sample, slice(None), *channel)].astype(np.float64)
            resampled[(sample, slice(None), *channel)] = np.interp(
                np.linspace(0, n_epochs - 1, n_steps), np.arange(n_epochs), row
            )
    return resampled


@st.composite
def trajectories(draw, unseen=True):
    shape = draw(
        st.tuples(st.integers(0, 5), st.integers(1, 9))
        | st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(0, 3))
        | st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 2), st.integers(1, 2))
    )
    numbers = st.floats(-1000, 1000, width=16)
    values = draw(hnp.arrays(np.float64, shape, elements=numbers | st.just(NAN) if unseen else numbers))
    values = values.astype(draw(st.sampled_from(FLOATS)))
    return np.asfortranarray(values) if draw(st.booleans()) else values


@given(trajectories())
def test_fill_agrees_with_the_naive_loop(values):
    before = values.copy()
    filled = fill_missed_epochs(values)
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled, naive_fill(values), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(values, before)  # the input is not written to
    seen = ~np.isnan(values)
    np.testing.assert_array_equal(filled[seen], values[seen].astype(np.float32))


@pytest.mark.parametrize("entries", [1, 50])
def test_fill_does_not_depend_on_its_blocks(entries, monkeypatch):
    random = np.random.default_rng(0)
    values = random.random((40, 8, 3))
    values[random.random((40, 8)) < 0.2] = NAN
    whole = fill_missed_epochs(values)
    monkeypatch.setattr(interpolate, "_BLOCK_ENTRIES", entries)
    np.testing.assert_array_equal(fill_missed_epochs(values), whole)


@given(trajectories())
def test_filled_values_stay_between_what_was_seen_and_filling_again_changes_nothing(values):
    filled = fill_missed_epochs(values)
    np.testing.assert_array_equal(fill_missed_epochs(filled), filled)
    low = np.fmin.reduce(values.astype(np.float32), axis=1)
    high = np.fmax.reduce(values.astype(np.float32), axis=1)
    ever = ~np.isnan(low)
    assert ((filled >= low[:, None]) & (filled <= high[:, None]) | ~ever[:, None]).all()


@given(trajectories(unseen=False), st.integers(1, 20))
def test_resample_agrees_with_the_naive_loop(values, n_steps):
    resampled = resample(values, n_steps)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, naive_resample(values, n_steps), rtol=1e-6, atol=1e-4)


@given(trajectories())
def test_resample_to_the_same_length_is_the_identity_bit_for_bit(values):
    resampled = resample(values, values.shape[1])
    assert resampled.tobytes() == values.astype(np.float32).tobytes()


@given(st.integers(1, 60), st.integers(1, 60))
def test_table_runs_from_the_first_to_the_last_epoch(n_epochs, n_steps):
    left, right, weight = resampling_table(n_epochs, n_steps)
    np.testing.assert_allclose(left + weight, np.linspace(0, n_epochs - 1, n_steps), atol=1e-12)
    assert ((right == left) == (weight == 0)).all()
    assert left[0] == 0
    assert right.max() <= n_epochs - 1
    if n_steps > 1:
        assert left[-1] == n_epochs - 1


def test_identity_keeps_the_sign_of_zero():
    assert np.signbit(resample([[-0.0, 1.0]], 2)[0, 0])


# Errors


@pytest.mark.parametrize("function", [fill_missed_epochs, lambda values: resample(values, 2)])
class TestRefused:
    def test_wrong_rank(self, function):
        with pytest.raises(ValueError, match=r"\[sample, epoch\].*got shape \(3,\)"):
            function(np.zeros(3))

    def test_zero_epochs(self, function):
        with pytest.raises(ValueError, match=r"at least one epoch, got shape \(3, 0\)"):
            function(np.zeros((3, 0)))

    def test_integers(self, function):
        with pytest.raises(TypeError, match="float16, float32 or float64, got int32"):
            function(np.zeros((3, 2), np.int32))

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e300])
    def test_what_float32_cannot_hold(self, function, bad):
        with pytest.raises(ValueError, match=r"finite.*sample 1, epoch 2"):
            function([[0, 0, 0], [NAN, 0, bad]])


@pytest.mark.parametrize("n_steps", [0, -3])
def test_too_few_steps(n_steps):
    with pytest.raises(ValueError, match=f"n_steps must be at least 1, got {n_steps}"):
        resample(np.zeros((1, 2)), n_steps)


def test_steps_that_are_no_whole_number():
    with pytest.raises(TypeError, match=r"n_steps must be a whole number, got 2\.5"):
        resample(np.zeros((1, 2)), 2.5)


def test_table_of_no_epochs():
    with pytest.raises(ValueError, match="n_epochs must be at least 1, got 0"):
        resampling_table(0, 3)
