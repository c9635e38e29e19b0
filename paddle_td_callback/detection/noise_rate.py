"""The estimated share of wrong labels, how far to trust it, and what labels that were moved on purpose say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .label_issues import LabelIssues
from .lstm.calibration import uncertainty

# On four data sets, below it 6 of 7 estimates were within 5 points, above it 6 of 17: docs/detection-quality.md.
WIDE = 0.1


def with_noise_rate(
    issues: LabelIssues, provenance: Mapping[str, Any], planted: NDArray[np.floating]
) -> LabelIssues:
    """The same issues with the noise rate, its interval, and a sentence on how far to trust it.

    Labels that were moved on purpose are the easiest mistakes to find. So where they are found less surely than the
    probabilities expect, the rate and the probabilities are raised; they are never lowered.

    Args:
        issues: by a detector; their scores are probabilities.
        provenance: of the detector; it may know how far its estimates were off on data it had not seen.
        planted: `[moved label]`, the scores of labels that were moved on purpose.
    """
    scored = issues.noise_score[~np.isnan(issues.noise_score)]
    if not len(scored):
        return issues
    score, rate = issues.noise_score, float(scored.mean())
    # Known only where the weights were measured on data they had not seen; see benchmarks/shipped_detector.
    by_uncertainty = provenance.get("noise_rate_error_by_uncertainty")
    error = None if by_uncertainty is None else by_uncertainty * uncertainty(scored)
    interval = None if error is None else (max(0.0, rate - error), min(1.0, rate + error))
    notes: tuple[str, ...] = ()
    if len(planted):
        estimate, low, high = rate_by_planted(scored, planted)
        if estimate > rate:
            rate, score = estimate, shifted_to(score, estimate)
        interval = min(low, *(interval or (1.0,))), max(high, *(interval or (0.0,)))
        found = int((planted > 0.5).sum())
        notes = (
            f"of {len(planted)} labels moved on purpose {found} were found ({found / len(planted):.0%})",
        )
    return replace(
        issues,
        noise_score=score,
        noise_rate=rate,
        noise_rate_interval=interval,
        notes=(*trust(interval), *notes),
    )


def trust(interval: tuple[float, float] | None) -> tuple[str, ...]:
    """A sentence on the noise rate with this interval."""
    if interval is None:
        return ()
    blind = "mistakes that follow a rule, which a network learns like the truth, are not counted"
    if interval[1] - interval[0] > WIDE:
        return (
            "this share is unsure, since many labels look neither right nor wrong; look at some of both kinds; "
            f"{blind}",
        )
    return (f"this share is fairly sure for mistakes made at random; {blind}",)


def rate_by_planted(
    probability: NDArray[np.floating], planted: NDArray[np.floating]
) -> tuple[float, float, float]:
    """The share of wrong labels by how labels that were moved on purpose are scored.

    The sum of the probabilities counts a wrong label by the probability that it got. If the probabilities are right,
    that is `sum(p * p) / sum(p)` on average; the planted labels show what it is in this training.

    Args:
        probability: `[sample]` of the labels that were not moved.
        planted: `[moved sample]` of those that were.

    Returns:
        The share, and the lowest and the highest that fit two standard errors of the planted mean.
    """
    expected = float(np.square(probability).sum())  # rate * that mean, if the probabilities are right
    error = 2 * (float(np.std(planted)) + 0.1) / np.sqrt(len(planted))  # few that agree may be luck
    return tuple(
        float(np.clip(expected / len(probability) / np.clip(planted.mean() + off, 0.05, 1), 0, 1))
        for off in (0, error, -error)
    )  # type: ignore[return-value]


def shifted_to(probability: NDArray[np.floating], mean: float) -> NDArray[np.float64]:
    """Probabilities `[sample]` with a number added to their log-odds so that their mean is as given; NaN stays."""
    bounded = np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9)
    odds = np.log(bounded / (1 - bounded))
    low, high = -30.0, 30.0
    for _ in range(60):
        bias = (low + high) / 2
        moved = 1 / (1 + np.exp(-(odds + bias)))
        low, high = (bias, high) if np.nanmean(moved) < mean else (low, bias)
    return np.asarray(moved)
