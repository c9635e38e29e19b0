"""share_out: each item once, errors and refused threads included."""

import threading

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import find_label_issues
from paddle_td_callback.detection.lstm import inference
from paddle_td_callback.detection.lstm.cores import share_out


def works(n_threads, done):
    def work(item):
        done.append(item)
        return 1

    return [work] * n_threads


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_each_item_is_done_once_and_counted_once(n_threads):
    done, counts = [], []
    share_out(range(100), works(n_threads, done), counts.append)
    assert sorted(done) == list(range(100))
    assert sum(counts) == 100


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_any_thread_ends_all(failing):
    def fail(item):
        raise ValueError(f"item {item}")

    both_run = threading.Barrier(2)  # else one thread may do all items before the other has begun

    def work(item):
        both_run.wait(10)
        return 1

    def fail_with_the_other(item):
        both_run.wait(10)
        fail(item)

    pair = [fail_with_the_other, work] if failing == 0 else [work, fail_with_the_other]
    with pytest.raises(ValueError, match="item"):
        share_out(range(2), pair, lambda n: None)
    assert not any("detect" in one.name for one in threading.enumerate())


def test_what_interrupts_the_caller_stops_the_helpers():
    def interrupt(n):
        raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        share_out(range(100_000), works(2, done), interrupt)
    assert not any("detect" in one.name for one in threading.enumerate())


def test_where_there_are_no_threads_the_caller_does_all(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    share_out(range(10), works(3, done), lambda n: None)
    assert done == list(range(10))


def test_scores_do_not_depend_on_the_number_of_threads(path, monkeypatch):
    record(path)
    found = []
    for n_threads in (1, 2, 7):
        monkeypatch.setattr(inference, "n_cores", lambda n=n_threads: n)
        found.append(find_label_issues(path, batch_size=16, device="cpu", progress=False).noise_score)
    assert len(found[0]) > 7 * 16
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
