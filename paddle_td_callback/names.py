"""Names of samples and classes in the order of their indices."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Set
from typing import Any

from .messages import escape


def ordered_names(names: Any, argument: str, n_names: int | None = None) -> list[str] | None:
    """Names in the order of their indices.

    Args:
        names: a list, a tuple, an array `[name]` or a column of a data frame; a mapping from index to name,
            `{0: "cat", 1: "dog"}`; or None.
        argument: what the caller calls them, for messages: "class_names" or "sample_ids".
        n_names: how many there must be, None = any number.

    Raises:
        TypeError: they have no order: a set, a mapping from name to index, a generator, a string; or one is no name.
        ValueError: there are not `n_names`, or the keys of a mapping are not 0, 1, 2, ...
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        listed = _by_index(names, argument)
    elif isinstance(names, (str, bytes, Set, Iterator)) or not (
        hasattr(names, "__len__") and hasattr(names, "__getitem__")
    ):
        raise TypeError(
            f"{argument} must be a list in the order of the indices, or a mapping from index to name, got "
            f"{_described(names)}; pass {argument}=list(...) of names in that order"
        )
    else:
        n_axes = getattr(names, "ndim", 1)
        if n_axes != 1:
            way = "names[:, 0], or the column that holds them" if n_axes else "a list of names"
            raise ValueError(
                f"{argument} must have one axis, got an array of {n_axes} axes; pass {argument}={way}"
            )
        # A column of a data frame is indexed by its own keys, so it is iterated.
        listed = list(names.tolist() if hasattr(names, "tolist") else names)
    for index, name in enumerate(listed):
        if name is None or (hasattr(name, "__len__") and not isinstance(name, (str, bytes))):
            raise TypeError(
                f"{argument} must be one string or number each, got {escape(repr(name), limit=60)} for index {index}; "
                f"pass {argument}=[str(name) for name in names], or what names them"
            )
    if n_names is not None and len(listed) != n_names:
        raise ValueError(f"{argument} must have {n_names} names, got {len(listed)}; give one for each index")
    return [name_of(name) for name in listed]


def name_of(name: Any) -> str:
    """A name as text."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _by_index(names: Mapping[Any, Any], argument: str) -> list[Any]:
    try:
        named = {operator.index(key): name for key, name in names.items()}
    except TypeError:
        # JSON knows no keys but texts.
        is_json = all(str(key).removesuffix(".0").isdecimal() for key in names)
        way = "{int(key): name for key, name in names.items()}" if is_json else "sorted(names, key=names.get)"
        raise TypeError(
            f"{argument} is a mapping from names, {_described(names)}, wanted one from indices; pass "
            f"{argument}={way}"
        ) from None
    if sorted(named) != list(range(len(named))):
        raise ValueError(
            f"{argument}: the indices of the mapping must be 0 to {len(named) - 1}, got {sorted(named)[:5]}; "
            f"pass {argument}= with one name for each index"
        )
    return [named[index] for index in range(len(named))]


def _described(names: Any) -> str:
    return f"{type(names).__name__} {str(names)[:60]!r}"
