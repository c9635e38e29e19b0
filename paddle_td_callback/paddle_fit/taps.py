"""The tap on a fitting `paddle.Model`: which samples, which logits, which labels, step by step.

Three things are put in place of the training's own, each for as short as can be: the epoch loop until the epoch
begins, the batch sampler while the loader starts to read, and the loss from the begin of a step until it is called.
Nothing here draws random numbers or changes a value that training sees.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from ..errors import CaptureError
from .index_field import FIELD_WAY
from .internals import EXPLICIT_WAY, LOSS, RUN_ONE_EPOCH, n_inputs
from .outputs import Batch, OutputReader, Seen
from .replacement import Replacement, original_of


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


@dataclass
class Step:
    """A batch that was handed to training, and what its loss was given.

    Attributes:
        indices: its samples, as the batch sampler gave them; or an error.
        n_labels: how many of the loss's arguments are labels.
        seen: copies of outputs and labels on the device; None = not yet.
        failure: why there are none.
        number: of the step in its epoch.
    """

    indices: Any
    n_labels: int
    seen: Seen | None = None
    failure: CaptureError | None = None
    number: int = 0


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
        self._step: Step | None = None
        self._stand_in: Replacement | None = None

    def receive(self, indices: Any, batch: Any) -> None:
        """A batch was read, and training gets it next; `indices` may be an error."""
        try:
            n_labels = max(0, len(paddle.utils.flatten(batch)) - n_inputs(self._model))
        except Exception as error:  # must not surface in the loader; `take` raises it
            n_labels, indices = 0, _unreadable(error)
        self._step = Step(indices, n_labels)

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

    def take(self) -> Step | None:
        """The step that just ran, with what was seen; None once it has been taken.

        Raises:
            BatchError: it cannot be recorded.
        """
        self.release()
        step, self._step = self._step, None
        if step is None:
            return None
        if step.failure is not None:
            raise BatchError(str(step.failure)) from step.failure
        if step.seen is None:
            raise BatchError(
                "the step ended, but the model's loss was not called; where a subclass of paddle.Model "
                f"computes its loss otherwise, {EXPLICIT_WAY}"
            )
        return step


def batches_of(
    steps: Sequence[Step], reader: OutputReader, *, needs_indices: bool
) -> list[Batch | BatchError]:
    """What steps showed, on the host: one batch for all of them; or where any is odd, a batch or an error for each."""
    if len(steps) > 1 and _are_alike(steps):
        with contextlib.suppress(Exception):  # the loop below finds whose it is
            return [_batch_of(steps, reader, needs_indices=needs_indices)]
    return [_batch_or_error(step, reader, needs_indices=needs_indices) for step in steps]


def _batch_or_error(step: Step, reader: OutputReader, *, needs_indices: bool) -> Batch | BatchError:
    try:
        batch = _batch_of([step], reader, needs_indices=needs_indices)
        _check_lengths(batch)
    except CaptureError as error:
        odd = BatchError(f"step {step.number}: {error}")
        odd.__cause__ = error
        return odd
    return batch


def _batch_of(steps: Sequence[Step], reader: OutputReader, *, needs_indices: bool) -> Batch:
    batch = reader.to_host([step.seen for step in steps if step.seen is not None])
    if not needs_indices:
        return batch
    indices = [_integers(step.indices) for step in steps]
    numbers = np.repeat([step.number for step in steps], [len(one) for one in indices])
    return replace(batch, indices=np.concatenate(indices), steps=numbers)


def _are_alike(steps: Sequence[Step]) -> bool:
    """Whether the steps can be read as one: the same loss and columns, and as many labels and indices as rows."""
    first = steps[0].seen
    for step in steps:
        seen = step.seen
        if first is None or seen is None or seen.loss is not first.loss:
            return False
        n_rows, n_columns = seen.values.shape
        if n_columns != first.values.shape[1] or step.indices is None or _length(step.indices) != n_rows:
            return False
        if seen.labels is not None and list(seen.labels.shape) not in ([n_rows], [n_rows, 1]):
            return False
    return True


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
        return np.fromiter(map(operator.index, indices), np.int64, len(indices))
    except TypeError as error:
        raise CaptureError(
            f"the batch sampler dealt {str(list(indices))[:80]}, wanted a list of integers; deal the places of the "
            f"samples in the data set, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        ) from error
