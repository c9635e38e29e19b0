"""The loader of one training epoch, which says which samples each batch holds.

Its batch sampler is replaced only while the loader begins to read; the batches are the sampler's own, each drawn
when training draws it, and none twice.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

import paddle

from ..errors import CaptureError
from .index_field import FIELD_WAY, IndexField
from .internals import EXPLICIT_WAY, sampler_places

_swapping = threading.RLock()  # two fits may read one loader in two threads


class BatchTap(Protocol):
    """What is told of each batch."""

    needs_indices: bool

    def receive(self, indices: Any, batch: Any) -> None:
        """A batch was read, and training gets it next; `indices` may be an error."""


def find_n_samples(loader: Any) -> int:
    """Size of the loader's data set.

    Raises:
        CaptureError: it has none.
    """
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError) as error:
        raise CaptureError(
            f"the size of the training data is unknown ({error}); pass n_samples= to TrainingDynamicsCallback"
        ) from error


class TappedLoader:
    """The loader of one training epoch, which tells a tap which samples each batch holds.

    Args:
        loader: what the fit reads.
        tap: is told of each batch; None = of none.
        field: where a batch carries its indices; None = ask the batch sampler.

    Raises:
        CaptureError: nobody knows which samples a batch holds.
    """

    def __init__(self, loader: Any, tap: BatchTap | None, field: IndexField | None) -> None:
        self._loader = loader
        self._tap = tap
        self._field = field
        self._sampler: Any = None
        if tap is not None and tap.needs_indices and field is None:
            self._sampler = _sampler_of(self.real)

    def __iter__(self) -> Iterator[Any]:
        dealt: deque[Any] = deque()
        with self._dealing_into(dealt):
            batches = iter(self._loader)
        return self._batches(batches, dealt)

    def _batches(self, batches: Iterator[Any], dealt: deque[Any]) -> Iterator[Any]:
        # A loader in plain Python asks its sampler when it is asked for the first batch.
        is_paddles = isinstance(self.real, paddle.io.DataLoader)
        with contextlib.nullcontext() if is_paddles else self._dealing_into(dealt):
            batch = next(batches, _END)
        while batch is not _END:
            indices: Any = dealt.popleft() if dealt else None
            if self._field is not None:
                indices, batch = self._field.split_off(batch)
            if self._tap is not None:
                self._tap.receive(indices, batch)
            yield batch
            batch = next(batches, _END)

    @contextlib.contextmanager
    def _dealing_into(self, dealt: deque[Any]) -> Iterator[None]:
        """Note what the batch sampler deals to an iteration that begins here, in this thread."""
        if self._sampler is None:
            yield
            return
        loader = self.real
        with _swapping:
            stand_in = _StandIn(loader.batch_sampler, dealt, lazily=getattr(loader, "num_workers", 0) == 0)
            places = sampler_places(loader, stand_in.sampler)
            try:
                with contextlib.suppress(AttributeError):  # may not be set: then no indices are known
                    for holder, name in places:
                        setattr(holder, name, stand_in)
                yield
            finally:
                for holder, name in [*places, *sampler_places(loader, stand_in)]:
                    if getattr(holder, name, None) is stand_in:
                        setattr(holder, name, stand_in.sampler)

    @property
    def real(self) -> Any:
        """The loader that the fit was given."""
        return real_loader(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_END = object()


def real_loader(loader: Any) -> Any:
    """The loader itself, also where other recordings of this fit have theirs around it."""
    while type(loader) is TappedLoader:
        loader = loader._loader
    return loader


def _sampler_of(loader: Any) -> Any:
    """The loader's batch sampler.

    Raises:
        CaptureError: it has none, so nobody knows which samples a batch holds.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(getattr(loader, "dataset", None), paddle.io.IterableDataset):
        raise CaptureError(
            "the training data is an IterableDataset, which has no sample indices; use a map-style "
            f"paddle.io.Dataset, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    if sampler is None:
        raise CaptureError(
            f"the training data ({type(loader).__name__}) has no batch sampler (batch_size=None?), so the "
            "sample indices of a batch are unknown; give fit a Dataset, or a DataLoader with batch_size or "
            f"batch_sampler, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    return sampler


class _StandIn:
    """The batch sampler, while a loader begins to read; another thread gets the sampler itself.

    Args:
        sampler: what it stands for.
        dealt: takes the indices of each batch, `[row]`.
        lazily: whether batches are iterated in this process.
    """

    def __init__(self, sampler: Any, dealt: deque[Any], *, lazily: bool) -> None:
        self.sampler, self._dealt, self._lazily = sampler, dealt, lazily
        self._thread = threading.get_ident()

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.sampler)
        return map(self._note, batches) if threading.get_ident() == self._thread else batches

    def _note(self, batch: Any) -> Any:
        """Remember the indices of a batch, which may be a list that the sampler fills again."""
        if _can_be_read_twice(batch):
            self._dealt.append(list(batch))
        elif self._lazily:
            batch = _Noting(batch)
            self._dealt.append(batch.seen)
        else:
            self._dealt.append(
                CaptureError(
                    f"the batch sampler dealt a {type(batch).__name__}, which a worker reads; deal lists of "
                    f"indices, or {FIELD_WAY}"
                )
            )
        return batch

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


def _can_be_read_twice(batch: Any) -> bool:
    iterate = getattr(type(batch), "__iter__", None)
    if isinstance(batch, (list, tuple)):
        return iterate in (list.__iter__, tuple.__iter__)
    return isinstance(batch, (Sequence, Set)) or hasattr(batch, "__array__")


class _Noting:
    """A batch of indices that may draw them when it is iterated: they are noted as they are drawn, once."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.seen.clear()
        for index in self._batch:
            self.seen.append(index)
            yield index

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, row: Any) -> Any:
        return self._batch[row]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)
