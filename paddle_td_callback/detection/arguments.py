"""Numbers that users pass to the detector: checked, and refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LIMITS = {"n_steps": 10_000, "hidden_size": 4096, "n_layers": 16, "n_members": 64, "mix_sizes": 4096}


def whole(number: Any, name: str) -> int:
    """A whole number from 1 to the limit of that name.

    Raises:
        ValueError: it is anything else.
    """
    limit = LIMITS.get(name, 2**31)
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number <= limit:
        raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {number!r}")
    return int(number)


def real(
    number: Any, name: str, least: float = 0.0, most: float = math.inf, *, open_at: float = -1.0
) -> float:
    """A finite number in [least, most], but not `open_at`.

    Raises:
        ValueError: it is anything else.
    """
    is_number = isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number) or not least <= number <= most or number == open_at:
        left, right = "(" if open_at == least else "[", ")" if open_at == most or most == math.inf else "]"
        raise ValueError(f"{name} must be a number in {left}{least:g}, {most:g}{right}, got {number!r}")
    return float(number)
