"""Arguments of the recording callback, checked as far as possible before the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..recording.arguments import check_on_error, check_resume, gzip_level_of
from ..store.schema import Keep, Layout, is_whole
from .index_field import IndexField, SampleIds
from .outputs import OUTPUTS, OutputReader

_MANY_CLASSES = 2**31 - 1  # more than any network has


@dataclass(frozen=True)
class RecordingOptions:
    """Arguments of `TrainingDynamicsCallback`, which describes them.

    Raises:
        ValueError: an argument out of range.
    """

    path: str  # absolute
    keep: Keep
    mode: str
    every: int
    labels: npt.NDArray[np.int64] | None
    n_samples: int | None
    class_names: list[str] | None
    index_field: int | str | None
    sample_ids: SampleIds | None
    takes_names: bool  # of the data set's own
    resume: bool | int
    overwrite: bool
    on_error: str
    logits: int | str | Callable[..., Any]
    label: int
    ignore_label: int | None
    outputs: str
    dtype: str
    compression: str | None
    memory_limit_bytes: int | None

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        check_resume(self.resume)
        numbers = {"n_samples": 1, "every": 1, "ignore_label": None, "memory_limit_bytes": 0}
        for name, least in numbers.items():
            value = getattr(self, name)
            if value is not None and (not is_whole(value) or (least is not None and value < least)):
                wanted = "a whole number" + ("" if least is None else f" of at least {least}")
                raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if not (callable(self.logits) or isinstance(self.logits, str) or is_whole(self.logits)):
            raise ValueError(
                f"logits must be a place, a key or a function of the outputs, got {self.logits!r}; the default is 0"
            )
        if not is_whole(self.label):
            raise ValueError(
                f"label must be a place among the loss's labels, got {self.label!r}; the default is 0"
            )
        if not isinstance(self.outputs, str) or self.outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {OUTPUTS}, got {self.outputs!r}")
        Layout(  # checks what is known; the sizes may not be so far
            n_samples=self.known_n_samples or 1,
            n_classes=_MANY_CLASSES,
            keep=self.keep,
            dtype=self.dtype,
            mode=self.mode,
            gzip_level=gzip_level_of(self.compression),
        )
        n_ids = None if self.sample_ids is None else len(self.sample_ids)
        if None not in (self.n_samples, n_ids) and self.n_samples != n_ids:
            raise ValueError(
                f"n_samples={self.n_samples}, but there are {n_ids} sample_ids; give one id for each sample"
            )
        if self.labels is not None and self.known_n_samples not in (None, len(self.labels)):
            raise ValueError(
                f"labels= has {len(self.labels)} entries for {self.known_n_samples} samples; give one for each"
            )

    @property
    def known_n_samples(self) -> int | None:
        """Size of the data set, if it was given."""
        if self.sample_ids is not None:
            return len(self.sample_ids)
        return None if self.n_samples is None else int(self.n_samples)

    @property
    def reader(self) -> OutputReader:
        """Finds logits and labels."""
        return OutputReader(self.logits, self.label, self.outputs, reads_labels=self.labels is None)

    @property
    def field(self) -> IndexField | None:
        """Finds the indices in the data, if the data carry them."""
        return None if self.index_field is None else IndexField(self.index_field, self.sample_ids)

    @property
    def of_recorder(self) -> dict[str, Any]:
        """Arguments that the recorder takes unchanged."""
        names = ("keep", "mode", "class_names", "dtype", "compression", "memory_limit_bytes", "on_error")
        ids = None if self.sample_ids is None else self.sample_ids.names
        return {"sample_ids": ids, **{name: getattr(self, name) for name in names}}
