"""The tap on a fitting `paddle.Model`: which samples, which logits, which labels, step by step.

Three things are put in place of the model's own, each for as short as can be: the epoch loop until the epoch begins,
the batch sampler while the loader starts to read, and the loss from the begin of a step until it is called. Nothing
here draws random numbers or changes a value that training sees.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from ..errors import CaptureError
from .index_field import FIELD_WAY, IndexField
from .internals import EXPLICIT_WAY, LOSS, RUN_ONE_EPOCH, n_inputs, sampler_places
from .outputs import Batch, OutputReader, Seen
from .replacement import Replacement, original_of

_swapping = threading.RLock()  # two fits may read one loader in two threads


def intercept_next_epoch(
    model: Any, params: Any, around: Callable[[Any, Any], contextlib.AbstractContextManager[Any]]
) -> Replacement:
    """Run the model's next training epoch inside `around(data_loader, callbacks)`, on the loader that it gives.

    What other callbacks run before, such as an evaluation, is not touched. The replacement takes itself off when the
    epoch begins; should `fit` die before, the next call of any kind takes it off.

    Args:
        model: the fitting `paddle.Model`.
        params: of this fit's callbacks; Paddle makes one dictionary for each fit.
        around: makes the context manager.
    """
    thread = threading.get_ident()

    def run_one_epoch(original: Any, loader: Any, callbacks: Any, mode: str, *args: Any, **named: Any) -> Any:
        running = next((one.model for one in callbacks if getattr(one, "model", None) is not None), model)
        if running is not model:  # a copy of the model, made while this stood there
            Replacement.clear(vars(running), RUN_ONE_EPOCH, all_of_them=True)
            return getattr(running, RUN_ONE_EPOCH)(loader, callbacks, mode, *args, **named)
        if mode == "train" and any(getattr(one, "params", None) is params for one in callbacks):
            replacement.remove()
            with around(loader, callbacks) as tapped:
                return original(tapped, callbacks, mode, *args, **named)
        if threading.get_ident() == thread and not _is_within("on_epoch_begin"):
            replacement.remove()  # its fit is dead
        return original(loader, callbacks, mode, *args, **named)

    replacement = Replacement(model, RUN_ONE_EPOCH, run_one_epoch)
    return replacement


def _is_within(function: str) -> bool:
    """Whether a function of this name is being called."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


class LastCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """Stands behind all callbacks of a fit, to hear of what they have all been told.

    Args:
        step_begins: called when the next thing to run is the step itself.
        fit_ends: called when `fit` returns.
    """

    def __init__(self, step_begins: Callable[[], None], fit_ends: Callable[[], None]) -> None:
        super().__init__()
        self._step_begins, self._fit_ends = step_begins, fit_ends

    def on_train_batch_begin(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """The step begins."""
        self._step_begins()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The fit is over."""
        self._fit_ends()


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
    """The loader of one training epoch, which tells a `StepTap` which samples each batch holds.

    Args:
        loader: what the fit reads.
        tap: is told of each batch; None = of none.
        field: where a batch carries its indices; None = ask the batch sampler.

    Raises:
        CaptureError: nobody knows which samples a batch holds.
    """

    def __init__(self, loader: Any, tap: StepTap | None, field: IndexField | None) -> None:
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


@dataclass
class _Step:
    """A batch that was handed to training, and what its loss was given."""

    indices: Any
    n_labels: int
    seen: Seen | None = None
    failure: CaptureError | None = None


class StepTap:
    """Sees what the loss of each training step is given, without touching it.

    Args:
        model: the fitting `paddle.Model`.
        reader: finds logits and labels among the loss's arguments.
        needs_indices: whether steps are recorded, not only looked at.
    """

    def __init__(self, model: Any, reader: OutputReader, *, needs_indices: bool) -> None:
        self.needs_indices = needs_indices
        self._model = model
        self._reader = reader
        self._step: _Step | None = None
        self._stand_in: Replacement | None = None

    def receive(self, indices: Any, batch: Any) -> None:
        """A batch was read, and training gets it next; `indices` may be an error."""
        try:
            n_labels = max(0, len(paddle.utils.flatten(batch)) - n_inputs(self._model))
        except Exception as error:  # must not surface in the loader; `take` raises it
            n_labels, indices = 0, _unreadable(error)
        self._step = _Step(indices, n_labels)

    def arm(self) -> None:
        """The step itself begins: its first call of the loss is the one to see."""
        self.release()
        if self._step is not None and callable(getattr(self._model, LOSS)):
            self._stand_in = Replacement(self._model, LOSS, self._call_loss)

    def _call_loss(self, original: Any, *args: Any, **named: Any) -> Any:
        self.release()
        step = self._step
        if step is not None and step.seen is None:
            # A failure must not surface inside the training step; `take` raises it between the steps.
            try:
                with paddle.no_grad():
                    outputs, labels = args[: len(args) - step.n_labels], args[len(args) - step.n_labels :]
                    n_rows = None if step.indices is None else _length(step.indices)
                    step.seen = self._reader.read(original_of(original), outputs, labels, n_rows)
            except CaptureError as error:
                step.failure = error
            except Exception as error:
                step.failure = _unreadable(error)
        return original(*args, **named)

    def release(self) -> None:
        """Give the model its loss back."""
        stand_in, self._stand_in = self._stand_in, None
        if stand_in is not None:
            stand_in.remove()
        Replacement.clear(vars(self._model), LOSS)  # also what somebody has put back

    def take(self) -> Batch | None:
        """The step that just ran; None once it has been taken.

        Raises:
            BatchError: it cannot be recorded.
        """
        self.release()
        step, self._step = self._step, None
        if step is None:
            return None
        try:
            if step.failure is not None:
                raise step.failure
            if step.seen is None:
                raise CaptureError(
                    "the step ended, but the model's loss was not called; where a subclass of paddle.Model "
                    f"computes its loss otherwise, {EXPLICIT_WAY}"
                )
            batch = step.seen.to_host()
            if self.needs_indices:
                batch = replace(batch, indices=_integers(step.indices))
            _check_lengths(batch)
        except CaptureError as error:
            raise BatchError(str(error)) from error
        return batch


class BatchError(CaptureError):
    """One batch cannot be recorded."""


def _check_lengths(batch: Batch) -> None:
    n_rows, indices, labels = len(batch.outputs), batch.indices, batch.labels
    if indices is not None and len(indices) != n_rows:
        seen = f"{n_rows} rows" + ("" if labels is None else f" and {len(labels)} labels")
        raise CaptureError(
            f"the loss saw {seen}, but the batch sampler dealt {len(indices)} indices; a "
            "collate function that adds, drops or repeats samples hides which row is which: keep one "
            f"row a sample, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    if labels is not None and len(labels) != n_rows:
        raise CaptureError(
            f"the loss saw {n_rows} rows and {len(labels)} labels; pass logits= and label= (the places of those that "
            "belong together), or labels="
        )


def _unreadable(error: Exception) -> CaptureError:
    unreadable = CaptureError(
        f"the loss's arguments cannot be read: {error!r}; pass logits= or label= to say where they are, or "
        f"{EXPLICIT_WAY}"
    )
    unreadable.__cause__ = error
    return unreadable


def _length(indices: Any) -> int | None:
    return None if isinstance(indices, CaptureError) else len(indices)


def _integers(indices: Any) -> npt.NDArray[np.int64]:
    """Indices of a batch as `[row]`.

    Raises:
        CaptureError: they are unknown, or no integers.
    """
    if isinstance(indices, CaptureError):
        raise indices
    if indices is None:
        raise CaptureError(
            f"the loader gave more batches than its batch sampler dealt; {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    try:
        return np.array([operator.index(one) for one in indices], np.int64)
    except TypeError as error:
        raise CaptureError(
            f"the batch sampler dealt {str(list(indices))[:80]}, wanted a list of integers; deal the places of the "
            f"samples in the data set, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        ) from error
