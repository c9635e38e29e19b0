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

from paddle_td_callback.calibration import platt
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


def calibration(odds: list[np.ndarray], wrong: list[np.ndarray]) -> tuple[float, float, float]:
    """Scale and bias of log-odds over recordings that count the same, and how far off noise rates then are.

    The last is the error that four recordings in five stay within.
    """
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(o))[:1000] for o in odds]
    scale, bias = platt(
        np.concatenate([o[r] for o, r in zip(odds, rows, strict=True)]),
        np.concatenate([w[r] for w, r in zip(wrong, rows, strict=True)]),
    )
    rates = [np.mean(1 / (1 + np.exp(-(scale * o + bias)))) for o in odds]
    errors = [abs(rate - w.mean()) for rate, w in zip(rates, wrong, strict=True)]
    return scale, bias, float(np.quantile(errors, 0.8))


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
