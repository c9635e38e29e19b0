"""What may come out of a callback's hook."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Judging(Protocol):
    """A callback that decides what becomes of errors in its hooks."""

    def _judge(self, error: Exception, hook: str) -> None:
        """Raise `error`, or deal with it."""


_C = TypeVar("_C", bound=Judging)
_P = ParamSpec("_P")


def guarded(hook: Callable[Concatenate[_C, _P], None]) -> Callable[Concatenate[_C, _P], None]:
    """A hook out of which comes nothing but what its callback raises on purpose."""

    @functools.wraps(hook)
    def run(self: _C, *args: _P.args, **named: _P.kwargs) -> None:
        try:
            hook(self, *args, **named)
        except Exception as error:
            self._judge(error, hook.__name__)

    return run  # type: ignore[return-value]
