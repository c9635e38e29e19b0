"""Recordings for tests: epochs of random make that agree with themselves, and what must be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_td_callback.store import StoreWriter, TrainingDynamicsStore
from paddle_td_callback.store.schema import Layout

Epoch = dict[str, np.ndarray]


def make_labels(layout: Layout, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, layout.n_classes, layout.n_samples).astype(np.int32)


def unseen_epoch(layout: Layout) -> Epoch:
    """An epoch in which nothing was seen yet."""
    return {f.name: np.full(f.shape, f.unseen, f.dtype) for f in layout.fields}


def make_epoch(layout: Layout, labels: np.ndarray, seed: int, *, missing: float = 0.1) -> Epoch:
    """One epoch as a recorder would leave it in its buffer; `missing` of the samples were not seen."""
    rng = np.random.default_rng([seed, 17])
    logits = rng.normal(0, 3, (layout.n_samples, layout.n_classes)).astype(np.float32)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    at = (np.arange(layout.n_samples), np.maximum(labels, 0))
    others = logits.copy()
    others[at] = -np.inf
    epoch = unseen_epoch(layout)
    seen = (rng.random(layout.n_samples) >= missing) & (labels >= 0)
    values: dict[str, Any] = {
        "given_probability": softmax[at],
        "margin": logits[at] - others.max(axis=1),
        "predicted": logits.argmax(axis=1),
        "n_presentations": rng.integers(1, 3, layout.n_samples),
        "probabilities": softmax,
    }
    if isinstance(layout.keep, int):
        values["top_classes"] = np.argsort(-softmax, axis=1, kind="stable")[:, : layout.keep]
        values["top_probabilities"] = np.take_along_axis(softmax, values["top_classes"], axis=1)
    for name, array in epoch.items():
        array[seen] = values[name][seen]
    return epoch


def write_recording(
    path: Path, layout: Layout, n_epochs: int, *, labels: np.ndarray | None = None, **options: Any
) -> list[Epoch]:
    labels = make_labels(layout) if labels is None else labels
    writer = StoreWriter.create(path, layout, **options)
    epochs = [make_epoch(layout, labels, index) for index in range(n_epochs)]
    for index, epoch in enumerate(epochs):
        writer.commit_epoch(index, epoch, labels)
    writer.close()
    return epochs


def read_epochs(path: Path) -> tuple[list[Epoch], np.ndarray]:
    """All epochs of a file through the public reader, and the labels."""
    with TrainingDynamicsStore(path) as store:
        columns = {
            "given_probability": store.given_probabilities(),
            "margin": store.margins(),
            "predicted": store.predictions(),
            "n_presentations": store.n_presentations(),
        }
        if store.keep == "all":
            columns["probabilities"] = store.probabilities()
        elif isinstance(store.keep, int):
            columns["top_classes"], columns["top_probabilities"] = store.top()
        epochs = [{name: column[:, e] for name, column in columns.items()} for e in range(store.n_epochs)]
        return epochs, store.labels


def assert_same_epochs(found: list[Epoch], wanted: list[Epoch]) -> None:
    assert len(found) == len(wanted)
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(
                one[name], other[name], err_msg=f"epoch {index}, {name}", strict=True
            )
