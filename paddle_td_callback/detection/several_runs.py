"""Several runs over the same data and labels: refused where they are not, averaged where they are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..messages import escape
from ..store import TrainingDynamicsStore
from ..store.paths import path_text
from .dataset_features import rank
from .label_issues import LabelIssues
from .learning_clock import FITTED, LearningClock
from .noise_rate import trust

Source = str | os.PathLike[str] | TrainingDynamicsStore


def advice(clocks: Sequence[LearningClock | None]) -> tuple[str, ...]:
    """Whether several short runs are worth their time, by what these runs learned; see docs/detection-quality.md.

    Args:
        clocks: of each run, None where the method did without.
    """
    known = [(clock.epochs_until(FITTED), len(clock.fitted)) for clock in clocks if clock is not None]
    if len(known) < len(clocks):
        return ()
    if len(known) > 1:
        if any(epochs is not None for epochs, _ in known):
            return ()
        return (
            "no run fitted 95 percent of the given labels; where that is so, several runs rank hardly better than one",
        )
    ((epochs, of),) = known
    if epochs is None or 2 * epochs > of:
        return ()
    return (
        f"95 percent of the given labels were fitted after {epochs} of {of} epochs; in such trainings several short "
        "runs (train_several_runs) mostly rank better, at about the same cost",
    )


def check_runs(sources: Sequence[Source]) -> None:
    """Refuse, before any is scored, what are not several runs over the same classes."""
    n_classes: dict[str, int] = {}
    for source in sources if len(sources) > 1 else []:
        if isinstance(source, TrainingDynamicsStore):
            path, number = os.path.realpath(source.path), source.n_classes
        else:
            with TrainingDynamicsStore(source) as store:
                path, number = os.path.realpath(store.path), store.n_classes
        if path in n_classes:
            raise ValueError(
                f"{name_of(source)} is given twice; as two runs it would only seem to agree with another; give it once"
            )
        first = next(iter(n_classes.values()), number)
        if number != first:
            raise ValueError(
                f"{name_of(source)} has {number} classes, the first run {first}: give runs of the same labels"
            )
        n_classes[path] = number


def name_of(source: Source) -> str:
    """A source for a message."""
    path = source.path if isinstance(source, TrainingDynamicsStore) else path_text(source)
    return f"'{escape(path)}'"


def average_runs(runs: Sequence[LabelIssues], sources: Sequence[Source]) -> LabelIssues:
    """One result of several runs: each sample's noise score is its mean over the runs that saw it.

    Raises:
        ValueError: the runs are not over the same samples and labels.
    """
    _check_same_data(runs, sources)
    first = runs[0]
    scores = np.stack([run.noise_score for run in runs])
    scored = ~np.isnan(scores)
    total = np.where(scored, scores, 0).sum(axis=0)
    mean = np.divide(total, scored.sum(axis=0), out=np.full(len(first), np.nan), where=scored.any(axis=0))
    # The runs vote with their confidence; ties go to the earlier run.
    classes = np.stack([run.suggested_label for run in runs])
    weights = np.stack([run.suggested_confidence for run in runs])
    votes = np.stack([np.where(classes == own, weights, 0).sum(axis=0) for own in classes])
    chosen = votes.argmax(axis=0)[np.newaxis]
    n_runs = np.maximum(np.sum([run.n_epochs_seen > 0 for run in runs], axis=0), 1)  # that saw the sample
    noise_rate, interval = _noise_rate(runs, mean)
    return LabelIssues(
        method=first.method,
        noise_score=mean,
        given_label=np.max([run.given_label for run in runs], axis=0).astype(np.int32),
        suggested_label=np.take_along_axis(classes, chosen, axis=0)[0],
        suggested_confidence=(np.take_along_axis(votes, chosen, axis=0)[0] / n_runs).astype(np.float32),
        n_epochs_seen=np.sum([run.n_epochs_seen for run in runs], axis=0).astype(np.int32),
        class_names=first.class_names,
        sample_ids=first.sample_ids,
        noise_rate=noise_rate,
        noise_rate_interval=interval,
        notes=trust(interval),
        stability=stability(scores),
        n_runs=len(runs),
        n_epochs=sum(run.n_epochs or 0 for run in runs),
        n_epochs_read=sum(run.n_epochs_read or 0 for run in runs),
        is_recording=any(run.is_recording for run in runs),
    )


def _check_same_data(runs: Sequence[LabelIssues], sources: Sequence[Source]) -> None:
    first = runs[0]
    for run, source in zip(runs[1:], sources[1:], strict=True):
        if len(run) != len(first):
            raise ValueError(
                f"{name_of(source)} has {len(run)} samples, the first run {len(first)}: give runs of the same data"
            )
        if run.class_names != first.class_names:
            raise ValueError(
                f"{name_of(source)} has other class names than the first run: give runs of the same labels"
            )
        if run.sample_ids != first.sample_ids:
            raise ValueError(
                f"{name_of(source)} has other sample ids than the first run: give runs of the same data"
            )
        both = (run.given_label >= 0) & (first.given_label >= 0)
        differing = np.flatnonzero(both & (run.given_label != first.given_label))
        if len(differing):
            sample = int(differing[0])
            raise ValueError(
                f"{name_of(source)} has label {run.given_label[sample]} for sample {sample}, the first run "
                f"{first.given_label[sample]}: give runs of the same labels"
            )


def _noise_rate(
    runs: Sequence[LabelIssues], score: npt.NDArray[np.float64]
) -> tuple[float | None, tuple[float, float] | None]:
    """The mean of the averaged scores, and an interval around it as wide as those of the runs are on average."""
    rates = [run.noise_rate for run in runs if run.noise_rate is not None]
    intervals = [run.noise_rate_interval for run in runs if run.noise_rate_interval is not None]
    if len(rates) < len(runs):
        return None, None
    rate = float(np.nanmean(score))
    if len(intervals) < len(runs):
        return rate, None
    # Runs over one data set have correlated errors, so their mean is no more certain than each of them.
    low, high = np.mean(intervals, axis=0) + (rate - np.mean(rates))
    return rate, (max(0.0, float(low)), min(1.0, float(high)))


def stability(scores: npt.NDArray[np.float64]) -> float | None:
    """Mean Spearman correlation of the runs' scores `[run, sample]`, over samples that all of them scored."""
    everywhere = scores[:, ~np.isnan(scores).any(axis=0)]
    if everywhere.shape[1] < 2:
        return None
    ranks = np.stack([rank(run, np.zeros(len(run), np.int64)) for run in everywhere])
    if (ranks.std(axis=1) == 0).any():
        return None
    correlations = np.atleast_2d(np.corrcoef(ranks))
    return float(correlations[np.triu_indices(len(ranks), k=1)].mean())
