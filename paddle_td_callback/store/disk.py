"""The file as the system sees it: read, write, wait for the disk, lock."""

from __future__ import annotations

import io
import os
import struct
import sys
from dataclasses import dataclass

if sys.platform != "win32":  # there, two writers of one file are the user's responsibility
    import fcntl

PAGE_BYTES = 512  # of a change: a record holds little else than what changed
CRC = struct.Struct("<I")


class DamagedError(OSError):
    """Bytes on disk are not those that were committed."""


class NotSealedError(ValueError):
    """A file that this package did not write; the message says what it seems to be."""


@dataclass(frozen=True)
class Place:
    """Where something lies in the file, and its CRC-32."""

    offset: int
    length: int
    crc: int


def open_file(path: str | os.PathLike[str], mode: str) -> io.FileIO:
    """Open a file without a buffer."""
    return open(path, mode, buffering=0)  # type: ignore[return-value]


def read_at(file: io.FileIO, offset: int, n_bytes: int) -> bytes:
    """Up to `n_bytes` from `offset` on, fewer at the end of the file."""
    parts = []
    while n_bytes > 0:
        part = _read_some(file, offset, n_bytes)
        if not part:
            break
        parts.append(part)
        offset, n_bytes = offset + len(part), n_bytes - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_some(file: io.FileIO, offset: int, n_bytes: int) -> bytes:
    if hasattr(os, "pread"):  # processes forked from one another share the position in a file
        return os.pread(file.fileno(), n_bytes, offset)
    file.seek(offset)
    return file.read(n_bytes) or b""


def read_overlaid(file: io.FileIO, pages: dict[int, bytes], offset: int, n_bytes: int) -> bytes:
    """Up to `n_bytes` of a file, some of whose pages are replaced; nothing is checked."""
    data = read_at(file, offset, n_bytes)
    changed = [
        page for page in range(offset // PAGE_BYTES, -(-(offset + len(data)) // PAGE_BYTES)) if page in pages
    ]
    if not changed:
        return data
    patched = bytearray(data)
    for page in changed:
        low, high = max(offset, page * PAGE_BYTES), min(offset + len(data), (page + 1) * PAGE_BYTES)
        inside = low - page * PAGE_BYTES
        patched[low - offset : high - offset] = pages[page][inside : inside + high - low]
    return bytes(patched)


def write_all(file: io.FileIO, offset: int, data: bytes | memoryview) -> None:
    """Write all of the data from `offset` on."""
    file.seek(offset)
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def to_page_boundary(n_bytes: int) -> int:
    """So many bytes rounded up to whole pages."""
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES


def fsync(file: io.FileIO) -> None:
    """Wait until what was written is on the disk."""
    if hasattr(os, "fdatasync"):  # spares the time stamps, which lie elsewhere on the disk
        os.fdatasync(file.fileno())
    else:
        os.fsync(file.fileno())


def fsync_early(file: io.FileIO) -> None:
    """The same where nothing relies on it."""
    fsync(file)


def lock(file: io.FileIO) -> None:
    """Lock a file against other writers.

    The lock belongs to the open file: one of the process would be lost as soon as the process closed any other
    descriptor of the file, as its own live readers do. HDF5's readers use flock, which does not meet this one.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if sys.platform == "win32":
        return
    try:
        if sys.platform == "linux":
            # struct flock: type, whence, start, length, pid
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError("another process holds its lock") from error
    except OSError:
        pass  # a file system without locks
