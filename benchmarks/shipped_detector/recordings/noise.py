"""Wrong labels of many kinds, from pure chance to the mistakes that people make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .datasets import Task

KINDS = ("uniform", "next", "pairs", "instance")
MORE_KINDS = (*KINDS, "cluster", "mixed", "one-class")
PEOPLE = ("look-alikes", "rules", "annotators", "source", "duplicates", "no-class")  # see `mistaken`


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


def leading(inputs: np.ndarray, n: int) -> np.ndarray:
    """The leading principal components of the inputs."""
    from sklearn.decomposition import PCA

    flat = inputs.reshape(len(inputs), -1)
    return PCA(min(n, *flat.shape), random_state=0).fit_transform(flat)


def mistaken(task: Task, kind: str, rate: float, rng: np.random.Generator) -> tuple[Task, np.ndarray]:
    """Labels of which a share is wrong, with mistakes as people make them.

    Args:
        task: the data with its right labels.
        kind: one of `inject`, or of `PEOPLE`:
            ``look-alikes``: small clusters of similar samples get one name, as where somebody labels a whole group at
            a glance; the clusters lie inside of classes or across them.
            ``rules``: a threshold on one feature sends samples of one class to another, as keyword rules and careless
            instructions do.
            ``annotators``: two to eight people of unequal skill share the work; each confuses what a network confuses,
            the worse the more often.
            ``source``: one part of the data, which looks a little different, was labelled carelessly.
            ``duplicates``: nearly the same sample stands twice with different labels.
            ``no-class``: samples that are none of the classes, which got some label all the same.
        rate: share of wrong labels; of the last two kinds at most 0.3.
        rng: what to draw from.

    Returns:
        The data, which the last two kinds change (-1 = the right label is none of the classes), and the given labels,
        int64 `[sample]`.
    """
    if kind not in PEOPLE:
        return task, inject(task, kind, rate, rng)
    labels, n_classes, n = task.labels, task.n_classes, len(task.labels)
    n_wrong = max(1, round(rate * n))
    given = labels.copy()
    if kind == "duplicates":
        return _duplicated(task, min(n_wrong, round(0.3 * n)), rng)
    if kind == "no-class":
        return _of_no_class(task, min(n_wrong, round(0.3 * n)), rng)
    if kind == "annotators":
        said = clean_probabilities(task, rng)
        n_people = int(rng.integers(2, 9))
        who = rng.choice(n_people, n, p=rng.dirichlet(np.full(n_people, 3.0)))
        carelessness = rng.gamma(0.8, size=n_people)[who]
        doubt = (said + 1e-3) ** rng.uniform(0.3, 1.0)
        doubt[np.arange(n), labels] = 0
        keys = (
            np.log(carelessness + 1e-9) + rng.uniform(0, 1) * np.log(doubt.max(axis=1)) + rng.gumbel(size=n)
        )
        rows = np.argsort(keys)[::-1][:n_wrong]
        given[rows] = _draw(doubt[rows], rng)
        return task, given
    points = leading(task.inputs, 32)
    if kind == "source":
        value = points[:, rng.integers(min(8, points.shape[1]))] * rng.choice([-1, 1])
        share = float(rng.uniform(max(0.1, 1.3 * rate), max(0.4, 1.6 * rate)))
        part = np.argsort(value)[::-1][: max(n_wrong, round(min(1.0, share) * n))]
        rows = rng.permutation(part)[:n_wrong]
        given[rows] = _other_than(labels[rows], n_classes, rng)
        return task, given
    if kind == "look-alikes":
        from sklearn.cluster import KMeans

        n_clusters = max(3, min(n // 3, round(n / rng.uniform(8, 60))))
        clusters = KMeans(n_clusters, n_init=1, random_state=int(rng.integers(2**31))).fit_predict(points)
        inside = rng.random() < 0.5
        for cluster in rng.permutation(n_clusters):
            rows = np.flatnonzero(clusters == cluster)
            if inside:
                rows = rows[labels[rows] == np.bincount(labels[rows]).argmax()]
            given[rows] = rng.integers(n_classes)
            if (given != labels).sum() >= n_wrong:
                break
    for _ in range(200):  # rules; some say nothing new
        if kind != "rules" or (given != labels).sum() >= n_wrong:
            break
        one, other = rng.choice(n_classes, 2, replace=False)
        rows = np.flatnonzero(labels == one)
        value = points[rows, rng.integers(min(8, points.shape[1]))] * rng.choice([-1, 1])
        given[rows[value > np.quantile(value, rng.uniform(0.5, 0.8))]] = other
    wrong = np.flatnonzero(given != labels)
    too_many = rng.permutation(wrong)[: max(0, len(wrong) - n_wrong)]
    given[too_many] = labels[too_many]
    return task, given


def _duplicated(task: Task, n_wrong: int, rng: np.random.Generator) -> tuple[Task, np.ndarray]:
    """Some samples become noisy copies of others, with another label."""
    rows = rng.permutation(len(task.labels))
    copies, originals = rows[:n_wrong], rng.choice(rows[n_wrong:], n_wrong)
    inputs, labels = task.inputs.copy(), task.labels.copy()
    noise = rng.normal(size=inputs[copies].shape) * inputs.std(axis=0) * rng.uniform(0, 0.3)
    inputs[copies] = inputs[originals] + noise
    labels[copies] = labels[originals]
    given = labels.copy()
    given[copies] = _other_than(labels[copies], task.n_classes, rng)
    return replace(task, inputs=inputs, labels=labels), given


def _of_no_class(task: Task, n_wrong: int, rng: np.random.Generator) -> tuple[Task, np.ndarray]:
    """The samples of one class lose their class where there are many classes, or some become blends of several."""
    labels, given = task.labels.copy(), task.labels.copy()
    if task.n_classes >= 4 and rng.random() < 0.5:
        gone = int(rng.integers(task.n_classes))
        of_class = rng.permutation(np.flatnonzero(labels == gone))
        lost, kept = of_class[:n_wrong], np.ones(len(labels), bool)
        kept[of_class[n_wrong:]] = False
        labels[lost] = -1
        given[lost] = (gone + rng.integers(1, task.n_classes, len(lost))) % task.n_classes
        given -= given > gone
        labels -= labels > gone
        return replace(task, inputs=task.inputs[kept], labels=labels[kept]), given[kept]
    rows = rng.permutation(len(labels))[:n_wrong]
    inputs, n = task.inputs.copy(), len(labels)
    parts = [task.inputs[rng.integers(n, size=n_wrong)] for _ in range(3)]
    inputs[rows] = np.mean(parts, axis=0) * np.sqrt(3)
    labels[rows], given[rows] = -1, rng.choice(task.labels, n_wrong)
    return replace(task, inputs=inputs.astype(np.float32), labels=labels), given
