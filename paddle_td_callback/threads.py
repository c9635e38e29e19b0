"""Work given to a thread, also when the interpreter is about to end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_U = TypeVar("_U")


def one_thread() -> Executor:
    """An executor of one thread, which is there already; where the system gives none, an executor that takes no work.

    An executor that starts its thread with the first work keeps that work in its queue where the thread cannot be
    started, although it raises, so that the work would be done now and once more later. And of a thread that Ctrl-C
    met while it started it knows nothing, starts another, and two would write into the file at once.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paddle_td_callback")
    try:
        executor.submit(int).result()
    except RuntimeError:
        executor.shutdown()
    return executor


def run_beside(
    executor: Executor, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs
) -> Future[_T]:
    """Have `executor`, made by `one_thread`, do the work; where it takes none any more, do it now.

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


def run_ahead(executor: Executor, work: Callable[[_U], _T], items: Iterable[_U]) -> Generator[_T, None, None]:
    """What `work` makes of the items, in order; the next one is under way while the one before is being used.

    None is under way any more when the iteration has ended or was closed.
    """
    ahead: Future[_T] | None = None
    try:
        for item in items:
            done, ahead = ahead, run_beside(executor, work, item)
            if done is not None:
                yield done.result()
        if ahead is not None:
            yield ahead.result()
    finally:
        if ahead is not None and not ahead.cancel():
            wait([ahead])
