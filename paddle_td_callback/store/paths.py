"""What is refused before the first epoch: a path that cannot be written, a disk that is too small."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from ..errors import StoreError, StoreExistsError, StoreNotFoundError
from .schema import Layout

_USUAL_GZIP_RATIO = 3  # measured on trained networks' probabilities: 1.2 to 3


def check_path(path: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False) -> str:
    """Refuse early what could not be written at the end of the first epoch.

    Returns:
        The path as a string.

    Raises:
        ValueError: both `resume` and `overwrite`.
        StoreExistsError: there is a file, and neither was said.
        StoreNotFoundError: the folder is missing.
        StoreError: the folder may not be written, or the path is a folder.
    """
    name = os.fspath(path)
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True contradict each other")
    if os.path.isdir(name):
        raise StoreError(f"'{name}' is a folder; give the path of a file in it, such as 'run.h5'")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise StoreNotFoundError(f"'{name}': there is no folder '{folder}'; create it first")
    if os.path.exists(name):
        if not (resume or overwrite):
            raise StoreExistsError(
                f"'{name}' exists already; resume=True continues it, overwrite=True replaces it, "
                "or give another path"
            )
        if resume and not os.access(name, os.W_OK):
            raise StoreError(f"'{name}' may not be written; resume needs write permission on it")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"'{name}': the folder '{folder}' may not be written; give a path in another folder")
    return name


def check_space(
    path: str | os.PathLike[str], layout: Layout, n_epochs: int, *, buffer_bytes: int = 0
) -> None:
    """Refuse a recording that cannot fit on the disk.

    Args:
        path: where it goes; what lies there counts as room, since it is continued or replaced.
        layout: of the recording.
        n_epochs: epochs to come.
        buffer_bytes: what else is needed beside it.

    Raises:
        StoreError: it cannot fit; the message names the `keep=` that would.
    """
    name = os.fspath(path)
    try:
        free = shutil.disk_usage(os.path.dirname(name) or ".").free
    except OSError:
        return  # the first commit will say it
    needed = expected_bytes(layout, n_epochs) + buffer_bytes
    if needed <= free:
        return
    one, two = (expected_bytes(replace(layout, keep=k), n_epochs) for k in (1, 2))
    k = min(1 + (free - one) // (two - one), layout.n_classes)
    while k >= 1 and expected_bytes(replace(layout, keep=k), n_epochs) > free:
        k -= 1  # but for rounding, not even once
    if k >= 1:
        way_out = f"keep={k} fits"
    elif expected_bytes(replace(layout, keep="given"), n_epochs) <= free:
        way_out = "keep='given' fits"
    else:
        way_out = "no keep= fits"
    raise StoreError(
        f"'{name}': {n_epochs} epochs of {layout.n_samples} samples with keep={layout.keep!r} need about "
        f"{_giga(needed)}, the disk has {_giga(free)} free; {way_out}, or give a path on a larger disk"
    )


def expected_bytes(layout: Layout, n_epochs: int) -> int:
    """About the size of the file; with compression the least that is likely."""
    ratio = _USUAL_GZIP_RATIO if layout.gzip_level else 1
    fixed = 1 << 20  # user block, labels' first chunks, metadata
    return fixed + 4 * layout.n_samples + int(n_epochs * layout.epoch_bytes * 1.01 / ratio)


def _giga(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
