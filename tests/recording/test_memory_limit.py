"""The memory limit is that of the container or the process, where that is less than the machine's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_td_callback.recording.memory_limit import available_bytes, default_memory_limit_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
NO_LIMIT = "9223372036854771712"


@pytest.fixture(autouse=True)
def _no_limit_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: infinite)


class Host:
    """A host's `/proc/self` and control groups, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.mounts: list[str] = []
        self.groups: list[str] = []

    def mount(self, point: str, kind: str, options: str, root: str = "/") -> Path:
        place = self.folder / point
        place.mkdir(parents=True)
        escaped = str(place).replace(" ", "\\040")
        self.mounts.append(f"35 31 0:32 {root} {escaped} rw,relatime shared:9 - {kind} {kind} {options}")
        return place

    def available(self) -> int:
        (self.proc / "cgroup").write_text("".join(f"{line}\n" for line in self.groups))
        (self.proc / "mountinfo").write_text("".join(f"{line}\n" for line in self.mounts))
        return available_bytes(str(self.proc))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def limit(folder: Path, name: str, value: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{value}\n")


def test_version_2(host: Host) -> None:
    top = host.mount("cgroup", "cgroup2", "rw,nsdelegate")
    host.groups = ["0::/system.slice/job"]
    limit(top / "system.slice/job", "memory.max", 300 << 20)
    assert host.available() == 300 << 20
    limit(top / "system.slice", "memory.max", 200 << 20)  # of the group around it
    assert host.available() == 200 << 20
    limit(top / "system.slice/job", "memory.high", 100 << 20)  # beyond it, the process is made to wait
    assert host.available() == 100 << 20
    limit(top / "other", "memory.max", 1 << 20)
    assert host.available() == 100 << 20


def test_version_2_without_a_limit(host: Host) -> None:
    top = host.mount("cgroup", "cgroup2", "rw")
    host.groups = ["0::/"]
    limit(top, "memory.max", "max")
    assert host.available() == MACHINE


def test_version_1(host: Host) -> None:
    host.mount("fs/cpu", "cgroup", "rw,cpu")
    top = host.mount("fs/memory", "cgroup", "rw,memory")
    host.groups = ["9:name=systemd:/", "5:cpu,cpuacct:/", "4:memory:/a/b", "0::/"]
    limit(top, "memory.limit_in_bytes", NO_LIMIT)
    assert host.available() == MACHINE
    limit(top / "a", "memory.limit_in_bytes", 400 << 20)
    limit(top / "a/b", "memory.limit_in_bytes", NO_LIMIT)
    assert host.available() == 400 << 20


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
@pytest.mark.parametrize("root", ["/", "/docker/0123"])
def test_in_a_container_the_mount_shows_its_own_group_first(host: Host, kind: str, root: str) -> None:
    """Its name is that of the host, or, with a name space of its own, the root."""
    is_old = kind == "cgroup"
    top = host.mount("sys fs", kind, "rw,memory" if is_old else "rw", root)
    group = "/docker/0123" if root != "/" else "/"
    host.groups = [f"4:memory:{group}" if is_old else f"0::{group}"]
    limit(top, "memory.limit_in_bytes" if is_old else "memory.max", 500 << 20)
    assert host.available() == 500 << 20


def test_a_group_outside_of_what_is_mounted(host: Host) -> None:
    top = host.mount("cgroup", "cgroup2", "rw", "/kubepods/pod1")
    host.groups = ["0::/../pod2"]
    limit(top, "memory.max", 600 << 20)
    assert host.available() == 600 << 20


def test_nothing_that_can_be_read(host: Host) -> None:
    assert available_bytes(str(host.proc)) == MACHINE
    host.groups, host.mounts = ["nonsense", "0::/"], ["35 31 0:32 / / rw - cgroup2 cgroup2 rw"]
    assert host.available() == MACHINE


def test_a_limit_of_the_process() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from paddle_td_callback.recording.memory_limit import default_memory_limit_bytes\n"
        "print(default_memory_limit_bytes())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) <= 1 << 30
    assert default_memory_limit_bytes() <= MACHINE // 4
