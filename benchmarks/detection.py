"""How well are wrong labels found? Ours, hand-made scores, cleanlab and the paper's LSTM, on data none has seen.

    python benchmarks/detection.py            # the whole table: records what is missing, then judges
    python benchmarks/detection.py --quick    # digits and optdigits with the shipped weights, minutes

Every number of ours for a data set comes from a detector of train_detector.py that has not seen that data set.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recordings import matrix, reading, training
from recordings.reading import Recording
from recordings.record import cache_folder, record
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from paddle_td_callback.detector import NoiseDetector
from paddle_td_callback.scores import NOISE_SCORES

RESULTS = Path(__file__).parent / "results"
HAND_MADE = tuple(name for name, score in NOISE_SCORES.items() if "probabilities" not in score.needs)
PAPER = "paper LSTM"
PAPER_SAMPLES = 100  # of each recording; its own training used one data set
QUICK = ("digits", "optdigits")  # which the shipped weights have not seen
CUTS = {"25% of epochs": 0.25, "50% of epochs": 0.5, "75% of epochs": 0.75, "30% missing": 1.0}
COLUMNS = ("data", "kind", "rate", "regime", "seed", "n_samples", "n_classes", "n_epochs", "accuracy", "method",
           "auc", "ap", "precision", "f1", "flagged", "estimated_rate", "calibration_error", "suggestion")  # fmt: skip


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


def in_sample(recording: Recording) -> dict[str, np.ndarray]:
    """Average probability and margin over epochs, and cleanlab's qualities of the last epoch's probabilities.

    The recording holds the given label's probability and the largest other one: cleanlab's two qualities
    need no more; the mass between them is spread evenly over the other classes for its `find_label_issues`.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

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
    made = {"average margin": 0.5 - 0.5 * (raw[:, :, 0] - raw[:, :, 1]).mean(axis=1)}
    for method in ("self_confidence", "normalized_margin"):
        made[f"cleanlab {method}"] = 1 - get_label_quality_scores(labels, probabilities, method=method)
    flagged = find_label_issues(labels, probabilities, n_jobs=1)
    made["cleanlab issues"] = flagged.astype(float)
    return made


def suggestion_accuracy(recording: Recording) -> float:
    """How often the class most often predicted instead of a wrong label is the right one."""
    right = 0
    rows = np.flatnonzero(recording.is_mislabeled)
    for row in rows:
        votes = recording.predictions[row]
        votes = votes[(votes >= 0) & (votes != recording.labels[row])]
        right += len(votes) > 0 and int(np.bincount(votes).argmax()) == recording.right_labels[row]
    return right / len(rows)


def paper_lstm(paths: list[Path], groups: list[str], folder: Path) -> list[NoiseDetector]:
    """One channel, two layers of 64, no more: trained on the same recordings, one for each fold."""
    detectors = []
    for number, left_out in enumerate(training.folds(groups)):
        file = folder / f"paper-{number}.h5"
        if not file.exists():
            raws, wrongs = [], []
            for path, group in zip(paths, groups, strict=True):
                if group not in left_out:
                    recording = reading.read(path)
                    rows = np.random.default_rng(0).permutation(len(recording.labels))[:PAPER_SAMPLES]
                    raws.append(training.trajectories(recording, rows))
                    wrongs.append(recording.is_mislabeled[rows])
            detector = NoiseDetector(("given",), 16, 64, 2)
            detector.fit(raws, wrongs, epochs=4, batch_size=256, progress=False).save(file)
        detectors.append(NoiseDetector.load(file))
    return detectors


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
        bins = (score * 10).astype(int).clip(0, 9)
        gaps = [abs(score[bins == b].sum() - wrong[bins == b].sum()) for b in range(10)]
        made |= {"estimated_rate": float(score.mean()), "calibration_error": float(sum(gaps) / len(score))}
    return made


def rows_of(path: Path, ours: NoiseDetector, paper: NoiseDetector | None) -> Iterator[dict[str, Any]]:
    """One row for each method on a recording."""
    recording = reading.read(path)
    cell, wrong = recording.about["cell"], recording.is_mislabeled
    raw = training.trajectories(recording)
    methods = {"ours": ours.predict_proba(raw, evidence=training.table(recording)).astype(float)}
    if paper is not None:
        methods[PAPER] = paper.predict_proba(raw).astype(float)
    methods |= hand_made(recording) | in_sample(recording)
    about = {
        **cell,
        "rate": float(wrong.mean()),
        "n_samples": len(wrong),
        "n_classes": recording.about["n_classes"],
        "n_epochs": raw.shape[1],
        "accuracy": float((recording.predictions[:, -1] == recording.labels).mean()),
    }
    for method, score in methods.items():
        row = about | {"method": method} | judged(wrong, score, method in ("ours", PAPER))
        if method == "ours" and wrong.any():
            row["suggestion"] = suggestion_accuracy(recording)
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
        score = ours.predict_proba(training.trajectories(one), evidence=training.table(one))
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


def report(rows: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> None:
    """The table, and what issue and design ask for."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    noisy = [row for row in rows if row["kind"] != "none"]
    print(f"\n{'method':<28}{'ROC AUC':>9}{'AP':>8}{'P@rate':>8}{'F1':>8}   spread of AP over cells")
    for method in methods:
        own = [row for row in noisy if row["method"] == method]
        spread = np.std([row["ap"] for row in own])
        print(f"{method:<28}{mean(own, 'auc'):>9.3f}{mean(own, 'ap'):>8.3f}{mean(own, 'precision'):>8.3f}"
              f"{mean(own, 'f1'):>8.3f}{spread:>8.3f}")  # fmt: skip
    keys = ("data", "kind", "rate", "regime", "seed")
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in noisy:
        cells.setdefault(tuple(row[key] for key in keys), {})[row["method"]] = row
    ap = {method: np.array([cell[method]["ap"] for cell in cells.values()]) for method in methods}
    best = np.max([ap[name] for name in HAND_MADE], axis=0)
    gain = ap["ours"] - best
    over = ", ".join(
        f"{(ap['ours'] - ap[name]).mean():+.3f} to {name}" for name in ("aum", PAPER) if name in ap
    )
    print(
        f"\n{len(cells)} noisy cells: at or above the best hand-made score of the cell in {(gain >= 0).mean():.0%},"
        f" within 0.01 in {(gain >= -0.01).mean():.0%};\n"
        f"mean AP {gain.mean():+.3f} to it, {over}"
    )
    for number, title in ((1, "noise"), (0, "data"), (3, "regime")):
        print(f"\n{title:<14}{'cells':>6}{'ours':>8}{'AUM':>8}{'best':>8}{'>= best':>9}")
        keyed = np.array([str(key[number]) for key in cells])
        for value in sorted(set(keyed)):
            of = keyed == value
            print(f"{value:<14}{of.sum():>6}{ap['ours'][of].mean():>8.3f}{ap['aum'][of].mean():>8.3f}"
                  f"{best[of].mean():>8.3f}{(gain[of] >= 0).mean():>9.0%}")  # fmt: skip
    ours = [row for row in rows if row["method"] == "ours"]
    errors = np.array([abs(row["estimated_rate"] - row["rate"]) for row in ours])
    clean = [row for row in ours if row["kind"] == "none"]
    fit = [row for row in clean if row["accuracy"] > 0.95]
    print(
        f"\ncalibration error {mean(ours, 'calibration_error'):.3f}; "
        f"noise rate within 0.05 in {(errors <= 0.05).mean():.0%} of {len(ours)} cells;\n"
        f"flagged on clean data: {mean(clean, 'flagged'):.3f}, "
        f"where the network fits (over 95%): {mean(fit, 'flagged'):.3f}"
    )
    print(f"the suggested label is right for {mean(ours, 'suggestion'):.0%} of the wrong ones")
    whole = {tuple(row[k] for k in keys): row for row in cuts if row["cut"] == "whole"}
    for name in CUTS:
        of_cut = [row for row in cuts if row["cut"] == name]
        lost = [
            np.mean([row[m] - whole[tuple(row[k] for k in keys)][m] for row in of_cut])
            for m in ("ours", "best")
        ]
        print(f"{name:<16} AP ours {lost[0]:+.4f}, best hand-made {lost[1]:+.4f}")


def held_out(cache: Path) -> dict[tuple[str, ...], tuple[NoiseDetector, NoiseDetector | None]]:
    """For each fold the names of its data sets, and ours and the paper's detector that have not seen them."""
    paths = reading.recorded(cache)
    abouts = [reading.read_about(path) for path in paths]
    groups = [about["group"] for about in abouts]
    folder = cache / "detectors"
    if not (folder / "fold-0.h5").exists():
        raise SystemExit(f"no detectors in '{folder}'; python benchmarks/train_detector.py makes them")
    papers = paper_lstm(paths, groups, folder)
    judges = {}
    for number, (left_out, paper) in enumerate(zip(training.folds(groups), papers, strict=True)):
        ours = NoiseDetector.load(folder / f"fold-{number}.h5")
        if ours.provenance["left out"] != left_out:
            raise SystemExit(
                "the detectors are of other recordings; run python benchmarks/train_detector.py again"
            )
        names = {about["cell"]["data"] for about in abouts if about["group"] in left_out}
        judges[tuple(sorted(names))] = (ours, paper)
    return judges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"only {' and '.join(QUICK)}, one seed, shipped weights"
    )
    parser.add_argument("--recorded", action="store_true", help="judge what is recorded, record nothing")
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
    present = {path.stem for path in reading.recorded(cache)}
    cells = [cell for cell in cells if cell.name in present]
    judges = {QUICK: (NoiseDetector.pretrained(), None)} if arguments.quick else held_out(cache)
    rows: list[dict[str, Any]] = []
    cuts: list[dict[str, Any]] = []
    for cell in tqdm(cells, desc="judge", mininterval=5):
        path = cache / f"{cell.name}.npz"
        ours, paper = next(pair for names, pair in judges.items() if cell.data in names)
        rows += rows_of(path, ours, paper)
        if cell.kind != "none" and cell.seed == 0:
            cuts += shortened(path, ours)
    name = "detection-quick" if arguments.quick else "detection"
    write(RESULTS / f"{name}.csv", COLUMNS, rows)
    write(
        RESULTS / f"{name}-cuts.csv", ("data", "kind", "rate", "regime", "seed", "cut", "ours", "best"), cuts
    )
    report(rows, cuts)


if __name__ == "__main__":
    main()
