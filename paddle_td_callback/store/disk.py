"""A file as the system sees it, and the lock that keeps a second writer out."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import weakref
from typing import Any

from ..errors import StoreError
from ..messages import warn
from .paths import existing_file


def _at(function: str, fd: int, data: Any, offset: int) -> Any:
    """`os.pread` or `os.pwrite`, also where the system has none."""
    if hasattr(os, f"p{function}"):
        return getattr(os, f"p{function}")(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return getattr(os, function)(fd, data)


SIGN_AT = 512
_SIGN, _SIGN_MAGIC = struct.Struct("<8s16sQ64s"), b"PTDwritr"  # magic, token, process, host
_taken: weakref.WeakSet[RawFile] = weakref.WeakSet()


class RawFile:
    """An open file, which messages call `name`; the fault tests put theirs in place of this class."""

    run: int | None = None  # number of the recording, once it is known; other blocks count as damaged

    def __init__(self, path: str, flags: int, name: str | None = None) -> None:
        self.name = name or path
        self.fd = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `offset` on, fewer at the end of the file."""
        parts = []
        while n_bytes > 0 and 0 <= offset < 1 << 62 and (part := _at("read", self.fd, n_bytes, offset)):
            parts.append(part)
            offset, n_bytes = offset + len(part), n_bytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, *parts: Any) -> None:
        """Write all of the parts, one after the other: by one call to the system where it takes all of them."""
        views = [memoryview(part).cast("B") for part in parts]
        done = os.pwritev(self.fd, views, offset) if hasattr(os, "pwritev") else 0
        for whole in views:
            view = whole[done:]
            offset, done = offset + len(whole) - len(view), max(0, done - len(whole))
            while view:
                n_bytes = _at("write", self.fd, view, offset)
                offset, view = offset + n_bytes, view[n_bytes:]

    def write_behind(self, offset: int, n_bytes: int) -> None:
        """Have the disk begin to write; nothing relies on it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        getattr(os, "fdatasync", os.fsync)(self.fd)

    def truncate(self, n_bytes: int) -> None:
        """Cut the file off, or lengthen it by a hole."""
        os.ftruncate(self.fd, n_bytes)

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return os.fstat(self.fd).st_size

    def is_at(self, path: str) -> bool:
        """Whether this very file lies at a path."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(path), os.fstat(self.fd))
        return False

    def close(self) -> None:
        """Closing twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):  # Ctrl-C may come between opening and any `try`
            with contextlib.suppress(OSError):
                self.close()


def open_recording(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> RawFile:
    """Open a file that should be a recording; StoreError where that cannot be."""
    name = existing_file(path, "the path of a recording")
    try:
        return RawFile(os.path.realpath(name), flags, name)
    except OSError as error:
        what, why = "read" if flags == os.O_RDONLY else "written", error.strerror or error
        raise StoreError(f"'{name}' cannot be {what}: {why}; give another path") from error


def lock(file: RawFile) -> None:
    """Lock a file against other writers; StoreError if there is one, OSError if the file system has no locks.

    The lock belongs to the open file: one of the process would be lost as soon as the process closed any other
    descriptor of the file. HDF5's readers use flock, which does not meet this one.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        if sys.platform == "linux":
            # struct flock: type, whence, start, length, pid
            wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            fcntl.fcntl(file.fd, fcntl.F_OFD_SETLK, wanted)
        else:
            fcntl.lockf(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError) as error:
        raise _busy(file) from error


def _busy(file: RawFile) -> StoreError:
    """What to raise where another writer is at work."""
    return StoreError(
        f"'{file.name}' is being recorded by another process, or by another recorder of this one; "
        "wait for it to end, or record to another path"
    )


def sign(token: bytes) -> bytes:
    """What a writer leaves in its file, for file systems that have no locks."""
    return _SIGN.pack(_SIGN_MAGIC, token, os.getpid(), _host())


def take(file: RawFile) -> bool:
    """Lock a file, and say whether that could be done; else see whether a process of this machine has signed it."""
    _taken.add(file)
    try:
        lock(file)
        return True
    except OSError as error:
        magic, _, process, host = _SIGN.unpack(file.read(SIGN_AT, _SIGN.size).ljust(_SIGN.size, b"\0"))
        if magic == _SIGN_MAGIC and host == _host() and _is_alive(process):
            raise _busy(file) from error
        what = f"this file system cannot lock files ({error.strerror})"
        warn(f"'{file.name}': {what}, so record into it from one process only", RuntimeWarning, stacklevel=2)
        return False


def _close_in_child() -> None:
    """Give up the locks that a forked process, a DataLoader worker for instance, has inherited."""
    for file in list(_taken):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _host() -> bytes:
    return socket.gethostname().encode()[:64].ljust(64, b"\0")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
