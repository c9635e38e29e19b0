"""Marks come back: what a person said of suspects, the precision so far, corrected labels, and another pass."""

from __future__ import annotations

import copy
import csv
import math
import os
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..csv_cells import from_cell, to_cell
from ..detection.find_issues import detector_features, find_label_issues
from ..detection.label_issues import LabelIssues
from ..detection.learning_clock import LearningClock
from ..detection.output_files import new_text_file
from ..detection.trajectories import trajectories_of
from ..errors import DetectorError
from ..messages import escape
from ..store import TrainingDynamicsStore
from ..store.paths import existing_file
from .report import Source, check_same_recording, opened
from .text import visible

WRONG, RIGHT, UNSURE = 1, 0, -1
_MARKS = {"wrong": WRONG, "right": RIGHT, "unsure": UNSURE}
_FOLDS = 5
MIN_EACH = 10  # wrong and right labels that fine-tuning needs: two of each in every fold


@dataclass(frozen=True, eq=False)
class Marks:
    """What was said of some samples, in the order of the file.

    Attributes:
        samples: `[mark]` int64, no sample twice.
        verdicts: `[mark]` int8, `WRONG`, `RIGHT` or `UNSURE`.
        corrections: `[mark]` int32, the right label where one was written down, else -1.
    """

    samples: npt.NDArray[np.int64]
    verdicts: npt.NDArray[np.int8]
    corrections: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Gain:
    """What fine-tuning gained, on marks that the fine-tuned detector had not seen (five-fold cross-validation).

    Attributes:
        before: average precision of the ranking as it was, among the judged samples, wrong = positive.
        after: the same of the fine-tuned detectors.
        interval: lowest and highest difference that fit (95 percent, bootstrap over the marks).
        kept: whether the fine-tuned detector was kept, which is where it did better.
    """

    before: float
    after: float
    interval: tuple[float, float]
    kept: bool


@dataclass(frozen=True, eq=False, repr=False)
class Review:
    """What the marks say.

    Attributes:
        n_wrong: labels marked wrong.
        n_right: labels marked right.
        n_unsure: samples left open.
        precision: share of the judged labels that are wrong, None where none was judged.
        precision_interval: Wilson's 95 percent interval of it.
        deepest_rank: of the last marked sample in the ranking, from 1.
        corrected_labels: `[sample]` int32: what was marked wrong has the label that was written down, else the
            suggested one; -1 = wrong without either, or never seen. All others keep their label.
        issues: the ranking with the marks in it: scored by the fine-tuned detector where that did better; a label
            marked wrong has score 1, one marked right score 0.
        gain: what fine-tuning gained, None where it was not tried.
        why_not: why it was not tried.
        detector: the fine-tuned `NoiseDetector`, None where none was kept.
    """

    n_wrong: int
    n_right: int
    n_unsure: int
    precision: float | None
    precision_interval: tuple[float, float] | None
    deepest_rank: int
    corrected_labels: npt.NDArray[np.int32]
    issues: LabelIssues
    gain: Gain | None
    why_not: str
    detector: Any

    def __repr__(self) -> str:
        lines = [f"marks: {self.n_wrong} wrong, {self.n_right} right, {self.n_unsure} unsure"]
        if self.precision is not None and self.precision_interval is not None:
            low, high = self.precision_interval
            lines.append(
                f"of the judged labels {self.precision:.1%} are wrong (95% interval {low:.1%} to {high:.1%}); they lie "
                f"in the first {self.deepest_rank:,} of the ranking; expect a lower share further down"
            )
        changed = int((self.corrected_labels != self.issues.given_label).sum())
        lines.append(f"corrected labels: {changed} differ from the given ones")
        if self.gain is None:
            lines.append(f"no fine-tuning: {self.why_not}")
        else:
            low, high = self.gain.interval
            lines.append(
                f"fine-tuned on the marks: average precision among marks not trained on {self.gain.before:.3f} before, "
                f"{self.gain.after:.3f} after (difference {low:+.3f} to {high:+.3f}); "
                + (
                    "the new ranking is by it"
                    if self.gain.kept
                    else "not better, so the ranking stays as it is"
                )
            )
        return "\n".join(lines)


def read_marks(path: str | os.PathLike[str], issues: LabelIssues) -> Marks:
    """Read the CSV that the report exports, or one that a spreadsheet or a program saved.

    Columns: `sample` and `mark` (wrong, right, unsure; empty = not marked); `corrected_label` (a class number or
    name), which says "wrong" by itself; `given_label` and `sample_id`, which are compared with the ranking. Others are
    ignored, and only `sample` and one of the two that judge must be there.

    Args:
        path: the file, UTF-8, separated by commas, semicolons or tabs.
        issues: the ranking that was reviewed.

    Raises:
        ValueError: the file is not as said, or holds marks of another recording; the message names the line.
        StoreError: it cannot be read.
    """
    name = existing_file(path, "the marks that the report exported")
    reader = _MarkReader(issues)
    found: dict[int, tuple[int, int]] = {}
    try:
        with open(name, newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            separator = max(",;\t", key=head.count)
            rows = csv.DictReader(file, delimiter=separator, strict=True)
            rows.fieldnames = columns = [column.strip().lower() for column in rows.fieldnames or ()]
            twice = [column for column in _COLUMNS if columns.count(column) > 1]
            if twice:
                raise ValueError(f"'{name}' has the column '{twice[0]}' twice; give it once")
            if "sample" not in rows.fieldnames or not {"mark", "corrected_label"} & set(rows.fieldnames):
                raise ValueError(
                    f"'{name}' has no columns 'sample' and 'mark'; give the file that the report's button "
                    "'Export marks as CSV' saved"
                )
            for row in rows:
                where = f"'{name}', line {rows.line_num}"
                try:
                    one = reader.read({key: (row.get(key) or "").strip() for key in _COLUMNS})
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None
                if one is None:
                    continue
                sample, *judged = one
                if found.setdefault(sample, (judged[0], judged[1])) != (judged[0], judged[1]):
                    raise ValueError(
                        f"{where}: sample {sample} was marked differently further up; keep one line of it"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{name}' is no CSV in UTF-8: {error}; save it as CSV, UTF-8") from error
    verdicts = [verdict for verdict, _ in found.values()]
    corrections = [label for _, label in found.values()]
    return Marks(np.array([*found], np.int64), np.array(verdicts, np.int8), np.array(corrections, np.int32))


_COLUMNS = ("sample", "mark", "corrected_label", "given_label", "sample_id")


class _MarkReader:
    """Reads lines of marks and compares them with the ranking that was reviewed."""

    def __init__(self, issues: LabelIssues) -> None:
        self._issues = issues
        self._labels: dict[str, set[int]] = {}
        for label, name in enumerate(issues.class_names or ()):
            self._labels.setdefault(name, set()).add(label)
        highest = (int(labels.max(initial=0)) for labels in (issues.given_label, issues.suggested_label))
        self._n_classes = max(len(self._labels), *(label + 1 for label in highest))

    def read(self, row: dict[str, str]) -> tuple[int, int, int] | None:
        """Sample, verdict and corrected label (-1 = none) of a line; None where nothing is marked in it."""
        verdict, correction = row["mark"].lower(), from_cell(row["corrected_label"])
        if not verdict and not correction:
            return None
        verdict = verdict or "wrong"
        if verdict not in _MARKS:
            raise ValueError(f"mark must be wrong, right or unsure, got {verdict[:40]!r}")
        sample = _whole(row["sample"], "sample", len(self._issues))
        self._check_sample(sample, row)
        label = self._label(correction) if correction else -1
        if label >= 0 and verdict != "wrong" and label != self._issues.given_label[sample]:
            raise ValueError(
                f"sample {sample} is marked {verdict} and has another corrected_label, {correction[:40]!r}; mark it "
                "wrong, or leave corrected_label empty"
            )
        return sample, _MARKS[verdict], label if verdict == "wrong" else -1

    def _check_sample(self, sample: int, row: dict[str, str]) -> None:
        """Refuse a mark that was set for another sample: the data have changed since."""
        given, known = row["given_label"], str(self._issues.given_label[sample])
        if given and _plain(given) != known:
            raise ValueError(
                f"sample {sample} was given {given[:40]!r} when it was marked, and is {known} in the recording; give "
                "the recording that was reviewed"
            )
        marked = from_cell(row["sample_id"])
        if not marked or self._issues.sample_ids is None:
            return
        marked, name = (_as_exported(text) for text in (marked, str(self._issues.sample_ids[sample])))
        is_same = _plain(marked) == _plain(name)  # a spreadsheet makes a number of "007"
        if not is_same and not (marked.endswith("…") and name.startswith(marked[:-1])):
            raise ValueError(
                f"sample {sample} was {marked[:80]!r} when it was marked, and is {name[:80]!r} in the recording; give "
                "the recording that was reviewed, and where a spreadsheet has changed the ids, the marks as they were "
                "exported"
            )

    def _label(self, text: str) -> int:
        named, is_number = self._labels.get(text, set()), text.startswith("#")
        is_other = text.isascii() and text.isdecimal() and len(text) < 19 and int(text) < self._n_classes
        meant = named | ({int(text)} if is_other else set())
        if named and len(meant) == 1:
            return next(iter(named))
        if named:
            listed = " or ".join(f"#{label}" for label in sorted(meant))
            raise ValueError(
                f"corrected_label {text[:40]!r} may be the name or the number of class {listed}; write {listed}"
            )
        known = ""
        if self._labels:
            listed = ", ".join(repr(escape(name, limit=40)) for name in [*self._labels][:5])
            known = f" or a class name such as {listed}"
        return _whole(text[is_number:], "corrected_label", self._n_classes, known)


def review_marks(
    marks: Marks | str | os.PathLike[str],
    issues: LabelIssues,
    source: Source,
    *,
    detector: Any = None,
    fine_tune: bool = True,
    device: str | None = None,
    progress: bool = False,
) -> Review:
    """Say how good the ranking is so far, correct the labels, and rank again with what was learned.

    The detector is fine-tuned on the judged samples, and kept only where that helps on judged samples that it was
    not trained on. This needs Paddle, at least ten labels marked wrong and ten marked right, and issues by
    `method="lstm"`.

    Args:
        marks: of the report; a path is read by `read_marks`.
        issues: the ranking that was reviewed.
        source: the recording that it was found in.
        detector: the `NoiseDetector` that made the ranking; None = the shipped one.
        fine_tune: whether to try.
        device: any Paddle device string; None = where Paddle is now.
        progress: whether to show a bar while the samples are ranked again.

    Raises:
        ValueError: marks or issues that do not belong to the recording, or no marks.
    """
    if not isinstance(marks, Marks):
        marks = read_marks(marks, issues)
    if not len(marks):
        raise ValueError("nothing is marked in it; mark suspects in the report and export the marks")
    n_wrong, n_right = int((marks.verdicts == WRONG).sum()), int((marks.verdicts == RIGHT).sum())
    n_judged = n_wrong + n_right
    rank = np.zeros(len(issues), np.int64)
    rank[issues.ranking] = np.arange(1, len(issues.ranking) + 1)
    gain, tuned, ranked = None, None, issues
    why_not = _why_not(marks, issues, n_wrong, n_right) if fine_tune else "it was not asked for"
    with opened(source) as store:
        check_same_recording(issues, store)
        if not why_not:
            gain, tuned = _fine_tuned(marks, store, detector, device)
        if tuned is not None:
            ranked = find_label_issues(
                store,
                detector=tuned,
                device=device,
                class_names=issues.class_names,
                sample_ids=issues.sample_ids,
                progress=progress,
            )
    scores = ranked.noise_score.copy()
    judged = marks.verdicts != UNSURE
    scores[marks.samples[judged]] = marks.verdicts[judged]
    return Review(
        n_wrong,
        n_right,
        len(marks) - n_judged,
        n_wrong / n_judged if n_judged else None,
        wilson(n_wrong, n_judged) if n_judged else None,
        int(rank[marks.samples].max()),
        _corrected(marks, issues),
        replace(ranked, noise_score=scores),
        gain,
        why_not,
        tuned,
    )


def _why_not(marks: Marks, issues: LabelIssues, n_wrong: int, n_right: int) -> str:
    if issues.stability is not None:
        return (
            "the ranking is an average of several runs; review one of them alone to tune the detector on it"
        )
    if issues.method != "lstm":
        return f"the ranking is by {issues.method}, which has nothing to tune; use method lstm"
    if min(n_wrong, n_right) < MIN_EACH:
        return (
            f"it needs at least {MIN_EACH} labels marked wrong and {MIN_EACH} marked right, got {n_wrong} and "
            f"{n_right}; mark some further down the ranking"
        )
    if np.isnan(issues.noise_score[marks.samples]).any():
        return "a marked sample was never seen in the training"
    return ""


def _fine_tuned(
    marks: Marks, store: TrainingDynamicsStore, detector: Any, device: str | None
) -> tuple[Gain, Any]:
    """The detector trained on all marks, if those trained on four fifths of them did better on the last fifth."""
    from .. import NoiseDetector

    base = NoiseDetector.pretrained() if detector is None else detector
    judged = marks.verdicts != UNSURE
    samples, wrong = marks.samples[judged], marks.verdicts[judged] == WRONG
    n_epochs = LearningClock.of(store).epochs_to_read  # once: it is a pass over the recording

    def read(rows: Any) -> Any:
        given, margins = store.given_probabilities(rows), store.margins(rows)
        return trajectories_of(given[:, :n_epochs], margins[:, :n_epochs])

    trajectories = read(samples)
    whole = detector_features(store) if base.needs_features else None
    if whole is not None and base.first_stage is not None:
        tiles = ((read(tile), whole[tile]) for tile in store.tiles())
        whole = base.run_first_stage(tiles, whole, device=device)
    features = None if whole is None else whole[samples]

    def tuned_on(chosen: npt.NDArray[np.bool_]) -> Any:
        rows = np.flatnonzero(chosen)
        return copy.deepcopy(base).fit(
            trajectories[rows],
            wrong[rows],
            dataset_features=None if features is None else features[rows],
            epochs=20,
            learning_rate=1e-3,
            device=device,
            progress=False,
        )

    folds = _folds(wrong)
    before = base.log_odds(trajectories, dataset_features=features, device=device)
    after = np.zeros(len(samples))
    try:
        for fold in range(_FOLDS):
            rows = np.flatnonzero(folds == fold)
            held_out = None if features is None else features[rows]
            after[rows] = tuned_on(folds != fold).log_odds(
                trajectories[rows], dataset_features=held_out, device=device
            )
        found = average_precision(before, wrong), average_precision(after, wrong)
        kept = found[1] > found[0]
        tuned = tuned_on(np.ones(len(samples), bool)) if kept else None
    except DetectorError:  # the weights did not stay finite: no gain
        return Gain(average_precision(before, wrong), 0.0, (0.0, 0.0), False), None
    return Gain(*found, _difference(before, after, wrong), kept), tuned


def _folds(wrong: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Folds that share out wrong and right labels evenly, by chance but always the same."""
    rng = np.random.default_rng(0)
    folds = np.zeros(len(wrong), np.int64)
    for kind in (True, False):
        rows = np.flatnonzero(wrong == kind)
        folds[rng.permutation(rows)] = np.arange(len(rows)) % _FOLDS
    return folds


def _difference(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(1000):
        rows = rng.integers(0, len(wrong), len(wrong))
        if wrong[rows].any():
            differences.append(
                average_precision(after[rows], wrong[rows]) - average_precision(before[rows], wrong[rows])
            )
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def average_precision(score: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Mean, over the positives, of the precision of the ranking down to each of them."""
    hits = positive[np.argsort(-score, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share of `hits` in `n`; z = 1.96 for 95 percent."""
    share, square = hits / n, z * z / n
    middle, half = share + square / 2, z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def _corrected(marks: Marks, issues: LabelIssues) -> npt.NDArray[np.int32]:
    labels = issues.given_label.copy()
    wrong = marks.verdicts == WRONG
    samples, written = marks.samples[wrong], marks.corrections[wrong]
    labels[samples] = np.where(written >= 0, written, issues.suggested_label[samples])
    return labels.astype(np.int32)


def write_labels(path: str | os.PathLike[str], review: Review) -> None:
    """Write the corrected labels of all samples as CSV, in the order of the samples.

    Columns: `sample`, where samples have ids `sample_id`, `label` (empty = unknown), where classes have names
    `label_name`, `given_label`, `changed`.

    Args:
        path: the file; an existing one is replaced once the new one is whole.
        review: whose labels to write.
    """
    issues = review.issues
    with new_text_file(path) as file:
        writer = csv.writer(file)
        ids = [] if issues.sample_ids is None else ["sample_id"]
        names = [] if issues.class_names is None else ["label_name"]
        writer.writerow(["sample", *ids, "label", *names, "given_label", "changed"])
        for sample, (label, given) in enumerate(
            zip(review.corrected_labels, issues.given_label, strict=True)
        ):
            one = [] if issues.sample_ids is None else [to_cell(str(issues.sample_ids[sample]))]
            name = [to_cell(issues.label_name(int(label)))] if names else []
            shown = "" if label < 0 else int(label)
            writer.writerow(
                [sample, *one, shown, *name, "" if given < 0 else int(given), bool(label != given)]
            )


def _as_exported(text: str) -> str:
    """An id without what its way through the page and a CSV may change."""
    return visible(text.strip()).replace("\ufffd", "?")


def _plain(text: str) -> str:
    """A number as a program writes it that knows no integers, such as "2.0", as an integer; other text as it is."""
    is_whole = re.fullmatch(r"0*(\d{1,18})(?:\.0*)?", text, re.ASCII)
    return is_whole[1] if is_whole else text


def _whole(text: str, name: str, stop: int, alternative: str = "") -> int:
    plain = _plain(text)
    if not (plain.isascii() and plain.isdecimal() and len(plain) < 19) or int(plain) >= stop:
        raise ValueError(f"{name} must be a whole number in [0, {stop}){alternative}, got {text[:40]!r}")
    return int(plain)
