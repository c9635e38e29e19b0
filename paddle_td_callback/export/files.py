"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO, TextIO

import h5py

from ..errors import StoreError
from ..store.paths import check_path


def check_out(path: str | os.PathLike[str]) -> str:
    """Refuse at the start what could not be written at the end, or would destroy a recording.

    Returns:
        The path, links followed.

    Raises:
        ValueError: the path is empty.
        StoreNotFoundError: its folder is missing.
        StoreError: it is a folder, may not be written, or is an HDF5 file.
    """
    if not os.fspath(path):
        raise ValueError("the path of the file to write is empty; give a file name")
    name = os.path.realpath(check_path(path, overwrite=True))
    if os.path.isfile(name) and h5py.is_hdf5(name):
        raise StoreError(f"'{os.fspath(path)}' is an HDF5 file, perhaps a recording; give another path")
    return name


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole; after an error nothing has changed."""
    name = check_out(path)
    fresh = os.path.join(os.path.dirname(name), f".{secrets.token_hex(8)}.new")
    try:
        with open(fresh, "xb") as file:  # made anew: nobody's file, and no link, is written through
            yield file
        os.replace(fresh, name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


@contextlib.contextmanager
def new_text_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """As `new_file`, in UTF-8 and with the line ends that are written."""
    with new_file(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="")
        yield text
        text.flush()
        text.detach()
