"""LabelIssues: the result, as arrays, CSV, data frame and text, and what to train on again."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from ..csv_cells import to_cell
from ..messages import escape
from .label_text import as_html, as_line, as_text
from .output_files import new_text_file
from .scores import rule_of

if TYPE_CHECKING:
    pass

Indices = npt.NDArray[np.int64]

ISSUE_THRESHOLD = 0.5  # every noise score is scaled so that above one half speaks against the label

_HEAD = 10


@dataclass(frozen=True, eq=False, repr=False)  # equality of arrays has no single answer
class LabelIssues:
    """The result for every sample of a recording. All arrays are `[sample]`.

    Attributes:
        method: what made the noise scores.
        noise_score: float64 in [0, 1], higher = more suspicious, NaN = never seen, or planted. With `method="lstm"` the
            probability that the label is wrong.
        given_label: int32, -1 = never seen.
        suggested_label: int32, the class the network preferred to the given one, -1 = none. Never applied by itself.
        suggested_confidence: float32 in [0, 1], its share of the probability that the given label did not get.
        n_epochs_seen: int32, in how many epochs (of all runs) the sample was seen.
        class_names: one for each class, or None.
        sample_ids: one for each sample, or None where samples are known by their indices.
        noise_rate: estimated share of wrong labels among the scored samples; None unless the scores are
            probabilities, as those of `method="lstm"` are.
        noise_rate_interval: lowest and highest share that fit, by how far the detector's estimates were off on data
            it had not seen, as sure as it is here (four in five lie within); None where that is not known.
        stability: with several runs, the mean rank correlation of their noise scores: 1 = the same ranking;
            None with one run.
        n_runs: how many recordings were averaged.
        n_epochs: how many epochs (of all runs) were recorded; None = not known.
        n_epochs_read: on how many of them the result rests: by `method="lstm"`, those up to the one that predicted
            99.9 percent of the given labels, since later ones tell nothing more; None = not known.
        notes: what the reader should know before trusting the numbers, a sentence each.
        is_recording: whether a training was still recording when the file was read, so that epochs may follow.
    """

    method: str
    noise_score: npt.NDArray[np.float64]
    given_label: npt.NDArray[np.int32]
    suggested_label: npt.NDArray[np.int32]
    suggested_confidence: npt.NDArray[np.float32]
    n_epochs_seen: npt.NDArray[np.int32]
    class_names: Sequence[str] | None = field(default=None)
    sample_ids: Sequence[str] | None = field(default=None)
    noise_rate: float | None = field(default=None)
    noise_rate_interval: tuple[float, float] | None = field(default=None)
    stability: float | None = field(default=None)
    n_runs: int = field(default=1)
    n_epochs: int | None = field(default=None)
    n_epochs_read: int | None = field(default=None)
    notes: tuple[str, ...] = field(default=())
    is_recording: bool = field(default=False)

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

    @property
    def n_planted(self) -> int:
        """How many labels were moved on purpose (`PlantedLabelErrors`): known, but not scored."""
        return int((np.isnan(self.noise_score) & (self.given_label >= 0)).sum())

    def clean_indices(
        self, *, max_noise_score: float = ISSUE_THRESHOLD, keep_unscored: bool = True
    ) -> Indices:
        """Samples to train on again: those whose label does not look wrong, ascending.

        Args:
            max_noise_score: samples above it are left out.
            keep_unscored: whether samples that were never seen are kept; nothing speaks against them.

        Raises:
            ValueError: a threshold outside [0, 1].
        """
        _check_share(max_noise_score, "max_noise_score")
        with np.errstate(invalid="ignore"):
            kept = self.noise_score <= max_noise_score
        if keep_unscored:
            kept |= np.isnan(self.noise_score)
        return np.flatnonzero(kept).astype(np.int64)

    def corrected_labels(
        self, *, min_confidence: float = 0.5, min_noise_score: float = ISSUE_THRESHOLD
    ) -> npt.NDArray[np.int32]:
        """The given labels, with the suggested one where the given one looks wrong and the suggestion is sure.

        Suspects with a less sure suggestion keep their given label: leave those out of a training by
        `clean_indices`. Never-seen samples have -1, since their label is not known here.

        Args:
            min_confidence: least `suggested_confidence` for a change.
            min_noise_score: labels above it may change.

        Raises:
            ValueError: a threshold outside [0, 1].
        """
        _check_share(min_confidence, "min_confidence")
        _check_share(min_noise_score, "min_noise_score")
        with np.errstate(invalid="ignore"):
            change = self.noise_score > min_noise_score
        change &= (self.suggested_label >= 0) & (self.suggested_confidence >= min_confidence)
        return np.where(change, self.suggested_label, self.given_label).astype(np.int32)

    def label_name(self, label: int) -> str:
        """The class's name where names are known, else its number; empty for -1."""
        if label < 0:
            return ""
        return str(label) if self.class_names is None else self.class_names[label]

    def describe(self, sample: int) -> str:
        """A sample in a few words: its id, or else its number, the given and the suggested label, and its score."""
        name = f"sample {sample}" if self.sample_ids is None else self.sample_ids[sample]
        rather = self.label_name(int(self.suggested_label[sample])) or "?"
        given = self.label_name(int(self.given_label[sample]))
        return f"{name}: {given}, rather {rather} ({self.noise_score[sample]:.2f})"

    def to_line(self, n: int = 3) -> str:
        """One line: how many epochs it rests on, how many labels look wrong, and the first of the ranking."""
        return as_line(self, n)

    def __getitem__(self, ranks: slice) -> Any:
        """Rows of `to_dataframe` by their place in the ranking: `issues[:100]` are the 100 most suspicious samples.

        Raises:
            TypeError: not a slice.
            ImportError: pandas is not installed.
        """
        if not isinstance(ranks, slice):
            raise TypeError(
                f"issues[...] takes a slice of the ranking, such as issues[:100], got {type(ranks).__name__}; "
                "for one sample, index an array, such as issues.noise_score[i]"
            )
        return self.to_dataframe().iloc[: len(self.ranking)].iloc[ranks]

    def report(self, source: Any, out: str | os.PathLike[str], **options: Any) -> str:
        """Write one page to look at the suspects and mark them.

        Args:
            source: the recording that the issues were found in: a path, a store, or for several runs a list of these.
            out: the page to write, such as "report.html".
            options: as for `paddle_td_callback.export.report.write_report`: `dataset`, `thumbnail`, `images`, `title`.

        Returns:
            The path of the page.

        Raises:
            ValueError: issues of another recording, or an option out of range.
            StoreError: the page cannot be written, or the recording cannot be read.
        """
        from ..export.report import write_report  # an arrow to the room above, so that it is found here

        return write_report(self, source, out, **options)

    def log_to(self, writer: Any, source: Any, **options: Any) -> None:
        """Log the noise rate, the data map and the pictures of the first suspects to VisualDL or Weights & Biases.

        Args:
            writer: a `visualdl.LogWriter`, or the run that `wandb.init` gives.
            source: the recording that the issues were found in: a path or a store.
            options: as for `paddle_td_callback.export.trackers.log_issues`: `dataset`, `thumbnail`, `step`,
                `n_suspects`.

        Raises:
            ValueError: issues of another recording.
            TypeError: a writer that is neither.
        """
        from ..export.trackers import log_issues

        log_issues(self, source, writer, **options)

    def to_csv(self, path: str | os.PathLike[str], *, raw: bool = False) -> None:
        """Write all samples, the most suspicious first and never-seen ones last.

        Columns: `sample`, where samples have ids `sample_id`, `rank` (1 = most suspicious, empty = never seen),
        `noise_score`, `label_quality`, `is_label_issue`, `given_label`, `suggested_label`,
        `suggested_confidence`, `n_epochs_seen`, and where class names are known `given_name`, `suggested_name`.

        A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end for a formula and may run
        it: such ids and names get an apostrophe in front, but for plain numbers. Control characters, which a terminal
        would obey, are escaped. `raw=True` leaves both out.

        Args:
            path: the file to write; an existing one is replaced once the new one is whole. Pipes and devices are
                written as they are, "-" is standard output.
            raw: write ids and names as they are, for programs.

        Raises:
            StoreNotFoundError: its folder is missing.
            StoreError: it is empty, may not be written, or is a recording.
        """
        with new_text_file(path) as file:
            self.write_csv(file, raw=raw)

    def write_csv(self, file: TextIO, *, raw: bool = False) -> None:
        """Write the CSV of `to_csv` into a text stream that was opened with `newline=""`.

        Args:
            file: where to.
            raw: as for `to_csv`.
        """
        order = np.concatenate([self.ranking, self.unscored])
        cells = {name: _cells(values[order], raw=raw) for name, values in self._columns().items()}
        cells["rank"] = [*range(1, len(self.ranking) + 1), *[""] * len(self.unscored)]
        writer = csv.writer(file)
        writer.writerow(cells)
        writer.writerows(zip(*cells.values(), strict=True))

    def to_dataframe(self) -> Any:
        """The columns of `to_csv` as a `pandas.DataFrame`, the most suspicious first and never-seen samples last.

        Its index is `sample`; `rank` holds integers that may be missing (pandas' `Int64`).

        Raises:
            ImportError: pandas is not installed.
        """
        pd = _pandas("to_dataframe()")
        order = np.concatenate([self.ranking, self.unscored])
        columns = {name: values[order] for name, values in self._columns().items()}
        columns["rank"] = pd.array([*range(1, len(self.ranking) + 1), *[None] * len(self.unscored)], "Int64")
        return pd.DataFrame(columns).set_index("sample")

    def to_cleanlab(self) -> dict[str, npt.NDArray[Any]]:
        """The columns that cleanlab's users know, each `[sample]`, for `pandas.DataFrame(issues.to_cleanlab())`.

        Returns:
            `is_label_issue`, `label_quality` (low = bad, NaN = never seen), `given_label`, and `predicted_label`,
            which is the suggested one where the label looks wrong and the given one elsewhere.
        """
        wrong = self.is_label_issue & (self.suggested_label >= 0)
        return {
            "is_label_issue": self.is_label_issue,
            "label_quality": self.label_quality,
            "given_label": self.given_label,
            "predicted_label": np.where(wrong, self.suggested_label, self.given_label),
        }

    def top(self, n: int = 10) -> Any:
        """The `n` most suspicious samples as a `pandas.DataFrame`; see `to_dataframe`.

        Raises:
            ImportError: pandas is not installed.
        """
        return self[: max(0, n)]

    def by_class(self) -> Any:
        """One row for each given label as a `pandas.DataFrame`, the one with the largest share of issues first.

        Columns: `label`, where names are known `name`, `n_samples` (scored), `n_issues`, `share` of them,
        `mean_noise_score`.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = _pandas("by_class()")
        scored = self.ranking
        labels, place = np.unique(self.given_label[scored], return_inverse=True)
        n_samples = np.bincount(place, minlength=len(labels))
        n_issues = np.bincount(place, self.is_label_issue[scored], len(labels)).astype(np.int64)
        columns: dict[str, Any] = {"label": labels}
        if self.class_names is not None:
            columns["name"] = [self.label_name(int(label)) for label in labels]
        columns |= {
            "n_samples": n_samples,
            "n_issues": n_issues,
            "share": n_issues / n_samples,
            "mean_noise_score": np.bincount(place, self.noise_score[scored], len(labels)) / n_samples,
        }
        return pd.DataFrame(columns).sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def pairs(self) -> Any:
        """Which classes are mixed up: the issues by given and suggested label, the most frequent pair first.

        Columns: `given_label`, `suggested_label`, where names are known `given_name`, `suggested_name`, `n_issues`.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = _pandas("pairs()")
        issues = np.flatnonzero(self.is_label_issue & (self.suggested_label >= 0))
        both = np.stack([self.given_label[issues], self.suggested_label[issues]], axis=1)
        found, counts = np.unique(both, axis=0, return_counts=True)
        columns: dict[str, Any] = {"given_label": found[:, 0], "suggested_label": found[:, 1]}
        if self.class_names is not None:
            columns["given_name"] = [self.label_name(int(label)) for label in found[:, 0]]
            columns["suggested_name"] = [self.label_name(int(label)) for label in found[:, 1]]
        columns["n_issues"] = counts
        return pd.DataFrame(columns).sort_values(
            "n_issues", ascending=False, kind="stable", ignore_index=True
        )

    def to_text(self, n: int = _HEAD) -> str:
        """The summary and the `n` most suspicious samples, safe for a terminal."""
        return as_text(self, n)

    def to_json(self, n: int | None = None) -> dict[str, Any]:
        """The same facts as JSON types, with the `n` most suspicious samples; None = all of them."""
        samples = self.ranking[:n]
        columns = self._columns()
        rows = [
            {name: _json(values[sample]) for name, values in columns.items()} | {"rank": rank}
            for rank, sample in enumerate(samples, start=1)
        ]
        interval = None if self.noise_rate_interval is None else list(self.noise_rate_interval)
        return {
            "method": self.method,
            "rule": rule_of(self.method),
            "n_samples": len(self),
            "n_issues": int(self.is_label_issue.sum()),
            "n_unscored": len(self.unscored),
            "n_planted": self.n_planted,
            "noise_rate": self.noise_rate,
            "noise_rate_interval": interval,
            "notes": list(self.notes),
            "stability": self.stability,
            "n_runs": self.n_runs,
            "n_epochs": self.n_epochs,
            "n_epochs_read": self.n_epochs_read,
            "is_recording": self.is_recording,
            "samples": rows,
        }

    def plot(self, source: Any, *, samples: npt.ArrayLike | None = None, n_trajectories: int = 5) -> Any:
        """The data map and the trajectories of some samples, as a matplotlib figure.

        Args:
            source: the recording that these issues are of: a path or a store.
            samples: indices `[row]` of the samples whose trajectories are drawn; None = the most suspicious ones.
            n_trajectories: how many of these.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the recording has another number of samples, or no such sample.
        """
        from .plots import plot_issues

        return plot_issues(self, source, samples=samples, n_trajectories=n_trajectories)

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        columns: dict[str, npt.NDArray[Any]] = {"sample": np.arange(len(self))}
        if self.sample_ids is not None:
            columns["sample_id"] = np.asarray(self.sample_ids, object)
        columns |= {
            "rank": np.zeros(len(self), np.int64),  # depends on the order of the rows; filled by who knows it
            "noise_score": self.noise_score,
            "label_quality": self.label_quality,
            "is_label_issue": self.is_label_issue,
            "given_label": self.given_label,
            "suggested_label": self.suggested_label,
            "suggested_confidence": self.suggested_confidence,
            "n_epochs_seen": self.n_epochs_seen,
        }
        if self.class_names is not None:
            names = np.asarray([*self.class_names, ""], object)  # the last one is for -1
            columns |= {"given_name": names[self.given_label], "suggested_name": names[self.suggested_label]}
        return columns

    def __repr__(self) -> str:
        return as_text(self, _HEAD)

    def _repr_html_(self) -> str:
        return as_html(self, _HEAD)


def _check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def _cells(values: npt.NDArray[Any], *, raw: bool) -> list[Any]:
    """One column of a CSV: NaN as empty, floats in the shortest form that reads back as the same number."""
    if values.dtype == object:
        return list(values) if raw else [escape(to_cell(text), lines=True) for text in values]
    if values.dtype.kind != "f":
        return list(values.tolist())
    # A float32 has to be written as one: as a double it would show digits that are not there.
    cells = values.tolist() if values.dtype == np.float64 else values.astype(str).tolist()
    return ["" if missing else cell for cell, missing in zip(cells, np.isnan(values), strict=True)]


def _json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _pandas(what: str) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(f"{what} needs pandas: pip install pandas, or use to_csv()") from error
    return pd
