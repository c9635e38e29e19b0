"""Epoch buffers that need not fit in memory: files of their own beside the store, nameless and gone at exit."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_TRIM_SECONDS = 0.02


class Spill:
    """Arrays in a file without a name, which the system may write out of memory at any time.

    The pages that were touched count as memory of this process until they are given back, so a thread gives
    them back all the time; what they hold stays in the file.

    Args:
        folder: where the file goes; its space is taken at once, for a full disk would end the process later.
        n_bytes: size of the file.

    Raises:
        OSError: the disk has no room for it.
    """

    def __init__(self, folder: str, n_bytes: int) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
            self._map = mmap.mmap(file.fileno(), n_bytes)
        self._used = 0
        self._closed = threading.Event()
        if hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(RuntimeError):  # no thread: the system takes them when it must
                threading.Thread(target=self._trim, name="paddle_td_callback spill", daemon=True).start()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Take the next part of the file as an array of zeros."""
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self._map, dtype, count, self._used).reshape(shape)
        self._used += -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return array

    def _trim(self) -> None:
        with contextlib.suppress(ValueError):  # closed between the two lines
            while not self._closed.wait(_TRIM_SECONDS):
                self._map.madvise(mmap.MADV_DONTNEED)  # of a shared file mapping: nothing is lost

    def close(self) -> None:
        """Release the file, unless arrays of it are still in use; then it goes with the last of them."""
        self._closed.set()
        with contextlib.suppress(BufferError):
            self._map.close()
