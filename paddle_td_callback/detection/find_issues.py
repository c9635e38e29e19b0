"""find_label_issues: from a recording to a ranking of the samples whose labels look wrong."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..errors import StoreError
from ..store import TrainingDynamicsStore
from .dataset_features import Evidence, Table, rank
from .label_issues import LabelIssues
from .lstm.calibration import doubt
from .scores import NOISE_SCORES
from .suggestions import suggest_labels
from .trajectories import trajectories_of

if TYPE_CHECKING:
    from .lstm.detector import NoiseDetector

Source = str | os.PathLike[str] | TrainingDynamicsStore
METHODS = ("lstm", *NOISE_SCORES)


def check_method(method: str, detector: NoiseDetector | None) -> None:
    """Refuse what `find_label_issues` could not work with.

    Raises:
        ValueError: an unknown method, or a detector for a method that has none.
        TypeError: a detector that is none.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if detector is None:
        return
    if method != "lstm":
        raise ValueError(f"detector= goes with method='lstm', not with {method!r}")
    known = sys.modules.get(f"{__package__}.lstm.detector")  # who has a detector has imported it, and Paddle
    if known is None or not isinstance(detector, known.NoiseDetector):
        raise TypeError(
            f"detector must be a NoiseDetector, got {detector!r}; of a file, pass NoiseDetector.load(path)"
        )


def find_label_issues(
    source: Source | Sequence[Source],
    *,
    method: str = "lstm",
    detector: NoiseDetector | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> LabelIssues:
    """Rank the samples of a recording by how much speaks against their labels.

    The recording is read tile by tile, so it need not fit in memory. Epochs in which a sample was not seen are
    interpolated for the detector and skipped by the other methods.

    Args:
        source: path of a recording, an open `TrainingDynamicsStore`, or a list of these: several runs over the
            same data and labels, whose noise scores are averaged, each sample's over the runs that saw it.
        method: "lstm" for the detector, or the name of one of `scores.NOISE_SCORES`.
        detector: a `NoiseDetector` of one's own, or None for the one that ships with the package.
        device: a Paddle device string for the detector ("cpu", "gpu:0", ...), None = where Paddle is now; the other
            methods compute without Paddle and do not look at it.
        batch_size: samples on the device at once, None = the detector's default; as `device`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown method, a detector for a method that has none, or runs of different data.
        TypeError: a detector or a source that is none.
        StoreError: no recording, no committed epoch, or only one class among the labels.
        ModuleNotFoundError: `method="lstm"` without Paddle.
    """
    check_method(method, detector)
    single = isinstance(source, (str, os.PathLike, TrainingDynamicsStore))
    if not single and (isinstance(source, bytes) or not isinstance(source, Iterable)):
        raise TypeError(
            f"source must be a path, an open TrainingDynamicsStore, or a list of these, got {source!r}"
        )
    sources: list[Source] = [source] if single else list(source)  # type: ignore[list-item, arg-type]
    if not sources:
        raise ValueError("source is an empty list; give at least one recording")
    _check_runs(sources)
    runs = []
    for one in sources:
        if isinstance(one, TrainingDynamicsStore):
            runs.append(_score_run(one, method, detector, device, batch_size, progress))
        else:
            with TrainingDynamicsStore(one) as store:
                runs.append(_score_run(store, method, detector, device, batch_size, progress))
    return runs[0] if len(runs) == 1 else _average(runs, sources)


def _check_runs(sources: list[Source]) -> None:
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
                f"{source!r} is given twice; as two runs it would only seem to agree with another"
            )
        first = next(iter(n_classes.values()), number)
        if number != first:
            raise ValueError(f"{source!r} has {number} classes, the first run {first}: not the same labels")
        n_classes[path] = number


def detector_input(store: TrainingDynamicsStore, samples: Any = None) -> npt.NDArray[np.float32]:
    """What `NoiseDetector` reads of a recording.

    Args:
        store: a recording.
        samples: None for all, a slice, or an array of sample indices.

    Returns:
        `[sample, epoch, 3]` float32, NaN = unseen: the given label's probability, the largest other one, and
        whether the prediction was right (1 or 0; 1/2 = the given label tied with another class).
    """
    return trajectories_of(store.given_probabilities(samples), store.margins(samples))


def detector_evidence(store: TrainingDynamicsStore) -> Table:
    """What a whole recording says of each of its samples: ranks, classes, pairs of classes; see `evidence.Table`.

    Args:
        store: a recording; it is read tile by tile.
    """
    collected = Evidence(store.n_classes)
    for tile in store.tiles():
        collected.add(
            store.given_probabilities(tile), store.margins(tile), store.predictions(tile), store.labels[tile]
        )
    return collected.table()


def _score_run(
    store: TrainingDynamicsStore,
    method: str,
    detector: NoiseDetector | None,
    device: str | None,
    batch_size: int | None,
    progress: bool,
) -> LabelIssues:
    _check_detectable(store)
    if method == "lstm" and detector is None:
        from .. import NoiseDetector

        detector = NoiseDetector.pretrained()
    n_samples = store.n_samples
    noise_score = np.full(n_samples, np.nan)
    suggested = np.full(n_samples, -1, np.int32)
    confidence = np.zeros(n_samples, np.float32)
    n_seen = np.zeros(n_samples, np.int32)
    with tqdm(
        total=2 * n_samples, desc=f"label issues ({method})", unit="sample", disable=not progress
    ) as bar:
        scored = (
            _by_score(store, method)
            if detector is None
            else _by_detector(store, detector, device, batch_size)
        )
        for tile, score in scored:
            noise_score[tile] = score
            bar.update(tile.stop - tile.start)
        for tile in store.tiles(wide=True):
            suggested[tile], confidence[tile] = suggest_labels(store, tile)
            n_seen[tile] = (store.predictions(tile) >= 0).sum(axis=1)
            bar.update(tile.stop - tile.start)
    never = n_seen == 0
    noise_score[never] = np.nan
    suggested[never], confidence[never] = -1, 0
    issues = LabelIssues(
        method, noise_score, store.labels, suggested, confidence, n_seen, store.class_names, store.sample_ids
    )
    return issues if detector is None else _with_noise_rate(issues, detector)


def _with_noise_rate(issues: LabelIssues, detector: NoiseDetector) -> LabelIssues:
    scored = issues.noise_score[~np.isnan(issues.noise_score)]
    rate = float(scored.mean())
    # Known only where the weights were measured on data they had not seen; see benchmarks/train_detector.py.
    by_doubt = detector.provenance.get("noise_rate_error_by_doubt")
    interval = None
    if by_doubt is not None:
        error = by_doubt * doubt(scored)
        interval = max(0.0, rate - error), min(1.0, rate + error)
    return replace(issues, noise_rate=rate, noise_rate_interval=interval)


def _check_detectable(store: TrainingDynamicsStore) -> None:
    if store.n_epochs == 0:
        raise StoreError(
            f"'{store.path}' holds no committed epoch yet; an epoch counts once it has ended, so try again then"
        )
    seen = store.labels[store.labels >= 0]
    if seen.size == 0:
        raise StoreError(
            f"'{store.path}' holds {store.n_epochs} epochs, but no sample was seen in any of them"
        )
    if (seen == seen[0]).all():
        raise StoreError(
            f"'{store.path}': all {seen.size} labels are class {seen[0]}; with one class there is no other label "
            "that a sample could rather have"
        )
    if store.n_epochs - len(store.dropped_epochs) == 1:
        warnings.warn(
            f"'{store.path}' holds one epoch: that tells hard samples from easy ones, but not yet how they were "
            "learned; record more epochs for a ranking to rely on",
            RuntimeWarning,
            stacklevel=4,
        )


def _by_detector(
    store: TrainingDynamicsStore, detector: NoiseDetector, device: str | None, batch_size: int | None
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    options: dict[str, Any] = {"device": device}
    if batch_size is not None:
        options["batch_size"] = batch_size
    evidence = detector_evidence(store) if detector.needs_evidence else None
    if evidence is not None:
        evidence = _looked(store, detector, evidence, options)
    for tile in store.tiles():
        if evidence is not None:
            options["evidence"] = evidence[tile]
        yield tile, detector.predict_proba(detector_input(store, tile), **options)


def _looked(
    store: TrainingDynamicsStore, detector: NoiseDetector, evidence: Table, options: dict[str, Any]
) -> Table:
    """The evidence with what all detectors find that look before this one, each told by the one before it."""
    if detector.first is None:
        return evidence
    before = _looked(store, detector.first, evidence, options)
    tiles = ((detector_input(store, tile), before[tile]) for tile in store.tiles())
    return detector.look_first(tiles, before, **options)


def _by_score(store: TrainingDynamicsStore, method: str) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    score = NOISE_SCORES[method]
    for tile in store.tiles(wide="probabilities" in score.needs):
        arrays = {
            name: store.labels[tile] if name == "labels" else getattr(store, name)(tile)
            for name in score.needs
        }
        try:
            noise_score = score.compute(**arrays)
        except ValueError as error:
            raise StoreError(
                f"'{store.path}', samples from {tile.start}: {error}; the file is damaged, see `paddle-td verify`"
            ) from error
        yield tile, noise_score


def _average(runs: list[LabelIssues], sources: list[Source]) -> LabelIssues:
    first = runs[0]
    for run, source in zip(runs[1:], sources[1:], strict=True):
        if len(run) != len(first):
            raise ValueError(
                f"{source!r} has {len(run)} samples, the first run {len(first)}: not the same data"
            )
        if run.class_names != first.class_names:
            raise ValueError(f"{source!r} has other class names than the first run: not the same labels")
        if run.sample_ids != first.sample_ids:
            raise ValueError(f"{source!r} has other sample ids than the first run: not the same data")
        both = (run.given_label >= 0) & (first.given_label >= 0)
        differing = np.flatnonzero(both & (run.given_label != first.given_label))
        if len(differing):
            sample = int(differing[0])
            raise ValueError(
                f"{source!r} has label {run.given_label[sample]} for sample {sample}, the first run "
                f"{first.given_label[sample]}: not the same labels"
            )
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
    return LabelIssues(
        first.method,
        mean,
        np.max([run.given_label for run in runs], axis=0).astype(np.int32),
        np.take_along_axis(classes, chosen, axis=0)[0],
        (np.take_along_axis(votes, chosen, axis=0)[0] / n_runs).astype(np.float32),
        np.sum([run.n_epochs_seen for run in runs], axis=0).astype(np.int32),
        first.class_names,
        first.sample_ids,
        *_average_noise_rate(runs, mean),
        _stability(scores),
    )


def _average_noise_rate(
    runs: list[LabelIssues], score: npt.NDArray[np.float64]
) -> tuple[float | None, tuple[float, float] | None]:
    """The mean of the averaged scores, and an interval around it as wide as those of the runs are on average."""
    rates = [run.noise_rate for run in runs if run.noise_rate is not None]
    intervals = [run.noise_rate_interval for run in runs if run.noise_rate_interval is not None]
    if len(rates) < len(runs):
        return None, None
    rate = float(np.nanmean(score))
    if len(intervals) < len(runs):
        return rate, None
    # Runs over one data set err alike, so their mean is no surer than each of them.
    low, high = np.mean(intervals, axis=0) + (rate - np.mean(rates))
    return rate, (max(0.0, float(low)), min(1.0, float(high)))


def _stability(scores: npt.NDArray[np.float64]) -> float | None:
    """Mean Spearman correlation of the runs' scores `[run, sample]`, over samples that all of them scored."""
    everywhere = scores[:, ~np.isnan(scores).any(axis=0)]
    if everywhere.shape[1] < 2:
        return None
    ranks = np.stack([rank(run, np.zeros(len(run), np.int64)) for run in everywhere])
    if (ranks.std(axis=1) == 0).any():
        return None
    correlations = np.atleast_2d(np.corrcoef(ranks))
    return float(correlations[np.triu_indices(len(ranks), k=1)].mean())
