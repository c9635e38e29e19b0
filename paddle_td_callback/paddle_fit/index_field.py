"""Data that say themselves which samples they are: an index field in the batch, sample ids of any kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaptureError
from ..recording.batches import as_array


class SampleIds:
    """Names of the samples and the places that they stand for.

    Args:
        ids: one for each sample, strings or integers, no two alike; their order is the order of the samples.

    Raises:
        ValueError: none, or two alike.
    """

    def __init__(self, ids: Sequence[Any]) -> None:
        self.names = [id_name(one) for one in ids]
        self._places = {name: place for place, name in enumerate(self.names)}
        if not self.names:
            raise ValueError("sample_ids is empty; give one id for each sample")
        if len(self._places) != len(self.names):
            twice = next(name for place, name in enumerate(self.names) if self._places[name] != place)
            raise ValueError(f"sample_ids holds {twice!r} twice; each sample needs an id of its own")

    def __len__(self) -> int:
        return len(self.names)

    def places(self, ids: Any) -> npt.NDArray[np.int64]:
        """Places of a batch of ids, `[row]`.

        Raises:
            CaptureError: an id is not among those given.
        """
        try:
            return np.asarray([self._places[id_name(one)] for one in ids], np.int64)
        except KeyError as error:
            raise CaptureError(
                f"the data's index field holds {error.args[0]!r}, which is not among the {len(self)} sample_ids"
            ) from None


def id_name(one: Any) -> str:
    """An id as text."""
    if isinstance(one, bytes):
        return one.decode(errors="replace")
    return str(one.item() if isinstance(one, np.generic) else one)


class FieldTap:
    """Takes the index field out of each batch before the model sees it, and remembers it.

    Args:
        loader: anything that gives batches.
        field: place of the index in a batch that is a list, or its key in one that is a dictionary.
        ids: what the field's values mean, None = they are sample indices.

    Attributes:
        loader: gives the same batches without the field.
    """

    def __init__(self, loader: Any, field: int | str, ids: SampleIds | None) -> None:
        self._ids = ids
        self._field = field
        self._dealt: deque[Any] = deque()
        self.loader = _Stripped(loader, self)

    def iterate(self, loader: Any) -> Iterator[Any]:
        """The stripped batches, each drawn when training asks for it."""
        for batch in loader:
            try:
                index, rest = split_field(batch, self._field)
            except CaptureError as error:  # must not surface inside fit's loop; `take` raises it
                index, rest = error, batch
            self._dealt.append(index)
            yield rest

    def take(self) -> npt.NDArray[np.int64] | None:
        """Indices of the next batch, `[row]`; None when more came than were dealt.

        Raises:
            CaptureError: the field was not there, or is no index.
        """
        if not self._dealt:
            return None
        value = self._dealt.popleft()
        if isinstance(value, CaptureError):
            raise value
        if self._ids is not None:
            listed = value if isinstance(value, (list, tuple)) else as_array(value).reshape(-1).tolist()
            return self._ids.places(listed)
        if isinstance(value, (list, tuple)) and any(isinstance(one, (str, bytes)) for one in value):
            raise CaptureError(
                f"the data's index field {self._field!r} holds strings such as {value[0]!r}; pass all of them in the "
                "order of the samples as sample_ids="
            )
        array = as_array(value)
        if array.dtype.kind not in "iu":
            raise CaptureError(
                f"the data's index field {self._field!r} must hold integers, got {array.dtype} {array.shape}; say "
                "which field it is with index_field="
            )
        return array.astype(np.int64).reshape(-1)

    def remove(self) -> None:
        """Nothing was put anywhere."""


class _Stripped:
    """A loader to everybody, whose batches lack the index field."""

    def __init__(self, loader: Any, tap: FieldTap) -> None:
        self._loader = loader
        self._tap = tap

    def __iter__(self) -> Iterator[Any]:
        return self._tap.iterate(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def split_field(batch: Any, field: int | str) -> tuple[Any, Any]:
    """The index field of a batch, and the batch without it.

    Raises:
        CaptureError: it has no such field.
    """
    if isinstance(batch, dict):
        if field in batch:
            return batch[field], {key: value for key, value in batch.items() if key != field}
        found = f"a dictionary with keys {sorted(map(str, batch))}"
    elif isinstance(batch, (list, tuple)):
        if isinstance(field, int) and -len(batch) <= field < len(batch):
            rest = list(batch)
            return rest.pop(field), rest
        found = f"{len(batch)} fields"
    else:
        found = type(batch).__name__
    raise CaptureError(f"index_field={field!r}, but a batch of the data is {found}")
