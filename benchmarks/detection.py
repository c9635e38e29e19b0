"""How well are wrong labels found? Ours, hand-made scores, cleanlab and the paper's LSTM, on data none has seen.

    python -m benchmarks.detection            # the whole table: records what is missing, then judges
    python -m benchmarks.detection --quick    # digits and optdigits with the shipped weights, minutes

Every number of ours for a data set comes from a detector of train_detector.py that has not seen that data set.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core does more

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from benchmarks.shipped_detector.recordings import matrix, reading, reliability, training
from benchmarks.shipped_detector.recordings.reading import Recording
from benchmarks.shipped_detector.recordings.record import FURTHER_RUNS, cache_folder, record
from paddle_td_callback.detection.lstm.detector import PRETRAINED, NoiseDetector
from paddle_td_callback.detection.scores import NOISE_SCORES
from paddle_td_callback.detection.suggestions import suggest_labels
from paddle_td_callback.detection.tile_reader import TileReader

Key = tuple[Any, ...]  # data, kind, rate, regime, seed
Cells = dict[Key, dict[str, dict[str, Any]]]  # of each cell the row of each method

RESULTS = Path(__file__).parent / "results"
HAND_MADE = tuple(name for name, score in NOISE_SCORES.items() if "probabilities" not in score.needs)
OURS, FIRST, PAPER, EL2N = "ours", "ours, first stage", "paper LSTM", "el2n"
CROSS_VALIDATED = "cleanlab cross-validated"
PROBABILITIES = (OURS, FIRST, PAPER, "ours, 3 runs")
FURTHER = (EL2N, *(f"{CROSS_VALIDATED} {m}" for m in ("self_confidence", "normalized_margin", "issues")),
           "aum, 3 runs", "ours, 3 runs")  # fmt: skip
PAPER_SAMPLES = 100  # of each recording; its own training used one data set
QUICK = ("digits", "optdigits")  # which the shipped weights have not seen
CUTS = {"25% of epochs": 0.25, "50% of epochs": 0.5, "75% of epochs": 0.75, "30% missing": 1.0}
CUT_RATES = (0.1, 0.3)
COLUMNS = ("data", "kind", "rate", "regime", "seed", "n_samples", "n_classes", "n_epochs", "accuracy", "method",
           "auc", "ap", "precision", "f1", "flagged", "estimated_rate", "calibration_error", "suggestion",
           "suggestion_found")  # fmt: skip


def hand_made(recording: Recording) -> dict[str, np.ndarray]:
    """The noise score of every method that needs no more than was recorded."""
    arrays = {
        "given_probabilities": recording.given_probabilities,
        "margins": recording.margins,
        "predictions": recording.predictions,
        "labels": recording.labels,
    }
    return {name: NOISE_SCORES[name].compute(**{need: arrays[need] for need in NOISE_SCORES[name].needs})
            for name in HAND_MADE}  # fmt: skip


def cleanlab(labels: np.ndarray, probabilities: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """Its two label qualities turned round, and what its `find_label_issues` flags."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    made = {
        f"{prefix} {method}": 1 - get_label_quality_scores(labels, probabilities, method=method)
        for method in ("self_confidence", "normalized_margin")
    }
    return made | {f"{prefix} issues": find_label_issues(labels, probabilities, n_jobs=1).astype(float)}


def in_sample(recording: Recording) -> dict[str, np.ndarray]:
    """What cleanlab makes of the last epoch's probabilities.

    The recording holds the given label's probability and the largest other one: cleanlab's two qualities
    need no more; the mass between them is spread evenly over the other classes for its `find_label_issues`.
    """
    raw = training.trajectories(recording)
    given, other = raw[:, -1, 0].astype(float), raw[:, -1, 1].astype(float)
    n, n_classes = len(given), max(int(recording.about["n_classes"]), int(recording.labels.max()) + 1)
    predicted, labels = recording.predictions[:, -1], recording.labels.astype(int)
    second = np.where(predicted != labels, predicted, (labels + 1) % n_classes)
    left = np.maximum(1 - given - other, 0) / max(n_classes - 2, 1)
    probabilities = np.repeat(left[:, np.newaxis], n_classes, axis=1)
    probabilities[np.arange(n), second] = other
    probabilities[np.arange(n), labels] = given
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return cleanlab(labels, probabilities, "cleanlab")


def further(recording: Recording, extra: Path, ours: NoiseDetector) -> dict[str, np.ndarray]:
    """The methods that need more trainings, where there are these: see `recordings.record.extra`."""
    if not extra.exists():
        return {}
    with np.load(extra) as file:
        el2n, probabilities = file["el2n"], file["cross_validated"].astype(float)
    made = {EL2N: el2n} | cleanlab(
        recording.labels.astype(int),
        probabilities / probabilities.sum(axis=1, keepdims=True),
        CROSS_VALIDATED,
    )
    runs = [
        recording,
        *(reading.read(extra.with_name(f"{extra.stem}-run-{run}.npz")) for run in FURTHER_RUNS),
    ]
    made["ours, 3 runs"] = np.mean([scored(ours, run) for run in runs], axis=0)
    made["aum, 3 runs"] = np.mean([hand_made(run)["aum"] for run in runs], axis=0)
    return made


def scored(detector: NoiseDetector, recording: Recording) -> np.ndarray:
    """What our detector says, [sample]."""
    raw = training.trajectories(recording)
    return detector.predict_proba(raw, dataset_features=training.table(recording)).astype(float)


def suggestion_accuracy(recording: Recording, score: np.ndarray) -> dict[str, float]:
    """How often the label that the package suggests is the right one: of wrong labels, and of those found."""
    rows = np.flatnonzero(recording.is_mislabeled)
    if not len(rows):
        return {}
    tile = SimpleNamespace(
        keep="given",
        n_classes=int(recording.about["n_classes"]),
        labels=recording.labels[rows],
        given_probabilities=recording.given_probabilities[rows],
        margins=recording.margins[rows],
        predictions=recording.predictions[rows],
    )
    suggested, _ = suggest_labels(cast("TileReader", tile))
    right, found = suggested == recording.right_labels[rows], score[rows] > 0.5
    made = {"suggestion": float(right.mean())}
    return made | ({"suggestion_found": float(right[found].mean())} if found.any() else {})


def paper_lstm(paths: list[Path], groups: list[str], folder: Path) -> list[Path]:
    """One channel, two layers of 64, no more: trained on the same recordings, one for each fold."""
    files = []
    for number, left_out in enumerate(training.folds(groups)):
        file = folder / f"paper-{number}.weights"
        unseen = (*left_out, *training.SECOND_ONLY)
        seen = [path for path, group in zip(paths, groups, strict=True) if group not in unseen]
        if not training.is_of(file, left_out, len(seen)):
            raws, wrongs = [], []
            for path in seen:
                recording = reading.read(path)
                rows = np.random.default_rng(0).permutation(len(recording.labels))[:PAPER_SAMPLES]
                raws.append(training.trajectories(recording, rows))
                wrongs.append(recording.is_mislabeled[rows])
            detector = NoiseDetector(("given",), 16, 64, 2)
            detector.fit(raws, wrongs, epochs=4, batch_size=256, progress=False)
            detector.provenance |= {"left out": left_out, "recordings": len(seen)}
            detector.save(file)
        files.append(file)
    return files


def judged(wrong: np.ndarray, score: np.ndarray, is_probability: bool) -> dict[str, float]:
    """All numbers of one method on one recording; those that need wrong labels are NaN where there are none."""
    n_wrong = int(wrong.sum())
    flagged = score > 0.5
    made = {"flagged": float(flagged.mean())}
    if n_wrong:
        top = np.argsort(-score, kind="stable")[:n_wrong]
        made |= {
            "auc": float(roc_auc_score(wrong, score)),
            "ap": float(average_precision_score(wrong, score)),
            "precision": float(wrong[top].mean()),
            "f1": float(2 * (flagged & wrong).sum() / max(1, flagged.sum() + n_wrong)),
        }
    if is_probability:
        error = reliability.error(reliability.bins(wrong, score))
        made |= {"estimated_rate": float(score.mean()), "calibration_error": error}
    return made


def rows_of(path: Path, ours: NoiseDetector, paper: NoiseDetector | None) -> Iterator[dict[str, Any]]:
    """One row for each method on a recording."""
    recording = reading.read(path)
    cell, wrong = recording.about["cell"], recording.is_mislabeled
    methods = {OURS: scored(ours, recording)}
    if ours.first_stage is not None:
        methods[FIRST] = scored(ours.first_stage, recording)
    if paper is not None:
        methods[PAPER] = paper.predict_proba(training.trajectories(recording)).astype(float)
    methods |= hand_made(recording) | in_sample(recording)
    methods |= further(recording, path.parent / "extra" / path.name, ours)
    about = {
        **cell,
        "rate": float(wrong.mean()),
        "n_samples": len(wrong),
        "n_classes": recording.about["n_classes"],
        "n_epochs": recording.predictions.shape[1],
        "accuracy": float((recording.predictions[:, -1] == recording.labels).mean()),
    }
    for method, score in methods.items():
        row = about | {"method": method} | judged(wrong, score, method in PROBABILITIES)
        if method == OURS:
            row["bins"] = reliability.bins(wrong, score)
            row |= suggestion_accuracy(recording, score)
        yield row


def shortened(path: Path, ours: NoiseDetector) -> Iterator[dict[str, Any]]:
    """AP of ours and of the best hand-made score on the recording, cut and thinned."""
    recording = reading.read(path)
    wrong = recording.is_mislabeled
    rng = np.random.default_rng([*path.stem.encode()])
    n_epochs = recording.given_probabilities.shape[1]
    for name, share in {"whole": 1.0, **CUTS}.items():
        epochs = np.arange(max(1, round(share * n_epochs)))
        unseen = rng.random((len(wrong), n_epochs)) < 0.3 if name == "30% missing" else None
        one = training.cut(recording, epochs, unseen)
        score = scored(ours, one)
        best = max(average_precision_score(wrong, score) for score in hand_made(one).values())
        yield {
            **recording.about["cell"],
            "cut": name,
            "ours": average_precision_score(wrong, score),
            "best": best,
        }


def write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """A CSV with four digits."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            values = [row.get(name, "") for name in columns]
            writer.writerow([f"{v:.4f}" if isinstance(v, float) else v for v in values])


def mean(rows: list[dict[str, Any]], column: str) -> float:
    """Over the rows that have the number."""
    return float(np.mean([row[column] for row in rows if column in row] or [np.nan]))


def table_of(cells: Cells, methods: list[str]) -> None:
    """Means over the same cells for each method."""
    print(
        f"\n{'method':<40}{'ROC AUC':>9}{'AP':>8}{'P@rate':>8}{'F1':>8}   spread of AP over cells, over seeds"
    )
    for method in methods:
        own = {key: cell[method] for key, cell in cells.items()}
        pairs = [(own[key]["ap"], own[other]["ap"]) for key, other in twins(own)]
        over_seeds = np.sqrt(np.mean([(a - b) ** 2 / 2 for a, b in pairs])) if pairs else np.nan
        numbers = list(own.values())
        spread = np.std([row["ap"] for row in numbers])
        print(f"{method:<40}{mean(numbers, 'auc'):>9.3f}{mean(numbers, 'ap'):>8.3f}{mean(numbers, 'precision'):>8.3f}"
              f"{mean(numbers, 'f1'):>8.3f}{spread:>8.3f}{over_seeds:>8.3f}")  # fmt: skip


def twins(cells: dict[Key, Any]) -> Iterator[tuple[Key, Key]]:
    """The two seeds of each cell, which differ in regime too."""
    by_cell: dict[tuple[Any, ...], list[Key]] = {}
    for key in cells:
        by_cell.setdefault((*key[:2], round(key[2] * 20)), []).append(key)
    yield from ((keys[0], keys[1]) for keys in by_cell.values() if len(keys) == 2)


def standing(title: str, ap: dict[str, np.ndarray]) -> None:
    """Ours against the best hand-made score of each entry, chosen in hindsight, and against the others."""
    ours = ap[OURS]
    gain = ours - np.max([ap[name] for name in HAND_MADE], axis=0)
    over = ", ".join(f"{(ours - ap[name]).mean():+.3f} to {name}" for name in ("aum", PAPER) if name in ap)
    print(f"\n{len(ours)} {title}")
    print(f"at or above the best hand-made score in {(gain >= 0).mean():.1%}, ", end="")
    print(f"within 0.01 in {(gain >= -0.01).mean():.1%}")
    print(f"mean AP {gain.mean():+.3f} to it, {over}")
    for name in ("cleanlab self_confidence", "cleanlab normalized_margin", "margin"):
        print(
            f"at or above {name} in {(ours >= ap[name]).mean():.1%}, mean AP {(ours - ap[name]).mean():+.3f}"
        )


def by_data(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """`reliability.bins` of all trainings of a data set together."""
    made: dict[str, np.ndarray] = {}
    for row in rows:
        made[row["data"]] = made.get(row["data"], 0) + row["bins"]
    return dict(sorted(made.items()))


def report_reliability(ours: list[dict[str, Any]]) -> None:
    """Calibration for each training, for each data set, and over all of them bin by bin."""
    of_data = by_data(ours)
    errors = {data: reliability.error(counts) for data, counts in of_data.items()}
    print(
        f"\ncalibration error {np.mean(list(errors.values())):.3f} for a data set (all its trainings together), "
        f"{mean(ours, 'calibration_error'):.3f} for a training"
    )
    print(", ".join(f"{data} {error:.3f}" for data, error in errors.items()))
    shares = np.mean([counts / counts[:, 2].sum() for counts in of_data.values()], axis=0)
    print("\nprobability      said    true  share of samples (each data set the same)")
    for k, (said, true, n) in enumerate(shares):
        start, stop = k / reliability.N_BINS, (k + 1) / reliability.N_BINS
        n_some = max(n, 1e-12)
        print(f"{start:.1f} to {stop:.1f}  {said / n_some:>8.3f}{true / n_some:>8.3f}{n:>8.3f}")


def report(rows: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> None:
    """The table, and what issue and design ask for."""
    noisy = [row for row in rows if row["kind"] != "none"]
    keys = ("data", "kind", "rate", "regime", "seed")
    cells: Cells = {}
    for row in noisy:
        cells.setdefault(tuple(row[key] for key in keys), {})[row["method"]] = row
    large = {key: cell for key, cell in cells.items() if key[3] == "large"}
    cells = {key: cell for key, cell in cells.items() if key not in large}
    rows = [row for row in rows if row["regime"] != "large"]
    methods = [m for m in dict.fromkeys(row["method"] for row in noisy) if m not in FURTHER]
    table_of(cells, methods)
    more = {key: cell for key, cell in cells.items() if EL2N in cell}
    if more:
        print(f"\nthe {len(more)} cells for which there were more trainings")
        table_of(more, [OURS, "ours, 3 runs", "aum", "aum, 3 runs", *FURTHER[:4]])
    if large:
        print(f"\n{len(large)} cells of 60,000 samples")
        table_of(large, methods)
    ap = {method: np.array([cell[method]["ap"] for cell in cells.values()]) for method in methods}
    place = {key: k for k, key in enumerate(cells)}
    pairs = np.array([(place[a], place[b]) for a, b in twins(cells)]).reshape(-1, 2)
    standing("trainings with noise, each by itself", ap)
    if len(pairs):
        over_seeds = {name: values[pairs].mean(axis=1) for name, values in ap.items()}
        standing("cells (data, noise, rate), mean over seeds", over_seeds)
    best = np.max([ap[name] for name in HAND_MADE], axis=0)
    gain = ap[OURS] - best
    for number, title in ((1, "noise"), (0, "data"), (3, "regime")):
        print(f"\n{title:<14}{'cells':>6}{'ours':>8}{'AUM':>8}{'best':>8}{'>= best':>9}")
        keyed = np.array([str(key[number]) for key in cells])
        for value in sorted(set(keyed)):
            of = keyed == value
            print(f"{value:<14}{of.sum():>6}{ap['ours'][of].mean():>8.3f}{ap['aum'][of].mean():>8.3f}"
                  f"{best[of].mean():>8.3f}{(gain[of] >= 0).mean():>9.0%}")  # fmt: skip
    ours = [row for row in rows if row["method"] == OURS]
    errors = np.array([abs(row["estimated_rate"] - row["rate"]) for row in ours])
    clean = [row for row in ours if row["kind"] == "none"]
    fit = [row for row in clean if row["accuracy"] > 0.95]
    report_reliability(ours)
    print(
        f"\nnoise rate within 0.05 in {(errors <= 0.05).mean():.0%} of {len(ours)} trainings;\n"
        f"flagged on clean data: {mean(clean, 'flagged'):.3f}, "
        f"where the network fits (over 95%): {mean(fit, 'flagged'):.3f}"
    )
    print(
        f"the suggested label is right for {mean(ours, 'suggestion'):.0%} of the wrong ones, "
        f"for {mean(ours, 'suggestion_found'):.0%} of those that are found"
    )
    whole = {tuple(row[k] for k in keys): row for row in cuts if row["cut"] == "whole"}
    for name in CUTS:
        of_cut = [row for row in cuts if row["cut"] == name]
        lost = [
            np.mean([row[m] - whole[tuple(row[k] for k in keys)][m] for row in of_cut])
            for m in ("ours", "best")
        ]
        print(f"{name:<16} AP ours {lost[0]:+.4f}, best hand-made {lost[1]:+.4f}")


def held_out(cache: Path) -> dict[str, tuple[Path, Path]]:
    """For each data set our detector and the paper's that have not seen it."""
    paths = reading.recorded(cache)
    abouts = [reading.read_about(path) for path in paths]
    groups = [about["group"] for about in abouts]
    folder = cache / "detectors"
    if not (folder / "fold-0.weights").exists():
        raise SystemExit(f"no detectors in '{folder}'; python -m benchmarks.shipped_detector makes them")
    papers = paper_lstm(paths, groups, folder)
    judges = {}
    for number, (left_out, paper) in enumerate(zip(training.folds(groups), papers, strict=True)):
        ours = folder / f"fold-{number}.weights"
        if not training.is_of(ours, left_out, sum(group not in left_out for group in groups)):
            raise SystemExit(
                "the detectors are of other recordings; run python -m benchmarks.shipped_detector again"
            )
        judges |= {about["cell"]["data"]: (ours, paper) for about in abouts if about["group"] in left_out}
    return judges


def judge(job: tuple[Path, tuple[Path, Path | None]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows of a recording, and those of its cuts."""
    warnings.simplefilter("ignore")
    path, (ours, paper) = job
    detector = training.loaded(ours)
    about = reading.read_about(path)["cell"]
    is_cut = about["rate"] in CUT_RATES and about["seed"] == 0 and about["regime"] != "large"
    rows = list(rows_of(path, detector, paper and training.loaded(paper)))
    return rows, list(shortened(path, detector)) if is_cut else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"only {' and '.join(QUICK)}, one seed, shipped weights"
    )
    parser.add_argument("--recorded", action="store_true", help="judge what is recorded, record nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    cache = cache_folder()
    cells = matrix.table()
    if arguments.quick:
        cells = [
            cell for cell in cells if cell.data in QUICK and cell.seed == 0 and cell.rate in (0, 0.1, 0.3)
        ]
    if not arguments.recorded:
        for cell in tqdm(cells, desc="record", mininterval=5):
            record(cell)
    paths = [cache / f"{cell.name}.npz" for cell in cells]
    if not arguments.quick:
        paths += [cache / "extra" / f"{cell.name}.npz" for cell in matrix.large()]
        cells += matrix.large()
    judges: dict[str, tuple[Path, Path | None]] = (
        dict.fromkeys(QUICK, (PRETRAINED, None)) if arguments.quick else dict(held_out(cache))
    )
    jobs = [(path, judges[cell.data]) for path, cell in zip(paths, cells, strict=True) if path.exists()]
    rows: list[dict[str, Any]] = []
    cuts: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        for made, shorter in tqdm(pool.map(judge, jobs), desc="judge", total=len(jobs), mininterval=5):
            rows += made
            cuts += shorter
    name = "detection-quick" if arguments.quick else "detection"
    write(RESULTS / f"{name}.csv", COLUMNS, rows)
    write(
        RESULTS / f"{name}-cuts.csv", ("data", "kind", "rate", "regime", "seed", "cut", "ours", "best"), cuts
    )
    bins = [
        {"data": data, "from": k / reliability.N_BINS, "samples": int(n), "said": said / n, "true": true / n}
        for data, counts in by_data(
            [row for row in rows if "bins" in row and row["regime"] != "large"]
        ).items()
        for k, (said, true, n) in enumerate(counts)
        if n
    ]
    write(RESULTS / f"{name}-reliability.csv", ("data", "from", "samples", "said", "true"), bins)
    report(rows, cuts)


if __name__ == "__main__":
    main()
