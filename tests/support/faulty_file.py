"""A disk that can be stopped, seen from the journal: every write, truncation and fsync is noted or refused."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_td_callback.store import disk as disk_module

SECTOR_BYTES = 512
# ("write", offset, data) | ("truncate", size, b"") | ("fsync", 0, b"") | ("early", 0, b""); the last three may be
# "failed ..." too
Operation = tuple[str, int, bytes]


class Disk:
    """Notes the operations of the journal's files under a path; fails those from number `fail_from` on.

    Args:
        monkeypatch: to put itself under the journal.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations: list[Operation] = []
        self.fail_from: int | None = None
        self.n_failures = 1 << 62
        self.error = errno.ENOSPC
        self.before: Callable[[int], None] = lambda number: None
        monkeypatch.setattr(disk_module, "open_file", self._open)
        monkeypatch.setattr(disk_module, "fsync", self._fsync)
        monkeypatch.setattr(disk_module, "fsync_early", self._fsync_early)

    def _open(self, path: str | os.PathLike[str], mode: str) -> io.FileIO:
        return _File(self, path, mode.replace("b", ""))

    def _fsync(self, file: io.FileIO) -> None:
        self.note("fsync", 0, b"")  # and spare the real disk

    def _fsync_early(self, file: io.FileIO) -> None:
        self.note("early", 0, b"")  # in another thread; nothing counts as saved by it

    def note(self, kind: str, offset: int, data: bytes) -> bool:
        """Note an operation; raise if it is to fail. A write that fails has written half."""
        number = len(self.operations)
        self.before(number)
        failing = self.fail_from is not None and self.fail_from <= number < self.fail_from + self.n_failures
        if not failing:
            self.operations.append((kind, offset, data))
        elif kind == "write":
            self.operations.append((kind, offset, data[: len(data) // 2]))
        else:
            self.operations.append((f"failed {kind}", offset, data))
            raise OSError(self.error, os.strerror(self.error))
        return failing


class _File(io.FileIO):
    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, data: Any) -> int:
        raw = bytes(data)
        offset = self.tell()
        if self._disk.note("write", offset, raw):
            super().write(raw[: len(raw) // 2])
            raise OSError(self._disk.error, os.strerror(self._disk.error))
        return super().write(raw)

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        self._disk.note("truncate", size, b"")
        return super().truncate(size)


def apply(content: bytearray, operation: Operation) -> None:
    kind, offset, data = operation
    if kind == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    elif kind == "write":
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def after_kill(start: bytes, operations: list[Operation], n_done: int, torn: float) -> bytes:
    """The file where a process died in operation `n_done`, of which a part was done if it is a write."""
    content = bytearray(start)
    for operation in operations[:n_done]:
        apply(content, operation)
    if n_done < len(operations) and operations[n_done][0] == "write":
        kind, offset, data = operations[n_done]
        apply(content, (kind, offset, data[: int(len(data) * torn)]))
    return bytes(content)


def after_power_cut(
    start: bytes, operations: list[Operation], n_done: int, rng: np.random.Generator
) -> bytes:
    """The file where the power went after `n_done` operations: what was not fsynced is there or not.

    Sectors of unsynced writes reach the disk in any order and each by itself; truncations too. What a failed fsync
    did not write never gets there by a later one, since the system takes it for written.
    """
    content, unsynced = bytearray(start), list[Operation]()
    share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    for kind, offset, data in operations[:n_done]:
        if kind == "fsync":
            for operation in unsynced:
                apply(content, operation)
            unsynced = []
        elif kind in ("failed fsync", "failed early"):
            unsynced = [one for one in unsynced if one[0] == "truncate" or rng.random() < share]
        elif kind == "truncate":
            unsynced.append((kind, offset, data))
        else:
            unsynced += [
                (kind, offset + at, data[at : at + SECTOR_BYTES]) for at in range(0, len(data), SECTOR_BYTES)
            ]
    for operation in unsynced:
        if rng.random() < share:
            apply(content, operation)
    return bytes(content)


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
