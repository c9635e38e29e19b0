"""Label issues as a matplotlib figure: the data map, and how the most suspicious samples were learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import escape
from ..store import TrainingDynamicsStore
from . import scores

if TYPE_CHECKING:
    from .label_issues import LabelIssues

MAX_POINTS = 20_000  # of the data map; more than these cover each other


def plot_issues(issues: LabelIssues, store: TrainingDynamicsStore, *, n_trajectories: int = 5) -> Any:
    """The figure of `LabelIssues.plot`.

    Args:
        issues: of the recording.
        store: the recording.
        n_trajectories: how many samples.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the recording has another number of samples.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    if store.n_samples != len(issues):
        raise ValueError(
            f"'{escape(store.path)}' has {store.n_samples} samples, these issues {len(issues)}; pass their recording"
        )
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    data_map, course = figure.subplots(1, 2)
    some = issues.ranking
    if len(some) > MAX_POINTS:
        some = np.sort(np.random.default_rng(0).permutation(some)[:MAX_POINTS])
    given = store.given_probabilities(some)
    points = data_map.scatter(
        scores.variability(given),
        scores.confidence(given),
        c=issues.noise_score[some],
        s=8,
        cmap="viridis",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    data_map.set(xlabel="variability", ylabel="confidence", title="Data map", ylim=(-0.02, 1.02))
    figure.colorbar(points, ax=data_map, label="noise score")
    top = issues.ranking[:n_trajectories]
    for sample, line in zip(top, store.given_probabilities(top), strict=True):
        name = str(sample) if issues.sample_ids is None else escape(issues.sample_ids[sample], limit=30)
        # "$" would be read as mathematics, a leading "_" would hide the line.
        course.plot(line, marker=".", label=f"sample {name}".replace("$", r"\$"))
    course.set(
        xlabel="epoch", ylabel="probability of the given label", title="Most suspicious", ylim=(-0.02, 1.02)
    )
    if len(top):
        course.legend(fontsize="small")
    return figure
