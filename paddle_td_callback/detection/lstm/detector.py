"""NoiseDetector: an LSTM reads how a sample was learned and gives the probability that its label is wrong."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ...errors import DetectorError
from ...messages import Forgiving, escape
from ...store.paths import path_text
from ..arguments import whole
from ..feature_table import FeatureTable
from ..trajectories import Array, Arrays, Augmentation, checked, each_weight, labelled, need_both
from . import weights_file
from .calibration import platt
from .complete_features import Tables, complete_table, each_table, warn_without_features
from .config import MAX_STAGES, DetectorConfig, Weights
from .detector_stages import detector_of, stages_of
from .first_pass_features import with_first_pass
from .inference import mean_log_odds, network_features
from .interpretdl_weights import read_lstm
from .training_batches import Labelled

PRETRAINED = Path(__file__).parents[2] / "data" / "noise_detector.weights"


class NoiseDetector:
    """An LSTM over training trajectories; its output is the probability that the given label is wrong.

    Trajectories are float arrays `[sample, epoch, 3]`, NaN = unseen. The last axis holds the probability of the given
    label, the largest other probability, and 1, 0 or 1/2 for predicted right, wrong, or a tie.
    Recordings may have any number of epochs, the data any number of classes. The detector holds NumPy arrays
    alone. On a CPU it computes with NumPy, on another device and to train with Paddle, whose global state stays as it
    was.

    Args:
        channels: what the LSTM reads at each step; names in `channels.CHANNELS`.
        n_steps: length to which trajectories are resampled; None = the recorded epochs (the paper's form).
        hidden_size: units of each LSTM layer.
        n_layers: LSTM layers.
        n_members: independently trained LSTMs whose log-odds are averaged.
        dataset_features: features of a sample within its whole recording, beside the LSTM's last state; names in
            `dataset_features.feature_names()`, and with `first_stage` in `first_pass_features.feature_names()`.
        mix_sizes: units of the layers that combine the last state with these features; None = one layer of
            `hidden_size` where there are features.
        first_stage: a trained detector that reads the whole recording before. What it finds, by data set, classes
            and pairs of classes, becomes features of this one.

    Attributes:
        config: the arguments above, checked.
        temperature: divides the log-odds; set by `calibrate`.
        bias: added to the log-odds then; set by `calibrate`.
        provenance: how the weights were made, as JSON types.
        members: the weights of each LSTM by name, empty before `fit`.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("given", "largest_other", "predicted_right", "log_given", "log_other"),
        n_steps: int | None = 32,
        hidden_size: int = 64,
        n_layers: int = 2,
        *,
        n_members: int = 1,
        dataset_features: Sequence[str] = (),
        mix_sizes: Sequence[int] | None = None,
        first_stage: NoiseDetector | None = None,
    ) -> None:
        if not (first_stage is None or isinstance(first_stage, NoiseDetector)):
            raise TypeError(
                f"first_stage must be a trained NoiseDetector or None, got {type(first_stage).__name__}"
            )
        config = DetectorConfig.checked(
            channels=channels,
            n_steps=n_steps,
            hidden_size=hidden_size,
            n_layers=n_layers,
            n_members=n_members,
            dataset_features=dataset_features,
            mix_sizes=mix_sizes,
            is_first=first_stage is None,
        )
        self._set(config, first_stage)

    def _set(self, config: DetectorConfig, first_stage: NoiseDetector | None) -> None:
        if first_stage is not None:
            first_stage.need_weights()
            if first_stage.n_stages >= MAX_STAGES:
                raise ValueError(
                    f"first_stage has {first_stage.n_stages} stages already; a detector may have at most {MAX_STAGES}; "
                    "give one with fewer"
                )
        self.config, self.first_stage = config, first_stage
        self.temperature, self.bias = 1.0, 0.0
        self.provenance: dict[str, Any] = {}
        self.members: list[Weights] = []

    @classmethod
    def of_config(cls, config: DetectorConfig, first_stage: NoiseDetector | None = None) -> NoiseDetector:
        """A detector without weights, of a configuration that is checked already."""
        made = cls.__new__(cls)
        made._set(config, first_stage)
        return made

    def __repr__(self) -> str:
        config = self.config
        return (
            f"NoiseDetector({config.channels}, n_steps={config.n_steps}, hidden_size={config.hidden_size}, "
            f"n_layers={config.n_layers}, n_members={config.n_members}, "
            f"dataset_features={len(config.dataset_features)} names"
            f"{'' if self.first_stage is None else f', first_stage={self.first_stage!r}'})"
            f"{'' if self.is_trained else ' without weights'}"
        )

    @property
    def is_trained(self) -> bool:
        """Whether there are weights to predict with."""
        return bool(self.members)

    @property
    def n_stages(self) -> int:
        """1, and those of `first_stage`."""
        return 1 + (0 if self.first_stage is None else self.first_stage.n_stages)

    @property
    def needs_features(self) -> bool:
        """Whether a `FeatureTable` of the recording is read."""
        return bool(self.config.dataset_features) or (
            self.first_stage is not None and self.first_stage.needs_features
        )

    # Training

    def fit(
        self,
        trajectories: Arrays,
        is_mislabeled: Arrays,
        *,
        dataset_features: Tables | None = None,
        sample_weight: Arrays | None = None,
        epochs: int = 10,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        dropout: float = 0.0,
        balance: float = 0.0,
        ranking: float = 0.0,
        augment: Augmentation | None = None,
        reset: bool = False,
        device: str | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> NoiseDetector:
        """Train on recordings whose wrong labels are known.

        A detector that has weights is trained further from them (fine-tuning: a smaller `learning_rate` is wise);
        `reset=True` starts afresh. Calibration is undone either way, since it belongs to the weights before.
        The weights change when training has ended: an interrupted `fit` leaves the detector as it was.

        Args:
            trajectories: [sample, epoch, 3], or a list of such arrays, one a recording: each is filled,
                resampled and ranked by itself. Never-seen samples are left out.
            is_mislabeled: bool [sample], or a list in the order of the recordings.
            dataset_features: the `FeatureTable` of each recording, one or a list; None = made from the trajectories
                alone, with a warning, as `predict_proba` does: `find_label_issues` then reads features that were not
                trained on. `first_stage` is not trained: its features are added where the table lacks them, and
                should come from a detector that has not been trained on that recording.
            sample_weight: how much each sample counts in the loss, `[sample]` or a list; None = 1. For
                recordings of which wrong labels, being few, are given more often than they occur.
            epochs: passes over all trajectories, for each member.
            batch_size: trajectories of one step.
            learning_rate: of AdamW at the start; it falls to zero along a cosine.
            weight_decay: of AdamW.
            dropout: share of the LSTM's last state and the features that each step goes without.
            balance: 0 = each trajectory counts the same; 1 = each recording counts the same, and its wrong
                labels together as much as a fifth of it; between = between.
            ranking: weight of a second loss, which asks that the wrong labels of a recording stand above the right
                ones; 0 = none.
            augment: how recordings are varied in every epoch, their features staying as they are; None = not.
            reset: forget the weights there are.
            device: any Paddle device string; None = where Paddle is now.
            seed: of initial weights, order and augmentation. The same seed gives the same weights.
            progress: show a bar.

        Raises:
            ValueError: an argument that is none, recordings that do not fit together, or labels of one kind.
            DetectorError: the loss or the weights did not stay finite; the detector is as it was.
        """
        from .training import FitOptions, train_members  # Paddle, for the gradients

        options = FitOptions(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            dropout=dropout,
            ranking=ranking,
            balance=balance,
            augment=augment,
            seed=seed,
        )
        recordings: list[Labelled] = []
        pairs = list(labelled(trajectories, is_mislabeled))
        tables = each_table(self, trajectories, dataset_features, device)
        weights = each_weight(sample_weight, [len(raw) for raw, _ in pairs])
        for (raw, wrong), table, weight in zip(pairs, tables, weights, strict=True):
            scored = self.config.inputs.scored(raw)
            recordings.append(
                Labelled(
                    raw=raw[scored].astype(np.float32),
                    wrong=wrong[scored].astype(np.float32),
                    features=network_features(self.config, table[scored]),
                    weight=weight[scored],
                )
            )
        n_samples = sum(len(one.wrong) for one in recordings)
        n_wrong = sum(int(one.wrong.sum()) for one in recordings)
        need_both(n_wrong, n_samples - n_wrong, "training")
        start = [] if reset else self.members
        members, losses = train_members(
            self.config,
            recordings,
            options,
            start=start,
            device=device,
            progress=progress,
        )
        counts = {"recordings": len(recordings), "samples": n_samples, "mislabeled": n_wrong}
        self.provenance = {"fit": dataclasses.asdict(options) | counts | {"losses": losses}} | (
            {"before": self.provenance} if start else {}
        )
        self.members, self.temperature, self.bias = members, 1.0, 0.0
        return self

    def calibrate(
        self,
        trajectories: Arrays,
        is_mislabeled: Arrays,
        *,
        dataset_features: Tables | None = None,
        device: str | None = None,
    ) -> NoiseDetector:
        """Fit the scale and the bias that turn log-odds into probabilities; the ranking stays as it is.

        Args:
            trajectories: as for `fit`, best of data that `fit` has not seen.
            is_mislabeled: as for `fit`.
            dataset_features: as for `fit`.
            device: any Paddle device string; None = where Paddle is now.

        Raises:
            DetectorError: no weights, or the detector is no better than chance on these recordings.
        """
        self.need_weights()
        tables = each_table(self, trajectories, dataset_features, device)
        odds, wrongs = [], []
        for (raw, wrong), table in zip(labelled(trajectories, is_mislabeled), tables, strict=True):
            scored = self.config.inputs.scored(raw)
            odds.append(self._mean_log_odds(raw, table, 4096, device, progress=False)[scored])
            wrongs.append(wrong[scored])
        wrong = np.concatenate(wrongs)
        scale, bias = platt(np.concatenate(odds), wrong)
        if scale <= 0:
            raise DetectorError(
                "calibration would turn the ranking round: on these recordings the detector is no better than "
                "chance; train it on more like them"
            )
        self.temperature, self.bias = 1 / scale, bias
        self.provenance["calibration"] = {"samples": len(wrong), "mislabeled": int(wrong.sum())}
        return self

    # Inference

    def predict_proba(
        self,
        trajectories: ArrayLike,
        *,
        dataset_features: FeatureTable | None = None,
        batch_size: int = 4096,
        device: str | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """The probability that each sample's given label is wrong, `[sample]`; NaN where it was never seen.

        Args:
            trajectories: `[sample, epoch, 3]`.
            dataset_features: the `FeatureTable` of these samples; a slice of it for a part of the data set.
                For a part, the features of the first stage must be in it: see `run_first_stage`.
                `detector_features(store)` makes the table of a recording.
                None = made from the trajectories as the whole data set, without knowledge of classes, with a
                warning. The shipped detector was not trained on such features: on 55 recordings it had not seen, its
                average precision was 0.740 instead of 0.782, its calibration error 0.118 instead of 0.061.
            batch_size: samples on the device at once.
            device: any Paddle device string; None = where Paddle is now.
            progress: show a bar.
        """
        warn_without_features(self, dataset_features)
        odds = self._log_odds(trajectories, dataset_features, batch_size, device, progress)
        return self.probabilities(odds)

    def probabilities(self, log_odds: NDArray[np.float64]) -> NDArray[np.float32]:
        """Calibrated probabilities `[sample]` from what `log_odds` gave."""
        odds = log_odds / self.temperature + self.bias
        return (1 / (1 + np.exp(-np.clip(odds, -80, 80)))).astype(np.float32)

    def log_odds(
        self,
        trajectories: ArrayLike,
        *,
        dataset_features: FeatureTable | None = None,
        batch_size: int = 4096,
        device: str | None = None,
        progress: bool = False,
    ) -> NDArray[np.float64]:
        """Log-odds before calibration, the mean of the members, `[sample]`; NaN = never seen.

        Args:
            trajectories: `[sample, epoch, 3]`.
            dataset_features: as for `predict_proba`, and so are the others.
            batch_size: see there.
            device: see there.
            progress: see there.
        """
        warn_without_features(self, dataset_features)
        return self._log_odds(trajectories, dataset_features, batch_size, device, progress)

    def run_first_stage(
        self,
        tiles: Iterable[tuple[ArrayLike, FeatureTable]],
        dataset_features: FeatureTable,
        *,
        device: str | None = None,
        batch_size: int = 4096,
        on_batch: Callable[[int], object] = lambda n_samples: None,
    ) -> FeatureTable:
        """The features with those that the first stage adds; without a first stage as they are.

        Args:
            tiles: trajectories `[sample, epoch, 3]` of successive samples and their slices of the features, which
                together are the whole recording.
            dataset_features: of the whole recording.
            device: any Paddle device string; None = where Paddle is now.
            batch_size: samples on the device at once.
            on_batch: called with the size of each batch done.

        Raises:
            ValueError: the tiles are not those of the features, all of them and in their order, as far as that
                can be told.
        """
        if self.first_stage is None:
            return dataset_features
        if dataset_features.is_slice:
            raise ValueError(
                f"dataset_features are those of {len(dataset_features)} of {dataset_features.n_whole} samples; "
                "give run_first_stage those of the whole recording"
            )
        odds, start = [np.zeros(0)], 0
        for raw, table in tiles:
            stop = start + len(table)
            if not table.agrees(dataset_features[start:stop]):
                raise ValueError(
                    f"the tile that should be samples {start} to {stop} holds others; give tiles in the order "
                    "of dataset_features, each with its slice"
                )
            odds.append(
                self.first_stage._log_odds(raw, table, batch_size, device, progress=False, on_batch=on_batch)
            )
            start = stop
        if start != len(dataset_features):
            raise ValueError(
                f"tiles hold {start} of {len(dataset_features)} samples; give run_first_stage all of them"
            )
        return with_first_pass(dataset_features, np.concatenate(odds))

    def _log_odds(
        self,
        trajectories: ArrayLike,
        table: FeatureTable | None,
        batch_size: int,
        device: str | None,
        progress: bool,
        on_batch: Callable[[int], object] = lambda n_samples: None,
    ) -> NDArray[np.float64]:
        self.need_weights()
        raw, batch_size = checked(trajectories), whole(batch_size, "batch_size")
        table = complete_table(self, raw, table, batch_size, device)
        return self._mean_log_odds(raw, table, batch_size, device, progress=progress, on_batch=on_batch)

    def _mean_log_odds(
        self,
        raw: Array,
        table: FeatureTable,
        batch_size: int,
        device: str | None,
        *,
        progress: bool,
        on_batch: Callable[[int], object] = lambda n_samples: None,
    ) -> NDArray[np.float64]:
        bar = tqdm(
            total=len(raw),
            desc="detect",
            unit="sample",
            unit_scale=True,
            disable=not progress,
            file=Forgiving(sys.stderr),
        )

        def done(n_samples: int) -> None:
            bar.update(n_samples)
            on_batch(n_samples)

        with bar:
            return mean_log_odds(
                self.config, self.members, raw, table, batch_size=batch_size, device=device, on_batch=done
            )

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration, weights, calibration and provenance; an existing detector is replaced.

        The format is described in `weights_file`.

        Raises:
            DetectorError: there are no weights, the file cannot be written, or a file of another kind stands there.
        """
        self.need_weights()
        weights_file.write(path, stages_of(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoiseDetector:
        """Read a detector that `save` has written. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorError: it is no detector, damaged, or written by a newer version.
        """
        stages = weights_file.read(path)
        try:
            return detector_of(cls, stages)
        except (KeyError, TypeError, ValueError, OverflowError, DetectorError) as error:
            problem = f"{type(error).__name__}: {escape(error, limit=400)}"
            raise DetectorError(
                f"'{escape(path_text(path))}': holds no detector of this version ({problem}); train it again"
            ) from None

    @classmethod
    def pretrained(cls) -> NoiseDetector:
        """The detector that ships with this package."""
        if not PRETRAINED.exists():
            raise DetectorError(
                f"{str(PRETRAINED)!r}: this installation lacks the shipped weights; reinstall "
                "paddle_td_callback, or train a NoiseDetector of your own"
            )
        return cls.load(PRETRAINED)

    @classmethod
    def load_interpretdl(cls, path: str | os.PathLike[str]) -> NoiseDetector:
        """Read the detector that InterpretDL serves (`noise_detector_trained.pdparams`), as a NoiseDetector.

        Its two-class softmax becomes the log-odds of its class 1, which is "mislabeled" (InterpretDL's own
        documentation says clean; its data say otherwise). `.pdparams` files are pickles. No unpickler of Python reads
        this one: `interpretdl_weights` knows the few operations that weights need, and refuses everything else.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorError: it holds anything else than such weights.
        """
        weights, architecture = read_lstm(path)
        channels = ("given", "largest_other")[: architecture.n_channels]
        if len(channels) < architecture.n_channels:
            raise DetectorError(
                f"'{escape(path_text(path))}': reads {architecture.n_channels} channels; known are 1 (given) "
                "and 2 (given, largest other); train a NoiseDetector instead"
            )
        try:
            detector = cls(channels, None, architecture.hidden_size, architecture.n_layers)
        except ValueError as error:
            raise DetectorError(f"'{escape(path_text(path))}': {error}") from None
        detector.members = [weights]
        detector.provenance = {"source": f"InterpretDL, {escape(Path(path).name)}"}
        return detector

    def need_weights(self) -> None:
        """Raise an error if there are no weights."""
        if not self.is_trained:
            raise DetectorError(
                "this detector has no weights yet; call fit, or start from NoiseDetector.pretrained()"
            )
