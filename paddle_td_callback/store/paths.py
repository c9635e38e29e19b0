"""Paths of what this package writes: resolved once, refused early, and replaced as a whole."""

from __future__ import annotations

import bisect
import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from ..errors import StoreError, StoreExistsError, StoreNotFoundError
from ..messages import escape
from .schema import Keep, Layout

_FIXED_BYTES = 1 << 20  # metadata, class names
_USUAL_GZIP_RATIO = 3  # measured on trained networks' probabilities: 1.2 to 3


def path_text(path: Any, name: str = "path") -> str:
    """A path that a user gave, as text; TypeError that names the argument, or StoreError for a NUL in it."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        got = escape(repr(path), limit=80)
        raise TypeError(f"{name} must be a path, got {got}; give a string or a pathlib.Path") from None
    if "\0" in text:
        raise StoreError(f"'{text}' holds a NUL, which no file name may; give another path")
    return text


def existing_file(path: Any, wanted: str) -> str:
    """The path of a file to read, as text; a pipe or a device may never end, so it is refused.

    StoreNotFoundError if there is none, StoreError if it cannot be read; the message says what is `wanted` instead.
    """
    name = path_text(path)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"'{name}': there is no such file; give {wanted}") from error
    except OSError as error:
        raise StoreError(f"'{name}' cannot be read: {error.strerror}; give {wanted}") from error
    if stat.S_ISDIR(mode):
        raise StoreError(f"'{name}' is a folder, not a file; give {wanted}")
    if not stat.S_ISREG(mode):
        raise StoreError(f"'{name}' is a device or a pipe; give {wanted}")
    if not os.access(name, os.R_OK):
        raise StoreError(f"'{name}' may not be read; get permission to read it, or give {wanted}")
    return name


def resolve_output(
    path: str | os.PathLike[str], *, replace_existing: bool = True, in_place: bool = False
) -> str:
    """Refuse early, by a StoreError, an output path that could not be written later; returns the real path.

    A file may lie there with `replace_existing`; it is written to, not replaced, with `in_place`.
    """
    name = path_text(path)
    if not name:
        raise StoreError("the path is empty; give the path of a file")
    real = os.path.realpath(name)
    folder = os.path.dirname(real)
    try:
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise StoreError(f"'{name}' cannot be used: {error.strerror}; give another path") from error
    if stat.S_ISDIR(mode) or not os.path.basename(name):  # a separator at the end says folder
        raise StoreError(f"'{name}' is a folder; give the path of a file in it, such as 'run.h5'")
    if mode and not stat.S_ISREG(mode):
        raise StoreError(f"'{name}' is a device or a pipe; give the path of a regular file")
    if not os.path.isdir(folder):
        raise StoreNotFoundError(f"'{name}': there is no folder '{folder}'; create it first")
    if mode and not replace_existing:
        raise StoreExistsError(f"'{name}' exists already; give another path")
    if mode and not os.access(real, os.W_OK):
        raise StoreError(f"'{name}' may not be written; get write permission on it, or give another path")
    if mode and not in_place and _is_kept_by_folder(real, folder):
        raise StoreError(
            f"'{name}' is another user's, and its folder lets nobody else replace it; give another path"
        )
    if not (in_place and mode) and not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"'{name}': the folder '{folder}' may not be written; give a path in another folder")
    return real


def _is_kept_by_folder(real: str, folder: str) -> bool:
    """Whether only others may rename or remove the file, as in /tmp."""
    if not hasattr(os, "geteuid"):
        return False
    file, above, user = os.stat(real), os.stat(folder), os.geteuid()
    return bool(above.st_mode & stat.S_ISVTX) and user not in (0, file.st_uid, above.st_uid)


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root, as text, with the links of its folders followed; its last part stays as it is.

    A folder that is linked elsewhere while a training runs, or another working folder, changes nothing any more.
    StoreError if the working folder is gone.
    """
    name = path_text(path)
    folder, file = os.path.split(name)
    if file in (os.curdir, os.pardir):
        folder, file = name, ""
    try:
        return os.path.join(os.path.realpath(folder or os.curdir), file)
    except OSError as error:
        raise StoreError(f"'{name}': the working folder is gone; give a path from the root") from error


def check_path(path: str | os.PathLike[str], *, resume: Any = False, overwrite: bool = False) -> str:
    """Refuse early a recording that could not be written at the end of the first epoch; returns the path as given.

    ValueError if an existing file is both to `resume` and to `overwrite`, StoreError: see `resolve_output`.
    """
    name = path_text(path)
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


def set_aside(path: str | os.PathLike[str]) -> str | None:
    """Give a file the next free name of its kind, such as `run-1.h5`, so that its path is free.

    A symbolic link stays, and the file behind it gets the name. Returns the new path, None where there was no file;
    OSError if the folder cannot be written.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return None
    stem, ending = os.path.splitext(real)
    number = 0
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            kept = f"{stem}-{number}{ending}"
            move_into_place(real, kept, overwrite=False)
            return kept


def make_beside(real: str) -> str:
    """Make an empty file beside another, under a name that nobody can guess, with its mode; returns the path."""
    folder, name = os.path.split(real)
    fresh = os.path.join(folder, f".{name[:20]}.{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    os.close(os.open(fresh, flags, 0o666))
    with contextlib.suppress(OSError):
        os.chmod(fresh, stat.S_IMODE(os.stat(real).st_mode))
    return fresh


def move_into_place(fresh: str, real: str, *, overwrite: bool) -> None:
    """Give a file its name, durably; FileExistsError if one has come to lie there, without `overwrite`."""
    if overwrite:
        os.replace(fresh, real)
    else:
        try:
            os.link(fresh, real)  # unlike a rename, fails where a file has come to lie there
        except OSError:  # that, or a file system without links
            if os.path.lexists(real):
                raise FileExistsError(f"'{real}' exists already") from None
            os.rename(fresh, real)
        else:
            try:
                os.unlink(fresh)
            except OSError:  # another user's file in a folder like /tmp
                os.unlink(real)
                raise
    if os.name == "posix":
        folder = os.open(os.path.dirname(real), os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system that cannot sync folders
            os.fsync(folder)
        os.close(folder)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file as a whole: it is there when the block ends, or the old one still is.

    A symbolic link stays, and the file behind it is replaced, with the mode that it has. StoreError: see
    `resolve_output`.
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
    """Refuse, by a StoreError that names the `keep=` that would fit, epochs to come that cannot fit on the disk.

    So many `buffer_bytes` are needed beside the recording.
    """

    def needed(keep: Keep) -> int:
        """About the size; with compression the least that is likely."""
        ratio = _USUAL_GZIP_RATIO if layout.gzip_level else 1
        data = int(n_epochs * replace(layout, keep=keep).epoch_bytes * 1.01 / ratio)
        return _FIXED_BYTES + 4 * layout.n_samples + data + buffer_bytes

    name = path_text(path)
    try:
        free = shutil.disk_usage(os.path.dirname(os.path.realpath(name))).free
    except OSError:
        return  # the first commit will say it
    if needed(layout.keep) <= free:
        return
    k = bisect.bisect_right(range(1, layout.n_classes + 1), free, key=needed)
    way_out = f"keep={k} fits" if k else "keep='given' fits" if needed("given") <= free else "no keep= fits"
    raise StoreError(
        f"'{name}': {n_epochs} epochs of {layout.n_samples} samples with keep={layout.keep!r} need about "
        f"{_giga(needed(layout.keep))}, the disk has {_giga(free)} free; {way_out}, or give a path on a larger disk"
    )


def _giga(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
