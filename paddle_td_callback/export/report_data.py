"""What the report shows of a recording, computed tile by tile: the map, the curves, the tables, the suspects."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..detection import scores
from ..detection.label_issues import LabelIssues
from ..detection.progress import Progress
from ..detection.trajectories import trajectories_of
from ..messages import warn
from ..store import TrainingDynamicsStore
from .text import embedded_json
from .thumbnails import Pictures, same_random_streams

Json = dict[str, Any]
Floats = npt.NDArray[np.float64]

MAX_POINTS = 1_000_000  # of the map: 7 bytes each
MAX_NAMED_POINTS = 50_000  # of the map, so few that it says which sample a point is
MAX_CLASSES = 30  # rows of the matrix
MAX_ROWS = 200  # of the tables of classes and pairs
MAX_EPOCHS = 240  # of a drawn trajectory
_ID_BYTES, _NAME_BYTES = 2_000_000, 1_000_000  # of all ids and names in the page together
_UNSEEN = 255  # of a trajectory, whose probabilities are 0 to 254
_METHODS = [name for name in scores.NOISE_SCORES if "probabilities" not in scores.NOISE_SCORES[name].needs]


def report_data(
    issues: LabelIssues,
    store: TrainingDynamicsStore,
    pictures: Pictures,
    *,
    files: Sequence[str],
    title: str,
    n_suspects: int,
    max_content_bytes: int,
    progress: bool = False,
) -> tuple[Json, bytes]:
    """All that the page shows.

    Args:
        issues: the ranking.
        store: the recording that it was made of.
        pictures: of the samples.
        files: the recordings, for the command that the page names.
        title: of the page.
        n_suspects: how many samples are shown one by one.
        max_content_bytes: what their pictures, texts and rows may take together.
        progress: show a bar while they are read.

    Returns:
        What goes into the page as JSON, and the points of the map in binary.
    """
    recorded = _Recorded(issues, store)
    suspects = issues.ranking[:n_suspects]
    points, point_facts = _points(issues, recorded)
    labels = _Names(issues)
    data = {
        "title": title,
        "summary": _summary(issues, store, recorded) | {"files": list(files)},
        "curves": recorded.curves(),
        "points": point_facts,
        "suspects": _suspects(issues, store, suspects, recorded, labels),
        "content": _contents(pictures, suspects, max_content_bytes, progress=progress),
        "matrix": _matrix(issues, labels),
        "classes": _by_class(issues, labels),
        "pairs": _pairs(issues, labels),
        "methods": _agreement(issues, recorded),
    }
    failed = (
        f"{pictures.n_failed} samples could not be shown, first {pictures.failed}" if pictures.failed else ""
    )
    data["content_note"] = failed
    if failed:
        warn(f"report: {failed}", RuntimeWarning, stacklevel=4)
    data["names"] = labels.used()  # last: by now it is known which are shown
    return data, points


class _Recorded:
    """One pass over the recording: numbers per sample and per epoch."""

    def __init__(self, issues: LabelIssues, store: TrainingDynamicsStore) -> None:
        n, n_epochs = store.n_samples, store.n_epochs
        self.confidence = np.full(n, np.nan, np.float32)
        self.variability = np.full(n, np.nan, np.float32)
        self.by_method = {name: np.full(n, np.nan, np.float32) for name in _METHODS}
        flagged = issues.is_label_issue
        # Per epoch: seen samples, right predictions, sums of the given label's probability; 1 = flagged ones.
        self._seen = np.zeros((2, n_epochs), np.int64)
        self._right = np.zeros(n_epochs, np.int64)
        self._given = np.zeros((2, n_epochs))
        for tile in store.tiles():
            arrays = {
                "given_probabilities": store.given_probabilities(tile),
                "margins": store.margins(tile),
                "predictions": store.predictions(tile),
                "labels": store.labels[tile],
            }
            given, predicted = arrays["given_probabilities"], arrays["predictions"]
            self.confidence[tile] = scores.confidence(given)
            self.variability[tile] = scores.variability(given)
            for name, found in self.by_method.items():
                score = scores.NOISE_SCORES[name]
                found[tile] = score.compute(**{need: arrays[need] for need in score.needs})
            seen = predicted >= 0
            self._right += (seen & (predicted == arrays["labels"][:, np.newaxis])).sum(axis=0)
            for kind, of_kind in enumerate((~flagged[tile], flagged[tile])):
                self._seen[kind] += seen[of_kind].sum(axis=0)
                self._given[kind] += np.nan_to_num(given[of_kind]).sum(axis=0, dtype=np.float64)

    def curves(self) -> Json:
        """Of each epoch the share of given labels that were predicted, and their mean probability."""
        seen = self._seen.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                "accuracy": self._right / seen,
                "all": self._given.sum(axis=0) / seen,
                "others": self._given[0] / self._seen[0],
                "flagged": self._given[1] / self._seen[1],
            }
        return {name: _numbers(values, 4) for name, values in columns.items()}

    @property
    def fitted(self) -> float:
        """Share of the given labels that the last epoch in which anything was seen predicted."""
        seen = self._seen.sum(axis=0)
        last = np.flatnonzero(seen)[-1]
        return float(self._right[last] / seen[last])


class _Names:
    """Names of the classes that the page mentions; of many classes most are never mentioned."""

    def __init__(self, issues: LabelIssues) -> None:
        self._issues, self._used = issues, set[int]()

    def use(self, labels: npt.ArrayLike) -> list[int]:
        """The labels as a list, and remember that they are shown."""
        listed = [int(label) for label in np.asarray(labels).reshape(-1)]
        self._used.update(listed)
        return listed

    def used(self) -> dict[str, str]:
        """Label to name."""
        used = sorted(label for label in self._used if label >= 0)
        names = _fitted([self._issues.label_name(label) for label in used], _NAME_BYTES)
        return {str(label): name for label, name in zip(used, names, strict=True)}


def _summary(issues: LabelIssues, store: TrainingDynamicsStore, recorded: _Recorded) -> Json:
    n_flagged = int(issues.is_label_issue.sum())
    return {
        "file": store.path.replace("\\", "/").rsplit("/", 1)[-1],
        "checksum": store.label_checksum,
        "ids_checksum": _ids_checksum(issues),
        "created": store.created,
        "version": __version__,
        "method": issues.method,
        "samples": store.n_samples,
        "never_seen": len(issues.unscored) - issues.n_planted,
        "classes": store.n_classes,
        "epochs": store.n_epochs,
        "epochs_read": issues.n_epochs_read,
        "is_recording": issues.is_recording,
        "dropped": len(store.dropped_epochs),
        "mode": store.mode,
        "keep": str(store.keep),
        "flagged": n_flagged,
        "fitted": round(recorded.fitted, 4),
        "rate": None if issues.noise_rate is None else round(issues.noise_rate, 4),
        "interval": None
        if issues.noise_rate_interval is None
        else [round(x, 4) for x in issues.noise_rate_interval],
        "stability": None if issues.stability is None else round(issues.stability, 4),
        "trust": _trust(issues, store, recorded.fitted),
    }


def _ids_checksum(issues: LabelIssues) -> str:
    """Tells marks of other samples in a recording of the same name and labels."""
    checksum = 0
    for name in issues.sample_ids or ():
        checksum = zlib.crc32(name.encode("utf-8", "surrogatepass") + b"\0", checksum)
    return f"{checksum:08x}"


def _trust(issues: LabelIssues, store: TrainingDynamicsStore, fitted: float) -> Json:
    """How far the estimated noise rate can be trusted, in sentences; `cautions` are what speaks against it here."""
    if issues.noise_rate is None:
        return {
            "level": "none",
            "text": f"The scores of method {issues.method} are no probabilities, so there is no estimate of the share "
            "of wrong labels. Method lstm gives one.",
            "cautions": [],
        }
    cautions = []
    read_early = issues.n_epochs_read is not None and issues.n_epochs_read < store.n_epochs
    if fitted >= 0.98 and not read_early:
        cautions.append(
            f"In its last epoch the network predicts {fitted:.1%} of the given labels, wrong ones included. "
            "After that much was memorised, the estimate tends to be too low."
        )
    elif fitted < 0.6:
        cautions.append(
            f"In its last epoch the network predicts only {fitted:.1%} of the given labels. "
            "Hard samples then look like wrong ones, and the estimate tends to be too high."
        )
    if store.n_epochs - len(store.dropped_epochs) < 5:
        cautions.append("There are fewer than five epochs, so little is known of how samples were learned.")
    if issues.noise_rate_interval is None:
        cautions.append("This detector was not measured on data it had not seen, so no interval is known.")
    text = (
        "The interval is wide enough for four in five of the recordings that the detector was tested on. "
        "Data and mistakes unlike those can be further off. Mark suspects below to see how many of the labels that "
        "look wrong really are."
    )
    return {"level": "low" if cautions else "fair", "text": text, "cautions": cautions}


def _points(issues: LabelIssues, recorded: _Recorded) -> tuple[bytes, Json]:
    """The map, seven bytes a point: confidence and variability in 1/65535 and 2/65535, noise score in 1/255, label."""
    scored = np.flatnonzero(~np.isnan(issues.noise_score) & ~np.isnan(recorded.confidence))
    shown = scored
    if len(scored) > MAX_POINTS:
        shown = scored[np.linspace(0, len(scored) - 1, MAX_POINTS).astype(np.int64)]
    columns = [
        np.round(np.clip(recorded.confidence[shown], 0, 1) * 65535).astype("<u2"),
        np.round(np.clip(recorded.variability[shown] * 2, 0, 1) * 65535).astype("<u2"),
        np.minimum(issues.given_label[shown], 65535).astype("<u2"),
        np.round(issues.noise_score[shown] * 255).astype(np.uint8),
    ]
    named = len(shown) <= MAX_NAMED_POINTS
    if named:
        columns.append(shown.astype("<u4"))
    facts = {"n": len(shown), "of": len(scored), "named": named}
    return b"".join(column.tobytes() for column in columns), facts


def _suspects(
    issues: LabelIssues,
    store: TrainingDynamicsStore,
    suspects: npt.NDArray[np.int64],
    recorded: _Recorded,
    labels: _Names,
) -> Json:
    # Of the given label and its strongest rival.
    trajectories = trajectories_of(store.given_probabilities(suspects), store.margins(suspects))[:, :, :2]
    epochs = np.arange(store.n_epochs)
    if len(epochs) > MAX_EPOCHS:
        epochs = np.linspace(0, len(epochs) - 1, MAX_EPOCHS).astype(np.int64)
        trajectories = trajectories[:, epochs]
    steps = np.where(np.isnan(trajectories), _UNSEEN, np.round(np.nan_to_num(trajectories) * 254)).astype(
        np.uint8
    )
    ids = None if issues.sample_ids is None else [str(issues.sample_ids[sample]) for sample in suspects]
    return {
        "sample": suspects.tolist(),
        "id": None if ids is None else _fitted(ids, _ID_BYTES),
        "given": labels.use(issues.given_label[suspects]),
        "suggested": labels.use(issues.suggested_label[suspects]),
        "sure": _numbers(issues.suggested_confidence[suspects], 3),
        "score": _numbers(issues.noise_score[suspects], 4),
        "seen": issues.n_epochs_seen[suspects].tolist(),
        "confidence": _numbers(recorded.confidence[suspects], 4),
        "variability": _numbers(recorded.variability[suspects], 4),
        "epochs": epochs.tolist(),
        "given_curve": base64.b64encode(steps[:, :, 0].tobytes()).decode(),
        "rival_curve": base64.b64encode(steps[:, :, 1].tobytes()).decode(),
    }


def _contents(
    pictures: Pictures, suspects: npt.NDArray[np.int64], max_bytes: int, *, progress: bool
) -> list[Json | None]:
    """Of each suspect what it shows, until the room for it is used up."""
    contents: list[Json | None] = []
    if not pictures.there:
        return contents
    used = 0
    with same_random_streams(), Progress("report", ["contents"], len(suspects), wanted=progress) as bar:
        for sample in suspects:
            content = pictures.of(int(sample))
            bar.done(1)
            if content is not None:
                used += len(embedded_json(content))
                if used > max_bytes:
                    break
            contents.append(content)
    return contents


def _matrix(issues: LabelIssues, labels: _Names) -> Json:
    """How many flagged labels of each class would be which other class; the classes that occur most."""
    given, suggested, counts = _pair_counts(issues)
    weight = np.bincount(given, counts) if len(given) else np.zeros(0)
    other = np.bincount(suggested, counts) if len(suggested) else np.zeros(0)
    total = np.zeros(max(len(weight), len(other)))
    total[: len(weight)] += weight
    total[: len(other)] += other
    order = np.argsort(-total, kind="stable")
    shown = np.sort(order[: min(MAX_CLASSES, int((total > 0).sum()))])
    place = {int(label): i for i, label in enumerate(shown)}
    table = np.zeros((len(shown), len(shown)), np.int64)
    for one, two, count in zip(given, suggested, counts, strict=True):
        if int(one) in place and int(two) in place:
            table[place[int(one)], place[int(two)]] = count
    return {
        "labels": labels.use(shown),
        "of": int((total > 0).sum()),
        "counts": table.tolist(),
        "total": int(np.sum(counts)),
    }


def _by_class(issues: LabelIssues, labels: _Names) -> Json:
    """Of each class how many samples it has, how many labels look wrong, and the mean noise score."""
    scored = ~np.isnan(issues.noise_score)
    given = issues.given_label[scored]
    n = np.bincount(given)
    flagged = np.bincount(given, issues.is_label_issue[scored]).astype(np.int64)
    score = np.bincount(given, issues.noise_score[scored])
    there = np.flatnonzero(n)
    share = flagged[there] / n[there]
    shown = there[np.argsort(-share, kind="stable")][:MAX_ROWS]
    return {
        "of": len(there),
        "label": labels.use(shown),
        "samples": n[shown].tolist(),
        "flagged": flagged[shown].tolist(),
        "mean": _numbers(score[shown] / n[shown], 4),
    }


def _pairs(issues: LabelIssues, labels: _Names) -> Json:
    """Pairs of classes that get mixed up: given one, suggested the other, in both directions."""
    given, suggested, counts = _pair_counts(issues)
    low, high = np.minimum(given, suggested), np.maximum(given, suggested)
    both: dict[tuple[int, int], list[int]] = {}
    for one, two, forward, count in zip(low, high, given < suggested, counts, strict=True):
        both.setdefault((int(one), int(two)), [0, 0])[0 if forward else 1] += int(count)
    top = sorted(both.items(), key=lambda item: (-sum(item[1]), item[0]))[:MAX_ROWS]
    return {
        "of": len(both),
        "pair": [labels.use(pair) for pair, _ in top],
        "counts": [list(found) for _, found in top],
    }


def _pair_counts(issues: LabelIssues) -> tuple[Any, Any, Any]:
    """Given label, suggested label and how many flagged samples have both."""
    chosen = issues.is_label_issue & (issues.suggested_label >= 0)
    given, suggested = (
        issues.given_label[chosen].astype(np.int64),
        issues.suggested_label[chosen].astype(np.int64),
    )
    n_classes = int(max(given.max(initial=0), suggested.max(initial=0))) + 1
    keys, counts = np.unique(given * n_classes + suggested, return_counts=True)
    return keys // n_classes, keys % n_classes, counts


def _agreement(issues: LabelIssues, recorded: _Recorded) -> Json:
    """Rank correlation of each method with each other, and how much of this ranking's head is in that of the others."""
    by_method: dict[str, npt.NDArray[Any]] = {issues.method: issues.noise_score, **recorded.by_method}
    by_method[issues.method] = issues.noise_score
    scored = np.flatnonzero(~np.any([np.isnan(values) for values in by_method.values()], axis=0))
    ranks = np.stack([_ranks(values[scored]) for values in by_method.values()])
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.array(np.corrcoef(ranks))  # NaN where a method gives all samples the same score
    head = max(1, min(int(issues.is_label_issue.sum()) or 100, len(scored)))
    heads = np.argpartition(-ranks, head - 1, axis=1)[:, :head]
    overlap = [float(np.isin(heads[0], other).mean()) for other in heads]
    return {
        "names": list(by_method),
        "correlations": [_numbers(row, 3) for row in correlations],
        "head": head,
        "overlap": _numbers(overlap, 3),
    }


def _ranks(values: npt.NDArray[Any]) -> Floats:
    """Places from 0, equal values share the middle of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts + 1) / 2)[place], np.float64)


def _numbers(values: npt.ArrayLike, digits: int) -> list[float | None]:
    """For JSON, which has no NaN."""
    array = np.asarray(values, np.float64)
    return [
        None if missing else value
        for value, missing in zip(np.round(array, digits).tolist(), np.isnan(array).tolist(), strict=True)
    ]


def _fitted(texts: Sequence[str], max_bytes: int) -> list[str]:
    """The texts, whole where they fit into the page; else all cut to the length at which they do."""
    if sum(len(embedded_json(text)) for text in texts) <= max_bytes:
        return list(texts)
    longest = max_bytes // len(texts) // 12  # a character takes twelve bytes at most
    return [text if len(text) <= longest else text[: longest - 1] + "…" for text in texts]
