"""float32 to float16 without the slow path of NumPy's cast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_EXPONENT = 0x7F800000  # of a float32
_TOO_LARGE = 0x47800000  # the bits of 65536.0; those of negative numbers, infinities and NaN are larger too
# The smallest normal float16 is 2**-14. Where a number has the exponent e, numbers from 2**(e + 13) on have the
# precision that float16 has at that number; below 2**-14 float16's precision stays that of 2**-14.
_RAISE = 13 << 23
_LEAST = 0x3F000000 - _RAISE  # 0.5 = 2**(-14 + 13), before it is raised
# Of an exponent E the float16 code has (E - 113) << 10. These 2048 make up for what the sums below have too many,
# modulo 2**16; being even, they change no rounding of ties.
_CORRECTION = 2048


def to_float16(values: npt.NDArray[np.float32], out: npt.NDArray[np.float16]) -> None:
    """Round to float16, to the same bits as `values.astype(np.float16)`.

    NumPy takes some 60 ns where the result is subnormal, which is what most probabilities of a network that has
    learned are. Adding a power of two rounds a number to that sum's precision, ties to even, so the float16 is in
    the last bits of the sum.

    Args:
        values: contiguous float32. Negative, infinite, NaN or above 65504, they take NumPy's way.
        out: contiguous float16 of the same shape.
    """
    bits = values.view(np.uint32)
    if values.size == 0 or bits.max() >= _TOO_LARGE:
        with np.errstate(over="ignore"):
            out[...] = values
        return
    power = np.bitwise_and(values.view(np.int32), _EXPONENT)
    np.maximum(power, _LEAST, out=power)
    power += _RAISE + _CORRECTION
    rounded = (values + power.view(np.float32)).view(np.int32)
    power >>= 13
    rounded += power
    np.copyto(out.view(np.uint16), rounded, casting="unsafe")  # their last 16 bits
