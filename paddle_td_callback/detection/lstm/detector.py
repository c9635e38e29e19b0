"""NoiseDetector: an LSTM reads how a sample was learned and gives the probability that its label is wrong."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py  # noqa: F401  # before paddle: Paddle 2.6 brings an old zlib that HDF5 must not be tied to
import numpy as np
import paddle
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ..._version import __version__
from ...errors import DetectorError
from ..arguments import real, whole
from ..dataset_features import NAMES, Table, evidence_of_trajectories
from ..trajectories import Array, Arrays, Augmentation, checked, each_weight, labelled, need_both
from . import first_pass_features as opinion
from . import weights_file as detector_file
from .calibration import platt
from .channels import Inputs, as_tensor
from .interpretdl_weights import read_lstm
from .network import Architecture, Group, Network, Schedule, Weights, paddle_on, train
from .training_batches import groups_of

PRETRAINED = Path(__file__).parents[2] / "data" / "noise_detector.h5"
Tables = Table | Sequence[Table]


class NoiseDetector:
    """An LSTM over training trajectories; its output is the probability that the given label is wrong.

    Trajectories are float arrays [sample, epoch, 3], NaN = unseen, the last axis being the probability of the
    given label, the largest other probability, and 1, 0 or 1/2 for predicted right, wrong, or a tie.
    Recordings may have any number of epochs, the data any number of classes. The detector holds numpy arrays
    alone: what it computes with Paddle happens on the device passed, and leaves Paddle's global state as it was.

    Args:
        channels: what the LSTM reads at each step; names in `channels.CHANNELS`.
        n_steps: length to which trajectories are resampled; None = the recorded epochs (the paper's form).
        hidden_size: units of each LSTM layer.
        n_layers: LSTM layers.
        n_members: independently trained LSTMs whose log-odds are averaged.
        evidence: what the whole recording says of a sample, put beside the LSTM's last state; names in
            `evidence.NAMES`, and with `first` in `opinion.NAMES`.
        mix_sizes: units of the layers in which the last state meets the evidence; None = one layer of
            `hidden_size` where there is some.
        first: a trained detector that looks at the whole recording before; what it finds, spread over data
            set, classes and pairs of classes, is evidence for this one.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("given", "largest_other", "predicted_right", "log_given", "log_other"),
        n_steps: int | None = 32,
        hidden_size: int = 64,
        n_layers: int = 2,
        *,
        n_members: int = 1,
        evidence: Sequence[str] = (),
        mix_sizes: Sequence[int] | None = None,
        first: NoiseDetector | None = None,
    ) -> None:
        if isinstance(channels, str) or not channels:
            raise ValueError(f"channels must be a sequence of at least one name, got {channels!r}")
        if not (first is None or isinstance(first, NoiseDetector)):
            raise TypeError(f"first must be a NoiseDetector, got {first!r}")
        known = (*NAMES, *opinion.NAMES) if first else NAMES
        unknown = (
            [evidence] if isinstance(evidence, str) else [name for name in evidence if name not in known]
        )
        if unknown:
            raise ValueError(f"evidence must be names of {', '.join(known)}, got {unknown[0]!r}")
        if first is not None:
            first._need_weights()
            if first._n_looks == detector_file.MAX_LOOKS:
                raise ValueError(
                    f"first is already the last of {first._n_looks} detectors that look one after the other; at most "
                    f"{detector_file.MAX_LOOKS} may"
                )
        self.channels, self.evidence = tuple(channels), tuple(evidence)
        self.n_steps = None if n_steps is None else whole(n_steps, "n_steps")
        self.hidden_size = whole(hidden_size, "hidden_size")
        self.n_layers = whole(n_layers, "n_layers")
        self.n_members = whole(n_members, "n_members")
        if mix_sizes is None:
            mix_sizes = (self.hidden_size,) if self.evidence else ()
        if not hasattr(mix_sizes, "__iter__"):
            raise ValueError(f"mix_sizes must be a sequence of whole numbers, got {mix_sizes!r}")
        self.mix_sizes = tuple(whole(size, "mix_sizes") for size in mix_sizes)
        self.first = first
        self.temperature, self.bias = 1.0, 0.0
        self.provenance: dict[str, Any] = {}
        self._inputs = Inputs(self.channels, self.n_steps)
        self._architecture = Architecture(
            len(self.channels),
            self.hidden_size,
            self.n_layers,
            len(self.evidence),
            self.mix_sizes,
        )
        self._members: list[Weights] = []

    def __repr__(self) -> str:
        return (
            f"NoiseDetector({self.channels}, n_steps={self.n_steps}, hidden_size={self.hidden_size}, "
            f"n_layers={self.n_layers}, n_members={self.n_members}, "
            f"evidence={len(self.evidence)} columns"
            f"{'' if self.first is None else f', first={self.first!r}'})"
            f"{'' if self.is_trained else ' without weights'}"
        )

    @property
    def is_trained(self) -> bool:
        """Whether there are weights to predict with."""
        return bool(self._members)

    @property
    def _n_looks(self) -> int:
        return 1 + (0 if self.first is None else self.first._n_looks)

    @property
    def needs_evidence(self) -> bool:
        """Whether the tables of `evidence.Evidence` are read."""
        return bool(self.evidence) or (self.first is not None and self.first.needs_evidence)

    def fit(
        self,
        trajectories: Arrays,
        is_mislabeled: Arrays,
        *,
        evidence: Tables | None = None,
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

        A detector that has weights goes on from them (fine-tuning: a smaller `learning_rate` is wise);
        `reset=True` starts afresh. Calibration is undone either way, since it belongs to the weights before.
        The weights change when training has ended: an interrupted `fit` leaves the detector as it was.

        Args:
            trajectories: [sample, epoch, 3], or a list of such arrays, one a recording: each is filled,
                resampled and ranked by itself. Never-seen samples are left out.
            is_mislabeled: bool [sample], or a list in the order of the recordings.
            evidence: the table of `evidence.Evidence`, or a list; None = made from the trajectories alone, with a
                warning, as `predict_proba` does: `find_label_issues` then reads what was not trained on. `first`
                stays as it is: what it says of a recording is added where the table lacks it, and should come
                from a detector that has not been trained on that recording.
            sample_weight: how much each sample counts in the loss of its own, [sample] or a list; None = 1. For
                recordings of which wrong labels, being few, are given more often than they occur.
            epochs: passes over all trajectories, for each member.
            batch_size: trajectories of one step.
            learning_rate: of AdamW at the start; it falls to zero along a cosine.
            weight_decay: of AdamW.
            dropout: share of the LSTM's last state and the evidence that each step goes without.
            balance: 0 = each trajectory counts the same; 1 = each recording counts the same, and its wrong
                labels together as much as a fifth of it; between = between.
            ranking: weight of a second loss, which asks that the wrong labels of a recording stand above the right
                ones; 0 = none.
            augment: how recordings are varied in every epoch, their evidence staying as it is; None = not.
            reset: forget the weights there are.
            device: any Paddle device string; None = where Paddle is now.
            seed: of initial weights, order and augmentation. The same seed gives the same weights.
            progress: show a bar.

        Raises:
            ValueError: an argument that is none, recordings that do not fit together, or labels of one kind.
            DetectorError: the loss or the weights did not stay finite; the detector is as it was.
        """
        schedule = Schedule(
            whole(epochs, "epochs"),
            whole(batch_size, "batch_size"),
            real(learning_rate, "learning_rate", open_at=0),
            real(weight_decay, "weight_decay"),
            real(dropout, "dropout", most=1, open_at=1),
            real(ranking, "ranking"),
        )
        balance = real(balance, "balance", most=1)
        if not (augment is None or isinstance(augment, Augmentation)):
            raise TypeError(f"augment must be an Augmentation or None, got {augment!r}")
        recordings: list[tuple[Array, Array, Array, Array]] = []
        labelled_raws = list(labelled(trajectories, is_mislabeled))
        tables = self._each_evidence(trajectories, evidence, device)
        weights = each_weight(sample_weight, [len(raw) for raw, _ in labelled_raws])
        for (raw, wrong), table, weight in zip(labelled_raws, tables, weights, strict=True):
            scored = self._inputs.scored(raw)
            recordings.append(
                (
                    raw[scored].astype(np.float32),
                    wrong[scored].astype(np.float32),
                    self._columns(table[scored]),
                    weight[scored],
                )
            )
        n_wrong = sum(int(wrong.sum()) for _, wrong, _, _ in recordings)
        n_right = sum(len(wrong) for _, wrong, _, _ in recordings) - n_wrong
        need_both(n_wrong, n_right, "training")
        start = [] if reset else self._members
        members, losses = [], []
        trajectories_to_go = schedule.epochs * self.n_members * (n_wrong + n_right)
        bar = tqdm(
            total=trajectories_to_go, desc="fit", unit="trajectory", unit_scale=True, disable=not progress
        )
        with bar, paddle_on(device):
            fixed = None if augment else groups_of(self._inputs, recordings, balance)
            for member in range(self.n_members):
                rng = np.random.default_rng([seed, member])

                def groups(rng: np.random.Generator = rng) -> list[Group]:
                    varied = augment and [(augment(raw, rng), *others) for raw, *others in recordings]
                    return groups_of(self._inputs, varied, balance) if varied else fixed or []

                before = start[member] if start else None
                net = Network(
                    self._architecture,
                    before or self._architecture.initial_weights(rng, math.log(n_wrong / n_right)),
                )
                if before is None:
                    net.measure(groups())
                losses.append(train(net, groups, schedule, rng, bar.update))
                members.append(net.weights())
        options = {
            **schedule._asdict(),
            "balance": balance,
            "augment": augment and asdict(augment),
            "seed": seed,
        }
        counts = {"recordings": len(recordings), "samples": n_wrong + n_right, "mislabeled": n_wrong}
        self.provenance = {"fit": options | counts | {"losses": losses}} | (
            {"before": self.provenance} if start else {}
        )
        self._members, self.temperature, self.bias = members, 1.0, 0.0
        return self

    def predict_proba(
        self,
        trajectories: ArrayLike,
        *,
        evidence: Table | None = None,
        batch_size: int = 4096,
        device: str | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """The probability that each sample's given label is wrong, [sample]; NaN where it was never seen.

        Args:
            trajectories: [sample, epoch, 3].
            evidence: what `evidence.Evidence` gave for these samples; a slice of it for a part of the data set.
                For a part, what `first` finds must be in it: see `look_first`. None = made from the
                trajectories as the whole data set, blind to which class is taken for which, with a warning:
                the shipped detector has never seen such evidence. On 55 recordings it had not seen, its average
                precision was 0.740 instead of 0.782 so, and its probabilities were off by 0.118 on average
                instead of 0.061. `detector_evidence` makes it of a recording.
            batch_size: samples on the device at once.
            device: any Paddle device string; None = where Paddle is now.
            progress: show a bar.
        """
        self._say_where_blind(evidence)
        odds = self._log_odds(trajectories, evidence, batch_size, device, progress)
        odds = odds / self.temperature + self.bias
        return (1 / (1 + np.exp(-np.clip(odds, -80, 80)))).astype(np.float32)

    def log_odds(
        self,
        trajectories: ArrayLike,
        *,
        evidence: Table | None = None,
        batch_size: int = 4096,
        device: str | None = None,
        progress: bool = False,
    ) -> NDArray[np.float64]:
        """What the network says before calibration, the mean of its members, [sample]; NaN = never seen.

        Args:
            trajectories: [sample, epoch, 3].
            evidence: as for `predict_proba`, and so are the others.
            batch_size: see there.
            device: see there.
            progress: see there.
        """
        self._say_where_blind(evidence)
        return self._log_odds(trajectories, evidence, batch_size, device, progress)

    def _log_odds(
        self,
        trajectories: ArrayLike,
        evidence: Table | None,
        batch_size: int,
        device: str | None,
        progress: bool,
    ) -> NDArray[np.float64]:
        self._need_weights()
        raw, batch_size = checked(trajectories), whole(batch_size, "batch_size")
        table = self._read_evidence(raw, evidence, batch_size, device)
        return self._odds_of(raw, table, batch_size, device, progress)

    def look_first(
        self,
        tiles: Iterable[tuple[ArrayLike, Table]],
        evidence: Table,
        *,
        device: str | None = None,
        batch_size: int = 4096,
    ) -> Table:
        """The evidence with what `first` finds in the whole recording; without `first` as it is.

        Args:
            tiles: trajectories [sample, epoch, 3] of successive samples and their slices of the evidence, which
                together are the whole recording.
            evidence: of the whole recording.
            device: any Paddle device string; None = where Paddle is now.
            batch_size: samples on the device at once.

        Raises:
            ValueError: the tiles are not the evidence, all of it and in its order, as far as that can be told.
        """
        if self.first is None:
            return evidence
        if evidence.is_slice:
            raise ValueError(
                f"evidence is that of {len(evidence)} of {evidence.n_whole} samples; look_first needs the whole"
            )
        odds, start = [np.zeros(0)], 0
        for raw, table in tiles:
            stop = start + len(table)
            if not table.agrees(evidence[start:stop]):
                raise ValueError(
                    f"the tile that should be samples {start} to {stop} is that of others; give tiles in the order "
                    "of the evidence, each with its slice"
                )
            odds.append(self.first.log_odds(raw, evidence=table, batch_size=batch_size, device=device))
            start = stop
        if start != len(evidence):
            raise ValueError(
                f"tiles hold {start} of {len(evidence)} samples; look_first needs the whole recording"
            )
        return opinion.with_opinion(evidence, np.concatenate(odds))

    def calibrate(
        self,
        trajectories: Arrays,
        is_mislabeled: Arrays,
        *,
        evidence: Tables | None = None,
        device: str | None = None,
    ) -> NoiseDetector:
        """Fit the scale and the bias that turn log-odds into probabilities; the ranking stays as it is.

        Args:
            trajectories: as for `fit`, best of data that `fit` has not seen.
            is_mislabeled: as for `fit`.
            evidence: as for `fit`.
            device: any Paddle device string; None = where Paddle is now.
        """
        self._need_weights()
        odds, wrongs = [], []
        for (raw, wrong), table in zip(
            labelled(trajectories, is_mislabeled),
            self._each_evidence(trajectories, evidence, device),
            strict=True,
        ):
            scored = self._inputs.scored(raw)
            odds.append(self._odds_of(raw, table, 4096, device, False)[scored])
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write architecture, weights, calibration and provenance as HDF5; an existing detector is replaced.

        Raises:
            DetectorError: there are no weights, the file cannot be written, or a recording stands there.
        """
        self._need_weights()
        detector_file.write(path, self._parts())

    def _parts(self) -> list[detector_file.Part]:
        """What goes into the file: this detector, and then its first."""
        attributes = {
            "channels": json.dumps(self.channels),
            "evidence": json.dumps(self.evidence),
            "n_steps": self.n_steps or 0,
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "n_members": self.n_members,
            "mix_sizes": json.dumps(self.mix_sizes),
            "temperature": self.temperature,
            "bias": self.bias,
            "package_version": __version__,
            "paddle_version": paddle.__version__,
            "provenance": json.dumps(self.provenance),
        }
        return [(attributes, self._members), *([] if self.first is None else self.first._parts())]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoiseDetector:
        """Read a detector that `save` has written. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorError: it is no detector, damaged, or written by a newer version.
        """
        made: list[NoiseDetector] = []  # the first of all first

        def shapes_for(attributes: Mapping[str, Any]) -> tuple[int, Mapping[str, tuple[int, ...]]]:
            made.append(cls._without_weights(attributes, made[-1] if made else None))
            return made[-1].n_members, made[-1]._architecture.shapes()

        def on_weights(members: list[Weights]) -> None:
            made[-1]._members = members

        detector_file.read(path, shapes_for, on_weights)
        if any(
            (weights.get("summary_scale", np.ones(1)) <= 0).any()
            for detector in made
            for weights in detector._members
        ):
            raise DetectorError(f"{os.fspath(path)!r}: a scale that is not above 0; damaged")
        return made[-1]

    @classmethod
    def _without_weights(cls, attributes: Mapping[str, Any], first: NoiseDetector | None) -> NoiseDetector:
        if json.loads(attributes.get("summary", "[]")):  # in files of before the first release
            raise DetectorError(
                f"it reads summaries {attributes['summary']}, which are no more; train it again"
            )
        detector = cls(
            json.loads(attributes["channels"]),
            int(attributes["n_steps"]) or None,
            int(attributes["hidden_size"]),
            int(attributes["n_layers"]),
            n_members=int(attributes["n_members"]),
            evidence=json.loads(attributes.get("evidence", "[]")),
            mix_sizes=json.loads(attributes.get("mix_sizes", "null")),
            first=first,
        )
        detector.temperature, detector.bias = float(attributes["temperature"]), float(attributes["bias"])
        if not (0 < detector.temperature < math.inf and math.isfinite(detector.bias)):
            raise DetectorError(f"calibration {detector.temperature}, {detector.bias} is damaged")
        detector.provenance = dict(json.loads(attributes["provenance"]))
        return detector

    @classmethod
    def averaged(cls, detectors: Sequence[NoiseDetector]) -> NoiseDetector:
        """One detector whose members are those of several with the same inputs and sizes, uncalibrated.

        Raises:
            ValueError: none is given, or they differ.
            TypeError: one is no detector.
            DetectorError: one has no weights.
        """
        for detector in detectors:
            if not isinstance(detector, NoiseDetector):
                raise TypeError(f"detectors must be NoiseDetectors, got {detector!r}")
            detector._need_weights()
        shapes = {(d.channels, d.evidence, d.n_steps, d._architecture) for d in detectors}
        if len(shapes) != 1 or not all(_same(d.first, detectors[0].first) for d in detectors):
            raise ValueError(f"detectors must be at least one, all alike, got {list(detectors)!r}")
        one, members = detectors[0], [weights for d in detectors for weights in d._members]
        made = cls(
            one.channels,
            one.n_steps,
            one.hidden_size,
            one.n_layers,
            n_members=len(members),
            evidence=one.evidence,
            mix_sizes=one.mix_sizes,
            first=one.first,
        )
        made._members = members
        made.provenance = {"averaged": [d.provenance for d in detectors]}
        return made

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
        documentation says clean; its data say otherwise). `.pdparams` files are pickles: this one is read by an
        unpickler that knows arrays, dictionaries, strings and tuples, and refuses everything else.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorError: it holds anything else than such weights.
        """
        weights, architecture = read_lstm(path)
        channels = ("given", "largest_other")[: architecture.n_channels]
        if len(channels) < architecture.n_channels:
            raise DetectorError(
                f"{os.fspath(path)!r}: reads {architecture.n_channels} channels; known are 1 (given) "
                "and 2 (given, largest other)"
            )
        detector = cls(channels, None, architecture.hidden_size, architecture.n_layers)
        detector._members = [weights]
        detector.provenance = {"source": f"InterpretDL, {Path(path).name}"}
        return detector

    def _need_weights(self) -> None:
        if not self.is_trained:
            raise DetectorError(
                "this detector has no weights yet; call fit, or start from NoiseDetector.pretrained()"
            )

    def _say_where_blind(self, evidence: Tables | None, stacklevel: int = 3) -> None:
        if self.evidence and evidence is None:
            warnings.warn(
                "this detector reads evidence of the whole recording, and none is given: it is made of the "
                "trajectories, as if all labels were one class, which ranks worse and is badly calibrated where a "
                "detector was trained on the whole; pass evidence=detector_evidence(store)",
                UserWarning,
                stacklevel=stacklevel,
            )

    def _each_evidence(
        self, trajectories: Arrays, evidence: Tables | None, device: str | None
    ) -> list[Table]:
        """The evidence of each recording, of one or of a list, with all that the network reads."""
        self._say_where_blind(evidence, stacklevel=4)
        raws = list(trajectories) if isinstance(trajectories, (list, tuple)) else [trajectories]
        tables: list[Table | None] = [None] * len(raws)
        if evidence is not None:
            tables = [evidence] if isinstance(evidence, Table) else list(evidence)
        if len(tables) != len(raws):
            raise ValueError(f"got {len(raws)} recordings and {len(tables)} tables of evidence")
        return [
            self._read_evidence(checked(raw), table, 4096, device)
            for raw, table in zip(raws, tables, strict=True)
        ]

    def _read_evidence(self, raw: Array, table: Table | None, batch_size: int, device: str | None) -> Table:
        """The evidence of these samples, with all that the network reads."""
        if not self.evidence:
            return Table({}, {}, np.zeros(len(raw), np.int64), np.zeros(len(raw), np.int64))
        if table is None:
            table = evidence_of_trajectories(raw)
        if not isinstance(table, Table) or len(table) != len(raw):
            got = f"one of {len(table)} samples" if isinstance(table, Table) else repr(type(table).__name__)
            raise ValueError(
                f"evidence must be a table of the {len(raw)} samples of the trajectories, got {got}; "
                "make it with evidence.Evidence"
            )
        if self.first is not None and opinion.OF_RECORDING[0] not in table.of_recording:
            if table.is_slice:
                raise ValueError(
                    "evidence of a part of a recording lacks what the first detector says of all of it; "
                    "make it with look_first"
                )
            table = self.look_first([(raw, table)], table, device=device, batch_size=batch_size)
        return table

    def _columns(self, table: Table) -> Array:
        """What the network reads of it, [sample, column]."""
        return np.nan_to_num(table.columns(self.evidence))

    def _odds_of(
        self,
        raw: Array,
        table: Table,
        batch_size: int,
        device: str | None,
        progress: bool,
    ) -> NDArray[np.float64]:
        """`log_odds` from complete evidence, whose columns are put together batch by batch."""
        scored = np.flatnonzero(self._inputs.scored(raw))
        odds = np.full(len(raw), np.nan)
        if not len(scored):
            return odds
        bar = tqdm(total=len(scored), desc="detect", unit="sample", unit_scale=True, disable=not progress)
        with bar, paddle_on(device), paddle.no_grad():
            nets = [Network(self._architecture, weights) for weights in self._members]
            for start in range(0, len(scored), batch_size):
                rows = scored[start : start + batch_size]
                channels = self._inputs.make(as_tensor(raw[rows]))
                beside = as_tensor(self._columns(table[rows]))
                odds[rows] = np.mean([net(channels, beside).numpy() for net in nets], axis=0)
                bar.update(len(rows))
        n_bad = int((~np.isfinite(odds[scored])).sum())
        if n_bad:  # NaN would say that these were never seen
            raise DetectorError(
                f"the log-odds of {n_bad} of {len(scored)} samples are not finite: the weights are too large or "
                "damaged; train the detector again with a smaller learning_rate"
            )
        return odds


def _same(one: NoiseDetector | None, other: NoiseDetector | None) -> bool:
    """Whether two detectors say the same of everything, wherever they came from."""
    if one is None or other is None or one is other:
        return one is other
    some, others = one._parts(), other._parts()
    for (attributes, members), (other_attributes, other_members) in zip(some, others, strict=False):
        different = {k for k in attributes if attributes[k] != other_attributes[k]} - {"provenance"}
        if different or not all(
            np.array_equal(weights[name], other_weights[name])
            for weights, other_weights in zip(members, other_members, strict=True)
            for name in weights
        ):
            return False
    return len(some) == len(others)
