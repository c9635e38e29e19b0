"""Train the detector that ships, and those that judge it, from cached recordings.

    python -m benchmarks.shipped_detector                   # records what is missing, then does this
    python -m benchmarks.shipped_detector.train_detector    # this alone: folds, then the shipped weights

A fold leaves a quarter of the groups of data sets out; the detector trained on the rest scores them. Those
scores are what detection.py judges, and what the shipped detector's probabilities are calibrated on.

A detector has two stages, and the second must learn from first stages as they are on data never seen. So for
each detector there are first ones that leave a further fold out: each tells of that fold's recordings when
the second is trained; together they are the first stage of the finished detector. Some groups are in no fold
(`training.SECOND_ONLY`): no first detector has seen them, so one of a detector's own tells of each recording.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core does more

import numpy as np
from tqdm import tqdm

from benchmarks.shipped_detector.recordings import reading, reliability, training
from benchmarks.shipped_detector.recordings.record import cache_folder
from paddle_td_callback.detection.lstm.calibration import uncertainty
from paddle_td_callback.detection.lstm.detector import PRETRAINED, NoiseDetector

LEFT_OUT_OF_SHIPPED = "digits"  # the demo's data and their parent
SHIPPED = "shipped"
FOLDS = range(training.N_FOLDS)
FIRSTS = {  # name: the folds that it has not seen; what is left out of the shipped one, it has not seen either
    **{f"first-{a}{b}": (a, b) for a, b in itertools.combinations(FOLDS, 2)},
    **{f"first-{SHIPPED}-{fold}": (fold,) for fold in FOLDS},
}


def first_for(detector: str, fold: int) -> str:
    """The first stage of a detector (`fold-0` to `fold-3` or `shipped`) at recordings of another fold."""
    if detector == SHIPPED:
        return f"first-{SHIPPED}-{fold}"
    a, b = sorted((int(detector.removeprefix("fold-")), fold))
    return f"first-{a}{b}"


def average_members(detectors: list[NoiseDetector]) -> NoiseDetector:
    """One detector whose members are those of several with the same inputs and sizes, uncalibrated."""
    members = [weights for detector in detectors for weights in detector.members]
    made = NoiseDetector.of_config(dataclasses.replace(detectors[0].config, n_members=len(members)))
    made.members = members
    made.provenance = {"averaged": [detector.provenance for detector in detectors]}
    return made


class Work:
    """The steps of the training, each a job for any process; what they make lies in a folder.

    Args:
        folder: for detectors, parts and features.
        paths: of the recordings.
        groups: of the recordings.
    """

    def __init__(self, folder: Path, paths: list[Path], groups: list[str]) -> None:
        self.folder, self.paths, self.groups = folder, paths, groups
        of_group = {group: k for k, groups in enumerate(training.folds(groups)) for group in groups}
        self.fold = [of_group.get(group) for group in groups]
        self.tables = folder / "tables"
        self.tables.mkdir(parents=True, exist_ok=True)

    def parts(self, k: int) -> list[training.Part]:
        """What is taken of a recording."""
        return training.parts(self.paths[k], self.tables)

    def seen(self, folds: tuple[int, ...], shipped: bool) -> list[int]:
        """The recordings outside of some folds, those in no fold among them."""
        kept = [k for k, fold in enumerate(self.fold) if fold not in folds]
        return [k for k in kept if not shipped or self.groups[k] != LEFT_OUT_OF_SHIPPED]

    def seen_first(self, name: str) -> list[int]:
        """The recordings that a first detector learns from."""
        return [k for k in self.seen(FIRSTS[name], SHIPPED in name) if self.fold[k] is not None]

    def has_first(self, name: str) -> bool:
        """Whether a first detector is there, trained on what it would be trained on now."""
        rows = self.seen_first(name)
        return training.is_of(self.folder / f"{name}.weights", self._left_out(name), len(rows))

    def first(self, name: str) -> float:
        """Train one first detector; seconds that it took."""
        start = time.perf_counter()
        rows = self.seen_first(name)
        parts = self._load("parts")
        detector = training.fit_first([part for k in rows for part in parts[k]], list(FIRSTS).index(name))
        detector.provenance |= {"left out": self._left_out(name), "recordings": len(rows)}
        detector.save(self.folder / f"{name}.weights")
        return time.perf_counter() - start

    def first_passes(self, k: int) -> dict[str, list[Any]]:
        """The features of first stages that have not seen a recording, by the detector that will read them."""
        names = {}
        for name in self.detectors(k):
            others = [fold for fold in FOLDS if fold not in self.own(name)]
            own = self.fold[k]
            names[name] = first_for(name, others[k % len(others)] if own is None else own)
        firsts = {name: training.loaded(self.folder / f"{first}.weights") for name, first in names.items()}
        return training.first_passes(self.paths[k], self.tables, firsts)

    def detectors(self, k: int) -> list[str]:
        """The detectors that are trained on a recording."""
        names = [f"fold-{fold}" for fold in FOLDS if fold != self.fold[k]]
        return names + [SHIPPED] * (self.groups[k] != LEFT_OUT_OF_SHIPPED)

    def own(self, name: str) -> tuple[int, ...]:
        """The folds that a detector is to judge."""
        return () if name == SHIPPED else (int(name.removeprefix("fold-")),)

    def second(self, name: str) -> float:
        """Train one detector on its first ones; seconds that it took."""
        start = time.perf_counter()
        own = self.own(name)
        rows = self.seen(own, name == SHIPPED)
        firsts = [first_for(name, fold) for fold in FOLDS if fold not in own]
        first = average_members([NoiseDetector.load(self.folder / f"{f}.weights") for f in firsts])
        parts, first_passes = self._load("parts"), self._load("first_passes")
        tables = [
            part.table.with_more(found.of_sample, found.of_recording)
            for k in rows
            for part, found in zip(parts[k], first_passes[k][name], strict=True)
        ]
        detector = training.fit_second(
            [part for k in rows for part in parts[k]], tables, first, seed=len(own) and own[0]
        )
        detector.provenance |= {"left out": self._left_out(name), "recordings": len(rows)}
        detector.save(self.folder / f"{name}.weights")
        return time.perf_counter() - start

    def odds(self, k: int) -> np.ndarray | None:
        """Log-odds of a recording's samples by the detector of its fold, which has not seen it; None = in no fold."""
        if self.fold[k] is None:
            return None
        detector = training.loaded(self.folder / f"fold-{self.fold[k]}.weights")
        with open(self.tables / f"{self.paths[k].stem}.pkl", "rb") as file:
            features = pickle.load(file)[0]
        return detector.log_odds(
            training.trajectories(reading.read(self.paths[k])), dataset_features=features
        )

    def keep(self, name: str, made: list[Any]) -> None:
        """Put what all processes need where they find it."""
        with open(self.folder / f"{name}.pkl", "wb") as file:
            pickle.dump(made, file)

    def _load(self, name: str) -> list[Any]:
        with open(self.folder / f"{name}.pkl", "rb") as file:
            made: list[Any] = pickle.load(file)
        return made

    def _left_out(self, name: str) -> list[str]:
        folds = FIRSTS[name] if name in FIRSTS else self.own(name)
        names = {g for g, fold in zip(self.groups, self.fold, strict=True) if fold in folds}
        return sorted(names | ({LEFT_OUT_OF_SHIPPED} if SHIPPED in name else set()))


def calibration(odds: list[np.ndarray], wrong: list[np.ndarray]) -> tuple[float, float, float]:
    """Scale and bias of log-odds with the least calibration error, each recording counting the same.

    Platt's likelihood serves this worse: recordings in which nothing can be told from wrong dominate it.
    The third number times the mean uncertainty (see `calibration.uncertainty`) is the error of the noise rate that four
    recordings in five stay within.
    """
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(o))[:800] for o in odds]
    some = [(o[r], w[r]) for o, w, r in zip(odds, wrong, rows, strict=True)]

    def chance(o: np.ndarray, scale: float, bias: float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(scale * o + bias, -60, 60)))

    def error(scale: float, bias: float) -> float:
        return float(
            np.mean([reliability.error(reliability.bins(w, chance(o, scale, bias))) for o, w in some])
        )

    tried = [(scale, bias) for scale in (0.8, 1.0, 1.2, 1.4) for bias in np.linspace(-1, 1, 11)]
    scale, bias = min(tried, key=lambda pair: error(*pair))
    said = [chance(o, scale, bias) for o in odds]
    errors = [abs(p.mean() - w.mean()) / uncertainty(p) for p, w in zip(said, wrong, strict=True)]
    return scale, float(bias), float(np.quantile(errors, 0.8))


def calibrate(work: Work, odds: list[np.ndarray | None], output: Path) -> None:
    """Give each detector its scale and bias, from recordings of folds that are not its own, and ship one."""
    wrong = [reading.read(path).is_mislabeled for path in work.paths]
    for name in [*(f"fold-{fold}" for fold in FOLDS), SHIPPED]:
        detector = NoiseDetector.load(work.folder / f"{name}.weights")
        known = [k for k in range(len(work.paths)) if name in work.detectors(k)]
        judged = [(held_out, wrong[k]) for k in known if (held_out := odds[k]) is not None]
        scale, detector.bias, error = calibration([o for o, _ in judged], [w for _, w in judged])
        detector.temperature = 1 / scale
        detector.provenance |= {
            "trained on": sorted({work.groups[k] for k in known}),
            "recordings": len(known),
            "noise_rate_error_by_uncertainty": round(error, 3),
        }
        detector.save(work.folder / f"{name}.weights")
        print(
            f"{name}: {len(known)} recordings, scale {scale}, bias {detector.bias:.1f}, "
            f"noise rates within {error:.2f} of the uncertainty for four in five"
        )
    detector.save(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--keep-first", action="store_true", help="keep the first stages that are there")
    parser.add_argument("--output", type=Path, default=PRETRAINED)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    cache = cache_folder()
    paths = reading.recorded(cache)
    work = Work(cache / "detectors", paths, [reading.read_about(path)["group"] for path in paths])
    recordings = range(len(paths))
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:

        def each(job: Any, over: Any, what: str, chunk: int = 1) -> list[Any]:
            results = pool.map(job, over, chunksize=chunk)
            return list(tqdm(results, desc=what, total=len(over), mininterval=10))

        work.keep("parts", each(work.parts, recordings, "features", 8))
        missing = [name for name in FIRSTS if not (arguments.keep_first and work.has_first(name))]
        print(
            f"first stages: {[round(seconds) for seconds in each(work.first, missing, 'first')]} s",
            flush=True,
        )
        work.keep("first_passes", each(work.first_passes, recordings, "first passes", 8))
        names = [SHIPPED, *(f"fold-{fold}" for fold in FOLDS)]
        print(f"second stages: {[round(seconds) for seconds in each(work.second, names, 'second')]} s")
        odds = each(work.odds, recordings, "odds", 8)
        work.keep("odds", odds)
    calibrate(work, odds, arguments.output)


if __name__ == "__main__":
    main()
