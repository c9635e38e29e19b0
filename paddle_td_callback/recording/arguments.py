"""Checks of arguments that a recorder and a callback share."""

from __future__ import annotations

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
            f"resume must be True, False or the number of epochs to keep, at least 1, got {resume!r}; to start over, "
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
