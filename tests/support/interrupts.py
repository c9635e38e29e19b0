"""Ctrl-C at random moments of recorded fits, for `test_callbacks`.

In a process of its own, since Python may raise it anywhere, also in what would test it.
"""

from __future__ import annotations

import _thread
import os
import random
import threading
import time
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from support.training import (
    Bell,
    Points,
    Recorded,
    Witness,
    assert_same,
    assert_untapped,
    expected,
    model_of,
    read,
)

from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsStore

LONGEST_SECONDS = 0.12  # a fit of four epochs takes about as long
LOSSES = [nn.CrossEntropyLoss(), F.cross_entropy]


def fit_until_interrupted(model: Any, batches: Any, callbacks: Any, seconds: float) -> bool:
    """Whether Ctrl-C came before the end."""
    ended = False

    def interrupt() -> None:
        time.sleep(seconds)
        if not ended:
            _thread.interrupt_main()

    clock = threading.Thread(target=interrupt)
    try:
        try:
            clock.start()
            model.fit(batches, epochs=4, verbose=0, callbacks=callbacks, eval_data=Points(20))
        finally:
            ended = True
            clock.join()
    except KeyboardInterrupt:
        clock.join()
        return True
    return False


def part(recorded: Recorded, n_epochs: int) -> Recorded:
    """The first epochs, without the labels."""
    return Recorded(*(array[:, :n_epochs] for array in recorded[:-1]), recorded.labels[:0])


def one_round(path: str, loss: Any, seconds: float) -> bool:
    """Interrupt a fit, and go on with the same callback; everything must be there and nothing left."""
    network, labels = Witness(), Points().classes
    model = model_of(network, loss)
    batches = paddle.io.DataLoader(Points(), batch_size=8, shuffle=True)
    sampler = batches.batch_sampler
    recorder = TrainingDynamicsCallback(path, dtype="float32", overwrite=True)
    interrupted = fit_until_interrupted(model, batches, [Bell(), recorder], seconds)
    assert_untapped(model, batches, sampler)
    before, network.epochs = network.epochs, []
    model.stop_training = False
    model.fit(batches, epochs=1, verbose=0, callbacks=[Bell(), recorder])
    assert_untapped(model, batches, sampler)
    recorded = read(path)
    n_kept = recorded.given.shape[1] - 1
    # The epoch under way is not kept; where it had just ended, neither may be the one before it in this count.
    assert len(before) - 1 <= n_kept + interrupted, (n_kept, len(before), interrupted)
    assert n_kept <= len(before)
    assert_same(part(recorded, n_kept), part(expected(before[:n_kept], labels), n_kept))
    np.testing.assert_array_equal(recorded.given[:, n_kept:], expected(network.epochs, labels).given)
    with TrainingDynamicsStore(path) as store:
        assert not store.dropped_epochs
    return interrupted


def main(path: str, rounds: int, seed: int) -> None:
    """Say how many of the rounds were interrupted; exit 0 if all went well."""
    rng = random.Random(seed)
    n_interrupted = 0
    for number in range(rounds):
        n_interrupted += one_round(path, LOSSES[number % 2], rng.uniform(0, LONGEST_SECONDS))
        os.unlink(path)
    print(f"survived {n_interrupted} interruptions", flush=True)
    os._exit(0)  # what an interrupted Paddle left behind is of no interest
