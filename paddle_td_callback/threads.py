"""Work given to a thread, also when the interpreter is about to end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def run_beside(
    executor: Executor, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs
) -> Future[_T]:
    """Have `executor` do the work; where it takes none any more, do it now.

    A script that dies of an exception ends while its last epoch is being written: Python then waits for the threads
    that it has, but no executor accepts anything new, and a commit takes more than one.
    """
    try:
        return executor.submit(work, *arguments, **named)
    except RuntimeError:
        future: Future[_T] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future
