"""What a recording holds: its datasets and attributes, with their shapes, chunks and sizes."""

from __future__ import annotations

import functools
import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FORMAT = "paddle_td_callback training dynamics"

# 1: first version.
SCHEMA_VERSION = 1

Keep = Literal["all", "given"] | int

_CHUNK_BYTES = 1 << 18
# Of the one-number-per-sample datasets: 64 KiB, so that a tile of samples reads little else.
_CHUNK_ROWS = 16384


@dataclass(frozen=True)
class Field:
    """One dataset of the schema: its axis after `[epoch, sample]`, dtype and the value that means "unseen".

    A field of a layout has its number there, the shape of one epoch, samples per chunk, chunks and bytes of an epoch.
    A chunk holds samples of one epoch.
    """

    name: str
    last_axis: str | None
    dtype: str
    unseen: float
    meaning: str
    number: int = 0
    shape: tuple[int, ...] = ()
    chunk_rows: int = 0
    n_chunks: int = 0
    n_bytes: int = 0


EPOCH_FIELDS = (
    Field("given_probability", None, "float32", math.nan, "softmax probability of the given label"),
    Field("margin", None, "float32", math.nan, "logit of the given label minus the largest other logit"),
    Field("predicted", None, "int32", -1, "class with the largest logit"),
    Field("n_presentations", None, "uint8", 0, "how often the sample was seen in the epoch (255 = or more)"),
)
ALL_FIELDS = (Field("probabilities", "class", "float16", math.nan, "softmax over all classes"),)
TOP_FIELDS = (
    Field("top_classes", "k", "int32", -1, "the k classes with the largest probabilities, largest first"),
    Field("top_probabilities", "k", "float16", math.nan, "their probabilities"),
)
SAMPLE_IDS = "sample_ids"  # [sample] UTF-8, only where samples have names
CLASS_NAMES = "class_names"  # [class] UTF-8, only where classes have names
LABEL_SHIFTS = "label_shifts"  # [sample] UTF-8 digits, only where labels were moved on purpose
TEXTS = (CLASS_NAMES, SAMPLE_IDS, LABEL_SHIFTS)
DROPPED = "dropped_epochs"  # [dropped] int64
LABELS = Field("labels", None, "int32", -1, "the given label of each sample; -1 = never seen")


@dataclass(frozen=True)
class Layout:
    """The fixed facts of one recording, from which every dataset's shape follows.

    Args:
        n_samples: size of the data set; sample indices are in `[0, n_samples)`.
        n_classes: number of classes, at least 2.
        keep: "all" classes' probabilities, the `k` largest, or only those of the "given" label.
        dtype: of `probabilities` and `top_probabilities`: "float16" or "float32".
        mode: where the outputs come from: "train" or "eval".
        gzip_level: 1 to 9, None = not compressed.
    """

    n_samples: int
    n_classes: int
    keep: Keep = "all"
    dtype: str = "float16"
    mode: str = "train"
    gzip_level: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("n_samples", 1, 2**40), ("n_classes", 2, 2**31), ("gzip_level", 1, 10)):
            value = getattr(self, name)
            is_right = is_whole(value) and least <= value < most
            if not (is_right or (value is None and name == "gzip_level")):
                wanted = f"a whole number of at least {least} and below {most}"
                raise ValueError(f"{name} must be {wanted}, got {value!r:.50}")
        keep: Any = self.keep
        if not (isinstance(keep, str) and keep in ("all", "given")):
            if not is_whole(keep) or keep < 1:
                wanted = "'all', 'given' or a number of classes of at least 1"
                raise ValueError(f"keep must be {wanted}, got {keep!r}")
            if keep > self.n_classes:
                raise ValueError(f"keep={keep} is more than the {self.n_classes} classes; say keep='all'")
            object.__setattr__(self, "keep", int(keep))  # of NumPy's integers too
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype must be 'float16' or 'float32', got {self.dtype!r}")
        if self.mode not in ("train", "eval"):
            raise ValueError(f"mode must be 'train' or 'eval', got {self.mode!r}")

    @functools.cached_property
    def fields(self) -> tuple[Field, ...]:
        """The per-epoch datasets of this recording, with their sizes."""
        wide = ALL_FIELDS if self.keep == "all" else () if self.keep == "given" else TOP_FIELDS
        found = []
        for number, one in enumerate(EPOCH_FIELDS + wide):
            dtype = self.dtype if one.dtype == "float16" else one.dtype
            row = () if one.last_axis is None else (self.n_classes if self.keep == "all" else int(self.keep),)
            row_bytes = math.prod(row) * np.dtype(dtype).itemsize
            n_chunks = -(-self.n_samples // (max(1, _CHUNK_BYTES // row_bytes) if row else _CHUNK_ROWS))
            # HDF5 stores whole chunks, so all are made about alike rather than the last one nearly empty.
            chunk_rows, n_bytes = -(-self.n_samples // n_chunks), self.n_samples * row_bytes
            sizes = (self.n_samples, *row), chunk_rows, n_chunks, n_bytes
            found.append(Field(one.name, one.last_axis, dtype, one.unseen, one.meaning, number, *sizes))
        return tuple(found)

    @functools.cached_property
    def epoch_bytes(self) -> int:
        """Bytes of one epoch before compression, in memory and on disk."""
        return sum(one.n_bytes for one in self.fields)

    def n_names(self, kind: str) -> int:
        """How many class names, sample ids or label shifts there are."""
        return self.n_classes if kind == CLASS_NAMES else self.n_samples


def is_whole(value: Any) -> bool:
    """Whether it is an integer, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
