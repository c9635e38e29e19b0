"""float32 to float16, to the same bits as NumPy's cast."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddle_td_callback.recording import float16
from paddle_td_callback.recording.float16 import to_float16


def assert_same_bits(values: np.ndarray) -> None:
    """Together, where one number may send all of them NumPy's way, and without the numbers that do."""
    quick = values[(values.view(np.uint32) < float16._TOO_LARGE)]
    for some in (values, quick):
        out = to_float16(some)
        with np.errstate(over="ignore"):
            wanted = some.astype(np.float16)
        np.testing.assert_array_equal(out.view(np.uint16), wanted.view(np.uint16))


def test_every_float16_and_its_neighbours_of_rounding() -> None:
    """All 65,536 codes, the middles between them, and the float32 numbers next to both."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)  # exact
    overflow = np.float32([65519.996, 65520, 65520.004, 65535.996, 65536, 2.0**17, np.inf, -np.inf])
    exact = np.concatenate([halves, middles, overflow, -overflow])
    bits = exact.view(np.uint32)
    around = np.concatenate([(bits + np.uint32(step % 2**32)).view(np.float32) for step in (-2, -1, 0, 1, 2)])
    assert_same_bits(around)


def test_float32_s_own_subnormals_and_extremes() -> None:
    bits = np.uint32(
        [0, 1, 2, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    )
    assert_same_bits(np.concatenate([bits, bits | 0x80000000]).view(np.float32))


@pytest.mark.parametrize("n_large", [0, 3, 2000])
def test_few_large_numbers_among_small_ones(n_large: int) -> None:
    """Which take another way than many."""
    rng = np.random.default_rng(0)
    halves = np.arange(0x0800, dtype=np.uint16).view(np.float16).astype(np.float32)  # below 2**-13
    middles = halves + np.float32(2**-25)
    bits = np.concatenate([halves, middles]).view(np.uint32)
    small = np.concatenate([(bits[1:] + np.uint32(step % 2**32)).view(np.float32) for step in (-1, 0, 1)])
    large = rng.uniform(2**-13, 1, n_large).astype(np.float32)
    assert_same_bits(rng.permutation(np.concatenate([small, small, small, large])))


@settings(max_examples=200, deadline=None)
@given(arrays(np.uint32, st.integers(0, 50), elements=st.integers(0, 2**32 - 1)))
def test_any_bits(bits: np.ndarray) -> None:
    assert_same_bits(bits.view(np.float32))


@pytest.mark.parametrize("scale", [1, 10, 100])
def test_probabilities(scale: float) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32) * scale
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert_same_bits(powers / powers.sum(axis=1, keepdims=True))
