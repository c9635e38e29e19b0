"""The real `Trainer` of PaddleNLP (2.8.1 on Paddle 2.6.2), where it is installed, as its users would record it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from support.training import Points, assert_same, expected, read
from test_ranks import Ranks, Run, seen_once

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("paddlenlp.trainer", exc_type=ImportError)
    from support.nlp import N_TEXTS, train

# Its own and its dependencies'.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_trainer_of_paddlenlp(path: str) -> None:
    witness = train(path, record=True)
    assert_same(read(path), expected(witness.epochs, Points(N_TEXTS).classes))
    assert len(witness.epochs) == 3


def test_trainer_of_paddlenlp_trains_as_without(path: str) -> None:
    recorded, plain = (train(path, record=record) for record in (True, False))
    for mine, theirs in zip(recorded.parameters(), plain.parameters(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.distributed
def test_trainer_of_paddlenlp_on_two_ranks(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "paddlenlp", 2)
    assert ranks.wait(120) == [0, 0], ranks.log(0)[-3000:] + ranks.log(1)[-3000:]
    run = Run(tmp_path, 2)
    want = seen_once(expected(run.steps("nlp", 3), Points(N_TEXTS).classes))
    assert (want.n_presentations == 1).all()
    assert_same(read(run.path("nlp")), want)
