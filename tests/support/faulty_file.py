"""A disk that can be stopped, seen from the store: every write, truncation and fsync is noted or refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_td_callback.store import disk

SECTOR_BYTES = 512
# ("write", offset, data) | ("truncate", size, b"") | ("fsync", 0, b"") | ("early", 0, b""); the last three may be
# "failed ..." too
Operation = tuple[str, int, bytes]


class Disk:
    """Notes the operations on recordings that are opened from now on; fails those from number `fail_from` on.

    Args:
        monkeypatch: to put itself under the store.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations: list[Operation] = []
        self.fail_from: int | None = None
        self.n_failures = 1 << 62
        self.error = errno.ENOSPC
        self.before: Callable[[int], None] = lambda number: None
        monkeypatch.setattr(disk, "RawFile", self._open)

    def _open(self, path: str, flags: int, name: str | None = None) -> disk.RawFile:
        return _File(self, path, flags, name)

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


class _File(disk.RawFile):
    def __init__(self, disk: Disk, path: str, flags: int, name: str | None) -> None:
        super().__init__(path, flags, name)
        self._disk = disk

    def write(self, offset: int, *parts: Any) -> None:
        raw = b"".join(map(bytes, parts))
        if self._disk.note("write", offset, raw):
            super().write(offset, raw[: len(raw) // 2])
            raise OSError(self._disk.error, os.strerror(self._disk.error))
        super().write(offset, raw)

    def write_behind(self, offset: int, n_bytes: int) -> None:
        self._disk.note("early", offset, b"")  # nothing counts as saved by it

    def sync(self) -> None:
        self._disk.note("fsync", 0, b"")  # and spare the real disk

    def truncate(self, n_bytes: int) -> None:
        self._disk.note("truncate", n_bytes, b"")
        super().truncate(n_bytes)


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
