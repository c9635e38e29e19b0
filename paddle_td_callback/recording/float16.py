"""float32 to float16 without the slow path of NumPy's cast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_EXPONENT = 0x7F800000  # of a float32
_TOO_LARGE = 0x47800000  # the bits of 65536.0; those of negative numbers, infinities and NaN are larger too
# The smallest normal float16 is 2**-14. A float32 sum with 2**(e + 13) is as precise as float16 is at 2**e; below
# 2**-14, float16 stays as precise as it is there.
_RAISE = 13 << 23
# Where a float32 has the exponent E, the float16 begins at (E - 113) << 10. These 2048 make up for what the sums below
# have too many, modulo 2**16; being even, they change no rounding of ties.
_CORRECTION = 2048
# All of a chunk is summed with 2**-1, as below 2**-14, where few numbers are larger; these take NumPy's way.
_HALF, _SMALL, _FEW = np.float32(0.5), np.float32(2**-13), 32
_CHUNK = 1 << 15  # numbers whose temporaries stay in cache
# 0.5 = 2**(-14 + 13), before it is raised. An array, as NumPy takes five times as long for the maximum of a scalar.
_LEAST = np.full(_CHUNK, 0x3F000000 - _RAISE, np.int32)


def to_float16(values: npt.NDArray[np.float32], *, in_unit: bool = False) -> npt.NDArray[np.float16]:
    """Round to float16, to the same bits as `values.astype(np.float16)`.

    NumPy takes some 60 ns where the result is subnormal, which is what most probabilities of a network that has
    learned are. Adding a power of two rounds a number to that sum's precision, ties to even, so the float16 is in
    the last bits of the sum.

    Args:
        values: float32 of any shape. Negative ones, NaN and those of 65536 or more take NumPy's way.
        in_unit: whether they are known to be in [0, 1].
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if not in_unit and flat.size and flat.view(np.uint32).max() >= _TOO_LARGE:
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    halves = np.empty(flat.shape, np.uint16)
    n_chunk = min(_CHUNK, len(flat))
    power, rounded = np.empty(n_chunk, np.int32), np.empty(n_chunk, np.int32)
    for start in range(0, len(flat), _CHUNK):
        chunk, out = flat[start : start + _CHUNK], halves[start : start + _CHUNK]
        power, rounded = power[: len(chunk)], rounded[: len(chunk)]
        is_large = chunk >= _SMALL
        if np.count_nonzero(is_large) * _FEW < len(chunk):
            large = np.flatnonzero(is_large)  # slow where there are many
            np.add(chunk, _HALF, out=rounded.view(np.float32))
            out[...] = rounded  # their last 16 bits
            out[large] = chunk[large].astype(np.float16).view(np.uint16)
            continue
        np.bitwise_and(chunk.view(np.int32), _EXPONENT, out=power)
        np.maximum(power, _LEAST[: len(chunk)], out=power)
        power += _RAISE + _CORRECTION
        np.add(chunk, power.view(np.float32), out=rounded.view(np.float32))
        power >>= 13
        rounded += power
        out[...] = rounded
    return halves.view(np.float16).reshape(values.shape)
