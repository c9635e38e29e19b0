"""What is stored of a row: to the last bit what plain NumPy makes of the whole batch at once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_td_callback.recording import batches
from paddle_td_callback.recording.batches import (
    Block,
    Rows,
    as_array,
    as_integers,
    check_indices,
    top_classes,
)
from paddle_td_callback.store.schema import Layout


def plain(layout: Layout, logits: Any, labels: Any, probabilities: Any = None) -> dict[str, Any]:
    """As simple as can be: one pass for each number."""
    at = (np.arange(len(labels)), labels)
    soft = probabilities
    if soft is None:
        with np.errstate(over="ignore"):
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        soft = powers / powers.sum(axis=1, keepdims=True)
    others = logits.copy()
    others[at] = -np.inf
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        margin = np.clip(logits[at] - others.max(axis=1), -largest, largest)
    values = {"given_probability": soft[at], "margin": margin, "predicted": logits.argmax(axis=1)}
    if layout.keep == "all":
        values["probabilities"] = soft.astype(layout.dtype)
    elif layout.keep != "given":
        top = np.argsort(-soft, axis=1, kind="stable")[:, : layout.keep]
        values |= {
            "top_classes": top,
            "top_probabilities": np.take_along_axis(soft, top, axis=1).astype(layout.dtype),
        }
    return values


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        if value.dtype.kind == "f" and name != "margin":  # of 0.0 and -0.0, max takes either
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(np.signbit(found[name]), np.signbit(value), err_msg=name)


class Collected:
    """All rows that a block handed on."""

    def __init__(self) -> None:
        self.parts: list[Rows] = []

    def __call__(self, rows: Rows) -> None:
        values = {name: value.copy() for name, value in rows.values.items()}
        self.parts.append(Rows(rows.indices.copy(), rows.labels.copy(), rows.steps.copy(), values))

    def all(self) -> Rows:
        def joined(get: Any) -> Any:
            return np.concatenate([get(part) for part in self.parts])

        values = {name: joined(lambda part, name=name: part.values[name]) for name in self.parts[0].values}
        return Rows(*(joined(lambda p, n=n: getattr(p, n)) for n in ("indices", "labels", "steps")), values)


@settings(max_examples=60, deadline=None)
@given(
    n_classes=st.sampled_from([2, 3, 7, 8, 9, 10, 33, 130]),
    keep=st.sampled_from(["all", "given", 1, 2]),
    dtype=st.sampled_from(["float16", "float32"]),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    capacity=st.integers(1, 30),
    scale=st.sampled_from([0.01, 1.0, 30.0, 3e38]),
    ties=st.booleans(),
    given_too=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_of_any_size_give_what_each_batch_gives(
    n_classes: int,
    keep: Any,
    dtype: str,
    sizes: list[int],
    capacity: int,
    scale: float,
    ties: bool,
    given_too: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout(100, n_classes, keep=keep, dtype=dtype)
    collected = Collected()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BLOCK_BYTES", 4 * n_classes * capacity)
        block = Block(layout, collected)
    wanted = []
    for step, size in enumerate(sizes):
        logits = rng.uniform(-1, 1, (size, n_classes)).astype(np.float32) * np.float32(scale)
        if ties:
            logits = np.round(logits)
        labels, indices = rng.integers(0, n_classes, size), rng.integers(0, 100, size)
        soft = rng.dirichlet(np.ones(n_classes), size).astype(np.float32) if given_too and step % 2 else None
        before = logits.copy()
        block.add(indices, labels, logits, soft, step)
        np.testing.assert_array_equal(logits, before)  # the caller's own
        wanted.append((indices, labels, np.full(size, step), plain(layout, logits, labels, soft)))
    block.flush()
    block.flush()
    rows = [one for one in wanted if len(one[0])]
    if not rows:
        assert not collected.parts
        return
    found = collected.all()
    for ours, theirs in zip(
        (found.indices, found.labels, found.steps), zip(*rows, strict=True), strict=False
    ):
        np.testing.assert_array_equal(ours, np.concatenate(theirs))
    values = [one[3] for one in rows]
    assert_same(found.values, {name: np.concatenate([v[name] for v in values]) for name in values[0]})


@pytest.mark.parametrize("n_classes", [10, 1000, 21841])
def test_many_classes(n_classes: int) -> None:
    """Sums of many numbers depend on their order."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, n_classes)).astype(np.float32) * 8
    labels = rng.integers(0, n_classes, 50)
    layout, collected = Layout(50, n_classes), Collected()
    block = Block(layout, collected)
    block.add(np.arange(50), labels, logits, None, 0)
    block.flush()
    assert_same(collected.all().values, plain(layout, logits, labels))


def test_more_large_classes_than_are_looked_for_one_by_one() -> None:
    soft = np.random.default_rng(0).integers(0, 9, (30, 200)).astype(np.float32)
    for k in (1, 5, batches._MOST_PASSES, batches._MOST_PASSES + 1, 200):
        np.testing.assert_array_equal(top_classes(soft, k), np.argsort(-soft, axis=1, kind="stable")[:, :k])


def test_a_block_holds_no_more_than_it_may() -> None:
    collected = Collected()
    block = Block(Layout(10, 1000), collected)
    logits = np.zeros((1000, 1000), np.float32)
    block.add(np.zeros(1000, np.int64), np.zeros(1000, np.int64), logits, None, 0)
    held = [value for value in vars(block).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) <= 2.1 * batches.BLOCK_BYTES  # logits and probabilities
    assert sum(len(part.indices) for part in collected.parts) > 700


def test_arrays_are_taken_as_they_are_where_they_can_be() -> None:
    array = np.arange(3)
    assert as_array(array) is array
    assert as_integers(array, "indices") is array
    assert as_integers([[1], [2]], "indices").tolist() == [1, 2]
    assert as_integers(np.array([1], np.uint8), "indices").dtype == np.int64
    assert as_integers([], "indices").shape == (0,)


@pytest.mark.parametrize(("index", "row"), [(5, 1), (-1, 1), (2**62, 1), (-(2**63), 1)])
def test_an_index_out_of_range_is_named(index: int, row: int) -> None:
    with pytest.raises(
        ValueError, match=rf"step: indices must be in \[0, 5\), got index {index} in row {row}; "
    ):
        check_indices(np.array([4, index]), 5, "step")
    check_indices(np.array([0, 4]), 5, "step")
    check_indices(np.zeros(0, np.int64), 5, "step")
