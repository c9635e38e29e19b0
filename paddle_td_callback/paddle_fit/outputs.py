"""What is recorded of one batch: the output that holds the logits, the labels, and the rows that have a class."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

from ..errors import CaptureError
from ..recording.batches import BLOCK_BYTES, as_array, check_rows
from .index_field import FIELD_WAY
from .internals import EXPLICIT_WAY, LOSS, memory_of
from .losses import ignored_labels, layers_in, takes_probabilities

_SMALL = 16_384  # numbers of which Paddle's own copy is faster than one through DLPack
_ROUNDING = 1e-2  # of probabilities; bfloat16 keeps no more
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
    ) -> DeviceBatch:
        """Copies of what is to be recorded: of CPU tensors in memory of the reader, of others on their device.

        Args:
            loss: the model's loss; `to_host` finds out whether it takes logits or probabilities.
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
        return DeviceBatch(self._copy_of(chosen), label, loss)

    def layers_called(self, model: Any) -> list[Any]:
        """Layers that a function `logits` may call, which the training without us does not call then."""
        if not callable(self.logits):
            return []
        whole = [model.network, getattr(model, LOSS), *layers_in(self.logits)]
        return [one for one in whole if isinstance(one, paddle.nn.Layer)]

    def _copy_of(self, chosen: Any) -> Any:
        """A copy as float32, taken before the loss runs: it may work in place. On a GPU it stays there: no waiting."""
        is_copy = chosen.dtype != paddle.float32
        if is_copy:
            chosen = chosen.detach().astype("float32")
        if not chosen.place.is_cpu_place():
            return chosen if is_copy else chosen.detach().clone()
        if chosen.size <= _SMALL:
            return chosen.numpy()
        return self._staging.add(memory_of(chosen.detach()))

    def batches_of(self, steps: Sequence[DeviceBatch]) -> list[Batch | BatchError]:
        """One batch for all steps; or, if one of them is odd, a batch or an error for each."""
        if len(steps) > 1 and _are_alike(steps):
            with contextlib.suppress(Exception):  # the loop below finds the step
                return [self.to_host(steps)]
        return [self._batch_or_error(step) for step in steps]

    def _batch_or_error(self, step: DeviceBatch) -> Batch | BatchError:
        try:
            return self.to_host([step])
        except CaptureError as error:
            odd = BatchError(f"step {step.number}: {error}")
            odd.__cause__ = error
            return odd

    def to_host(self, steps: Sequence[DeviceBatch]) -> Batch:
        """What is to be recorded of some steps; all of them travel at once. The outputs hold until the next `read`.

        Args:
            steps: with the same loss, and outputs and labels of the same kind.

        Raises:
            CaptureError: the labels are not one class for each row, or the indices not one for each.
        """
        is_given, loss = self.outputs != "auto", steps[0].loss
        are_probabilities = self.outputs == "probabilities" if is_given else takes_probabilities(loss)
        parts = [step.values for step in steps]
        is_here = isinstance(parts[0], np.ndarray)
        values = self._staging.take(parts) if is_here else paddle.concat(parts).numpy()
        if are_probabilities:
            _check_range(values, is_given=is_given)
        has_one_column = values.shape[1] == 1
        if has_one_column:
            other = 1 - values if are_probabilities else np.zeros_like(values)
            values = np.concatenate([other, values], axis=1)
        labels = indices = numbers = None
        if self.reads_labels:
            given = [step.labels for step in steps]
            join = paddle.concat if isinstance(given[0], paddle.Tensor) else np.concatenate
            labels = _classes(given[0] if len(given) == 1 else join(given), has_one_column)
        if steps[0].indices is not None:
            indices = as_indices([step.indices for step in steps])
            numbers = np.repeat([step.number for step in steps], [len(step.indices) for step in steps])
        batch = Batch(values, labels, are_probabilities, has_one_column, indices, numbers)
        _check_lengths(batch)
        return batch

    def _chosen(self, outputs: tuple[Any, ...]) -> Any:
        choose = self.logits
        if callable(choose):
            with paddle.no_grad():
                return choose(*map(_cloned, outputs))  # it may work in place
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
        indices: `[row]`, the samples; None in a step that is only checked.
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


@dataclass(slots=True)
class DeviceBatch:
    """Copies of the outputs `[row, class]` and labels of one step, and the loss that was given them.

    Attributes:
        values: the outputs, float32.
        labels: of the loss, as it got them; None where they are not read.
        loss: the model's.
        indices: `[row]`, the samples, as the loader's sampler gave them; None in a step that is only checked.
        number: of the step in its epoch.
    """

    values: Any
    labels: Any
    loss: Any
    indices: Any = None
    number: int = 0


def _cloned(output: Any) -> Any:
    if isinstance(output, paddle.Tensor):
        return output.detach().clone()
    if isinstance(output, dict):
        return {key: _cloned(value) for key, value in output.items()}
    return type(output)(map(_cloned, output)) if type(output) in (list, tuple) else output


def _are_alike(steps: Sequence[DeviceBatch]) -> bool:
    """Whether steps can be read as one: the same loss and columns, and as many labels and indices as rows."""
    first = steps[0]
    for step in steps:
        n_rows, n_columns = step.values.shape
        is_same = step.loss is first.loss and n_columns == first.values.shape[1]
        if not is_same or step.indices is None or len(step.indices) != n_rows:
            return False
        if step.labels is not None and list(step.labels.shape) not in ([n_rows], [n_rows, 1]):
            return False
    return True


def as_indices(listed: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Indices of the batches of some steps as `[row]`.

    Raises:
        CaptureError: they are no integers.
    """
    joined = list(itertools.chain.from_iterable(listed))
    try:
        return np.fromiter(map(operator.index, joined), np.int64, len(joined))
    except TypeError as error:
        raise CaptureError(
            f"the batch sampler gave {str(joined)[:80]}, wanted a list of integers; yield the samples' places "
            f"in the data set, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        ) from error


def _check_range(values: npt.NDArray[np.float32], *, is_given: bool) -> None:
    low, high = values.min(initial=0), values.max(initial=0)
    if low < -_ROUNDING or high > 1 + _ROUNDING:  # NaN is counted later
        why = "outputs='probabilities'" if is_given else "the loss takes probabilities"
        raise CaptureError(
            f"{why}, but the network's outputs reach from {low:.3g} to {high:.3g}; pass outputs='logits' if the loss "
            "makes probabilities of them itself, or logits= to say which output holds them"
        )


def _check_lengths(batch: Batch) -> None:
    n_rows, indices, labels = len(batch.outputs), batch.indices, batch.labels
    if indices is not None and len(indices) != n_rows:
        found = f"{n_rows} rows" + ("" if labels is None else f" and {len(labels)} labels")
        raise CaptureError(
            f"the loss saw {found}, but the batch sampler gave {len(indices)} indices; a "
            "collate function that adds, drops or repeats samples hides which row is which: keep one "
            f"row a sample, or {FIELD_WAY}, or {EXPLICIT_WAY}"
        )
    if labels is not None and len(labels) != n_rows:
        raise CaptureError(
            f"the loss saw {n_rows} rows and {len(labels)} labels; pass logits= and label= (the places of those "
            "that belong together), or labels="
        )


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


class BatchError(CaptureError):
    """One batch cannot be recorded."""


class RowsError(CaptureError):
    """Some rows of a batch cannot be recorded."""


class RowFilter:
    """Leaves out rows that the loss ignores, and rows that cannot be recorded.

    Args:
        given: `[sample]`, the given labels; None = those of the batches.
        ignore_label: the label of samples that have none; None = what the loss ignores.
        model: whose loss may ignore labels.
        tell: is called with an error for rows that cannot be recorded.

    Attributes:
        n_lost: how many could not be recorded.
    """

    def __init__(
        self,
        given: npt.NDArray[np.int64] | None,
        ignore_label: int | None,
        model: Any,
        tell: Callable[[RowsError], None],
    ) -> None:
        self._given, self._ignore_label = given, ignore_label
        self._model, self._tell = model, tell
        self._ignored: tuple[Any, list[int]] | None = None  # by which loss, and which labels
        self.n_lost = 0

    def recordable(self, batch: Batch, n_samples: int, *, is_first: bool) -> Batch:
        """The rows that can be recorded, with their labels.

        Args:
            batch: a step; where its indices are None it is only checked.
            n_samples: of the data set.
            is_first: whether none was recorded before.

        Raises:
            ValueError: in the first step, an index outside of the data set, or no label that is a class.
        """
        indices, n_classes = batch.indices, batch.outputs.shape[1]
        if indices is not None:
            is_sample = (indices >= 0) & (indices < n_samples)
            if not is_sample.all():
                row = int(np.flatnonzero(~is_sample)[0])
                why = (
                    f"indices must be in [0, {n_samples}), got index {indices[row]}; pass n_samples= (the "
                    "largest size of the data set)"
                )
                self._lose(~is_sample, why, is_fatal=is_first)
                batch = batch.only(is_sample)
            if self._given is not None:
                self._check_number_of_labels(n_samples)
                batch = replace(batch, labels=self._given[batch.indices])
        labels = batch.labels
        if labels is None:
            return batch
        is_given = ~self._is_ignored(labels, n_classes)
        is_class = (labels >= 0) & (labels < n_classes)
        odd = is_given & ~is_class
        if odd.any():
            row = int(np.flatnonzero(odd)[0])
            whose = f"in row {row}" if batch.indices is None else f"for sample {batch.indices[row]}"
            why = (
                f"labels must be in [0, {n_classes}), got {labels[row]} {whose}; pass ignore_label= if such samples "
                "have no label, or labels= (the classes of all samples)"
            )
            if batch.has_one_column:
                why = (
                    f"the network has one output, so labels must be 0 or 1, got {labels[row]} {whose}: regression is "
                    "not supported; pass ignore_label= if such samples have no label, or labels= (0 or 1 for each)"
                )
            is_fatal = is_first and (batch.has_one_column or not (is_given & is_class).any())
            if is_fatal or indices is not None:
                self._lose(odd, why, is_fatal=is_fatal)
        return batch.only(is_given & is_class)

    def _lose(self, rows: npt.NDArray[np.bool_], why: str, *, is_fatal: bool) -> None:
        if is_fatal:
            why = f"first step: {why}"
            raise ValueError(why)
        self.n_lost += int(rows.sum())
        self._tell(RowsError(why))

    def _is_ignored(self, labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[np.bool_]:
        loss = getattr(self._model, LOSS)
        if self._ignore_label is not None:
            ignored = [self._ignore_label]
        else:
            if self._ignored is None or self._ignored[0] is not loss:
                self._ignored = loss, ignored_labels(loss, n_classes)
            ignored = self._ignored[1]
        found = np.zeros(len(labels), bool)
        for label in ignored:  # one or two
            found |= labels == label
        return found

    def _check_number_of_labels(self, n_samples: int) -> None:
        if self._given is not None and len(self._given) != n_samples:
            raise CaptureError(
                f"labels= has {len(self._given)} entries for a data set of {n_samples} samples; give one for each, in "
                "the order of the data set"
            )

    def check_labels(self, n_samples: int, n_classes: int) -> None:
        """Refuse `labels=` that do not fit the data.

        Raises:
            CaptureError: not one for each sample.
            ValueError: one is no class.
        """
        if self._given is None:
            return
        self._check_number_of_labels(n_samples)
        samples = np.flatnonzero(~self._is_ignored(self._given, n_classes))
        try:
            check_rows(samples, self._given[samples], n_samples, n_classes, "labels=")
        except ValueError as error:
            raise ValueError(f"{error}; pass ignore_label= if such samples have no label") from None
