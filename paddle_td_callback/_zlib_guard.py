"""Repairs zlib, which Paddle 2.6 breaks for the whole process, before h5py is imported.

Paddle's libpaddle.so exports zlib 1.2.8 and also requests libz.so.1. If nothing has loaded libz.so.1 before, the
dynamic loader binds the calls inside libz.so.1 to libpaddle's functions. These lay out a stream's state differently,
so inflating fails and deflating crashes, in Python's zlib and in HDF5. Paddle 3 works in any order.
"""

import contextlib
import ctypes
import os
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

_STREAM_BYTES = 112  # sizeof(z_stream) where a pointer has 8 bytes


def _is_sound(libz: ctypes.CDLL) -> bool:
    """Whether libz is consistent: a mixed one opens a stream that its own inflateEnd rejects."""
    stream = ctypes.create_string_buffer(_STREAM_BYTES)
    if libz.inflateInit_(stream, b"1", _STREAM_BYTES) != 0:
        return True  # no zlib 1, so not Paddle's
    return bool(libz.inflateEnd(stream) == 0)


def _in_memory(path: str) -> str:
    """Copy a library, so that the loader takes it for another one. It stays open, so its name is never reused."""
    descriptor = os.memfd_create(Path(path).name)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(Path(path).read_bytes())
    return f"/proc/self/fd/{descriptor}"


def heal() -> None:
    """Give Python, and all libraries loaded from now on, a working zlib if Paddle has broken libz.so.1.

    Raises:
        ImportError: zlib is broken and cannot be repaired in this process.
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return
    if "paddle" not in sys.modules:
        with contextlib.suppress(OSError):  # loaded, and bound to itself, before Paddle can spoil it
            ctypes.CDLL("libz.so.1")
        return
    try:  # in the order in which the loader resolves HDF5's symbols: global ones, then libz.so.1
        libz = ctypes.CDLL(None)
        libz = libz if hasattr(libz, "inflateInit_") else ctypes.CDLL("libz.so.1")
    except OSError:
        return  # no libz.so.1 on this system, so Paddle cannot have loaded it
    if _is_sound(libz):
        return
    try:
        mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        if any("/libhdf5" in name for name in mapped):
            raise OSError("HDF5 is bound to it already")
        original = next(name for name in mapped if Path(name).name.startswith("libz.so"))
        # Global, so that later libraries find it first, as they do if Python itself is linked with libz.
        ctypes.CDLL(_in_memory(original), mode=ctypes.RTLD_GLOBAL | os.RTLD_NOW | os.RTLD_DEEPBIND)
        if not _is_sound(ctypes.CDLL(None)):
            raise OSError("a second copy of it is broken too")
        broken = sys.modules.get("zlib")
        if path := getattr(
            broken, "__file__", None
        ):  # else it is built into Python and was never bound to libz.so.1
            loader = ExtensionFileLoader("zlib", _in_memory(path))
            fresh = module_from_spec(ModuleSpec("zlib", loader, origin=loader.path))
            loader.exec_module(fresh)
            # Into the old module, because gzip, zipfile and others refer to it.
            vars(broken).update({name: value for name, value in vars(fresh).items() if name[:2] != "__"})
    except (OSError, AttributeError, StopIteration) as error:
        raise ImportError(
            f"Paddle has broken zlib in this process ({error!r}): "
            "import h5py (or paddle_td_callback) before paddle, or upgrade to Paddle 3"
        ) from error
