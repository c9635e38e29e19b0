"""Whether zlib, gzip and HDF5's gzip filter work in whatever order Paddle and h5py are imported.

Each order needs an interpreter of its own; a broken zlib can end it with a segmentation fault.
"""

import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from paddle_td_callback import _zlib_guard

try:
    PADDLE = version("paddlepaddle")
except PackageNotFoundError:
    PADDLE = ""
pytestmark = pytest.mark.skipif(not PADDLE, reason="Paddle is not installed")

ROUND_TRIPS = """
import gzip, sys, zlib
import h5py, numpy
values = numpy.arange(100_000) % 1009
plain = values.tobytes()
assert zlib.decompress(zlib.compress(plain)) == plain
assert gzip.decompress(gzip.compress(plain)) == plain
try:
    zlib.decompress(b"no stream")
except zlib.error:
    pass
with h5py.File(sys.argv[1], "w") as file:
    file.create_dataset("v", data=values, chunks=(10_000,), compression="gzip", shuffle=True, fletcher32=True)
with h5py.File(sys.argv[1]) as file:
    assert (file["v"][:] == values).all()
    stored = b"".join(zlib.decompress(file["v"].id.read_direct_chunk((start,))[1][:-4])
                      for start in range(0, 100_000, 10_000))
assert len(stored) == len(plain)  # HDF5's filter wrote what Python's zlib reads
print("well")
"""


def run(code: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "values.h5")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "imports",
    [
        "import paddle, paddle_td_callback",
        "import numpy, paddle, paddle_td_callback",
        "import paddle, gzip, zipfile, paddle_td_callback",
        "import sklearn.datasets, paddle, paddle_td_callback",
        "import paddle_td_callback, paddle",
        "import h5py, paddle, paddle_td_callback",
        "import zlib, paddle, h5py, paddle_td_callback",
    ],
)
def test_every_order_leaves_zlib_and_hdf5_well(imports: str, tmp_path: Path) -> None:
    if "sklearn" in imports:
        pytest.importorskip("sklearn")
    child = run(imports + ROUND_TRIPS, tmp_path)
    assert (child.returncode, child.stdout) == (0, "well\n"), child.stderr


def test_imported_twice_it_heals_once(tmp_path: Path) -> None:
    again = "\nfor name in [m for m in sys.modules if 'paddle_td' in m]: del sys.modules[name]\n"
    code = "import sys, paddle, paddle_td_callback, h5py" + again + "import paddle_td_callback" + ROUND_TRIPS
    child = run(code, tmp_path)
    assert (child.returncode, child.stdout) == (0, "well\n"), child.stderr


@pytest.mark.skipif(not PADDLE.startswith("2.6"), reason="the fault is Paddle 2.6's")
def test_what_cannot_be_mended_is_refused_with_the_way_out(tmp_path: Path) -> None:
    # Not by way of a failing import of h5py: that has corrupted the heap by the time it says so.
    code = """
import os, paddle
def refuse(name):
    raise OSError("no files in memory here")
os.memfd_create = refuse
import paddle_td_callback
"""
    child = run(code + ROUND_TRIPS, tmp_path)
    if child.returncode == 0:
        pytest.skip("this python loads libz.so.1 itself, before Paddle can")
    assert "import h5py (or paddle_td_callback) before paddle, or upgrade to Paddle 3" in child.stderr


# A process in which zlib is as well as ever, and `heal` is told that it is broken: what it does then must hurt nobody.
AS_IF_BROKEN = """
import sys, types, zlib
import paddle_td_callback._zlib_guard as guard
{before}
sys.modules["paddle"] = types.ModuleType("paddle")
answers = [False, True]
guard._is_sound = lambda libz: answers.pop(0)
old = zlib.compress
guard.heal()
"""


def test_a_repaired_zlib_is_another_one_and_works(tmp_path: Path) -> None:
    code = AS_IF_BROKEN.format(before="") + "\nassert not answers and zlib.compress is not old" + ROUND_TRIPS
    child = run(code, tmp_path)
    if "StopIteration" in child.stderr:
        pytest.skip("this python has zlib within itself")
    assert (child.returncode, child.stdout) == (0, "well\n"), child.stderr


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("import h5py", "HDF5 is bound to it already"),
        ("guard.Path.read_text = lambda path: ''", "StopIteration"),
    ],
)
def test_what_cannot_be_repaired_is_refused(before: str, why: str, tmp_path: Path) -> None:
    child = run(AS_IF_BROKEN.format(before=before), tmp_path)
    assert child.returncode == 1
    assert "ImportError: Paddle has broken zlib in this process" in child.stderr
    assert why in child.stderr


def test_a_copy_that_is_broken_too_is_refused(tmp_path: Path) -> None:
    child = run(AS_IF_BROKEN.format(before="").replace("[False, True]", "[False, False]"), tmp_path)
    assert child.returncode == 1
    assert "a second copy of it is broken too" in child.stderr or "StopIteration" in child.stderr


def test_a_zlib_within_python_is_left_alone(tmp_path: Path) -> None:
    code = AS_IF_BROKEN.format(before="del zlib.__file__") + "\nassert not answers and zlib.compress is old"
    child = run(code + ROUND_TRIPS, tmp_path)
    assert (child.returncode, child.stdout) == (0, "well\n"), child.stderr


def test_nothing_is_done_where_paddle_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: object) -> None:
        raise OSError("no such library")

    def fail(_libz: object) -> bool:
        pytest.fail("zlib was looked at")

    monkeypatch.setattr(_zlib_guard.ctypes, "CDLL", refuse)
    monkeypatch.setattr(_zlib_guard, "_is_sound", fail)
    monkeypatch.setitem(sys.modules, "paddle", types.ModuleType("paddle"))
    _zlib_guard.heal()  # there is no libz.so.1
    monkeypatch.setattr(_zlib_guard.ctypes, "CDLL", fail)
    monkeypatch.setattr(sys, "platform", "darwin")
    _zlib_guard.heal()


def test_another_zlib_than_version_1_is_none_of_paddles() -> None:
    assert _zlib_guard._is_sound(types.SimpleNamespace(inflateInit_=lambda *_: -6))  # Z_VERSION_ERROR
