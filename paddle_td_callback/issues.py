"""find_label_issues: from a recording to a ranking of the samples whose labels look wrong."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .errors import StoreError
from .scores import NOISE_SCORES
from .store import TrainingDynamicsStore, check_path
from .suggestions import largest_other_probabilities, suggest_labels

if TYPE_CHECKING:
    from .detector import NoiseDetector

Source = str | os.PathLike[str] | TrainingDynamicsStore
METHODS = ("lstm", *NOISE_SCORES)
ISSUE_THRESHOLD = 0.5  # every noise score is scaled so that above one half speaks against the label

_HEAD = 10


@dataclass(frozen=True, repr=False)
class LabelIssues:
    """What a recording says of every sample's label. All arrays are `[sample]`.

    Attributes:
        method: what made the noise scores.
        noise_score: float64 in [0, 1], higher = more suspicious, NaN = never seen. With `method="lstm"` the
            probability that the label is wrong.
        given_label: int32, -1 = never seen.
        suggested_label: int32, the class the network leant to instead, -1 = none. Never applied by itself.
        suggested_confidence: float32 in [0, 1], its share of the probability that the given label did not get.
        n_epochs_seen: int32, in how many epochs (of all runs) the sample was seen.
        class_names: one for each class, or None.
        sample_ids: one for each sample, or None where samples are known by their indices.
    """

    method: str
    noise_score: npt.NDArray[np.float64]
    given_label: npt.NDArray[np.int32]
    suggested_label: npt.NDArray[np.int32]
    suggested_confidence: npt.NDArray[np.float32]
    n_epochs_seen: npt.NDArray[np.int32]
    class_names: Sequence[str] | None = field(default=None)
    sample_ids: Sequence[str] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.noise_score)

    @property
    def label_quality(self) -> npt.NDArray[np.float64]:
        """1 - `noise_score`, as cleanlab counts: lower = worse, NaN = never seen."""
        return np.asarray(1 - self.noise_score)

    @property
    def is_label_issue(self) -> npt.NDArray[np.bool_]:
        """Whether the label is more likely wrong than right; False where the sample was never seen."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.noise_score > ISSUE_THRESHOLD)

    @property
    def ranking(self) -> npt.NDArray[np.int64]:
        """Sample indices, the most suspicious first, never-seen samples left out."""
        scored = np.flatnonzero(~np.isnan(self.noise_score))
        return scored[np.argsort(-self.noise_score[scored], kind="stable")].astype(np.int64)

    @property
    def unscored(self) -> npt.NDArray[np.int64]:
        """Indices of the samples that were never seen, ascending."""
        return np.flatnonzero(np.isnan(self.noise_score)).astype(np.int64)

    def label_name(self, label: int) -> str:
        """The class's name where names are known, else its number; empty for -1."""
        if label < 0:
            return ""
        return str(label) if self.class_names is None else self.class_names[label]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all samples, the most suspicious first and never-seen ones last.

        Columns: `sample`, where samples have ids `sample_id`, `rank` (1 = most suspicious, empty = never seen),
        `noise_score`, `label_quality`, `is_label_issue`, `given_label`, `suggested_label`,
        `suggested_confidence`, `n_epochs_seen`, and where class names are known `given_name`, `suggested_name`.

        Args:
            path: the file to write; an existing one is replaced once the new one is whole.
        """
        name = os.fspath(path)
        fresh = f"{name}.{os.getpid()}.new"
        try:
            with open(fresh, "w", newline="", encoding="utf-8") as file:
                self._write_csv(csv.writer(file))
            os.replace(fresh, name)
        finally:
            if os.path.exists(fresh):
                os.unlink(fresh)

    def _write_csv(self, writer: Any) -> None:
        columns = self._columns()
        named = self.class_names is not None
        ids = self.sample_ids
        writer.writerow(
            ["sample", *([] if ids is None else ["sample_id"]), "rank", *columns]
            + (["given_name", "suggested_name"] if named else [])
        )
        for rank, sample in enumerate(np.concatenate([self.ranking, self.unscored]), start=1):
            row = [_plain(values[sample]) for values in columns.values()]
            if named:
                row += [
                    self.label_name(int(labels[sample]))
                    for labels in (self.given_label, self.suggested_label)
                ]
            seen = rank <= len(self) - len(self.unscored)
            name = [] if ids is None else [ids[sample]]
            writer.writerow([int(sample), *name, rank if seen else "", *row])

    def to_dataframe(self) -> Any:
        """The same columns as a `pandas.DataFrame`, in the order of the samples, which are its index.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas: pip install pandas, or use to_csv()") from error
        ids = {} if self.sample_ids is None else {"sample_id": self.sample_ids}
        return pd.DataFrame({**ids, **self._columns()}, index=pd.RangeIndex(len(self), name="sample"))

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "noise_score": self.noise_score,
            "label_quality": self.label_quality,
            "is_label_issue": self.is_label_issue,
            "given_label": self.given_label,
            "suggested_label": self.suggested_label,
            "suggested_confidence": self.suggested_confidence,
            "n_epochs_seen": self.n_epochs_seen,
        }

    def __repr__(self) -> str:
        ranking, n_unscored = self.ranking, len(self.unscored)
        lines = [
            f"LabelIssues by {self.method}: {int(self.is_label_issue.sum())} of {len(self)} labels look wrong"
            + (f"; {n_unscored} samples were never seen and are not scored" if n_unscored else ""),
            f"{'rank':>6} {'sample':>9} {'given':>12} {'suggested':>12} {'noise_score':>12}",
        ]
        for rank, sample in enumerate(ranking[:_HEAD], start=1):
            given, other = (
                self.label_name(int(labels[sample]))[:12]
                for labels in (self.given_label, self.suggested_label)
            )
            lines.append(
                f"{rank:>6} {sample:>9} {given:>12} {other:>12} {self.noise_score[sample]:>12.4f}"
                + ("" if self.sample_ids is None else f"  {self.sample_ids[sample]}")
            )
        if len(ranking) > _HEAD:
            lines.append(f"   ... {len(ranking) - _HEAD} more in .ranking")
        return "\n".join(lines)


def check_csv_path(path: str | os.PathLike[str]) -> None:
    """Refuse at the start what would fail after the work: a missing or read-only folder, a folder as file.

    Raises:
        StoreNotFoundError: the folder is missing.
        StoreError: the folder may not be written, or the path is a folder.
    """
    check_path(path, overwrite=True)


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
            same data and labels, whose noise scores are averaged.
        method: "lstm" for the detector, or the name of one of `scores.NOISE_SCORES`.
        detector: a `NoiseDetector` of one's own, or None for the one that ships with the package.
        device: a Paddle device string for the detector ("cpu", "gpu:0", ...), None = where Paddle is now.
        batch_size: samples on the device at once, None = the detector's default.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown method, a detector for a method that has none, or runs of different data.
        StoreError: no recording, no committed epoch, or only one class among the labels.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if detector is not None and method != "lstm":
        raise ValueError(f"detector= goes with method='lstm', not with {method!r}")
    single = isinstance(source, (str, os.PathLike, TrainingDynamicsStore))
    sources: list[Source] = [source] if single else list(source)  # type: ignore[list-item, arg-type]
    if not sources:
        raise ValueError("source is an empty list; give at least one recording")
    runs = []
    for one in sources:
        if isinstance(one, TrainingDynamicsStore):
            runs.append(_score_run(one, method, detector, device, batch_size, progress))
        else:
            with TrainingDynamicsStore(one) as store:
                runs.append(_score_run(store, method, detector, device, batch_size, progress))
    return runs[0] if len(runs) == 1 else _average(runs, sources)


def detector_input(store: TrainingDynamicsStore, samples: Any = None) -> npt.NDArray[np.float32]:
    """What `NoiseDetector` reads of a recording.

    Args:
        store: a recording.
        samples: None for all, a slice, or an array of sample indices.

    Returns:
        `[sample, epoch, 3]` float32, NaN = unseen: the given label's probability, the largest other one, and
        whether the prediction was right (1 or 0).
    """
    given, predicted = store.given_probabilities(samples), store.predictions(samples)
    labels = store.labels if samples is None else store.labels[samples]
    right = np.where(predicted < 0, np.nan, predicted == labels[:, np.newaxis])
    others = largest_other_probabilities(given, store.margins(samples))
    return np.stack([given, others, right.astype(np.float32)], axis=-1)


def _score_run(
    store: TrainingDynamicsStore,
    method: str,
    detector: NoiseDetector | None,
    device: str | None,
    batch_size: int | None,
    progress: bool,
) -> LabelIssues:
    _check_detectable(store)
    n_samples = store.n_samples
    noise_score = np.full(n_samples, np.nan)
    suggested = np.full(n_samples, -1, np.int32)
    confidence = np.zeros(n_samples, np.float32)
    n_seen = np.zeros(n_samples, np.int32)
    with tqdm(
        total=2 * n_samples, desc=f"label issues ({method})", unit="sample", disable=not progress
    ) as bar:
        scored = (
            _by_detector(store, detector, device, batch_size)
            if method == "lstm"
            else _by_score(store, method)
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
    return LabelIssues(
        method, noise_score, store.labels, suggested, confidence, n_seen, store.class_names, store.sample_ids
    )


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


def _by_detector(
    store: TrainingDynamicsStore, detector: NoiseDetector | None, device: str | None, batch_size: int | None
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    from .channels import context_samples
    from .detector import NoiseDetector

    detector = NoiseDetector.pretrained() if detector is None else detector
    options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    seen = np.flatnonzero(store.labels >= 0)
    context = detector.context(detector_input(store, seen[context_samples(len(seen))]), device=device)
    for tile in store.tiles():
        yield (
            tile,
            detector.predict_proba(detector_input(store, tile), context=context, device=device, **options),
        )


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
    return LabelIssues(
        first.method,
        mean,
        np.max([run.given_label for run in runs], axis=0).astype(np.int32),
        np.take_along_axis(classes, chosen, axis=0)[0],
        (np.take_along_axis(votes, chosen, axis=0)[0] / len(runs)).astype(np.float32),
        np.sum([run.n_epochs_seen for run in runs], axis=0).astype(np.int32),
        first.class_names,
        first.sample_ids,
    )


def _plain(value: Any) -> Any:
    """A CSV cell: empty for NaN, floats in their shortest form that reads back as the same float32."""
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else str(value)
    return value.item()
