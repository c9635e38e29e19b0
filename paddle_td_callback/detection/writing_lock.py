"""Whether a training still records into a file: its writer holds a lock, which any process can test."""

from __future__ import annotations

import os
import struct
import sys


def is_being_written(path: str | os.PathLike[str]) -> bool:
    """Whether a writer holds the lock of a recording; False where that cannot be told."""
    if sys.platform != "linux":
        return False
    import fcntl

    # struct flock: type, whence, start, length (0 = all), process
    wanted = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with open(path, "rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, wanted)
    except OSError:  # a file system without locks
        return False
    kind: int = struct.unpack("hhqqi4x", answer)[0]
    return kind != fcntl.F_UNLCK
