"""Work that is shared out over the cores: the calling thread and helpers take the next item until none is left."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

MAX_THREADS = 8  # with more, a batch in each takes memory, and reading the file is what all wait for

Item = TypeVar("Item")


def n_cores() -> int:
    """How many cores this process may use, at most `MAX_THREADS`."""
    with contextlib.suppress(AttributeError):  # not on macOS and Windows
        return min(MAX_THREADS, len(os.sched_getaffinity(0)))
    return min(MAX_THREADS, os.cpu_count() or 1)


def share_out(
    items: Iterable[Item], works: list[Callable[[Item], int]], on_done: Callable[[int], object]
) -> None:
    """Have each item done once, by whichever thread is free; where the system gives no threads, by this one.

    Args:
        items: what is to be done; each item's result must not depend on the order.
        works: one function for each thread; the first is called in this thread. They return how much they did.
        on_done: called in this thread with how much was done since the last call.

    Raises:
        BaseException: the first error of any thread; the items that are left stay undone.
    """
    left, done, errors = deque(items), deque[int](), list[BaseException]()

    def take_next(work: Callable[[Item], int]) -> bool:
        try:
            item = left.popleft()
        except IndexError:
            return False
        done.append(work(item))
        return True

    def help_with(work: Callable[[Item], int]) -> None:
        try:
            while take_next(work):
                pass
        except BaseException as error:
            left.clear()
            errors.append(error)

    helpers = []
    try:
        with contextlib.suppress(RuntimeError):  # the system gives no more threads
            for work in works[1:]:
                helper = threading.Thread(target=help_with, args=(work,), name="paddle_td_callback detect")
                helper.start()
                helpers.append(helper)
        while take_next(works[0]):
            while done:
                on_done(done.popleft())
    finally:
        left.clear()
        for helper in helpers:
            helper.join()
    if errors:
        raise errors[0]
    on_done(sum(done))
