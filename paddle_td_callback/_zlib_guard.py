"""Undoes, before h5py is imported, what Paddle 2.6 does to the zlib of the process.

Its libpaddle.so exports a whole zlib 1.2.8 and also asks for libz.so.1. Where nothing has loaded libz.so.1
before, the loader ties the calls inside libz.so.1 to libpaddle's functions, which lay out a stream's state
otherwise: inflating fails and deflating crashes, in Python's zlib as in HDF5. Paddle 3 is well in any order.
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
    """Ask whether libz agrees with itself: a mixed one opens a stream that its own inflateEnd disowns."""
    stream = ctypes.create_string_buffer(_STREAM_BYTES)
    if libz.inflateInit_(stream, b"1", _STREAM_BYTES) != 0:
        return True  # no zlib 1, so not Paddle's
    return bool(libz.inflateEnd(stream) == 0)


def _in_memory(path: str) -> str:
    """Copy a library, so that the loader takes it for another; left open, its name never comes again."""
    descriptor = os.memfd_create(Path(path).name)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(Path(path).read_bytes())
    return f"/proc/self/fd/{descriptor}"


def heal() -> None:
    """Give Python, and all libraries loaded from now on, a sound zlib where Paddle has spoilt libz.so.1.

    Raises:
        ImportError: zlib is spoilt and cannot be mended in this process.
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return
    if "paddle" not in sys.modules:
        with contextlib.suppress(OSError):  # loaded, and bound to itself, before Paddle can spoil it
            ctypes.CDLL("libz.so.1")
        return
    try:  # as the loader will look for HDF5: what is global first, then libz.so.1
        libz = ctypes.CDLL(None)
        libz = libz if hasattr(libz, "inflateInit_") else ctypes.CDLL("libz.so.1")
    except OSError:
        return  # no libz.so.1 on this system, so Paddle cannot have loaded it
    if _is_sound(libz):
        return
    try:
        mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        if any("/libhdf5" in name for name in mapped):
            raise OSError("HDF5 is tied to it already")
        original = next(name for name in mapped if Path(name).name.startswith("libz.so"))
        # Global, so that libraries to come find it first, as they do where python itself is linked with libz.
        ctypes.CDLL(_in_memory(original), mode=ctypes.RTLD_GLOBAL | os.RTLD_NOW | os.RTLD_DEEPBIND)
        if not _is_sound(ctypes.CDLL(None)):
            raise OSError("a second copy of it is spoilt as well")
        spoilt = sys.modules.get("zlib")
        if path := getattr(
            spoilt, "__file__", None
        ):  # else it is part of python and was never tied to libz.so.1
            loader = ExtensionFileLoader("zlib", _in_memory(path))
            fresh = module_from_spec(ModuleSpec("zlib", loader, origin=loader.path))
            loader.exec_module(fresh)
            # Into the old module, which gzip, zipfile and others hold.
            vars(spoilt).update({name: value for name, value in vars(fresh).items() if name[:2] != "__"})
    except (OSError, AttributeError, StopIteration) as error:
        raise ImportError(
            f"Paddle has spoilt zlib in this process ({error!r}): "
            "import h5py (or paddle_td_callback) before paddle, or upgrade to Paddle 3"
        ) from error
