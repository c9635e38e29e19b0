"""Names of samples and classes: a list in a known order, whatever they were given as."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Set
from typing import Any


def in_order(values: Any, argument: str) -> list[Any]:
    """Values as a list, in the order of their indices.

    Args:
        values: a list, a tuple, an array or a column; or a mapping from index to value, `{0: "cat", 1: "dog"}`.
        argument: its name, for the messages.

    Raises:
        TypeError: it has no order of its own: a set, a mapping from name to index, a generator, a string.
        ValueError: a mapping whose keys are not 0, 1, 2, ...
    """
    if isinstance(values, Mapping):
        return _by_index(values, argument)
    no_list = isinstance(values, (str, bytes, Set, Iterator))
    if no_list or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise TypeError(
            f"{argument} must be a list in the order of the indices, or a mapping from index to name, got a "
            f"{type(values).__name__}; pass {argument}=[...]"
        )
    # A column of a data frame is indexed by its own keys, so it is iterated, and an array gives Python's numbers.
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _by_index(values: Mapping[Any, Any], argument: str) -> list[Any]:
    try:
        named = {operator.index(key): value for key, value in values.items()}
    except TypeError:
        odd = next(key for key in values if not hasattr(key, "__index__"))
        raise TypeError(
            f"{argument} as a mapping must go from index to name, such as {{0: 'cat'}}, but has the key {odd!r}; "
            f"from a mapping of names to indices, pass {argument}=sorted(mapping, key=mapping.get)"
        ) from None
    missing = next((i for i in range(len(named)) if i not in named), None)
    if missing is not None:
        raise ValueError(
            f"{argument} as a mapping must have the keys 0 to {len(named) - 1}, but {missing} is missing; give every "
            "index a name"
        )
    return [named[i] for i in range(len(named))]
