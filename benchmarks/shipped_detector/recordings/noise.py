"""Wrong labels of many kinds, from pure chance to the mistakes that people make."""

from __future__ import annotations

import numpy as np

from .datasets import Task

KINDS = ("uniform", "next", "pairs", "instance")
MORE_KINDS = (*KINDS, "cluster", "mixed", "one-class")


def clean_probabilities(task: Task, rng: np.random.Generator) -> np.ndarray:
    """What a network says that was trained on the right labels of the *other* half: [sample, class]."""
    from sklearn.decomposition import PCA
    from sklearn.neural_network import MLPClassifier

    flat = task.inputs.reshape(len(task.inputs), -1)
    seed = int(rng.integers(2**31))
    if flat.shape[1] > 64:
        fitted = PCA(64, svd_solver="randomized", random_state=seed).fit(flat[:5000])
        flat = fitted.transform(flat)
    flat = flat / flat.std()
    half = rng.permutation(len(flat)) % 2
    out = np.full((len(flat), task.n_classes), 1e-4)
    for side in (0, 1):
        if len(np.unique(task.labels[half != side])) < 2:
            continue
        n_train = np.sum(half != side)
        network = MLPClassifier(
            (96,),
            alpha=1e-3,
            learning_rate_init=3e-3,
            max_iter=int(np.clip(60000 / n_train, 6, 30)),
            batch_size=min(128, n_train),
            random_state=seed % 2**31,
        )
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.fit(flat[half != side], task.labels[half != side])
        out[np.ix_(half == side, network.classes_)] += network.predict_proba(flat[half == side])
    return out / out.sum(1, keepdims=True)


def _other_than(labels: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    return (labels + rng.integers(1, n_classes, len(labels))) % n_classes


def _draw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column for each row, drawn by its weights."""
    steps = np.cumsum(weights, 1)
    return (steps < rng.random((len(steps), 1)) * steps[:, -1:]).sum(1).clip(max=weights.shape[1] - 1)


def inject(task: Task, kind: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a share is wrong.

    Args:
        task: The data with its right labels.
        kind: ``uniform`` any other class; ``next`` the class after it; ``pairs`` the class it is most often
            confused with; ``instance`` ambiguous samples get the runner-up of a clean network; ``cluster`` regions of
            the input space go wrong together; ``mixed`` two kinds at once; ``one-class`` a few classes lose theirs.
        rate: Share of samples that get a wrong label.
        rng: What to draw from.

    Returns:
        The given labels, int64 [sample].
    """
    labels, n_classes, n = task.labels, task.n_classes, len(task.labels)
    given = labels.copy()
    n_wrong = round(rate * n)
    if n_wrong == 0:
        return given
    if kind == "mixed":
        first, second = rng.choice(KINDS, 2, replace=False)
        given = inject(task, first, rate * rng.uniform(0.3, 0.7), rng)
        left = np.flatnonzero(given == labels)
        more = inject(task, second, rate, rng)
        wrong = left[more[left] != labels[left]]
        wrong = rng.permutation(wrong)[: max(0, n_wrong - int(np.sum(given != labels)))]
        given[wrong] = more[wrong]
        return given
    if kind == "uniform":
        rows = rng.permutation(n)[:n_wrong]
        given[rows] = _other_than(labels[rows], n_classes, rng)
    elif kind == "next":
        rows = rng.permutation(n)[:n_wrong]
        given[rows] = (labels[rows] + 1) % n_classes
    elif kind == "one-class":
        victims = rng.permutation(n_classes)[: max(1, round(n_classes * rng.uniform(0.1, 0.5)))]
        pool = rng.permutation(np.flatnonzero(np.isin(labels, victims)))
        rows = pool[: min(n_wrong, int(0.45 * len(pool)))]
        target = _other_than(np.arange(n_classes), n_classes, rng)
        given[rows] = target[labels[rows]]
    elif kind == "cluster":
        flat = task.inputs.reshape(n, -1)
        near = np.argsort(flat @ rng.normal(size=(flat.shape[1], 3)) @ rng.normal(size=3))
        rows = rng.permutation(near[: min(n, int(n_wrong * rng.uniform(1.5, 4)))])[:n_wrong]
        target = _other_than(np.arange(n_classes), n_classes, rng)
        given[rows] = target[labels[rows]]
    elif kind in ("pairs", "instance"):
        said = clean_probabilities(task, rng)
        wrong = said.copy()
        wrong[np.arange(n), labels] = 0
        if kind == "pairs":
            confusion = np.stack([wrong[labels == k].mean(0) for k in range(n_classes)]) + 1e-9
            rows = rng.permutation(n)[:n_wrong]
            given[rows] = (
                confusion.argmax(1)[labels[rows]]
                if rng.random() < 0.5
                else _draw(confusion[labels[rows]], rng)
            )
        else:
            sharpness = rng.uniform(0.3, 1.2)
            keys = np.log(wrong.max(1) + 1e-6) * sharpness + rng.gumbel(size=n)
            rows = np.argsort(keys)[::-1][:n_wrong]
            given[rows] = wrong[rows].argmax(1) if rng.random() < 0.6 else _draw(wrong[rows] + 1e-9, rng)
    else:
        raise ValueError(f"kind must be one of {MORE_KINDS}, got {kind!r}")
    return given
