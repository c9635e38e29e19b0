r"""A detector on disk: one file that is checked as a whole before anything in it is believed.

| bytes | what |
|---|---|
| 8 | `\x89TDNET\r\n`; the line end shows a copy in text mode |
| 4 | CRC-32 of all bytes behind it |
| 4 | length of the header |
| header | JSON in UTF-8, see below |
| the rest | arrays of float32, one behind the other, nothing between them |

Numbers are little-endian. The header is `{"version": 1, "stages": [...]}` with one entry for each stage, the last
stage first: `{"about": {...}, "n_members": n, "arrays": [[name, shape], ...]}`. The arrays follow in this order: stage
by stage, member by member, as listed.

What is refused, because a file is a stranger: any byte that does not fit the checksum; a header longer than the file
or than 4 MiB; arrays whose sizes do not add up to exactly the bytes that are there; values that are not
finite. The file is read with plain reads, so it needs no lock, and no library parses it but `json`. It holds no code
and no references.
"""

from __future__ import annotations

import json
import math
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DetectorError, StoreError
from ...messages import escape
from ...store.paths import path_text, replace_file, resolve_output
from .config import Weights

MAGIC = b"\x89TDNET\r\n"
VERSION = 1
FIXED_BYTES = 16
MAX_HEADER_BYTES = 4 << 20  # JSON takes up to 20 times its bytes in memory


class Stage(NamedTuple):
    """One stage of a detector as its file holds it."""

    about: Mapping[str, Any]  # configuration, calibration, provenance
    members: list[Weights]


def write(path: str | os.PathLike[str], stages: Sequence[Stage]) -> None:
    """Write a detector, its last stage first.

    An interrupted write leaves what was there before.

    Raises:
        DetectorError: it cannot be written, or something else than a detector stands there.
    """
    name = escape(path_text(path))
    header: dict[str, Any] = {"version": VERSION, "stages": []}
    data = b""
    for stage in stages:
        shapes = {key: array.shape for key, array in stage.members[0].items()}
        arrays = [[key, list(shape)] for key, shape in shapes.items()]
        header["stages"].append({"about": stage.about, "n_members": len(stage.members), "arrays": arrays})
        for member in stage.members:
            data += b"".join(np.ascontiguousarray(member[key], "<f4").tobytes() for key in shapes)
    text = json.dumps(header).encode()
    body = len(text).to_bytes(4, "little") + text + data
    try:
        real = resolve_output(path)  # what is no regular file may not end when it is read
        _refuse_other_kinds(real)
        with replace_file(path) as file:
            file.write(MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
    except (OSError, StoreError) as error:
        raise DetectorError(f"'{name}': cannot be written: {escape(error)}; give another path") from error


def _refuse_other_kinds(path: str) -> None:
    """Only detectors are replaced: a recording took hours, and a slip of the path must not cost it."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DetectorError(
            f"'{escape(path)}': cannot be replaced: {error}; give the detector another path"
        ) from error
    if head not in (MAGIC, b""):
        raise DetectorError(
            f"'{escape(path)}': a file of another kind stands there, perhaps a recording; give the detector another "
            "path"
        )


def read(path: str | os.PathLike[str]) -> list[Stage]:
    """Read the stages of a detector, the last one first.

    Raises:
        FileNotFoundError: there is no such file.
        DetectorError: it is no detector, damaged, or written by a newer version.
    """
    name = escape(path_text(path))
    try:
        return _parse(_bytes_of(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"'{name}': no such file; give a file that NoiseDetector.save wrote"
        ) from None
    except DetectorError as error:
        raise DetectorError(f"'{name}': {error}") from None
    except OSError as error:
        raise DetectorError(f"'{name}': cannot be read: {error}; give a file that can be read") from error


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DetectorError("is no regular file; give the path of a file that NoiseDetector.save wrote")
    return Path(path).read_bytes()


def _parse(data: bytes) -> list[Stage]:
    if data[: len(MAGIC)] != MAGIC:
        raise DetectorError("is no detector; give a file that NoiseDetector.save wrote")
    if len(data) < FIXED_BYTES or zlib.crc32(memoryview(data)[12:]) != int.from_bytes(data[8:12], "little"):
        raise DetectorError("its checksum does not fit its bytes: it is damaged or cut short; copy it again")
    n_header = int.from_bytes(data[12:16], "little")
    if FIXED_BYTES + n_header > len(data) or n_header > MAX_HEADER_BYTES:
        raise DetectorError(
            f"its header claims {n_header} bytes, the file has {len(data)}, and {MAX_HEADER_BYTES} are allowed; it is "
            "damaged, copy it again"
        )
    try:
        header = json.loads(data[FIXED_BYTES : FIXED_BYTES + n_header])
        if header["version"] != VERSION:
            raise DetectorError(
                f"version {escape(header['version'], limit=20)}, this package reads {VERSION}; upgrade "
                "paddle_td_callback"
            )
        claims = [_Claim.of(stage) for stage in header["stages"]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        problem = f"{type(error).__name__}: {escape(error, limit=200)}"
        raise DetectorError(
            f"its header cannot be understood ({problem}); it is damaged, copy it again"
        ) from None
    claimed = 4 * sum(claim.n_members * sum(map(math.prod, claim.shapes.values())) for claim in claims)
    if not claims or claimed != len(data) - FIXED_BYTES - n_header:
        raise DetectorError(
            f"its header claims arrays of {claimed} bytes, the file holds {len(data) - FIXED_BYTES - n_header}; it is "
            "damaged, copy it again"
        )
    values = np.frombuffer(data, "<f4", offset=FIXED_BYTES + n_header).astype(np.float32)
    if not np.isfinite(values).all():
        raise DetectorError("it holds weights that are not finite; it is damaged, copy it again")
    stages, start = [], 0
    for claim in claims:
        stage = Stage(claim.about, [])
        for _ in range(claim.n_members):
            member: Weights = {}
            for key, shape in claim.shapes.items():
                stop = start + math.prod(shape)
                member[key] = values[start:stop].reshape(shape)
                start = stop
            stage.members.append(member)
        stages.append(stage)
    return stages


class _Claim(NamedTuple):
    """One stage, as a header describes it."""

    about: Mapping[str, Any]
    n_members: int
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, stage: Any) -> _Claim:
        shapes = {str(key): tuple(map(_count, shape)) for key, shape in stage["arrays"]}
        if not shapes or len(shapes) != len(stage["arrays"]) or not isinstance(stage["about"], dict):
            raise ValueError("a stage without arrays or without a description")
        return cls(stage["about"], _count(stage["n_members"]), shapes)


def _count(number: Any) -> int:
    """At least 1: arrays without bytes could be claimed without end."""
    if type(number) is not int or number < 1:
        raise ValueError("a size that is no whole number of at least 1")
    return number
