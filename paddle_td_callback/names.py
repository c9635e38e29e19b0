"""Names of samples and classes: a list in a known order, whatever they were given as."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def ordered_names(names: Any, argument: str, n_names: int | None = None) -> list[str] | None:
    """Names in the order of their indices.

    Args:
        names: a list or another sequence, an array or a column `[name]`, a mapping from index to name, or None.
        argument: what the caller calls them, for messages: "class_names" or "sample_ids".
        n_names: how many there must be, None = any number.

    Raises:
        TypeError: they have no order (a set, a mapping from names) or can be read but once (a generator).
        ValueError: there are not `n_names`, or the keys of a mapping are not 0, 1, 2, ...
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        listed = _by_index(names, argument)
    elif isinstance(names, (str, bytes)) or not (isinstance(names, Sequence) or hasattr(names, "__array__")):
        raise TypeError(
            f"{argument} must be a list in the order of the indices, or a mapping from index to name, got "
            f"{_described(names)}; pass {argument}=list(...) of what has that order"
        )
    else:
        if hasattr(names, "__array__"):
            names = np.asarray(names)
            if names.ndim != 1:
                raise ValueError(
                    f"{argument} must have one axis, got an array {names.shape}; pass {argument}=names[:, 0], or the "
                    "column that holds them"
                )
        listed = list(names)
    if n_names is not None and len(listed) != n_names:
        raise ValueError(f"{argument} must have {n_names} names, got {len(listed)}; give one for each index")
    return [name_of(name) for name in listed]


def name_of(one: Any) -> str:
    """A name as text."""
    return one.decode(errors="replace") if isinstance(one, bytes) else str(one)


def _by_index(names: Mapping[Any, Any], argument: str) -> list[Any]:
    try:
        named = {operator.index(key): name for key, name in names.items()}
    except TypeError:
        # JSON knows no keys but texts.
        is_json = all(isinstance(key, str) and key.isdecimal() for key in names)
        way = "{int(key): name for key, name in names.items()}" if is_json else "sorted(names, key=names.get)"
        raise TypeError(
            f"{argument} as a mapping must go from index to name, got {_described(names)}; pass {argument}={way}"
        ) from None
    if sorted(named) != list(range(len(named))):
        raise ValueError(
            f"{argument} as a mapping must have the keys 0 to {len(named) - 1}, got {sorted(named)[:5]}; give every "
            "index a name"
        )
    return [named[index] for index in range(len(named))]


def _described(names: Any) -> str:
    return f"{type(names).__name__} {str(names)[:60]!r}"
