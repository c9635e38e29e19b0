"""Taps on a training epoch: which samples each batch holds, and what the loss is given.

The batch sampler is replaced only while the loader begins to read, and the loss only from the begin of a step until
it is called. Nothing here draws random numbers or changes a value that training sees.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from ..errors import CaptureError
from ..recording.batches import as_array
from .evaluation_pass import unchanged_by_a_call
from .index_field import FIELD_WAY, IndexField
from .internals import EXPLICIT_WAY, LOSS, PaddleBatches, n_inputs, sampler_places
from .outputs import DeviceBatch, OutputReader
from .replacement import Replacement, replace
from .stand_in import StandIn, original_of

_END = object()
_swapping = threading.RLock()  # two fits may read one loader in two threads


class TappedLoader(StandIn):
    """The loader of one training epoch, which tells a tap which samples each batch holds.

    Its batches are the sampler's own, each drawn when training draws it, and none twice.

    Args:
        loader: what the fit reads.
        tap: is told of each batch; None = of none.
        field: where a batch carries its indices; None = ask the batch sampler.

    Raises:
        CaptureError: the samples of a batch cannot be known.
    """

    __slots__ = ("_td_field", "_td_is_direct", "_td_is_tapped", "_td_tap")

    def __init__(self, loader: Any, tap: StepTap | None, field: IndexField | None) -> None:
        super().__init__(loader)
        is_tapped = tap is not None and tap.needs_indices and field is None
        self._td_set(_td_tap=tap, _td_field=field, _td_is_tapped=is_tapped, _td_is_direct=True)
        if is_tapped:
            _check_sampler(real_loader(loader))

    def __iter__(self) -> Iterator[Any]:
        if self._td_tap is not None:
            self._td_tap.start_over()
        drawn: deque[Any] = deque()
        with self._noting(drawn):
            batches = iter(self._td_original)
        loader, inner = real_loader(self), self._td_original
        if issubclass(type(inner), TappedLoader):
            self._td_set(_td_is_direct=inner._td_is_direct)
        elif isinstance(loader, paddle.io.DataLoader):
            self._td_set(_td_is_direct=isinstance(batches, PaddleBatches))
        if self._td_is_tapped and not self._td_is_direct:
            self._td_tap.distrust(
                f"{type(loader).__name__}.__iter__ gives its own iterator in place of Paddle's batches "
                "and may skip, choose or reorder them, so their samples are not known"
            )
        return self._batches(batches, drawn)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Of Paddle's loader, its batches."""
        is_paddles = isinstance(real_loader(self), paddle.io.DataLoader)
        return iter(self) if is_paddles else self._td_original(*args, **named)

    def _batches(self, batches: Iterator[Any], drawn: deque[Any]) -> Iterator[Any]:
        # A loader in plain Python asks its sampler when it is asked for the first batch.
        is_paddles = isinstance(real_loader(self), paddle.io.DataLoader)
        with contextlib.nullcontext() if is_paddles else self._noting(drawn):
            batch = next(batches, _END)
        is_over = False
        try:
            while batch is not _END:
                indices: Any = drawn.popleft() if drawn else None
                if self._td_field is not None:
                    indices, batch = self._td_field.split_off(batch)
                if self._td_tap is not None:
                    self._td_tap.receive(indices, batch)
                yield batch
                batch = next(batches, _END)
            is_over = True
        finally:  # also where `fit` reads no more; Paddle's own loader may have drawn ahead by then
            self._check_left(drawn, is_over or not is_paddles)

    def _check_left(self, drawn: deque[Any], draws_no_more: bool) -> None:
        if self._td_is_tapped and drawn and draws_no_more:
            self._td_tap.distrust(
                f"the loader gave {len(drawn)} batches fewer than it drew from its batch sampler, so which samples the "
                "others hold is not known"
            )

    @contextlib.contextmanager
    def _noting(self, drawn: deque[Any]) -> Iterator[None]:
        """Note what an iteration that begins here, in this thread, draws from the batch sampler."""
        if not self._td_is_tapped:
            yield
            return
        loader = real_loader(self)
        with _swapping:
            sampler = loader.batch_sampler
            noting = _NotingSampler(sampler, drawn, lazily=getattr(loader, "num_workers", 0) == 0)
            places = sampler_places(loader, sampler)
            try:
                with contextlib.suppress(AttributeError):  # may not be set: then no indices are known
                    for holder, name in places:
                        setattr(holder, name, noting)
                yield
            finally:
                for holder, name in [*places, *sampler_places(loader, noting)]:
                    if getattr(holder, name, None) is noting:
                        setattr(holder, name, sampler)


def real_loader(loader: Any) -> Any:
    """The loader that the fit was given, without the wrappers of other recordings of this fit."""
    return original_of(loader, TappedLoader)


def _check_sampler(loader: Any) -> None:
    """Raise CaptureError if the loader has no batch sampler."""
    if isinstance(getattr(loader, "dataset", None), paddle.io.IterableDataset):
        raise CaptureError(
            "the training data is an IterableDataset, which has no sample indices; use a map-style "
            f"paddle.io.Dataset, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    if getattr(loader, "batch_sampler", None) is None:
        raise CaptureError(
            f"the training data ({type(loader).__name__}) has no batch sampler (batch_size=None?), so the "
            "sample indices of a batch are unknown; give fit a Dataset, or a DataLoader with batch_size or "
            f"batch_sampler, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )


class _NotingSampler(StandIn):
    """The batch sampler while a loader begins to read in this thread; another thread gets the sampler itself.

    Args:
        sampler: the batch sampler.
        drawn: takes the indices of each batch, `[row]`.
        lazily: whether batches are iterated in this process.
    """

    __slots__ = ("_td_drawn", "_td_lazily", "_td_thread")

    def __init__(self, sampler: Any, drawn: deque[Any], *, lazily: bool) -> None:
        super().__init__(sampler)
        self._td_set(_td_drawn=drawn, _td_lazily=lazily, _td_thread=threading.get_ident())

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._td_original)
        return map(self._note, batches) if threading.get_ident() == self._td_thread else batches

    def _note(self, batch: Any) -> Any:
        """Remember the indices of a batch, which may be a list that the sampler fills again."""
        if _can_be_read_twice(batch):
            self._td_drawn.append(list(batch))
        elif self._td_lazily:
            batch = _NotingBatch(batch)
            self._td_drawn.append(batch._td_indices)
        else:
            self._td_drawn.append(
                CaptureError(
                    f"the batch sampler gave a {type(batch).__name__}, which a worker reads; yield lists of "
                    f"indices, or {FIELD_WAY}"
                )
            )
        return batch


def _can_be_read_twice(batch: Any) -> bool:
    """Whether reading it has no effects: of a class of another's making, nobody knows."""
    return (
        type(batch) in (list, tuple, range)
        or isinstance(batch, (np.ndarray, paddle.Tensor))
        or (isinstance(batch, (list, tuple)) and type(batch).__iter__ in (list.__iter__, tuple.__iter__))
    )


class _NotingBatch(StandIn):
    """A batch of indices that may draw them when it is iterated: they are noted as they are drawn, once."""

    __slots__ = ("_td_indices",)

    def __init__(self, batch: Any) -> None:
        super().__init__(batch)
        self._td_set(_td_indices=[])

    def __iter__(self) -> Iterator[Any]:
        self._td_indices.clear()
        for index in self._td_original:
            self._td_indices.append(index)
            yield index


@dataclass
class _Step:
    """A batch that was handed to training, and what its loss was given."""

    indices: Any
    n_labels: int
    values: DeviceBatch | None = None
    failure: CaptureError | None = None


class StepTap:
    """Reads what the loss of each training step is given, without touching it.

    Args:
        model: the fitting `paddle.Model`.
        reader: finds logits and labels among the loss's arguments.
        needs_indices: whether steps are recorded; False = they are only checked.
    """

    def __init__(self, model: Any, reader: OutputReader, *, needs_indices: bool) -> None:
        self.needs_indices = needs_indices
        self._model, self._reader = model, reader
        self._step: _Step | None = None
        self._batch: Any = None  # that was read last
        self._reads_ahead = False  # whether a batch was read before the one before it had its step
        self._called: list[Any] | None = None  # layers that a function of the user's may call
        self.doubt: CaptureError | None = None  # that the indices of this epoch are those of its batches
        self._replacement: Replacement | None = None

    def start_over(self) -> None:
        """The loader begins to read anew: what was read before was only looked at."""
        self._step = self.doubt = self._batch = None

    def distrust(self, why: str) -> None:
        """The indices of this epoch may be those of other batches."""
        self.doubt = CaptureError(f"{why}; {FIELD_WAY}, or {EXPLICIT_WAY}")

    def receive(self, indices: Any, batch: Any) -> None:
        """A batch was read, and training gets it next; `indices` may be an error."""
        try:
            n_labels = max(0, _n_fields(batch) - n_inputs(self._model))
        except Exception as error:  # must not surface in the loader; `take` raises it
            n_labels, indices = 0, _unreadable(error)
        self._reads_ahead |= self._step is not None  # or leaves out batches: `_call_loss` finds out
        self._batch = batch
        self._step = _Step(indices, n_labels)

    def arm(self) -> None:
        """The step itself begins: read the arguments of its first call of the loss."""
        self.release()
        if self._step is not None and callable(getattr(self._model, LOSS)):
            self._replacement = replace(self._model, LOSS, self._call_loss)

    def _call_loss(self, original: Any, *args: Any, **named: Any) -> Any:
        self.release()
        step = self._step
        if step is not None and step.values is None:
            # A failure must not surface inside the training step; `take` raises it between the steps.
            try:
                n_outputs = len(args) - step.n_labels
                is_known = step.indices is not None and not isinstance(step.indices, CaptureError)
                n_rows = len(step.indices) if is_known else None
                loss = original_of(original, Replacement)
                if self._reads_ahead and not _are_labels_of(self._batch, args[n_outputs:]):
                    self.distrust(
                        "the training loop reads a batch before it has ended the step of the one before, so which "
                        "batch a step is of is not known"
                    )
                with self._own_call():
                    step.values = self._reader.read(loss, args[:n_outputs], args[n_outputs:], n_rows)
            except CaptureError as error:
                step.failure = error
            except Exception as error:
                step.failure = _unreadable(error)
        return original(*args, **named)

    def _own_call(self) -> contextlib.AbstractContextManager[None]:
        """Around a function of the user's that computes logits, which the training without us does not call."""
        if not callable(self._reader.logits):
            return contextlib.nullcontext()
        if self._called is None:
            self._called = self._reader.layers_called(self._model)
        return unchanged_by_a_call(*self._called)

    def release(self) -> None:
        """Give the model its loss back."""
        replacement, self._replacement = self._replacement, None
        if replacement is not None:
            replacement.remove()
        Replacement.clear(vars(self._model), LOSS)  # also what another callback has put back

    def take(self) -> DeviceBatch | None:
        """The step that just ran; None once it has been taken.

        Raises:
            CaptureError: it cannot be recorded.
        """
        self.release()
        step, self._step = self._step, None
        if step is None:
            return None
        if step.failure is not None:
            raise step.failure
        if step.values is None:
            raise CaptureError(
                "the step ended, but the model's loss was not called; where a subclass of paddle.Model "
                f"computes its loss otherwise, {EXPLICIT_WAY}"
            )
        if not self.needs_indices:
            return step.values
        if self.doubt is not None:
            raise self.doubt
        if isinstance(step.indices, CaptureError):
            raise step.indices
        if step.indices is None:
            raise CaptureError(
                f"the loader gave more batches than its batch sampler; {FIELD_WAY}, or {EXPLICIT_WAY}"
            )
        step.values.indices = step.indices
        return step.values


def _n_fields(batch: Any) -> int:
    """How many tensors a batch holds, as `fit` counts them."""
    if type(batch) is list and all(isinstance(field, paddle.Tensor) for field in batch):
        return len(batch)  # as most are; Paddle's own count takes as long as a copy of the outputs
    return len(paddle.utils.flatten(batch))


def _are_labels_of(batch: Any, labels: Any) -> bool:
    """Whether a loss is given the labels of this batch."""
    fields = paddle.utils.flatten(batch)[-len(labels) :] if labels else []
    return bool(fields) and all(
        one is other or np.array_equal(as_array(one), as_array(other))
        for one, other in zip(fields, labels, strict=True)
    )


def _unreadable(error: Exception) -> CaptureError:
    unreadable = CaptureError(
        f"the loss's arguments cannot be read: {error!r}; pass logits= or label= to say where they are, or "
        f"{EXPLICIT_WAY}"
    )
    unreadable.__cause__ = error
    return unreadable
