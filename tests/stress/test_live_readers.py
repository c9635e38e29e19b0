"""Law 9: plain h5py reads a file right while it is being recorded."""

import subprocess
import sys
from pathlib import Path

from support import live


def test_h5py_beside_commits_without_pause_is_never_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer = subprocess.Popen([sys.executable, live.__file__, "write", str(path), "3"])
    try:
        found = live.read(str(path), "h5py", lambda: writer.poll() is None)
    finally:
        writer.kill()
        writer.wait()
    assert (found["wrong"], found["errors"]) == (0, 0)
    assert found["right"] > 20
    assert found["epochs"] > 20
