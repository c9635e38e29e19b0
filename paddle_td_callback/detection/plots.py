"""Label issues as a matplotlib figure: the data map, and how the most suspicious samples were learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..messages import escape
from ..store import TrainingDynamicsStore
from . import scores

if TYPE_CHECKING:
    from .label_issues import LabelIssues

MAX_POINTS = 20_000  # of the data map; more than these cover each other


def plot_issues(
    issues: LabelIssues, source: Any, *, samples: npt.ArrayLike | None = None, n_trajectories: int = 5
) -> Any:
    """The figure of `LabelIssues.plot`.

    Args:
        issues: of the recording.
        source: the recording: a path or a store.
        samples: `[row]`, whose trajectories are drawn; None = the most suspicious.
        n_trajectories: how many of these.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the recording has another number of samples, or no such sample.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    if not isinstance(source, TrainingDynamicsStore):
        with TrainingDynamicsStore(source) as store:
            return plot_issues(issues, store, samples=samples, n_trajectories=n_trajectories)
    store = source
    if store.n_samples != len(issues):
        raise ValueError(
            f"'{escape(store.path)}' has {store.n_samples} samples, these issues {len(issues)}; pass their recording"
        )
    drawn = issues.ranking[:n_trajectories] if samples is None else np.asarray(samples)
    if (
        drawn.ndim != 1
        or drawn.dtype.kind not in "iu"
        or (len(drawn) and not (0 <= drawn.min() <= drawn.max() < len(issues)))
    ):
        raise ValueError(
            f"samples must be a list of indices in [0, {len(issues)}), got {escape(repr(samples), limit=60)}; pass "
            "some of issues.ranking, for example"
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
    for sample, line in zip(drawn, store.given_probabilities(drawn), strict=True):
        name = str(sample) if issues.sample_ids is None else escape(issues.sample_ids[sample], limit=30)
        # "$" would be read as mathematics, a leading "_" would hide the line.
        course.plot(line, marker=".", label=f"sample {name}".replace("$", r"\$"))
    course.set(xlabel="epoch", ylabel="probability of the given label", ylim=(-0.02, 1.02))
    course.set_title("Most suspicious" if samples is None else "Some samples")
    if len(drawn):
        course.legend(fontsize="small")
    return figure
