"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import IO, TextIO

import h5py

from ..errors import StoreError
from ..store.paths import replace_file, resolve_output


def check_out(path: str | os.PathLike[str]) -> str:
    """Refuse at the start what could not be written at the end, or would destroy a recording.

    Returns:
        The path, links followed.

    Raises:
        StoreNotFoundError: its folder is missing.
        StoreError: it is empty, a folder, may not be written, or is an HDF5 file.
    """
    name = resolve_output(path)
    if os.path.isfile(name) and h5py.is_hdf5(name):
        raise StoreError(f"'{os.fspath(path)}' is an HDF5 file, perhaps a recording; give another path")
    return name


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` once it is whole; after an error nothing has changed."""
    with replace_file(check_out(path)) as file:
        yield file


@contextlib.contextmanager
def new_text_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """As `new_file`, in UTF-8 and with the line ends that are written."""
    with new_file(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="")
        yield text
        text.flush()
        text.detach()
