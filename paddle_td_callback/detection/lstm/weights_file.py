"""A detector on disk: one HDF5 file of attributes and float32 arrays, no pickle, every value checked on the way in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py  # before paddle: Paddle 2.6 brings an old zlib that HDF5 must not meet
import numpy as np
from numpy.typing import NDArray

from ...errors import DetectorError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FORMAT = "paddle_td_callback noise detector"
SCHEMA = 2  # 1: first; 2: mix_sizes, and a detector that looks first in the group "first"

MAX_LOOKS = 4

Weights = dict[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]
Part = tuple[Mapping[str, Any], list[Weights]]  # attributes and members of one detector


def write(path: str | os.PathLike[str], parts: list[Part]) -> None:
    """Write a detector, the one that looks first, its first, and so on.

    It is written beside `path` first, so that an interrupted write leaves what was there before.

    Raises:
        DetectorError: it cannot be written, or an HDF5 file of another kind stands there.
    """
    path = Path(path)
    _refuse_other_kinds(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs.update(format=FORMAT, schema=SCHEMA)
            group: h5py.Group = file
            for number, (attributes, members) in enumerate(parts):
                group = group.create_group("first") if number else file
                group.attrs.update(attributes)
                for member, weights in enumerate(members):
                    for name, array in weights.items():
                        group[f"members/{member}/{name}"] = array
        partial.replace(path)
    except OSError as error:
        raise DetectorError(f"{os.fspath(path)!r}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_other_kinds(path: Path) -> None:
    """A recording took hours and has the same ending: it is not replaced by a slip."""
    if not path.is_file():
        return
    try:
        with open(path, "rb") as raw:  # for h5py too: without HDF5's locks
            if not _has_signature(raw):
                return
            with h5py.File(raw, "r") as file:
                kind = file.attrs.get("format")
    except Exception:  # a damaged file, or one that is being written
        kind = "unreadable"
    if not isinstance(kind, str) or kind != FORMAT:
        raise DetectorError(
            f"{os.fspath(path)!r}: an HDF5 file of another kind ({kind!r}) stands there, perhaps a recording; "
            "give the detector another path"
        )


def _has_signature(raw: BinaryIO) -> bool:
    """Whether it is an HDF5 file, also a torn one: the signature stands at byte 0, 512, 1024, 2048 and so on."""
    size, place = raw.seek(0, os.SEEK_END), 0
    while place < size:
        raw.seek(place)
        if raw.read(len(SIGNATURE)) == SIGNATURE:
            return True
        place = max(512, 2 * place)
    return False


def read(
    path: str | os.PathLike[str],
    shapes_for: Callable[[Mapping[str, Any]], tuple[int, Shapes]],
    on_weights: Callable[[list[Weights]], None],
) -> None:
    """Read a detector and those that look before it, the first of all first.

    Args:
        path: the file.
        shapes_for: is given the attributes of one, and returns the number of members and the shapes of the
            arrays of each; what it raises means that the file is damaged.
        on_weights: is given the weights of its members.
    """
    name = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name!r}: no such file; NoiseDetector.save writes one")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            if attributes.get("format") != FORMAT:
                raise DetectorError("another HDF5 file, not a detector; NoiseDetector.save writes those")
            if attributes["schema"] > SCHEMA:
                raise DetectorError(
                    f"schema {attributes['schema']}, this version reads {SCHEMA}; upgrade paddle_td_callback"
                )
            groups: list[h5py.Group] = [file]
            while "first" in groups[-1]:
                if len(groups) == MAX_LOOKS:
                    raise DetectorError(f"more than {MAX_LOOKS} detectors, each before the other; damaged")
                groups.append(groups[-1]["first"])
            for group in reversed(groups):
                n_members, shapes = shapes_for(dict(group.attrs))
                n_bytes = 4 * n_members * sum(int(np.prod(shape)) for shape in shapes.values())
                # Arrays are stored as they are, so a file that claims more than its own size is not one of ours.
                if n_bytes > os.path.getsize(path):
                    raise DetectorError(f"holds less than the {n_bytes} bytes of its weights; damaged")
                on_weights(
                    [
                        {
                            key: _array(group[f"members/{number}/{key}"], shape)
                            for key, shape in shapes.items()
                        }
                        for number in range(n_members)
                    ]
                )
    except DetectorError as error:
        raise DetectorError(f"{name!r}: {error}") from None
    except Exception as error:  # damaged files make h5py raise OSError, KeyError, RuntimeError and others
        raise DetectorError(f"{name!r}: cannot be read as a detector: {error}") from error


def _array(stored: h5py.Dataset, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if stored.shape != shape or stored.dtype != np.float32:
        raise DetectorError(
            f"{stored.name} is {stored.dtype} {stored.shape}, wanted float32 {shape}; damaged"
        )
    array: NDArray[np.float32] = stored[()]
    if not np.isfinite(array).all():
        raise DetectorError(f"{stored.name} holds values that are not finite; damaged")
    return array
