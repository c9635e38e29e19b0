"""What a network said of one batch: which output holds the logits, what they mean, and the labels beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle.utils.dlpack import to_dlpack

from ..errors import CaptureError
from ..recording.batches import as_array
from ..recording.blocks import BLOCK_BYTES
from .losses import takes_probabilities

OUTPUTS = ("auto", "logits", "probabilities")


class _Staging:
    """Memory for the outputs of a few steps, so that a step allocates none: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._rows = np.empty((0, 0), np.float32)
        self._n_rows = 0

    def add(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A copy of `[row, class]`, behind those that are here."""
        n_rows, n_columns = values.shape
        if self._n_rows + n_rows > len(self._rows) or n_columns != self._rows.shape[1]:
            n_least = BLOCK_BYTES // (4 * max(1, n_columns))
            self._rows, self._n_rows = np.empty((max(n_rows, n_least), n_columns), np.float32), 0
        copy = self._rows[self._n_rows : self._n_rows + n_rows]
        copy[...] = values
        self._n_rows += n_rows
        return copy

    def take(self, parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Some copies as one `[row, class]`, which holds until the next `add`."""
        n_rows, all_here = self._n_rows, all(part.base is self._rows for part in parts)
        self._n_rows = 0
        if len(parts) == 1:
            return parts[0]
        if all_here and n_rows == sum(map(len, parts)):
            return self._rows[:n_rows]
        return np.concatenate(parts)


class _Capsule:
    """What NumPy makes an array of, without a copy."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def _memory_of(tensor: Any) -> npt.NDArray[Any]:
    """A detached tensor's own memory on the CPU."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()  # Paddle 2.6.2 tells DLPack wrong strides
    return np.from_dlpack(_Capsule(to_dlpack(tensor)))


@dataclass
class OutputReader:
    """Finds logits, probabilities and labels among a network's outputs and its loss's labels.

    Args:
        logits: which output holds the logits: its place, its key in a dictionary of outputs, or a function of
            all outputs.
        label: which label of the loss is the class.
        outputs: "logits", "probabilities", or "auto" to go by the loss.
        reads_labels: whether labels are needed.
    """

    logits: int | str | Callable[..., Any] = 0
    label: int = 0
    outputs: str = "auto"
    reads_labels: bool = True
    _staging: _Staging = field(default_factory=_Staging, repr=False, compare=False)

    def read(
        self, loss: Any, outputs: Sequence[Any], labels: Sequence[Any], n_rows: int | None = None
    ) -> Seen:
        """Copies of what is to be recorded: of tensors on the CPU in memory of its own, of others on their device.

        Args:
            loss: the model's loss, which `to_host` asks whether it takes logits or probabilities.
            outputs: all outputs of the network.
            labels: all labels of the loss.
            n_rows: of the batch, where it is known.

        Raises:
            CaptureError: what can be recorded is not among them.
        """
        chosen = self._matrix(self._chosen(tuple(outputs)), n_rows)
        label = None
        if self.reads_labels:
            if not -len(labels) <= self.label < len(labels):
                raise CaptureError(
                    f"label={self.label}, but the loss gets {len(labels)} labels; pass label= (the place of the "
                    "class among them), or labels="
                )
            label = labels[self.label]
            if isinstance(label, paddle.Tensor):
                label = label.numpy() if label.place.is_cpu_place() else label.detach().clone()
        # Copies, taken before the loss runs: it may work in place. No transfer yet, so that a GPU goes on.
        chosen = chosen.detach()
        if chosen.dtype != paddle.float32:
            chosen = chosen.astype("float32")
        if chosen.place.is_cpu_place():
            return Seen(self._staging.add(_memory_of(chosen)), label, loss)
        return Seen(chosen.clone(), label, loss)

    def to_host(self, steps: Sequence[Seen]) -> Batch:
        """What is to be recorded of some steps, without indices; all of them travel at once.

        Its outputs hold until the next `read`.

        Args:
            steps: with the same loss, and outputs and labels of the same kind.

        Raises:
            CaptureError: the labels are not one class for each row.
        """
        is_said = self.outputs != "auto"
        loss = steps[0].loss
        are_probabilities = self.outputs == "probabilities" if is_said else takes_probabilities(loss)
        parts = [step.values for step in steps]
        is_here = isinstance(parts[0], np.ndarray)
        values = self._staging.take(parts) if is_here else paddle.concat(parts).numpy()
        has_one_column = values.shape[1] == 1
        if has_one_column:
            other = 1 - values if are_probabilities else np.zeros_like(values)
            values = np.concatenate([other, values], axis=1)
        labels = None
        if self.reads_labels:
            given = [step.labels for step in steps]
            join = paddle.concat if isinstance(given[0], paddle.Tensor) else np.concatenate
            labels = _classes(given[0] if len(given) == 1 else join(given), has_one_column)
        return Batch(values, labels, are_probabilities, has_one_column)

    def _chosen(self, outputs: tuple[Any, ...]) -> Any:
        choose = self.logits
        if callable(choose):
            return choose(*outputs)
        if isinstance(choose, str):
            if len(outputs) != 1 or not isinstance(outputs[0], dict) or choose not in outputs[0]:
                raise CaptureError(
                    f"logits={choose!r} names a key, but the network's outputs are "
                    f"{[_describe(output) for output in outputs]}; pass logits= (a place, a key or a function)"
                )
            return outputs[0][choose]
        if not -len(outputs) <= choose < len(outputs):
            raise CaptureError(
                f"logits={choose}, but the network has {len(outputs)} outputs; pass logits= (the place of the one "
                "that holds the logits)"
            )
        return outputs[choose]

    @staticmethod
    def _matrix(chosen: Any, n_rows: int | None) -> Any:
        """The chosen output as `[row, class]`, also where a network has squeezed it."""
        if not isinstance(chosen, paddle.Tensor) or not (
            chosen.dtype == paddle.float32 or chosen.is_floating_point()
        ):
            raise CaptureError(
                f"the logits must be a floating-point tensor, got {_describe(chosen)}; pass "
                "logits= (a place, a key or a function of the outputs) to say where they are"
            )
        if len(chosen.shape) < 2:
            return chosen.reshape([1, -1] if n_rows == 1 else [-1, 1])
        if len(chosen.shape) > 2:
            raise CaptureError(
                f"the logits must have shape [batch, class], got {list(chosen.shape)}: one label for each sample "
                "is what can be recorded, not one for each token or pixel; pass logits= if another output "
                "holds them"
            )
        return chosen


@dataclass(frozen=True)
class Batch:
    """One training step on the host, or several.

    Attributes:
        outputs: `[row, class]` float32: logits or probabilities. One logit z stands as (0, z), one probability p as
            (1 - p, p).
        labels: `[row]`, the classes that the loss was given; None where they are not read.
        are_probabilities: which of the two `outputs` are.
        has_one_column: whether the network gave one column.
        indices: `[row]`, the samples; None in a step that is only looked at.
        steps: `[row]`, the step of the epoch that each row comes from; None = all from one.
    """

    outputs: npt.NDArray[np.float32]
    labels: Any
    are_probabilities: bool
    has_one_column: bool
    indices: Any = None
    steps: Any = None

    def only(self, kept: npt.NDArray[np.bool_]) -> Batch:
        """The rows that are kept `[row]`."""
        if kept.all():
            return self
        indices, labels, steps = (
            None if part is None else part[kept] for part in (self.indices, self.labels, self.steps)
        )
        return replace(self, outputs=self.outputs[kept], labels=labels, indices=indices, steps=steps)


@dataclass(frozen=True)
class Seen:
    """Copies of the outputs `[row, class]` and labels of one step, and the loss that was given them."""

    values: Any
    labels: Any
    loss: Any


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Paddle's own softmax of `[row, class]`."""
    with paddle.no_grad():
        return np.asarray(F.softmax(paddle.to_tensor(logits), axis=-1).numpy())


def sigmoids(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities `[row, 2]` of a network of one column, by Paddle's own sigmoid; `logits` are (0, z)."""
    with paddle.no_grad():
        p = F.sigmoid(paddle.to_tensor(logits[:, 1:])).numpy()
    return np.concatenate([1 - p, p], axis=1)


def _classes(given: Any, binary: bool) -> npt.NDArray[np.int64]:
    """Labels of a loss as `[row]` classes; `binary` where the network has one output.

    Raises:
        CaptureError: they are none.
    """
    labels = as_array(given.numpy() if hasattr(given, "numpy") else given)
    if labels.ndim == 0 or (labels.ndim == 2 and labels.shape[1] == 1):
        labels = labels.reshape(-1)
    soft_way = "where they are soft (mixup, smoothing), pass the given classes of the data set as labels="
    if labels.ndim == 2 and not binary and _is_multi_hot(labels):
        raise CaptureError(
            f"the labels are multi-hot {list(labels.shape)}: multi-label tasks have no single given label "
            "for a sample and are not supported; pass labels= if there is one class for each sample all the same"
        )
    if labels.ndim != 1:
        raise CaptureError(
            f"the loss gets labels of shape {list(labels.shape)}, wanted [batch] or [batch, 1] with one class "
            f"for each sample; {soft_way}"
        )
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and binary):
        odd = labels[~np.isin(labels, (0, 1))]
        if len(odd):
            raise CaptureError(
                f"the network has one output, so labels must be 0 or 1, got {odd[0]}: regression is not supported; "
                f"{soft_way}"
            )
    elif labels.dtype.kind not in "iu":
        raise CaptureError(
            f"the loss gets labels of type {labels.dtype}, wanted integers: regression is not supported; {soft_way}"
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
