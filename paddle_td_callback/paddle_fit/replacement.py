"""What temporarily replaces an attribute of a fitting model, and what listens behind all callbacks."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

import paddle

from .internals import RUN_ONE_EPOCH
from .stand_in import StandIn


class Replacement(StandIn):
    """Replaces an attribute of a model until `remove`; to all others it behaves like what it replaced.

    Another callback may keep it and put it back later: it then calls what it replaced, and goes with the next
    `remove` of any replacement there.

    Args:
        original: what it replaces.
        holder: whose attribute that is.
        name: of the attribute.
        call: is called with the replaced object and the arguments.
        is_asked_always: `call` also when it is over.
    """

    __slots__ = ("_td_call", "_td_is_asked_always", "_td_is_over", "_td_name", "_td_own", "_td_was_own")

    def __init__(
        self, original: Any, holder: Any, name: str, call: Callable[..., Any], *, is_asked_always: bool
    ) -> None:
        super().__init__(original)
        own = vars(holder)
        self._td_set(_td_own=own, _td_name=name, _td_was_own=name in own, _td_is_over=False)
        self._td_set(_td_call=call, _td_is_asked_always=is_asked_always)
        own[name] = self

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call what it was made for; when that is over, what it replaced."""
        if self._td_is_over and not self._td_is_asked_always:
            return self._td_original(*args, **named)
        return self._td_call(self._td_original, *args, **named)

    def remove(self) -> None:
        """Take it off, now or with what is above it; twice is fine."""
        self._td_set(_td_is_over=True)
        self.clear(self._td_own, self._td_name)

    @classmethod
    def clear(cls, own: dict[str, Any], name: str, *, all_of_them: bool = False) -> None:
        """Take off the replacements at an attribute that are over."""
        top: Any
        while issubclass(type(top := own.get(name)), Replacement) and (all_of_them or top._td_is_over):
            if top._td_was_own:
                own[name] = top._td_original
            else:
                del own[name]


def replace(
    holder: Any, name: str, call: Callable[..., Any], *, is_asked_always: bool = False
) -> Replacement:
    """Replace an attribute of a model; see `Replacement`."""
    return Replacement(getattr(holder, name), holder, name, call, is_asked_always=is_asked_always)


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
        if running is not model:  # a copy of the model, made while this replacement was there
            Replacement.clear(vars(running), RUN_ONE_EPOCH, all_of_them=True)
            return getattr(running, RUN_ONE_EPOCH)(loader, callbacks, mode, *args, **named)
        if replacement._td_is_over:
            return original(loader, callbacks, mode, *args, **named)
        if mode == "train" and any(getattr(one, "params", None) is params for one in callbacks):
            replacement.remove()
            with around(loader, callbacks) as tapped:
                return original(tapped, callbacks, mode, *args, **named)
        if threading.get_ident() == thread and not _is_within("on_epoch_begin"):
            replacement.remove()  # its fit is dead
        return original(loader, callbacks, mode, *args, **named)

    # A copy of the model keeps it, and is to run itself.
    replacement = replace(model, RUN_ONE_EPOCH, run_one_epoch, is_asked_always=True)
    return replacement


def _is_within(function: str) -> bool:
    """Whether a function of this name is being called."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


class LastCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """The last callback of a fit: its hooks run after those of all others.

    Args:
        step_begins: called just before the step itself runs.
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
