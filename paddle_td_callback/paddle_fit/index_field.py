"""Data that carry their sample indices: a field of the batch with indices or with sample ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..names import name_of, ordered_names
from ..recording.batches import as_array

FIELD_WAY = "let the data carry the sample index as their last field and pass index_field=-1"


class SampleIds:
    """Sample ids and their indices.

    Args:
        ids: one for each sample, strings or integers, all different, in the order of the samples.

    Raises:
        TypeError: they have no order.
        ValueError: none, or two equal ones.
    """

    def __init__(self, ids: Any) -> None:
        self.names = ordered_names(ids, "sample_ids") or []
        self._indices = {name: index for index, name in enumerate(self.names)}
        if not self.names:
            raise ValueError("sample_ids is empty; give one id for each sample")
        if len(self._indices) != len(self.names):
            twice = next(name for index, name in enumerate(self.names) if self._indices[name] != index)
            raise ValueError(f"sample_ids holds {twice!r} twice; give each sample a different id")

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, ids: Any) -> npt.NDArray[np.int64]:
        """Indices of a batch of ids, `[row]`.

        Raises:
            CaptureError: an id is not among those given.
        """
        try:
            return np.asarray([self._indices[name_of(one)] for one in ids], np.int64)
        except KeyError as error:
            raise CaptureError(
                f"the data's index field holds {error.args[0]!r}, which is not among the {len(self)} sample_ids; "
                "pass all ids as sample_ids="
            ) from None


@dataclass(frozen=True)
class IndexField:
    """The field of a batch that holds its samples' indices.

    Args:
        key: its place in a batch that is a list, or its key in one that is a dictionary.
        ids: what its values mean, None = they are sample indices.
    """

    key: int | str
    ids: SampleIds | None = None

    def split_off(self, batch: Any) -> tuple[Any, Any]:
        """Indices of a batch, `[row]` or the error that there are none, and the batch without the field."""
        rest = batch
        try:
            value, rest = self._split(batch)
            return self._indices(value), rest
        except Exception as error:  # must not surface in fit's loop
            if not isinstance(error, CaptureError):
                error = CaptureError(
                    f"index_field={self.key!r} holds no indices: {error!r}; pass index_field="
                )
            return error, rest

    def without(self, batch: Any) -> Any:
        """The batch without the field.

        Raises:
            CaptureError: it has no such field.
        """
        return self._split(batch)[1]

    def _split(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, dict):
            if self.key in batch:
                return batch[self.key], {key: value for key, value in batch.items() if key != self.key}
            found = f"a dictionary with keys {sorted(map(str, batch))}"
        elif isinstance(batch, (list, tuple)):
            if isinstance(self.key, int) and -len(batch) <= self.key < len(batch):
                rest = list(batch)
                return rest.pop(self.key), rest
            found = f"{len(batch)} fields"
        else:
            found = type(batch).__name__
        raise CaptureError(
            f"index_field={self.key!r}, but a batch of the data is {found}; pass index_field= (a place or a key)"
        )

    def _indices(self, value: Any) -> npt.NDArray[np.int64]:
        listed = isinstance(value, (list, tuple))
        if self.ids is not None:
            return self.ids.indices(value if listed else as_array(value).reshape(-1).tolist())
        if listed and any(isinstance(one, (str, bytes)) for one in value):
            raise CaptureError(
                f"the data's index field {self.key!r} holds strings such as {value[0]!r}; pass all of them in the "
                "order of the samples as sample_ids="
            )
        array = as_array(value)
        if array.dtype.kind not in "iu":
            raise CaptureError(
                f"the data's index field {self.key!r} must hold integers, got {array.dtype} {array.shape}; pass "
                "index_field= (the place or key of the indices)"
            )
        return array.astype(np.int64).reshape(-1)
