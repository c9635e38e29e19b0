"""Paths of what this package writes: resolved once, refused early, and replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from ..errors import StoreError, StoreExistsError, StoreNotFoundError
from .schema import Layout

_USUAL_GZIP_RATIO = 3  # measured on trained networks' probabilities: 1.2 to 3


def resolve_output(
    path: str | os.PathLike[str], *, replace_existing: bool = True, in_place: bool = False
) -> str:
    """Refuse an output path early that could not be written later.

    Args:
        path: as the user gave it; symbolic links are followed.
        replace_existing: whether a file may lie there.
        in_place: whether such a file is written to, not replaced.

    Returns:
        The real path of the file to write.

    Raises:
        StoreExistsError: there is a file, and it may not be replaced.
        StoreNotFoundError: the folder is missing.
        StoreError: the folder may not be written, or what lies there is no regular file.
    """
    name = os.fspath(path)
    if not name:
        raise StoreError("the path is empty; give the path of a file")
    if "\0" in name:
        raise StoreError(f"'{name}' holds a NUL, which no file name may; give another path")
    real = os.path.realpath(name)
    folder = os.path.dirname(real)
    try:
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise StoreError(f"'{name}' cannot be used: {error.strerror}; give another path") from error
    if name.endswith(os.sep) or (mode is not None and stat.S_ISDIR(mode)):
        raise StoreError(f"'{name}' is a folder; give the path of a file in it, such as 'run.h5'")
    if mode is not None and not stat.S_ISREG(mode):
        raise StoreError(f"'{name}' is a device or a pipe; give the path of a regular file")
    if not os.path.isdir(folder):
        raise StoreNotFoundError(f"'{name}': there is no folder '{folder}'; create it first")
    if mode is not None and not replace_existing:
        raise StoreExistsError(f"'{name}' exists already; give another path")
    if in_place and mode is not None:
        if not os.access(real, os.W_OK):
            raise StoreError(f"'{name}' may not be written; get write permission on it, or give another path")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"'{name}': the folder '{folder}' may not be written; give a path in another folder")
    return real


def check_path(path: str | os.PathLike[str], *, resume: Any = False, overwrite: bool = False) -> str:
    """Refuse early a recording that could not be written at the end of the first epoch.

    Args:
        path: of the recording.
        resume: whether an existing recording is continued.
        overwrite: whether an existing file is replaced.

    Returns:
        The path as it was given.

    Raises:
        ValueError: both `resume` and `overwrite`.
        StoreError: see `resolve_output`.
    """
    name = os.fspath(path)
    going_on = resume is not False
    if going_on and overwrite:
        raise ValueError(f"resume={resume!r} and overwrite=True contradict each other; give one of them")
    try:
        resolve_output(name, replace_existing=going_on or overwrite, in_place=going_on)
    except StoreExistsError as error:
        raise StoreExistsError(
            f"'{name}' exists already; resume=True continues it, overwrite=True replaces it, or give another path"
        ) from error
    return name


def make_beside(real: str) -> str:
    """Make a new file in the folder of another, under a name that cannot be guessed.

    Args:
        real: the path of the other file, symbolic links resolved; it need not exist.

    Returns:
        The new, empty file's path; it has the other file's mode where that exists.

    Raises:
        OSError: the folder cannot be written.
    """
    folder, name = os.path.split(real)
    fresh = os.path.join(folder, f".{name[:20]}.{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(fresh, flags | getattr(os, "O_CLOEXEC", 0), 0o666))
    with contextlib.suppress(OSError):
        os.chmod(fresh, stat.S_IMODE(os.stat(real).st_mode))
    return fresh


def move_into_place(fresh: str, real: str, *, overwrite: bool) -> None:
    """Give a file its name, durably.

    Raises:
        FileExistsError: without `overwrite`, another process has made a file there.
    """
    if overwrite:
        os.replace(fresh, real)
    else:
        try:
            os.link(fresh, real)  # unlike a rename, fails if a file is there by now
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.exists(real):
                raise FileExistsError(f"'{real}' exists already") from None
            os.rename(fresh, real)
        else:
            os.unlink(fresh)
    if os.name == "posix":
        folder = os.open(os.path.dirname(real), os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system that cannot sync folders
                os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file as a whole: it is there when the block ends, or the old one still is.

    Args:
        path: of the file; a symbolic link stays and the file behind it is replaced, with the mode that it has.

    Yields:
        A binary file to write to.

    Raises:
        StoreError: see `resolve_output`.
        OSError: the disk refused.
    """
    real = resolve_output(path)
    fresh = make_beside(real)
    try:
        with open(fresh, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_into_place(fresh, real, overwrite=True)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


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
        free = shutil.disk_usage(os.path.dirname(os.path.realpath(name))).free
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
    fixed = 1 << 20  # metadata, class names
    return fixed + 4 * layout.n_samples + int(n_epochs * layout.epoch_bytes * 1.01 / ratio)


def _giga(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
