"""Every private name of Paddle that this room touches: what each is for, and how its absence is noticed.

| name | what for | where it is not as known |
|---|---|---|
| `Model._run_one_epoch` | loader and callbacks of an epoch, its end by an exception | `check_model` refuses |
| `Model._loss` | outputs and labels of the training step | `check_model` refuses |
| `Model._inputs` | how many fields of a batch are inputs, the others being labels | `check_model` refuses |
| `Model._adapter._amp_level`, `._amp_custom_lists` | precision of the evaluation pass | full precision |
| `DataLoader._iterator`, its `._batch_sampler` | persistent workers keep their sampler | the step finds no indices |
| `_DataLoaderIterBase` | batches that come straight from Paddle's loader | `ImportError` at import |
| `_DataLoaderIter*._try_shutdown_all` | ends the workers of a pass that is cut short | they end with the process |
| `BatchNorm._mean`, `._variance` | statistics that an evaluation pass may change | not put back |
| `default_cpu_generator` | random stream of the CPU while Paddle is on a device | `AttributeError` at import |
| `default_collate_fn` | batches of an evaluation pass | `ImportError` at import |
| `NLLLoss._ignore_index`, `.ignore_index` | labels that a loss ignores | pass `ignore_label=` |
| `.use_softmax` | a loss of probabilities | pass `outputs=` |
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle.io.dataloader.collate import default_collate_fn
from paddle.io.dataloader.dataloader_iter import _DataLoaderIterBase as PaddleBatches
from paddle.utils.dlpack import to_dlpack

from ..errors import CaptureError

__all__ = ["PaddleBatches", "default_collate_fn"]

default_cpu_generator = paddle.framework.core.default_cpu_generator
RUN_ONE_EPOCH = "_run_one_epoch"
LOSS = "_loss"
BATCH_SAMPLER = "_batch_sampler"
IGNORE_INDEX = ("ignore_index", "_ignore_index")
USE_SOFTMAX = ("use_softmax",)
EXPLICIT_WAY = (
    "record with TrainingDynamicsRecorder.update(indices, logits, labels) from a loop of your own instead"
)

_EPOCH_PARAMETERS = ["data_loader", "callbacks", "mode", "logs"]


def check_model(model: Any) -> None:
    """Refuse what cannot be recorded, before training starts.

    Raises:
        CaptureError: static-graph mode, or a Paddle whose `Model` is not the known one.
    """
    if not paddle.in_dynamic_mode():
        raise CaptureError(
            "Paddle is in static-graph mode, where a callback cannot see the network's outputs; call "
            f"paddle.disable_static() before building the model, or {EXPLICIT_WAY}"
        )
    # Paddle's own: a subclass may name its arguments otherwise, since Paddle passes them by place.
    method = getattr(paddle.Model, RUN_ONE_EPOCH, None)
    parameters = list(inspect.signature(method).parameters)[1:] if callable(method) else None
    if parameters != _EPOCH_PARAMETERS:
        raise CaptureError(
            f"paddle.Model.{RUN_ONE_EPOCH} of Paddle {paddle.__version__} takes {parameters}, wanted "
            f"{_EPOCH_PARAMETERS}: this Paddle is not known to paddle_td_callback; {EXPLICIT_WAY}"
        )
    missing = [name for name in (LOSS, "_inputs") if not hasattr(model, name)]
    if missing:
        raise CaptureError(
            f"paddle.Model of Paddle {paddle.__version__} has no {missing}: this Paddle is not known to "
            f"paddle_td_callback; {EXPLICIT_WAY}"
        )


def n_inputs(model: Any) -> int:
    """How many of a batch's fields the network gets; the others are labels."""
    return len(model._inputs)


def training_precision(model: Any) -> Any:
    """A context with the mixed precision of the model's training steps."""
    adapter = model._adapter
    level = getattr(adapter, "_amp_level", "O0")
    lists = getattr(adapter, "_amp_custom_lists", {})
    return paddle.amp.auto_cast(enable=level != "O0", level=level, **lists)


def sampler_places(loader: Any, sampler: Any) -> list[tuple[Any, str]]:
    """Attributes that hold the loader's batch sampler: its own, and that of its persistent workers."""
    iterator = getattr(loader, "_iterator", None)
    kept = getattr(iterator, BATCH_SAMPLER, None) is sampler
    return [(loader, "batch_sampler"), *([(iterator, BATCH_SAMPLER)] if kept else [])]


def end_workers(iterator: Any) -> None:
    """End the worker processes of a loader's iterator that is not read to its end."""
    shut_down = getattr(iterator, "_try_shutdown_all", None)
    if shut_down is not None:
        shut_down()


def statistics_of(layer: Any) -> list[Any]:
    """Running statistics that a normalisation keeps among its parameters instead of its buffers."""
    found = [getattr(layer, name, None) for name in ("_mean", "_variance")]
    return [one for one in found if isinstance(one, paddle.Tensor)]


def has_dense_memory(tensor: Any) -> bool:
    """Whether there is memory to copy: not of a sparse tensor, nor of the dropout state of an LSTM on a CPU."""
    return tensor._is_initialized() and not tensor.is_sparse()


class _Capsule:
    """Lets NumPy make an array of a DLPack capsule, without a copy."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def memory_of(tensor: Any) -> npt.NDArray[Any]:
    """A detached tensor's own memory on the CPU."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()  # Paddle 2.6.2 tells DLPack wrong strides
    return np.from_dlpack(_Capsule(to_dlpack(tensor)))
