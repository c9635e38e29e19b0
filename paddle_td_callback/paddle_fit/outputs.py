"""What a network said of one batch: which output holds the logits, what they mean, and the labels beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

from ..errors import CaptureError
from ..recording.batches import as_array

OUTPUTS = ("auto", "logits", "probabilities")
_IGNORE_INDEX = -100
_SUM_TOLERANCE = 1e-2  # bfloat16 keeps no more


class OutputReader:
    """Finds logits, probabilities and labels among a network's outputs and its loss's labels.

    Args:
        logits: which output holds the logits: its place, its key in a dictionary of outputs, or a function of
            all outputs.
        label: which label of the loss is the class.
        outputs: "logits", "probabilities", or "auto" to go by the loss.
        tap_labels: whether labels are needed.
    """

    def __init__(
        self, *, logits: int | str | Callable[..., Any], label: int, outputs: str, tap_labels: bool
    ) -> None:
        self._choose = logits
        self._label = label
        self._outputs = outputs
        self._tap_labels = tap_labels

    def read(self, loss: Any, outputs: Sequence[Any], labels: Sequence[Any]) -> Seen:
        """Copies of what is to be recorded, still on the device.

        Args:
            loss: the model's loss, which tells logits from probabilities.
            outputs: all outputs of the network.
            labels: all labels of the loss.

        Raises:
            CaptureError: what can be recorded is not among them.
        """
        chosen = self._chosen_output(tuple(outputs))
        label = None
        if self._tap_labels:
            if not -len(labels) <= self._label < len(labels):
                raise CaptureError(
                    f"label={self._label}, but the loss gets {len(labels)} labels; pass the place of the "
                    "class among them, or labels="
                )
            label = labels[self._label]
            if isinstance(label, paddle.Tensor):
                label = label.clone()
        kind = self._kind(loss)
        # Copies, taken before the loss runs: it may work in place. No transfer yet, so that a GPU goes on.
        values = chosen.detach().astype("float32") if chosen.dtype != paddle.float32 else chosen.clone()
        values = values.detach()
        if values.shape[1] == 1:
            soft = values if kind == "probabilities" else F.sigmoid(values)
        else:
            soft = values if kind == "probabilities" else F.softmax(values, axis=-1)
        return Seen(values, soft, label, kind)

    def doubts(self, logits: npt.NDArray[np.float32]) -> str | None:
        """What is odd about a batch of logits `[row, class]` that only the loss says are logits."""
        if self._outputs != "auto" or not len(logits) or logits.min() < 0:
            return None
        if np.abs(logits.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            return None
        return (
            "the network's outputs are recorded as logits, as the loss takes them, but each row sums to 1 like "
            "probabilities; pass outputs='probabilities' if they are, or outputs='logits' to say that they are not"
        )

    def may_be_sigmoid(self, logits: npt.NDArray[np.float32]) -> bool:
        """Whether a batch of logits `[row, class]`, said only by the loss to be some, is one column in [0, 1]."""
        if self._outputs != "auto" or logits.shape[1] != 2 or logits[:, 0].any():
            return False
        return bool(((logits[:, 1] >= 0) & (logits[:, 1] <= 1)).all())

    @staticmethod
    def ignored_label(loss: Any) -> int:
        """The label that a loss passes over: its `ignore_index`, or the -100 of Paddle's own losses."""
        ignored = _said_by(loss, "ignore_index", _IGNORE_INDEX)
        return int(ignored) if isinstance(ignored, (int, np.integer)) else _IGNORE_INDEX

    def _chosen_output(self, outputs: tuple[Any, ...]) -> Any:
        choose = self._choose
        if callable(choose):
            chosen = choose(*outputs)
        elif isinstance(choose, str):
            if len(outputs) != 1 or not isinstance(outputs[0], dict) or choose not in outputs[0]:
                raise CaptureError(
                    f"logits={choose!r} names a key, but the network's outputs are "
                    f"{[_describe(output) for output in outputs]}"
                )
            chosen = outputs[0][choose]
        else:
            if not -len(outputs) <= choose < len(outputs):
                raise CaptureError(
                    f"logits={choose}, but the network has {len(outputs)} outputs; pass the place of the one "
                    "that holds the logits"
                )
            chosen = outputs[choose]
        if not isinstance(chosen, paddle.Tensor) or not chosen.is_floating_point():
            raise CaptureError(
                f"the logits must be a floating-point tensor, got {_describe(chosen)}; pass "
                "logits= (a place, a key or a function of the outputs) to say where they are"
            )
        if len(chosen.shape) == 1:
            chosen = chosen.unsqueeze(1)
        if len(chosen.shape) != 2:
            raise CaptureError(
                f"the logits must have shape [batch, class], got {list(chosen.shape)}: one label for each sample "
                "is what can be recorded, not one for each token or pixel; pass logits= if another output "
                "holds them"
            )
        return chosen

    def _kind(self, loss: Any) -> str:
        if self._outputs != "auto":
            return self._outputs
        plain = getattr(loss, "_paddle_td_wrapped", loss)
        function = plain.func if isinstance(plain, functools.partial) else plain
        if isinstance(function, paddle.nn.BCELoss) or function is F.binary_cross_entropy:
            return "probabilities"
        return "logits" if _said_by(plain, "use_softmax", True) else "probabilities"


def _said_by(loss: Any, name: str, otherwise: Any) -> Any:
    """An argument of a loss, where the loss is an object that keeps it or a partial function that binds it."""
    if isinstance(loss, functools.partial):
        return loss.keywords.get(name, otherwise)
    return getattr(loss, name, otherwise)


@dataclass
class Seen:
    """Outputs and labels of one batch on the device: `values` are logits, or probabilities by `kind`."""

    values: Any
    soft: Any
    labels: Any
    kind: str

    def to_host(self) -> tuple[npt.NDArray[Any], ...]:
        """Logits and probabilities `[row, class]`, labels `[row]` or None.

        Raises:
            CaptureError: the labels are not one class for each row.
        """
        values, soft = self.values.numpy(), self.soft.numpy()
        binary = values.shape[1] == 1
        if binary:
            soft = np.concatenate([1 - soft, soft], axis=1)
        if self.kind == "probabilities":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log(np.maximum(soft, np.finfo(np.float32).tiny))
        elif binary:
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        labels = None if self.labels is None else self._host_labels(binary)
        return values, soft, labels  # type: ignore[return-value]

    def _host_labels(self, binary: bool) -> npt.NDArray[np.int64]:
        labels = as_array(self.labels.numpy() if hasattr(self.labels, "numpy") else self.labels)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim == 2 and binary is False and labels.shape[1] > 1 and _is_multi_hot(labels):
            raise CaptureError(
                f"the labels are multi-hot {list(labels.shape)}: multi-label tasks have no single given label "
                "for a sample and cannot be recorded"
            )
        if labels.ndim != 1:
            raise CaptureError(
                f"the loss gets labels of shape {list(labels.shape)}, wanted [batch] or [batch, 1] with one class "
                "for each sample; where they are soft (mixup, smoothing), pass the given classes of the data "
                "set as labels="
            )
        if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and binary):
            if not np.isin(labels, (0, 1)).all():
                odd = labels[~np.isin(labels, (0, 1))][0]
                raise CaptureError(
                    f"the network has one output, so labels must be 0 or 1, got {odd}; where they are soft, pass "
                    "the given classes of the data set as labels="
                )
        elif labels.dtype.kind not in "iu":
            raise CaptureError(
                f"the loss gets labels of type {labels.dtype}, wanted integers; where they are soft (mixup, "
                "smoothing), pass the given classes of the data set as labels="
            )
        return labels.astype(np.int64)


def _is_multi_hot(labels: npt.NDArray[Any]) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) != 1).any())


def _describe(value: Any) -> str:
    if isinstance(value, paddle.Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).rsplit('.', maxsplit=1)[-1]}"
    if isinstance(value, dict):
        return f"a dictionary with keys {sorted(map(str, value))}"
    return type(value).__name__
