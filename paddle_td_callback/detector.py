"""NoiseDetector: an LSTM reads how a sample was learned and gives the probability that its label is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py  # before paddle: Paddle 2.6 brings an old zlib that HDF5 must not meet
import numpy as np
import paddle
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ._pdparams import read_lstm
from ._version import __version__
from .channels import N_RAW, Context, Inputs, Tensor, context_samples
from .errors import DetectorError

FORMAT = "paddle_td_callback noise detector"
SCHEMA = 1  # 1: first
PRETRAINED = Path(__file__).parent / "data" / "noise_detector.h5"
LIMITS = {"n_steps": 10_000, "hidden_size": 4096, "n_layers": 16, "n_members": 64}
PREPARE_SAMPLES = 16_384  # that are made into channels at once

Weights = dict[str, NDArray[np.float32]]
Trajectories = ArrayLike | Sequence[ArrayLike]


class Augmentation(NamedTuple):
    """How each recording is varied anew in every epoch of `NoiseDetector.fit`.

    Args:
        truncate: smallest fraction of its epochs to keep, from the start; 1 = always all.
        subsample: smallest fraction of its epochs to keep, anywhere; 1 = always all.
        missing: largest fraction of entries [sample, epoch] to make unseen; 0 = none.
        jitter: standard deviation of the noise added to the log-odds of both probabilities; 0 = none.
    """

    truncate: float = 1.0
    subsample: float = 1.0
    missing: float = 0.0
    jitter: float = 0.0

    def __call__(self, raw: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """A varied copy of `raw` [sample, epoch, 3]."""
        n_epochs = raw.shape[1]
        kept = np.arange(max(1, round(n_epochs * rng.uniform(self.truncate, 1.0))))
        kept = np.sort(rng.permutation(kept)[: max(1, round(len(kept) * rng.uniform(self.subsample, 1.0)))])
        varied = raw[:, kept]
        if self.jitter:
            odds = varied[:, :, :2].clip(1e-7, 1 - 1e-7)
            odds = np.log(odds / (1 - odds))
            odds += rng.normal(0.0, self.jitter, odds.shape).astype(np.float32)
            varied[:, :, :2] = 1 / (1 + np.exp(-odds))
        if self.missing:
            varied[rng.random(varied.shape[:2]) < rng.uniform(0.0, self.missing)] = np.nan
        return varied


class NoiseDetector:
    """An LSTM over training trajectories; its output is the probability that the given label is wrong.

    Trajectories are float arrays [sample, epoch, 3], NaN = unseen, the last axis being the probability of the
    given label, the largest other probability, and 1 or 0 for predicted right or wrong. Recordings may
    have any number of epochs, the data any number of classes. The detector holds numpy arrays alone: what it
    computes with Paddle lives on the device passed and leaves no trace in Paddle's global state.

    Args:
        channels: what the LSTM reads at each step; names in `channels.CHANNELS`, with statistics.
        n_steps: length to which trajectories are resampled; None = the recorded epochs (the paper's form).
        hidden_size: units of each LSTM layer.
        n_layers: LSTM layers.
        n_members: independently trained LSTMs whose log-odds are averaged.
        summary: what is added to the LSTM's last state; names in `channels.SUMMARIES`, with statistics.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("given", "largest_other", "predicted_right", "log_given", "log_other"),
        n_steps: int | None = 32,
        hidden_size: int = 64,
        n_layers: int = 2,
        *,
        n_members: int = 1,
        summary: Sequence[str] = (),
    ) -> None:
        if isinstance(channels, str) or not channels:
            raise ValueError(f"channels must be a sequence of at least one name, got {channels!r}")
        self.channels, self.summary = tuple(channels), tuple(summary)
        self.n_steps = None if n_steps is None else _whole(n_steps, "n_steps")
        self.hidden_size = _whole(hidden_size, "hidden_size")
        self.n_layers = _whole(n_layers, "n_layers")
        self.n_members = _whole(n_members, "n_members")
        self.temperature, self.bias = 1.0, 0.0
        self.provenance: dict[str, Any] = {}
        self._inputs = Inputs(self.channels, self.summary, self.n_steps)
        self._members: list[Weights] = []

    def __repr__(self) -> str:
        state = "trained" if self.is_trained else "untrained"
        return (
            f"NoiseDetector(channels={self.channels}, n_steps={self.n_steps}, hidden_size={self.hidden_size}, "
            f"n_layers={self.n_layers}, n_members={self.n_members}, summary={self.summary}) [{state}]"
        )

    @property
    def is_trained(self) -> bool:
        """Whether there are weights to predict with."""
        return bool(self._members)

    def fit(
        self,
        trajectories: Trajectories,
        is_mislabeled: Trajectories,
        *,
        epochs: int = 10,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        augment: Augmentation | None = None,
        reset: bool = False,
        device: str | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> NoiseDetector:
        """Train on recordings whose wrong labels are known.

        A detector that has weights goes on from them (fine-tuning: a smaller `learning_rate` is wise);
        `reset=True` starts afresh. Calibration is undone either way, since it belongs to the weights before.
        The weights change when training has ended; an interrupted `fit` leaves the detector as it was.

        Args:
            trajectories: [sample, epoch, 3], or a list of such arrays, one a recording: each is filled,
                resampled and ranked by itself. Never-seen samples are left out.
            is_mislabeled: bool [sample], or a list in the order of the recordings.
            epochs: passes over all trajectories, for each member.
            batch_size: trajectories of one step.
            learning_rate: of AdamW at the start; it falls to zero along a cosine.
            weight_decay: of AdamW.
            augment: how recordings are varied in every epoch; None = not.
            reset: forget the weights there are.
            device: any Paddle device string; None = where Paddle is now.
            seed: of initial weights, order and augmentation. The same seed gives the same weights.
            progress: show a bar.
        """
        recordings = [
            (raw[scored], wrong[scored].astype(np.float32))
            for raw, wrong, scored in self._labelled(trajectories, is_mislabeled)
            if scored.any()
        ]
        n_wrong = sum(int(wrong.sum()) for _, wrong in recordings)
        n_samples = sum(len(wrong) for _, wrong in recordings)
        if not 0 < n_wrong < n_samples:
            raise ValueError(
                f"is_mislabeled marks {n_wrong} of {n_samples} seen samples: "
                "training needs wrong labels and right ones"
            )
        epochs, batch_size = _whole(epochs, "epochs"), _whole(batch_size, "batch_size")
        start = [] if reset else self._members
        losses: list[list[float]] = []
        members = []
        bar = tqdm(
            total=epochs * n_samples * self.n_members,
            desc="detector",
            unit="trajectory",
            unit_scale=True,
            disable=not progress,
        )
        with bar, _paddle_on(device):
            fixed = None if augment else self._groups([(raw, wrong) for raw, wrong in recordings])
            for member in range(self.n_members):
                rng = np.random.default_rng([seed, member])
                net = self._network(start[member] if start else self._initial(rng))
                optimizer = paddle.optimizer.AdamW(
                    learning_rate,
                    parameters=net.parameters(),
                    weight_decay=weight_decay,
                    grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
                )
                losses.append([])
                for epoch in range(epochs):
                    groups = fixed or self._groups([(augment(r, rng), w) for r, w in recordings])  # type: ignore[misc]
                    batches = _batches([len(targets) for _, _, targets in groups], batch_size, rng)
                    total = 0.0
                    for step, (group, rows) in enumerate(batches):
                        part = (epoch + step / len(batches)) / epochs
                        optimizer.set_lr(learning_rate * 0.5 * (1 + math.cos(math.pi * part)))
                        loss = _loss(net, *groups[group], rows)
                        loss.backward()
                        optimizer.step()
                        optimizer.clear_grad()
                        total += float(loss) * len(rows)
                        bar.update(len(rows))
                    losses[-1].append(total / n_samples)
                    bar.set_postfix(loss=f"{losses[-1][-1]:.4f}")
                    if not math.isfinite(total):
                        raise DetectorError(
                            f"member {member}, epoch {epoch}: the loss is {total}; lower learning_rate "
                            f"(now {learning_rate})"
                        )
                members.append({name: value.numpy() for name, value in _parameters(net).items()})
        self._members, self.temperature, self.bias = members, 1.0, 0.0
        self.provenance = {
            "fit": {
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "augment": augment._asdict() if augment else None,
                "seed": seed,
                "continued": bool(start),
                "recordings": len(recordings),
                "samples": n_samples,
                "mislabeled": n_wrong,
                "losses": losses,
            }
        }
        return self

    def predict_proba(
        self,
        trajectories: ArrayLike,
        *,
        context: Context | None = None,
        batch_size: int = 4096,
        device: str | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """The probability that each sample's given label is wrong, [sample]; NaN where it was never seen.

        Args:
            trajectories: [sample, epoch, 3].
            context: what `context` gave for the data set of which these samples are a part; None = these
                samples are the whole data set.
            batch_size: samples on the device at once.
            device: any Paddle device string; None = where Paddle is now.
            progress: show a bar.
        """
        odds = self._log_odds(trajectories, context, batch_size, device, progress)
        odds = odds / self.temperature + self.bias
        return (1 / (1 + np.exp(-np.clip(odds, -80, 80)))).astype(np.float32)

    def context(self, trajectories: ArrayLike, *, device: str | None = None) -> Context:
        """What ranks and other statistics over the data set need: quantiles per step, by name.

        A data set too large for memory is predicted in tiles with the context of some of its samples:
        `context(raw of context_samples(n_samples))`. Empty where no channel or summary is a statistic.

        Args:
            trajectories: [sample, epoch, 3]; of more than 10,000 samples a fixed part is taken.
            device: any Paddle device string; None = where Paddle is now.
        """
        raw = _raw(trajectories)
        with _paddle_on(device), paddle.no_grad():
            return {name: table.numpy() for name, table in self._context(raw[self._scored(raw)]).items()}

    def calibrate(
        self, trajectories: Trajectories, is_mislabeled: Trajectories, *, device: str | None = None
    ) -> NoiseDetector:
        """Fit the two numbers that turn log-odds into probabilities; the ranking stays as it is.

        Args:
            trajectories: as for `fit`, best of data that `fit` has not seen.
            is_mislabeled: as for `fit`.
            device: any Paddle device string; None = where Paddle is now.
        """
        odds, wrongs = [], []
        for raw, wrong, scored in self._labelled(trajectories, is_mislabeled):
            odds.append(self._log_odds(raw, None, 4096, device, False)[scored])
            wrongs.append(wrong[scored])
        scale, bias = _platt(np.concatenate(odds), np.concatenate(wrongs))
        if scale <= 0:
            raise DetectorError(
                "calibration would turn the ranking round: on these recordings the detector is no better "
                "than chance; train it on more like them"
            )
        self.temperature, self.bias = 1 / scale, bias
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write architecture, weights, calibration and provenance to an HDF5 file; an existing one is replaced."""
        self._need_weights()
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with h5py.File(partial, "w") as file:
            file.attrs.update(
                format=FORMAT,
                schema=SCHEMA,
                channels=json.dumps(self.channels),
                summary=json.dumps(self.summary),
                n_steps=self.n_steps or 0,
                hidden_size=self.hidden_size,
                n_layers=self.n_layers,
                n_members=self.n_members,
                temperature=self.temperature,
                bias=self.bias,
                package_version=__version__,
                paddle_version=paddle.__version__,
                provenance=json.dumps(self.provenance),
            )
            for member, weights in enumerate(self._members):
                for name, array in weights.items():
                    file[f"members/{member}/{name}"] = array
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoiseDetector:
        """Read a detector that `save` has written. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorError: it is no detector, damaged, or written by a newer version.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"{os.fspath(path)!r}: no such file; write one with NoiseDetector.save")
        try:
            with h5py.File(path, "r") as file:
                return cls._read(file, os.fspath(path))
        except DetectorError:
            raise
        except Exception as error:  # h5py raises OSError, KeyError, TypeError, RuntimeError on damaged files
            raise DetectorError(f"{os.fspath(path)!r}: cannot be read as a detector: {error}") from error

    @classmethod
    def _read(cls, file: h5py.File, path: str) -> NoiseDetector:
        attrs = dict(file.attrs)
        if attrs.get("format") != FORMAT:
            raise DetectorError(f"{path!r}: not a detector file; NoiseDetector.save writes those")
        if attrs["schema"] > SCHEMA:
            raise DetectorError(
                f"{path!r}: schema {attrs['schema']}, this version reads {SCHEMA}; upgrade paddle_td_callback"
            )
        detector = cls(
            json.loads(attrs["channels"]),
            int(attrs["n_steps"]) or None,
            int(attrs["hidden_size"]),
            int(attrs["n_layers"]),
            n_members=int(attrs["n_members"]),
            summary=json.loads(attrs["summary"]),
        )
        detector.temperature, detector.bias = float(attrs["temperature"]), float(attrs["bias"])
        if not (0 < detector.temperature < math.inf and math.isfinite(detector.bias)):
            raise DetectorError(f"{path!r}: calibration is {detector.temperature}, {detector.bias}; damaged")
        detector.provenance = json.loads(attrs["provenance"])
        for member in range(detector.n_members):
            weights = {}
            for name, shape in detector._shapes().items():
                stored = file[f"members/{member}/{name}"]
                if stored.shape != shape or stored.dtype != np.float32:
                    raise DetectorError(
                        f"{path!r}: {stored.name} is {stored.dtype} {stored.shape}, "
                        f"wanted float32 {shape}; damaged"
                    )
                weights[name] = stored[()]
                if not np.isfinite(weights[name]).all():
                    raise DetectorError(f"{path!r}: {stored.name} holds values that are not finite; damaged")
            detector._members.append(weights)
        return detector

    @classmethod
    def pretrained(cls) -> NoiseDetector:
        """The detector that ships with this package."""
        if not PRETRAINED.exists():
            raise DetectorError(
                f"{str(PRETRAINED)!r}: this installation lacks the shipped weights; reinstall "
                "paddle_td_callback, or train a NoiseDetector of your own"
            )
        return cls.load(PRETRAINED)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one member's arrays, in the order in which they are initialised."""
        gates, shapes = 4 * self.hidden_size, {}
        for layer in range(self.n_layers):
            n_inputs = self.hidden_size if layer else len(self.channels)
            shapes[f"weight_ih_l{layer}"] = (gates, n_inputs)
            shapes[f"weight_hh_l{layer}"] = (gates, self.hidden_size)
            shapes[f"bias_ih_l{layer}"] = shapes[f"bias_hh_l{layer}"] = (gates,)
        if self.summary:
            shapes["mix_weight"] = (self.hidden_size + len(self.summary), self.hidden_size)
            shapes["mix_bias"] = (self.hidden_size,)
        return shapes | {"head_weight": (self.hidden_size, 1), "head_bias": (1,)}

    def _initial(self, rng: np.random.Generator) -> Weights:
        bound = 1 / math.sqrt(self.hidden_size)
        return {
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in self._shapes().items()
        }

    def _network(self, weights: Weights) -> _Network:
        net = _Network(len(self.channels), self.hidden_size, self.n_layers, len(self.summary))
        for name, parameter in _parameters(net).items():
            parameter.set_value(weights[name])
        return net

    def _need_weights(self) -> None:
        if not self.is_trained:
            raise DetectorError(
                "this detector has no weights yet; call fit, or start from NoiseDetector.pretrained()"
            )

    def _scored(self, raw: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples were seen at least once, in every column that is read."""
        seen = ~np.isnan(raw[:, :, self._inputs.columns or [0]])
        scored: NDArray[np.bool_] = seen.any(axis=1).all(axis=1)
        return scored

    def _labelled(
        self, trajectories: Trajectories, is_mislabeled: Trajectories
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]]:
        """Each recording as (raw, mislabeled [sample], scored [sample]), checked."""
        several = isinstance(trajectories, (list, tuple))
        arrays = list(trajectories) if several else [trajectories]  # type: ignore[arg-type]
        labels = list(is_mislabeled) if several else [is_mislabeled]  # type: ignore[arg-type]
        if len(arrays) != len(labels):
            raise ValueError(f"got {len(arrays)} recordings but {len(labels)} arrays of is_mislabeled")
        for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            raw, wrong = _raw(array), np.asarray(label)
            if wrong.shape != raw.shape[:1] or not np.isin(wrong, (0, 1)).all():
                raise ValueError(
                    f"recording {number}: is_mislabeled must be 0 or 1 for each of {len(raw)} samples, "
                    f"got shape {wrong.shape}, dtype {wrong.dtype}"
                )
            yield raw, wrong.astype(bool), self._scored(raw)

    def _context(self, raw: NDArray[Any]) -> dict[str, Tensor]:
        if not self._inputs.context_names:
            return {}
        if not len(raw):
            raise ValueError("trajectories hold no sample that was ever seen; no context can be made of them")
        return self._inputs.context(_tensor(raw[context_samples(len(raw))]))

    def _groups(
        self, recordings: Sequence[tuple[NDArray[Any], NDArray[np.float32]]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """Inputs of all recordings as (channels, summaries, targets), one triple for each number of steps."""
        by_steps: dict[int, list[tuple[NDArray[np.float32], ...]]] = {}
        with paddle.no_grad():
            for raw, wrong in recordings:
                scored = self._scored(raw)  # augmentation may have hidden all of a sample
                raw, wrong = raw[scored], wrong[scored]
                if not len(raw):
                    continue
                context = self._context(raw)
                for start in range(0, len(raw), PREPARE_SAMPLES):
                    rows = slice(start, start + PREPARE_SAMPLES)
                    channels, summary = self._inputs.make(_tensor(raw[rows]), context)
                    summary = np.zeros((len(channels), 0), np.float32) if summary is None else summary.numpy()
                    part = (channels.numpy(), summary, wrong[rows])
                    by_steps.setdefault(channels.shape[1], []).append(part)
        return [
            (np.concatenate(c), np.concatenate(s), np.concatenate(w))
            for c, s, w in (zip(*parts, strict=True) for _, parts in sorted(by_steps.items()))
        ]

    def _log_odds(
        self,
        trajectories: ArrayLike,
        context: Context | None,
        batch_size: int,
        device: str | None,
        progress: bool,
    ) -> NDArray[np.float64]:
        self._need_weights()
        raw, batch_size = _raw(trajectories), _whole(batch_size, "batch_size")
        scored = np.flatnonzero(self._scored(raw))
        odds = np.full(len(raw), np.nan)
        if not len(scored):
            return odds
        bar = tqdm(total=len(scored), desc="detect", unit="sample", unit_scale=True, disable=not progress)
        with bar, _paddle_on(device), paddle.no_grad():
            if context is None:
                tables = self._context(raw[scored])
            else:
                tables = self._given_context(context, raw.shape[1])
            nets = [self._network(weights) for weights in self._members]
            for start in range(0, len(scored), batch_size):
                rows = scored[start : start + batch_size]
                channels, summary = self._inputs.make(_tensor(raw[rows]), tables)
                odds[rows] = np.mean([net(channels, summary).numpy() for net in nets], axis=0)
                bar.update(len(rows))
        return odds

    def _given_context(self, context: Mapping[str, ArrayLike], n_epochs: int) -> dict[str, Tensor]:
        wanted = self._inputs.context_shapes(n_epochs)
        tables = {name: np.asarray(context.get(name), np.float32) for name in wanted}
        got = {name: table.shape for name, table in tables.items()}
        if got != wanted or not all(np.isfinite(table).all() for table in tables.values()):
            raise ValueError(
                f"context must hold {wanted}, got {got}; make it with this detector's context method from "
                "samples of the same recording"
            )
        return {name: paddle.to_tensor(table) for name, table in tables.items()}


class _Network(paddle.nn.Layer):  # type: ignore[misc]  # Paddle is untyped for us
    """LSTM over steps, its last state (and the summaries through one hidden layer), one log-odds."""

    def __init__(self, n_channels: int, hidden_size: int, n_layers: int, n_summary: int) -> None:
        super().__init__(dtype="float32")
        zero = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.0))  # draws no random numbers
        self.lstm = paddle.nn.LSTM(
            n_channels,
            hidden_size,
            n_layers,
            weight_ih_attr=zero,
            weight_hh_attr=zero,
            bias_ih_attr=zero,
            bias_hh_attr=zero,
        )
        self.mix = None
        if n_summary:
            self.mix = paddle.nn.Linear(
                hidden_size + n_summary, hidden_size, weight_attr=zero, bias_attr=zero
            )
        self.head = paddle.nn.Linear(hidden_size, 1, weight_attr=zero, bias_attr=zero)

    def forward(self, channels: Tensor, summary: Tensor | None) -> Tensor:
        """Log-odds [sample] from channels [sample, step, channel] and summaries [sample, summary]."""
        state = self.lstm(channels)[0][:, -1]
        if self.mix is not None:
            state = paddle.nn.functional.relu(self.mix(paddle.concat([state, summary], axis=1)))
        return self.head(state)[:, 0]


def load_interpretdl(path: str | os.PathLike[str]) -> NoiseDetector:
    """Read the detector that InterpretDL serves (`noise_detector_trained.pdparams`), as a NoiseDetector.

    Its two-class softmax becomes the log-odds of its class 1, which is "mislabeled" (InterpretDL's own
    documentation says clean; its data say otherwise). `.pdparams` files are pickles: this one is read by an
    unpickler that knows arrays, dictionaries, strings and tuples, and refuses everything else.

    Raises:
        FileNotFoundError: there is no such file.
        DetectorError: it holds anything else than such weights.
    """
    weights, n_layers = read_lstm(path)
    n_channels, hidden_size = weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1]
    if n_channels > 2:
        raise DetectorError(
            f"{os.fspath(path)!r}: the LSTM reads {n_channels} channels; known are 1 (given) "
            "and 2 (given, largest other)"
        )
    detector = NoiseDetector(("given", "largest_other")[:n_channels], None, hidden_size, n_layers)
    got = {name: array.shape for name, array in weights.items()}
    if got != detector._shapes():
        raise DetectorError(
            f"{os.fspath(path)!r}: shapes {got} are no LSTM of this kind, wanted {detector._shapes()}"
        )
    detector._members = [weights]
    detector.provenance = {"source": f"InterpretDL weights from {Path(path).name}"}
    return detector


@contextlib.contextmanager
def _paddle_on(device: str | None) -> Iterator[None]:
    """Dynamic mode on a device, float32, names and AMP of our own; everything as it was afterwards."""
    paddle.get_device()  # settles Paddle's own default, which the guard would otherwise restore as "none"
    try:
        place = None if device is None else paddle.device._convert_to_place(device)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"device {device!r} is not one of this Paddle: {error}") from error
    dtype = paddle.get_default_dtype()
    # The guard brings its own tracer, so gradient mode, AMP and parameter names of the caller are left alone.
    with paddle.base.dygraph.guard(place):
        random_state = paddle.get_rng_state()  # a global initializer of the caller's may draw for our layers
        paddle.set_default_dtype("float32")
        try:
            yield
        finally:
            paddle.set_default_dtype(dtype)
            paddle.set_rng_state(random_state)


def _parameters(net: _Network) -> dict[str, Tensor]:
    """The parameters by the names of `NoiseDetector._shapes`."""
    named = {name: getattr(net.lstm, name) for name in net.lstm._parameters}
    layers = {"mix": net.mix, "head": net.head}
    for name, layer in layers.items():
        if layer is not None:
            named |= {f"{name}_weight": layer.weight, f"{name}_bias": layer.bias}
    return named


def _loss(
    net: _Network,
    channels: NDArray[Any],
    summary: NDArray[Any],
    targets: NDArray[Any],
    rows: NDArray[np.int64],
) -> Tensor:
    odds = net(paddle.to_tensor(channels[rows]), paddle.to_tensor(summary[rows]))
    return paddle.nn.functional.binary_cross_entropy_with_logits(odds, paddle.to_tensor(targets[rows]))


def _batches(
    sizes: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64]]]:
    """(group, rows) of one epoch in random order; a batch never mixes groups."""
    batches = []
    for group, size in enumerate(sizes):
        order = rng.permutation(size)
        batches += [(group, order[start : start + batch_size]) for start in range(0, size, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _platt(odds: NDArray[np.float64], wrong: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and bias of log-odds by Newton's method, with Platt's targets, which keep separable data finite."""
    n_wrong, n_right = int(wrong.sum()), int((~wrong).sum())
    if not n_wrong or not n_right:
        raise ValueError(
            f"is_mislabeled marks {n_wrong} of {len(wrong)} seen samples: calibration needs wrong labels "
            "and right ones"
        )
    targets = np.where(wrong, (n_wrong + 1) / (n_wrong + 2), 1 / (n_right + 2))
    design = np.stack([odds, np.ones_like(odds)], axis=1)

    def loss(solution: NDArray[np.float64]) -> float:
        z = design @ solution
        return float((np.logaddexp(0, z) - targets * z).sum())

    solution = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ solution, -80, 80)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - targets))
        while loss(solution - step) > loss(solution) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        solution = solution - step
        if np.abs(step).max() < 1e-9:
            break
    return float(solution[0]), float(solution[1])


def _raw(trajectories: ArrayLike) -> NDArray[Any]:
    raw = np.asarray(trajectories)
    if raw.ndim != 3 or raw.shape[1] < 1 or raw.shape[2] != N_RAW or raw.dtype.kind != "f":
        raise ValueError(
            f"trajectories must be floats [sample, epoch, {N_RAW}] (given probability, largest other "
            f"probability, predicted right) with at least one epoch, got {raw.dtype} {raw.shape}"
        )
    lowest, highest = np.fmin.reduce(raw, axis=None, initial=0), np.fmax.reduce(raw, axis=None, initial=0)
    if lowest < 0 or highest > 1 + 1e-3:
        raise ValueError(f"trajectories must lie in [0, 1] or be NaN, got {lowest} to {highest}")
    return raw


def _tensor(raw: NDArray[Any]) -> Tensor:
    return paddle.to_tensor(np.ascontiguousarray(raw, np.float32))


def _whole(number: Any, name: str) -> int:
    limit = LIMITS.get(name, 2**31)
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number <= limit:
        raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {number!r}")
    return int(number)
