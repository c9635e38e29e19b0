"""How much memory this process may use: the machine's, its container's, or its own limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_FALLBACK_BYTES = 16 << 30


def default_memory_limit_bytes() -> int:
    """A quarter of the memory that this process may use."""
    return available_bytes() // 4


def available_bytes(proc: str = "/proc/self") -> int:
    """The least of the machine's memory and the limits on this process.

    Args:
        proc: where Linux shows this process's control groups and mounts.
    """
    limits = [*_machine_bytes(), *_process_bytes(), *_container_bytes(proc)]
    return min((limit for limit in limits if limit > 0), default=_FALLBACK_BYTES)


def _machine_bytes() -> Iterator[int]:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not POSIX
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _process_bytes() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` allow."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource  # POSIX only

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft


def _container_bytes(proc: str) -> Iterator[int]:
    """The limits of this process's memory cgroup and of all groups around it, of cgroup version 1 and 2."""
    try:
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file if " - cgroup" in line]
    except OSError:  # not Linux
        return
    groups = {name: line[2] for line in lines if len(line) == 3 for name in line[1].split(",")}
    for mount in mounts:
        root, point = (_unescaped(field) for field in mount[3:5])
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        if kind == "cgroup2" and "" in groups:
            yield from _limits_up(point, root, groups[""], ("memory.max", "memory.high"))
        elif kind == "cgroup" and "memory" in options and "memory" in groups:
            yield from _limits_up(point, root, groups["memory"], ("memory.limit_in_bytes",))


def _limits_up(point: str, root: str, group: str, names: tuple[str, ...]) -> Iterator[int]:
    """Limits of a group and of those around it, as far as the mount at `point` shows them, from `root` down."""
    # In a container, the mount may begin at its own group, while the group's name is that of the host.
    below = os.path.relpath(group, root) if os.path.commonpath([group, root]) == root else "."
    folder = os.path.normpath(os.path.join(point, below))
    while folder.startswith(point.rstrip("/")):
        for name in names:
            with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, name)) as file:
                yield int(file.read())  # "max" = no limit
        if folder == os.path.dirname(folder):
            return
        folder = os.path.dirname(folder)


def _unescaped(field: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, letter)
    return field
