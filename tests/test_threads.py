"""Work given to a thread is done in order, one piece ahead, and never left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from paddle_td_callback.threads import one_thread, run_ahead, run_beside


@pytest.fixture
def executor():
    with one_thread() as made:
        yield made


@pytest.mark.parametrize("n_items", [0, 1, 2, 7])
def test_results_come_in_order(n_items, executor):
    assert list(run_ahead(executor, lambda item: item * item, range(n_items))) == [
        item * item for item in range(n_items)
    ]


def test_one_is_under_way_while_one_is_used_and_no_more(executor):
    started = []
    second = threading.Event()

    def work(item):
        started.append(item)
        if item == 1:
            second.set()
        return item

    results = run_ahead(executor, work, range(9))
    assert next(results) == 0
    assert second.wait(10)
    assert started == [0, 1]
    results.close()
    assert started == [0, 1]


def test_closing_waits_for_what_is_under_way(executor):
    release, done = threading.Event(), []

    def work(item):
        if item == 1:
            release.wait(10)
            done.append(item)
        return item

    results = run_ahead(executor, work, range(3))
    assert next(results) == 0
    threading.Timer(0.1, release.set).start()
    results.close()
    assert done in ([1], [])  # done, or never begun
    assert executor.submit(len, done).result() == len(done)


def test_an_error_comes_where_its_result_would(executor):
    results = run_ahead(executor, lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_executor_that_takes_nothing_any_more():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    assert run_beside(executor, int, "7").result() == 7
    assert list(run_ahead(executor, int, ["1", "2"])) == [1, 2]
    with pytest.raises(ValueError, match="invalid literal"):
        run_beside(executor, int, "x").result()


def test_a_thread_that_cannot_be_started_costs_nothing_but_time(monkeypatch):
    """Not even where one could be had later: the work is done once."""
    start, done = threading.Thread.start, []

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with one_thread() as executor:
        assert run_beside(executor, done.append, 1).done()
        assert list(run_ahead(executor, int, ["1", "2"])) == [1, 2]
        monkeypatch.setattr(threading.Thread, "start", start)
        run_beside(executor, done.append, 2).result()
    assert done == [1, 2]


def test_the_thread_is_there_before_there_is_work(monkeypatch, executor):
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("too late"))
    assert run_beside(executor, threading.get_ident).result() != threading.get_ident()
