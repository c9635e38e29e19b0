"""Files that are there whole or not at all; "-" is standard output."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, TextIO

from ..errors import StoreError
from ..messages import escape, standard_output
from ..store.paths import path_text, replace_file, resolve_output

STDOUT = "-"
_READER_SECONDS = 1.0  # that the reader of a pipe may take to start
_STANDARD_STREAMS = ("/dev/stdout", "/dev/stderr")


def check_out(path: str | os.PathLike[str]) -> str:
    """Refuse at the start what could not be written at the end, or would destroy a recording.

    Args:
        path: of the file to write.

    Returns:
        The path, links followed; that of a stream as it is.

    Raises:
        StoreNotFoundError: its folder is missing.
        StoreError: it is empty, a folder, may not be written, or is an HDF5 file.
    """
    name = path_text(path)
    if is_stream(path):  # links of /dev/stdout end in names like pipe:[123], which are no paths
        return name
    real = resolve_output(path)
    if os.path.isfile(real) and _is_hdf5(real):
        raise StoreError(f"'{escape(path)}' is an HDF5 file, perhaps a recording; give another path")
    return real


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether it is written to as it stands: a pipe, a device, or what is open already, be that a file."""
    name = path_text(path)
    if name == STDOUT:
        return True
    if os.path.dirname(name) in ("/dev/fd", "/proc/self/fd") or name in _STANDARD_STREAMS:
        return os.path.exists(name)
    return os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name)


def is_stdout(path: str | os.PathLike[str] | None) -> bool:
    """Whether what is written there goes where a command prints."""
    return path is not None and path_text(path) in (STDOUT, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` once it is whole; after an error nothing has changed.

    What is written to a stream goes behind what is there: `>>` keeps it.
    """
    name = check_out(path)
    if name == STDOUT:
        data = io.BytesIO()
        yield data
        with standard_output() as out:
            out.flush()
            if hasattr(out, "buffer"):
                out.buffer.write(data.getvalue())
            else:  # in a notebook
                out.write(data.getvalue().decode("utf-8", "backslashreplace"))
    elif is_stream(name):
        with tempfile.TemporaryFile() as whole:  # in which, unlike in a pipe, a writer may go back
            yield whole
            whole.seek(0)
            with open(_open_stream(name), "ab") as stream:
                shutil.copyfileobj(whole, stream)
    else:
        with replace_file(name) as file:
            yield file


def _open_stream(name: str) -> int:
    """Open a pipe or a device; a pipe that nothing reads is refused, where the system would wait for ever."""
    deadline = time.monotonic() + _READER_SECONDS
    while (stream := _opened(name)) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"'{name}' is a pipe that nothing reads; start its reader first, or give the path of a file"
            )
        time.sleep(0.01)
    os.set_blocking(stream, True)
    return stream


def _opened(name: str) -> int | None:
    """A descriptor to write to; None where nothing reads the pipe yet."""
    try:
        return os.open(name, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise StoreError(f"'{name}' cannot be written: {error.strerror}; give another path") from error


@contextlib.contextmanager
def new_text_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """As `new_file`, in UTF-8 and with the line ends that are written; standard output has its own encoding."""
    is_out = path_text(path) == STDOUT
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8") if is_out else "utf-8"
    with new_file(path) as binary:
        text = io.TextIOWrapper(binary, encoding=encoding, errors="backslashreplace", newline="")
        yield text
        text.flush()
        text.detach()  # the file is closed by what opened it


def _is_hdf5(path: str) -> bool:
    """Also of a torn file: the signature stands at byte 0, 512, 1024, 2048 and so on."""
    with open(path, "rb") as file:
        size, place = file.seek(0, os.SEEK_END), 0
        while place < size:
            file.seek(place)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
            place = max(512, 2 * place)
    return False
