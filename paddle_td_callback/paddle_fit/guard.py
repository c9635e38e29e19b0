"""A wrapper of callback hooks that decides what may be raised out of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Judging(Protocol):
    """A callback that decides about the errors of its hooks."""

    def _judge(self, error: Exception, hook: str) -> None:
        """Raise `error`, or handle it."""


_C = TypeVar("_C", bound=Judging)
_P = ParamSpec("_P")


def guarded(hook: Callable[Concatenate[_C, _P], None]) -> Callable[Concatenate[_C, _P], None]:
    """Wrap a hook so that every exception in it goes to `_judge`."""

    @functools.wraps(hook)
    def run(self: _C, *args: _P.args, **named: _P.kwargs) -> None:
        try:
            hook(self, *args, **named)
        except Exception as error:
            self._judge(error, hook.__name__)

    return run  # type: ignore[return-value]
