"""LabelIssues: the result, as arrays, CSV, data frame and text, and what to train on again."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..store.paths import check_path

Indices = npt.NDArray[np.int64]

ISSUE_THRESHOLD = 0.5  # every noise score is scaled so that above one half speaks against the label

STANDARD_STREAMS = ("/dev/stdout", "/dev/stderr")
_HEAD = 10


@dataclass(frozen=True, eq=False, repr=False)  # equality of arrays has no single answer
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
        noise_rate: estimated share of wrong labels among the scored samples; None unless the scores are
            probabilities, as those of `method="lstm"` are.
        noise_rate_interval: lowest and highest share that fit, by how far the detector's estimates were off on data
            it had not seen, as sure as it is here (four in five lie within); None where that is not known.
        stability: with several runs, the mean rank correlation of their noise scores: 1 = the same ranking;
            None with one run.
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

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all samples, the most suspicious first and never-seen ones last.

        Columns: `sample`, where samples have ids `sample_id`, `rank` (1 = most suspicious, empty = never seen),
        `noise_score`, `label_quality`, `is_label_issue`, `given_label`, `suggested_label`,
        `suggested_confidence`, `n_epochs_seen`, and where class names are known `given_name`, `suggested_name`.

        Args:
            path: the file to write; an existing one is replaced once the new one is whole. Pipes and devices are
                written as they are.

        Raises:
            StoreNotFoundError: its folder is missing.
            StoreError: it may not be written, or is a recording.
        """
        name = check_csv_path(path)
        if _is_stream(name):
            with open(name, "a", newline="", encoding="utf-8") as file:  # behind what is there: `>>` keeps it
                self._write_csv(file)
            return
        fresh = f"{name}.{os.getpid()}.new"
        try:
            with open(fresh, "w", newline="", encoding="utf-8") as file:
                self._write_csv(file)
            os.replace(fresh, name)
        finally:
            if os.path.exists(fresh):
                os.unlink(fresh)

    def _write_csv(self, file: TextIO) -> None:
        order = np.concatenate([self.ranking, self.unscored])
        columns = {"sample": np.arange(len(self)), **self._columns()}
        cells = {name: _cells(values[order]) for name, values in columns.items()}
        cells["rank"] = [*range(1, len(self.ranking) + 1), *[""] * len(self.unscored)]
        writer = csv.writer(file)
        writer.writerow(cells)
        writer.writerows(zip(*cells.values(), strict=True))

    def to_dataframe(self) -> Any:
        """The columns of `to_csv` as a `pandas.DataFrame`, in the order of the samples, which are its index.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas: pip install pandas, or use to_csv()") from error
        return pd.DataFrame(self._columns(), index=pd.RangeIndex(len(self), name="sample"))

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        rank = np.full(len(self), np.nan)
        rank[self.ranking] = np.arange(1, len(self.ranking) + 1)
        columns: dict[str, npt.NDArray[Any]] = {
            "rank": rank,
            "noise_score": self.noise_score,
            "label_quality": self.label_quality,
            "is_label_issue": self.is_label_issue,
            "given_label": self.given_label,
            "suggested_label": self.suggested_label,
            "suggested_confidence": self.suggested_confidence,
            "n_epochs_seen": self.n_epochs_seen,
        }
        if self.sample_ids is not None:
            columns = {"sample_id": np.asarray(self.sample_ids, object), **columns}
        if self.class_names is not None:
            names = np.asarray([*self.class_names, ""], object)  # the last one is for -1
            columns |= {"given_name": names[self.given_label], "suggested_name": names[self.suggested_label]}
        return columns

    def _shown_interval(self) -> str:
        if self.noise_rate_interval is None:
            return ""
        low, high = self.noise_rate_interval
        return f" ({low:.1%} to {high:.1%})"

    def __repr__(self) -> str:
        ranking, n_unscored = self.ranking, len(self.unscored)
        title = [
            f"LabelIssues by {self.method}: {int(self.is_label_issue.sum())} of {len(self)} labels look wrong"
            + (f"; {n_unscored} samples were never seen and are not scored" if n_unscored else "")
        ]
        if self.noise_rate is not None:
            title.append(f"estimated share of wrong labels: {self.noise_rate:.1%}" + self._shown_interval())
        if self.stability is not None:
            title.append(f"rank correlation between runs: {self.stability:.3f}")
        lines = [
            *title,
            f"{'rank':>6} {'sample':>9} {'given':>12} {'suggested':>12} {'noise_score':>12}",
        ]
        for rank, sample in enumerate(ranking[:_HEAD], start=1):
            given, other = (
                _on_one_line(self.label_name(int(labels[sample])))[:12]
                for labels in (self.given_label, self.suggested_label)
            )
            lines.append(
                f"{rank:>6} {sample:>9} {given:>12} {other:>12} {self.noise_score[sample]:>12.4f}"
                + ("" if self.sample_ids is None else f"  {self.sample_ids[sample]}")
            )
        if len(ranking) > _HEAD:
            lines.append(f"   ... {len(ranking) - _HEAD} more in .ranking")
        return "\n".join(lines)


def check_csv_path(path: str | os.PathLike[str]) -> str:
    """Refuse at the start what would fail after the work, or destroy a recording.

    Returns:
        The path, links followed; that of a pipe or a device as it is.

    Raises:
        ValueError: the path is empty.
        StoreNotFoundError: the folder is missing.
        StoreError: the folder may not be written, the path is a folder, or an HDF5 file stands there.
    """
    if not os.fspath(path):
        raise ValueError("the path of the CSV is empty; give a file name")
    if _is_stream(path):  # links of /dev/stdout end in names like pipe:[123], which are no paths
        return os.fspath(path)
    name = os.path.realpath(check_path(path, overwrite=True))
    if os.path.isfile(name) and h5py.is_hdf5(name):
        raise StoreError(
            f"'{os.fspath(path)}' is an HDF5 file, perhaps a recording; give the CSV another path"
        )
    return name


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether it is written to as it stands: a pipe, a device, or what is open already, be that a file."""
    if (
        os.path.dirname(os.fspath(path)) in ("/dev/fd", "/proc/self/fd")
        or os.fspath(path) in STANDARD_STREAMS
    ):
        return os.path.exists(path)
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def _cells(values: npt.NDArray[Any]) -> list[Any]:
    """One column of a CSV: NaN as empty, floats in the shortest form that reads back as the same number."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    # A float32 has to be written as one: as a double it would show digits that are not there.
    cells = values.tolist() if values.dtype == np.float64 else values.astype(str).tolist()
    return ["" if missing else cell for cell, missing in zip(cells, np.isnan(values), strict=True)]


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
