"""Train the detector that ships, and those that judge it, from cached recordings.

    python -m recordings.record random 0 540   # in benchmarks/, once: see README.md
    python -m recordings.record table
    python benchmarks/train_detector.py        # folds, then the shipped weights

A fold leaves a quarter of the groups of data sets out; the detector trained on the rest scores them. Those
scores are what detection.py judges, and what the shipped detector's probabilities are calibrated on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from recordings import reading, training
from recordings.record import cache_folder
from tqdm import tqdm

from paddle_td_callback.detector import PRETRAINED, NoiseDetector

LEFT_OUT_OF_SHIPPED = "digits"  # the demo's data and their parent


def load_parts(paths: list[Path]) -> tuple[list[str], list[list[training.Part]]]:
    """Groups, and what is taken of each recording."""
    made = [training.parts(path) for path in tqdm(paths, desc="read", mininterval=5)]
    return [group for group, _ in made], [parts for _, parts in made]


def log_odds(detector: NoiseDetector, recording: reading.Recording) -> np.ndarray:
    """Before calibration, [sample]."""
    p = detector.predict_proba(training.trajectories(recording), evidence=training.table(recording)).astype(
        float
    )
    p = p.clip(1e-7, 1 - 1e-7)
    return (np.log(p / (1 - p)) - detector.bias) * detector.temperature


def train_folds(
    paths: list[Path], groups: list[str], parts: list[list[training.Part]], folder: Path, n_members: int
) -> list[np.ndarray]:
    """Detectors that have not seen a fold's groups, written to `folder`, and their log-odds for each recording."""
    odds: list[np.ndarray] = [np.zeros(0)] * len(paths)
    for number, left_out in enumerate(training.folds(groups)):
        start = time.perf_counter()
        seen = [
            part for group, made in zip(groups, parts, strict=True) if group not in left_out for part in made
        ]
        detector = training.fit(seen, seed=number, n_members=n_members)
        detector.provenance["left out"] = left_out
        detector.save(folder / f"fold-{number}.h5")
        for k, group in enumerate(groups):
            if group in left_out:
                odds[k] = log_odds(detector, reading.read(paths[k]))
        print(f"without {', '.join(left_out)}: {time.perf_counter() - start:.0f} s", flush=True)
    return odds


def calibration_error(p: np.ndarray, wrong: np.ndarray) -> float:
    """Mean gap between said and true in ten bins, weighted by their size."""
    bins = (p * 10).astype(int).clip(0, 9)
    said, true = np.bincount(bins, p, 10), np.bincount(bins, wrong, 10)
    return float(np.abs(said - true).sum() / len(p))


def calibration(odds: list[np.ndarray], wrong: list[np.ndarray]) -> tuple[float, float, float]:
    """Scale and bias of log-odds with the least calibration error, each recording counting the same.

    Platt's likelihood serves this worse: recordings in which nothing can be told from wrong dominate it.
    The third number is the error of the noise rate that four recordings in five stay within.
    """
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(o))[:800] for o in odds]
    some = [(o[r], w[r]) for o, w, r in zip(odds, wrong, rows, strict=True)]

    def chance(o: np.ndarray, scale: float, bias: float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(scale * o + bias, -60, 60)))

    def error(scale: float, bias: float) -> float:
        return float(np.mean([calibration_error(chance(o, scale, bias), w) for o, w in some]))

    tried = [(scale, bias) for scale in (0.8, 1.0, 1.2, 1.4) for bias in np.linspace(-1, 1, 11)]
    scale, bias = min(tried, key=lambda pair: error(*pair))
    rates = [abs(chance(o, scale, bias).mean() - w.mean()) for o, w in zip(odds, wrong, strict=True)]
    return scale, float(bias), float(np.quantile(rates, 0.8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=1, help="LSTMs of each detector")
    parser.add_argument("--output", type=Path, default=PRETRAINED)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    cache = cache_folder()
    folder = cache / "detectors"
    folder.mkdir(exist_ok=True)
    paths = reading.recorded(cache)
    groups, parts = load_parts(paths)
    odds = train_folds(paths, groups, parts, folder, arguments.members)
    wrong = [reading.read(path).is_mislabeled for path in paths]
    known = [k for k, group in enumerate(groups) if group != LEFT_OUT_OF_SHIPPED]
    scale, bias, error = calibration([odds[k] for k in known], [wrong[k] for k in known])
    for number, left_out in enumerate(training.folds(groups)):
        others = [k for k, group in enumerate(groups) if group not in left_out]
        detector = NoiseDetector.load(folder / f"fold-{number}.h5")
        fold_scale, detector.bias, _ = calibration([odds[k] for k in others], [wrong[k] for k in others])
        detector.temperature = 1 / fold_scale
        detector.save(folder / f"fold-{number}.h5")
    start = time.perf_counter()
    detector = training.fit([part for k in known for part in parts[k]], n_members=arguments.members)
    detector.temperature, detector.bias = 1 / scale, bias
    detector.provenance |= {
        "trained on": sorted({groups[k] for k in known}),
        "recordings": len(known),
        "noise_rate_error": round(error, 3),
    }
    detector.save(arguments.output)
    print(
        f"{arguments.output}: {len(known)} recordings, {time.perf_counter() - start:.0f} s, "
        f"noise rates within {error:.3f} for four in five held-out recordings"
    )


if __name__ == "__main__":
    main()
