"""find_label_issues: from a recording to a ranking of the samples whose labels look wrong."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..messages import escape, warn
from ..names import ordered_names
from ..store import TrainingDynamicsStore
from ..store.border import RecordingReader
from .arguments import whole
from .dataset_features import FeatureCollector
from .feature_table import FeatureTable
from .label_issues import LabelIssues
from .learning_clock import LearningClock
from .noise_rate import with_noise_rate
from .progress import Progress
from .scores import NOISE_SCORES
from .several_runs import Source, advice, average_runs, check_runs
from .suggestions import suggest_labels
from .tile_reader import TileReader
from .trajectories import trajectories_of
from .writing_lock import is_being_written

if TYPE_CHECKING:
    from .lstm.detector import NoiseDetector

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
        raise ValueError(f"detector= goes with method='lstm', got {method!r}; leave one of them out")
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
    class_names: Any = None,
    sample_ids: Any = None,
    progress: bool = True,
) -> LabelIssues:
    """Rank the samples of a recording by how much speaks against their labels.

    The recording is read tile by tile, so it need not fit in memory. Epochs in which a sample was not seen are
    interpolated for the detector and skipped by the other methods.

    Args:
        source: path of a recording, an open `TrainingDynamicsStore`, or a list of these: several runs over the
            same data and labels, whose noise scores are averaged, each sample's over the runs that saw it.
        method: "lstm" for the detector, or the name of one of `scores.NOISE_SCORES`.
        detector: a `NoiseDetector` of your own, or None for the one that ships with the package.
        device: a Paddle device string for the detector ("cpu", "gpu:0", ...), None = where Paddle is now. On a CPU,
            NumPy computes, and Paddle is not needed. The other methods ignore it.
        batch_size: samples on the device at once, None = the detector's default; the other methods ignore it.
        class_names: one name for each class, in place of those in the recording: a list, an array, or a mapping from
            class to name.
        sample_ids: one name for each sample, in the same forms.
        progress: whether to show a progress bar on a terminal or in a notebook.

    Raises:
        ValueError: an unknown method, a detector for a method that has none, runs of different data, or a wrong
            number of names.
        TypeError: a detector, a source or names that are none.
        StoreError: no recording, no committed epoch, or only one class among the labels.
        ModuleNotFoundError: `method="lstm"` on another device than a CPU, without Paddle.
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
    given_names = {
        name: ordered_names(values, name)
        for name, values in (("class_names", class_names), ("sample_ids", sample_ids))
    }
    check_runs(sources)
    options: dict[str, Any] = {"device": device}
    if batch_size is not None:
        options["batch_size"] = whole(batch_size, "batch_size")
    runs, clocks = [], []
    for one in sources:
        with contextlib.ExitStack() as opened:
            store = (
                one
                if isinstance(one, TrainingDynamicsStore)
                else opened.enter_context(TrainingDynamicsStore(one))
            )
            run = _Run(store, method, given_names)
            runs.append(run.find(detector, options, progress))
            clocks.append(run.clock)
    issues = runs[0] if len(runs) == 1 else average_runs(runs, sources)
    return replace(issues, notes=(*issues.notes, *advice(clocks)))


def detector_input(store: RecordingReader, samples: Any = None) -> npt.NDArray[np.float32]:
    """The trajectories that `NoiseDetector` reads of a recording, up to the epoch that memorised the labels.

    Args:
        store: a recording.
        samples: None for all, a slice, or an array of sample indices.

    Returns:
        `[sample, epoch, 3]` float32, NaN = unseen: the given label's probability, the largest other one, and
        whether the prediction was right (1 or 0; 1/2 = the given label tied with another class).

    Raises:
        StoreError: no epoch is committed yet.
    """
    _need_epoch(store)
    return _trajectories(store, samples, LearningClock.of(store).epochs_to_read)


def _trajectories(store: RecordingReader, samples: Any, n_epochs: int) -> npt.NDArray[np.float32]:
    return trajectories_of(
        store.given_probabilities(samples)[:, :n_epochs], store.margins(samples)[:, :n_epochs]
    )


def detector_features(store: RecordingReader) -> FeatureTable:
    """The features that `NoiseDetector` reads of a whole recording: ranks, classes, pairs of classes.

    Args:
        store: a recording; it is read tile by tile.

    Raises:
        StoreError: no epoch is committed yet.
    """
    _need_epoch(store)
    collector, n_epochs = FeatureCollector(store.n_classes), LearningClock.of(store).epochs_to_read
    for samples in store.tiles():
        _add_features(collector, TileReader(store, samples), n_epochs)
    return collector.table()


def _add_features(collector: FeatureCollector, tile: TileReader, n_epochs: int) -> None:
    collector.add(
        tile.given_probabilities[:, :n_epochs],
        tile.margins[:, :n_epochs],
        tile.predictions[:, :n_epochs],
        tile.labels,
    )


class _Run:
    """The result of one recording while it is made, stage by stage.

    Args:
        store: the recording.
        method: see `find_label_issues`.
        names: `class_names` and `sample_ids` that the caller gave; None = those of the recording.
    """

    def __init__(self, store: TrainingDynamicsStore, method: str, names: dict[str, list[str] | None]) -> None:
        _check_detectable(store)
        self.store, self.method = store, method
        self._class_names = _names(names["class_names"], store.class_names, "class_names", store.n_classes)
        self._sample_ids = _names(names["sample_ids"], store.sample_ids, "sample_ids", store.n_samples)
        self._is_recording = is_being_written(store.path)
        self._n_epochs_read = store.n_epochs
        self.clock: LearningClock | None = None  # only the detector needs it
        n_samples = store.n_samples
        shifts = store.label_shifts
        self.planted = np.zeros(n_samples, bool) if shifts is None else shifts > 0
        self.noise_score = np.full(n_samples, np.nan)
        self.suggested = np.full(n_samples, -1, np.int32)
        self.confidence = np.zeros(n_samples, np.float32)
        self.n_seen = np.zeros(n_samples, np.int32)
        # All classes lie in chunks of fewer samples than the rest: they are read by themselves, and once.
        self._suggests_apart = store.keep == "all"

    def find(self, detector: NoiseDetector | None, options: dict[str, Any], progress: bool) -> LabelIssues:
        """Score all samples and suggest labels."""
        if self.method != "lstm":
            self._score_by_hand(progress)
            return self._issues()
        if detector is None:
            from .. import NoiseDetector

            detector = NoiseDetector.pretrained()
        from .lstm.device import check_device

        check_device(options["device"])
        self._score_by_detector(detector, options, progress)
        planted = self.noise_score[self.planted & (self.n_seen > 0)]
        return with_noise_rate(self._issues(), detector.provenance, planted)

    def _score_by_hand(self, progress: bool) -> None:
        score = NOISE_SCORES[self.method]
        wide = "probabilities" in score.needs
        if wide:
            self._suggests_apart = False
        stages = ["scores", *(["suggestions"] if self._suggests_apart else [])]
        with self._progress(stages, progress) as bar:
            bar.start("scores")
            for tile in self._tiles(wide=wide):
                try:
                    arrays = {name: getattr(tile, name) for name in score.needs}
                    self.noise_score[tile.samples] = score.compute(**arrays)
                except ValueError as error:
                    raise StoreError(
                        f"'{escape(self.store.path)}', samples from {tile.samples.start}: {error}; the file is "
                        "damaged, see `paddle-td verify`"
                    ) from error
                self._take(tile)
                bar.done(len(tile.labels))
            self._suggest(bar)

    def _score_by_detector(self, detector: NoiseDetector, options: dict[str, Any], progress: bool) -> None:
        detectors = [detector]
        while detectors[0].first_stage is not None:
            detectors.insert(0, detectors[0].first_stage)
        names = [f"stage {number} of the detector" for number in range(1, len(detectors) + 1)]
        stages = ["features", *names, *(["suggestions"] if self._suggests_apart else [])]
        with self._progress(stages, progress) as bar:
            bar.start("features")
            clock = self.clock = LearningClock.of(self.store)
            n_epochs = self._n_epochs_read = clock.epochs_to_read
            collector = FeatureCollector(self.store.n_classes) if detector.needs_features else None
            for tile in self._tiles():
                if collector is not None:
                    _add_features(collector, tile, n_epochs)
                self._take(tile)
                bar.done(len(tile.labels))
            table = None if collector is None else collector.table()
            for name, one in zip(names[:-1], detectors[1:], strict=True):
                if table is None:
                    break  # no stage reads features
                bar.start(name)
                tiles = ((_trajectories(self.store, s, n_epochs), table[s]) for s in self.store.tiles())
                table = one.run_first_stage(tiles, table, **options, on_batch=bar.done)
            bar.start(names[-1])
            for samples in self.store.tiles():
                raw = _trajectories(self.store, samples, n_epochs)
                features = None if table is None else table[samples]
                self.noise_score[samples] = detector.predict_proba(raw, dataset_features=features, **options)
                bar.done(samples.stop - samples.start)
            self._suggest(bar)

    def _progress(self, stages: list[str], wanted: bool) -> Progress:
        return Progress(f"label issues ({self.method})", stages, self.store.n_samples, wanted=wanted)

    def _tiles(self, *, wide: bool = False) -> Iterator[TileReader]:
        wide = wide or (not self._suggests_apart and self.store.keep != "given")
        return (TileReader(self.store, samples) for samples in self.store.tiles(wide=wide))

    def _take(self, tile: TileReader) -> None:
        """Take what every method gives for a tile besides its score."""
        self.n_seen[tile.samples] = (tile.predictions >= 0).sum(axis=1)
        if not self._suggests_apart:
            self.suggested[tile.samples], self.confidence[tile.samples] = suggest_labels(tile)

    def _suggest(self, bar: Progress) -> None:
        if self._suggests_apart:
            bar.start("suggestions")
            for samples in self.store.tiles(wide=True):
                tile = TileReader(self.store, samples)
                self.suggested[samples], self.confidence[samples] = suggest_labels(tile)
                bar.done(len(tile.labels))

    def _issues(self) -> LabelIssues:
        never = self.n_seen == 0
        self.noise_score[never] = np.nan
        unscored = never | self.planted
        self.suggested[unscored], self.confidence[unscored] = -1, 0
        labels = self.store.labels
        if self.store.label_shifts is not None:
            shifts = np.where(never, 0, self.store.label_shifts)
            labels = ((labels - shifts) % self.store.n_classes).astype(np.int32)
            labels[never] = -1
        return LabelIssues(
            method=self.method,
            noise_score=np.where(self.planted, np.nan, self.noise_score),
            given_label=labels,
            suggested_label=self.suggested,
            suggested_confidence=self.confidence,
            n_epochs_seen=self.n_seen,
            n_epochs=self.store.n_epochs - len(self.store.dropped_epochs),
            n_epochs_read=self._n_epochs_read
            - sum(e < self._n_epochs_read for e in self.store.dropped_epochs),
            is_recording=self._is_recording,
            class_names=self._class_names,
            sample_ids=self._sample_ids,
        )


def _names(
    given: list[str] | None, recorded: list[str] | None, argument: str, wanted: int
) -> list[str] | None:
    if given is not None and len(given) != wanted:
        things = "classes" if argument == "class_names" else "samples"
        raise ValueError(f"{argument} has {len(given)} names for {wanted} {things}; give one for each")
    return recorded if given is None else given


def _need_epoch(store: RecordingReader) -> None:
    if store.n_epochs == 0:
        raise StoreError(
            f"'{escape(store.path)}' holds no committed epoch yet; an epoch counts once it has ended, so try again then"
        )


def _check_detectable(store: TrainingDynamicsStore) -> None:
    _need_epoch(store)
    name = f"'{escape(store.path)}'"
    seen = store.labels[store.labels >= 0]
    if seen.size == 0:
        raise StoreError(
            f"{name} holds {store.n_epochs} epochs, but no sample was seen in any of them; record a training that "
            "shows samples"
        )
    if (seen == seen[0]).all():
        raise StoreError(
            f"{name}: all {seen.size} labels are class {seen[0]}; with one class there is no other label "
            "that a sample could rather have; record a data set of two classes or more"
        )
    if store.n_epochs - len(store.dropped_epochs) == 1:
        warn(
            f"{name} holds one epoch: that tells hard samples from easy ones, but not yet how they were "
            "learned; record more epochs for a ranking to rely on",
            RuntimeWarning,
            stacklevel=4,
        )
