"""Checks of arguments that a recorder and a callback share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..store.schema import is_whole


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless `on_error` is "warn" or "raise"."""
    if on_error not in ("warn", "raise"):
        raise ValueError(f"on_error must be 'warn' or 'raise', got {on_error!r}")


def check_resume(resume: bool | int) -> None:
    """Raise ValueError unless `resume` is True, False or a number of epochs to keep."""
    if not isinstance(resume, (bool, np.bool_)) and (not is_whole(resume) or resume < 1):
        raise ValueError(
            f"resume must be True, False or the number of epochs to keep, at least 1, got {resume!r}; to begin anew, "
            "give overwrite=True"
        )


def gzip_level_of(compression: str | None) -> int | None:
    """The gzip level that a `compression=` argument means.

    Raises:
        ValueError: neither "gzip" nor None.
    """
    if compression not in (None, "gzip"):
        raise ValueError(f"compression must be 'gzip' or None, got {compression!r}")
    return 1 if compression == "gzip" else None


def ordered_names(names: Any, argument: str, n_names: int | None = None) -> list[str] | None:
    """Names in the order of their indices.

    Args:
        names: a list or another sequence, an array `[name]`, a mapping from index to name, or None.
        argument: what the caller calls them, for messages: "class_names" or "sample_ids".
        n_names: how many there must be, None = any number.

    Raises:
        TypeError: they have no order (a set, a mapping from names) or can be read but once (a generator).
        ValueError: there are not `n_names`, or the indices of a mapping are not 0, 1, 2, ...
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        listed = _listed(names, argument)
    elif isinstance(names, (str, bytes)) or not (isinstance(names, Sequence) or hasattr(names, "__array__")):
        raise TypeError(
            f"{argument} must be a list in the order of the indices, or a mapping from index to name, got "
            f"{_described(names)}; pass {argument}=list(...) of what has that order"
        )
    else:
        listed = list(np.asarray(names)) if hasattr(names, "__array__") else list(names)
        if any(isinstance(name, np.ndarray) for name in listed[:1]):
            raise ValueError(
                f"{argument} must have one axis, got an array {np.shape(names)}; pass {argument}[:, 0]"
            )
    if n_names is not None and len(listed) != n_names:
        raise ValueError(f"{argument} must have {n_names} names, got {len(listed)}; give one for each index")
    return [name_of(name) for name in listed]


def name_of(one: Any) -> str:
    """A name as text."""
    return one.decode(errors="replace") if isinstance(one, bytes) else str(one)


def _listed(names: Mapping[Any, Any], argument: str) -> list[Any]:
    if all(is_whole(key) for key in names):
        if sorted(names) != list(range(len(names))):
            raise ValueError(
                f"{argument}: the indices of the mapping must be 0 to {len(names) - 1}, got {sorted(names)[:5]}; "
                f"pass {argument}= with one name for each index"
            )
        return [names[index] for index in range(len(names))]
    raise TypeError(
        f"{argument} is a mapping from names, {_described(names)}; pass it by index: "
        f"{argument}=sorted(names, key=names.get)"
    )


def _described(names: Any) -> str:
    return f"{type(names).__name__} {str(names)[:60]!r}"
