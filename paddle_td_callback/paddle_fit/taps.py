"""The tap on a fitting `paddle.Model`: which samples, which logits, which labels, batch by batch.

Nothing here draws random numbers, changes a value that training sees, or outlives the epoch it was set for.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from ..errors import CaptureError
from .index_field import FieldTap
from .outputs import OutputReader, Seen

_EPOCH_PARAMETERS = ["data_loader", "callbacks", "mode", "logs"]
_FIELD_WAY = "let the data carry the sample index as their last field and pass index_field=-1"
_EXPLICIT_WAY = (
    "record with TrainingDynamicsRecorder.update(indices, logits, labels) from a loop of your own instead"
)


@dataclass(frozen=True)
class Batch:
    """One training step: `indices` `[row]`, `logits` and `probabilities` `[row, class]`, `labels` `[row]`.

    `labels` is None where they are not to be tapped.
    """

    indices: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None

    def only(self, kept: npt.NDArray[np.bool_]) -> Batch:
        """The rows that are kept `[row]`."""
        labels = None if self.labels is None else self.labels[kept]
        return Batch(self.indices[kept], self.logits[kept], self.probabilities[kept], labels)


def check_model(model: Any) -> None:
    """Refuse what cannot be tapped, before training starts.

    Raises:
        CaptureError: static-graph mode, or a Paddle whose epoch loop is not the known one.
    """
    if not paddle.in_dynamic_mode():
        raise CaptureError(
            "Paddle is in static-graph mode, where a callback cannot see the network's outputs; call "
            f"paddle.disable_static() before building the model, or {_EXPLICIT_WAY}"
        )
    method = getattr(model, "_run_one_epoch", None)
    parameters = list(inspect.signature(method).parameters) if callable(method) else None
    if parameters != _EPOCH_PARAMETERS:
        raise CaptureError(
            f"paddle.Model._run_one_epoch of Paddle {paddle.__version__} takes {parameters}, wanted "
            f"{_EPOCH_PARAMETERS}: this Paddle is not known to paddle_td_callback; {_EXPLICIT_WAY}"
        )


class _Override:
    """Stands on an object in place of one of its methods until it is removed; `call` gets that method first.

    Who copies or pickles the object gets the method itself.
    """

    def __init__(self, holder: Any, name: str, call: Callable[..., Any]) -> None:
        self._own_attributes = vars(holder)
        self._name = name
        self._call = call
        self._previous = self._own_attributes.get(name)
        self._original = getattr(holder, name)
        self.__signature__ = inspect.signature(self._original)
        self._own_attributes[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Take it off; twice is fine."""
        if self._own_attributes.get(self._name) is self:
            if self._previous is None:
                del self._own_attributes[self._name]
            else:
                self._own_attributes[self._name] = self._previous

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _itself, (self._original,)


def _itself(one: Any) -> Any:
    return one


def intercept_next_epoch(
    model: Any, owner: Any, around: Callable[[Any, Any], contextlib.AbstractContextManager[Any]]
) -> Callable[[], None]:
    """Run the model's next training epoch inside `around(data_loader, callbacks)`, on the loader that it gives.

    The replacement sits on the instance and takes itself off when it is called, so nothing is left of it even
    where `fit` dies; should `fit` die before the epoch starts, the next call of any kind takes it off, and
    does nothing more unless it is a training epoch of `owner`.

    Args:
        model: the fitting `paddle.Model`.
        owner: the callback for whose training epochs it is meant.
        around: makes the context manager.

    Returns:
        What calls it off. Calling off twice, or after the epoch, is fine.
    """
    wanted = True

    def call_off() -> None:
        nonlocal wanted
        wanted = False
        override.remove()

    def run_one_epoch(
        original: Any, data_loader: Any, callbacks: Any, mode: str, *args: Any, **kwargs: Any
    ) -> Any:
        # By the `params` that Paddle makes for each fit, as the owner may be within a callback made of others.
        here = any(one is owner or getattr(one, "params", owner) is owner.params for one in callbacks)
        mine = wanted and mode == "train" and here
        call_off()
        if not mine:
            return original(data_loader, callbacks, mode, *args, **kwargs)
        with around(data_loader, callbacks) as loader:
            return original(loader, callbacks, mode, *args, **kwargs)

    override = _Override(model, "_run_one_epoch", run_one_epoch)
    return call_off


def call_before_steps(callbacks: Any, arm: Callable[[], None]) -> Callable[[], None]:
    """Have `arm` called before each training step, once every one of the fit's callbacks has been told of it.

    Returns:
        What ends that.
    """

    def on_batch_begin(original: Any, mode: str, *args: Any, **kwargs: Any) -> None:
        original(mode, *args, **kwargs)
        if mode == "train":
            arm()

    return _Override(callbacks, "on_batch_begin", on_batch_begin).remove


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


class IndexTap:
    """Stands in for a loader's batch sampler: deals the same batches and remembers their indices.

    Args:
        loader: a `paddle.io.DataLoader` with a batch sampler.

    Attributes:
        loader: the same.

    Raises:
        CaptureError: the loader has none, so nobody knows which samples a batch holds.
    """

    def __init__(self, loader: Any) -> None:
        sampler = getattr(loader, "batch_sampler", None)
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, paddle.io.IterableDataset):
            raise CaptureError(
                "the training data is an IterableDataset, which has no sample indices; use a map-style "
                f"paddle.io.Dataset, or {_FIELD_WAY}, or {_EXPLICIT_WAY}"
            )
        if sampler is None:
            raise CaptureError(
                f"the training data ({type(loader).__name__}) has no batch sampler (batch_size=None?), so the "
                "sample indices of a batch are unknown; give fit a Dataset, or a DataLoader with batch_size or "
                f"batch_sampler, or {_FIELD_WAY}, or {_EXPLICIT_WAY}"
            )
        self.loader = loader
        self._sampler = sampler
        self._dealt: deque[Any] | None = None
        self._proxy = _sampler_proxy(sampler, self)
        self._places: list[tuple[Any, str]] = [(loader, "batch_sampler")]
        # With persistent_workers the loader keeps one iterator, which keeps the sampler it was made with.
        iterator = getattr(loader, "_iterator", None)
        if getattr(iterator, "_batch_sampler", None) is sampler:
            self._places.append((iterator, "_batch_sampler"))
        for holder, name in self._places:
            setattr(holder, name, self._proxy)

    def iterate(self) -> Iterator[Any]:
        """Start dealing; only the first pass of an epoch is the training's own."""
        dealt: deque[Any] = deque()
        if self._dealt is None:
            self._dealt = dealt
        return _Dealing(iter(self._sampler), dealt)

    def take(self) -> npt.NDArray[np.int64] | None:
        """Indices of the next batch in the order of training, `[row]`; None when more came than were dealt.

        Raises:
            CaptureError: what the sampler dealt are no indices.
        """
        if not self._dealt:
            return None
        batch = self._dealt.popleft()
        try:
            return np.array([operator.index(sample) for sample in batch], np.int64)
        except TypeError as error:
            raise CaptureError(
                f"the batch sampler ({type(self._sampler).__name__}) dealt {str(batch)[:80]}, wanted a list of "
                f"integers; deal the places of the samples in the data set, or {_EXPLICIT_WAY}"
            ) from error

    def remove(self) -> None:
        """Put the sampler back wherever the stand-in is, also in an iterator made meanwhile."""
        iterator = getattr(self.loader, "_iterator", None)
        for holder, name in [*self._places, (iterator, "_batch_sampler")]:
            if getattr(holder, name, None) is self._proxy:
                setattr(holder, name, self._sampler)


class _Dealing:
    """Draws from the sampler exactly when training does, neither earlier nor later."""

    def __init__(self, batches: Iterator[Any], dealt: deque[Any]) -> None:
        self._batches = batches
        self._dealt = dealt

    def __iter__(self) -> _Dealing:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        if isinstance(batch, Iterator):  # it can be read but once
            batch = list(batch)
        # A copy of its own: a sampler may deal one list and refill it.
        try:
            self._dealt.append(list(batch))
        except TypeError:  # no batch of indices; what the loader makes of it is the loader's business
            self._dealt.append(batch)
        return batch


def _sampler_proxy(sampler: Any, tap: IndexTap) -> Any:
    """An object that is the sampler to everybody, but iterates through the tap."""

    class Proxy:
        __slots__ = ()

        def __iter__(self) -> Iterator[Any]:
            return tap.iterate()

        def __len__(self) -> int:
            return len(sampler)

        def __getattr__(self, name: str) -> Any:
            return getattr(sampler, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(sampler, name, value)

        def __reduce_ex__(self, protocol: Any) -> Any:  # who copies or pickles it gets a sampler
            return _itself, (sampler,)

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            return type(sampler)

    return Proxy()


class LossTap:
    """Sees what the loss of a training step is given, without touching it.

    Only the first `train_batch` after `arm` is the training's own step; others are those of callbacks.

    Args:
        model: the fitting `paddle.Model`.
        reader: finds logits and labels among the loss's arguments.
    """

    def __init__(self, model: Any, reader: OutputReader) -> None:
        self._model = model
        self._reader = reader
        self._seen: Seen | None = None
        self._failure: CaptureError | None = None
        self._n_labels = 1
        self._armed = False
        self._override = _Override(model, "train_batch", self._train_batch)

    def arm(self) -> None:
        """Look at the next step."""
        self._armed = True
        self._seen, self._failure = None, None

    def _train_batch(self, original: Any, inputs: Any, labels: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not self._armed:
            return original(inputs, labels, *args, **kwargs)
        self._armed = False
        # Only here is it known how many of the loss's arguments are labels.
        self._n_labels = len(labels) if isinstance(labels, (list, tuple)) else int(labels is not None)
        with self._watching():
            return original(inputs, labels, *args, **kwargs)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """See what the model's loss, whichever it is in this step, is given in it."""
        model, loss = self._model, self._model._loss
        if isinstance(loss, paddle.nn.Layer):
            hook = loss.register_forward_pre_hook(lambda _layer, arguments: self._see(loss, arguments))
            try:
                yield
            finally:
                hook.remove()
        elif callable(loss):
            model._loss = proxy = _loss_proxy(loss, self._see)
            try:
                yield
            finally:
                if model._loss is proxy:
                    model._loss = loss
        else:
            yield

    def remove(self) -> None:
        """Take every hook off."""
        self._override.remove()

    def _see(self, loss: Any, arguments: tuple[Any, ...]) -> None:
        if self._seen is not None or self._failure is not None:
            return  # a step that asks its loss again does so after an update, or for a part of the batch
        # A failure must not surface inside the training step; `take` raises it between the steps.
        try:
            with paddle.no_grad():
                n_outputs = len(arguments) - self._n_labels
                self._seen = self._reader.read(loss, arguments[:n_outputs], arguments[n_outputs:])
        except CaptureError as error:
            self._failure = error
        except Exception as error:
            self._failure = CaptureError(f"the loss's arguments cannot be read: {error!r}; {_EXPLICIT_WAY}")
            self._failure.__cause__ = error

    def take(self) -> tuple[npt.NDArray[Any], ...]:
        """Logits, probabilities `[row, class]` and labels `[row]` (or None) of the step that just ran.

        Raises:
            CaptureError: what the loss was given cannot be recorded.
        """
        if self._failure is not None:
            raise self._failure
        if self._seen is None:
            raise CaptureError(
                "the step ended, but the model's loss was not called; where a subclass of paddle.Model "
                f"computes its loss otherwise, {_EXPLICIT_WAY}"
            )
        seen, self._seen = self._seen, None
        return seen.to_host()


def _loss_proxy(loss: Any, see: Callable[[Any, tuple[Any, ...]], None]) -> Any:
    """A callable that is the loss to everybody, and lets its arguments be seen first."""

    class Proxy:
        __slots__ = ()
        _paddle_td_wrapped = staticmethod(getattr(loss, "_paddle_td_wrapped", loss))  # not to be bound

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            see(loss, arguments)
            return loss(*arguments, **named)

        def __getattr__(self, name: str) -> Any:
            return getattr(loss, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(loss, name, value)

    return Proxy()


class EpochTap:
    """Both taps together, for one training epoch.

    Args:
        model: the fitting `paddle.Model`.
        indices: knows the samples of each batch.
        reader: finds logits and labels among the loss's arguments.
    """

    def __init__(self, model: Any, indices: IndexTap | FieldTap, reader: OutputReader) -> None:
        self._indices = indices
        self._loss = LossTap(model, reader)
        self._waiting = False

    def arm(self) -> None:
        """A step begins."""
        if self._waiting:  # nobody took the one before
            with contextlib.suppress(CaptureError):
                self._indices.take()
        self._waiting = True
        self._loss.arm()

    def take(self) -> Batch | None:
        """The step that just ran; None once it has been taken.

        Raises:
            CaptureError: it cannot be recorded; the taps stay in step with training.
        """
        if not self._waiting:
            return None
        self._waiting = False
        indices = self._indices.take()
        logits, probabilities, labels = self._loss.take()
        if indices is None:
            raise CaptureError(
                f"the loss saw {len(logits)} rows, but the batch sampler dealt no batch for them; "
                f"{_EXPLICIT_WAY}"
            )
        if len(indices) != len(logits) or (labels is not None and len(labels) != len(logits)):
            seen = f"{len(logits)} rows" + ("" if labels is None else f" and {len(labels)} labels")
            raise CaptureError(
                f"the loss saw {seen}, but the batch sampler dealt {len(indices)} indices; a "
                "collate function that adds, drops or repeats samples hides which row is which: keep one "
                f"row a sample, or {_EXPLICIT_WAY}"
            )
        return Batch(indices, logits, probabilities, labels)

    def remove(self) -> None:
        """Take every hook off."""
        self._loss.remove()
        self._indices.remove()
