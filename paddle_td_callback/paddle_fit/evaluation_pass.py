"""The pass of `mode="eval"`: every training sample once, in order, by the network in evaluation mode.

It restores what training uses: the training flag of every sublayer, the buffers of the network, and the state of
every random generator of the process that can be found.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from ..errors import CaptureError
from ..messages import Forgiving
from .internals import (
    LOSS,
    default_collate_fn,
    default_cpu_generator,
    end_workers,
    n_inputs,
    training_precision,
)
from .kept_state import keep, kept
from .outputs import Batch, OutputReader

_DEFAULT_BATCH_SIZE = 64


class EvaluationPass:
    """Reads a training loader's data set in sample order, with its collate function and workers.

    Args:
        model: the fitting `paddle.Model`.
        loader: what it trains on: a `paddle.io.DataLoader` over a map-style data set.
        reader: finds logits and labels among the network's outputs and the labels of the data.
        strip: takes an index field out of a batch of data, or None.
        rank: of this process.
        n_ranks: each takes one contiguous part of the samples.

    Raises:
        CaptureError: the loader's data cannot be read by sample index.
    """

    def __init__(
        self,
        model: Any,
        loader: Any,
        reader: OutputReader,
        *,
        strip: Callable[[Any], Any] | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        dataset: Any = getattr(loader, "dataset", None)
        if not isinstance(loader, paddle.io.DataLoader) or isinstance(dataset, paddle.io.IterableDataset):
            raise CaptureError(
                f"mode='eval' reads the training data once more by sample index, which {_describe(loader)} does not "
                "allow; give fit a map-style paddle.io.Dataset or a DataLoader over one, or pass mode='train'"
            )
        n_samples = len(dataset)
        self._model = model
        self._loader = loader
        self._reader = reader
        self._strip = strip
        self._shards = [
            range(n_samples * r // n_ranks, n_samples * (r + 1) // n_ranks) for r in range(n_ranks)
        ]
        self._shard = self._shards[rank]
        sampler = getattr(loader, "batch_sampler", None)
        size = getattr(sampler, "batch_size", None)
        self._batch_size = size if isinstance(size, int) and size > 0 else _DEFAULT_BATCH_SIZE

    def run(
        self,
        record: Callable[[Batch], None],
        *,
        agree: Callable[[bool], bool] = lambda well: well,
        description: str = "",
        progress: bool = False,
    ) -> None:
        """Hand every batch to `record`.

        Args:
            record: takes one batch.
            agree: is called after each step with whether this rank can go on; returns whether all ranks can.
            description: of the progress bar.
            progress: whether to show it.

        Raises:
            CaptureError: an output or a label cannot be recorded. If another rank cannot go on, the pass ends.
        """
        n_steps = max(-(-len(shard) // self._batch_size) for shard in self._shards)
        failure: Exception | None = None
        with (
            tqdm(
                total=len(self._shard),
                desc=description,
                unit="sample",
                leave=False,
                disable=not progress,
                file=Forgiving(sys.stderr),
            ) as bar,
            undisturbed(self._model.network, *self._reader.layers_called(self._model)),
            contextlib.closing(self._batches()) as batches,  # with its workers, whatever ends the pass
        ):
            for _ in range(n_steps):
                try:
                    batch = next(batches, None)
                    if batch is not None:
                        record(batch)
                        bar.update(len(batch.indices))
                except Exception as error:
                    failure = error
                if not agree(failure is None):
                    break
        if failure is not None:
            raise failure

    def _batches(self) -> Generator[Batch, None, None]:
        batches = _Shard(self._shard, self._batch_size)
        if not len(batches):
            return
        read = iter(self._data(batches))
        try:
            for indices, data in zip(batches, read, strict=False):
                if self._strip is not None:
                    data = self._strip(data)
                yield self._outputs_of(np.asarray(indices, np.int64), paddle.utils.flatten(data))
        finally:
            # Paddle's loader ends its workers when it is read to its end, which never happens here.
            end_workers(read)

    def _data(self, batches: _Shard) -> Any:
        like = self._loader
        if like.num_workers == 0:
            # Not through Paddle's reader thread: if a sample raises there, the loader may wait for ever.
            collate = like.collate_fn or default_collate_fn
            return (collate([like.dataset[i] for i in indices]) for indices in batches)
        return paddle.io.DataLoader(
            like.dataset,
            batch_sampler=batches,
            places=like.places,
            return_list=True,
            collate_fn=like.collate_fn,
            num_workers=like.num_workers,
            use_buffer_reader=like.use_buffer_reader,
            prefetch_factor=like.prefetch_factor,
            use_shared_memory=like.use_shared_memory,
            timeout=like.timeout,
            worker_init_fn=like.worker_init_fn,
        )

    def _outputs_of(self, indices: Any, data: Sequence[Any]) -> Batch:
        model = self._model
        data = [x if isinstance(x, paddle.Tensor) else paddle.to_tensor(x) for x in data]
        inputs, labels = data[: n_inputs(model)], data[n_inputs(model) :]
        with paddle.no_grad(), training_precision(model):
            outputs = model.network(*inputs)
        listed = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        with paddle.no_grad():
            seen = self._reader.read(getattr(model, LOSS), listed, labels, len(indices))
        batch = self._reader.to_host([seen])
        if len(batch.outputs) != len(indices):
            raise CaptureError(
                f"the evaluation pass asked for {len(indices)} samples and the network returned "
                f"{len(batch.outputs)} rows; "
                "a collate function that adds, drops or repeats samples hides which row is which: keep one row a "
                "sample, or pass mode='train' and index_field="
            )
        return replace(batch, indices=indices)


class _Shard:
    """A batch sampler over a range of samples, in order."""

    def __init__(self, samples: range, batch_size: int) -> None:
        self._samples = samples
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._samples), self.batch_size):
            yield list(self._samples[start : start + self.batch_size])

    def __len__(self) -> int:
        return -(-len(self._samples) // self.batch_size)


@contextlib.contextmanager
def undisturbed(network: Any, *others: Any) -> Iterator[None]:
    """Put the network in evaluation mode for a while.

    Then restore its state and that of other layers, whatever its own methods raise.
    """
    was_training = network.training
    with random_streams_kept(), contextlib.ExitStack() as undo:
        undo.callback(keep(network, *others))
        if was_training:
            undo.callback(network.train)  # which may do more than set flags, such as swap averaged weights
        network.eval()
        yield


@contextlib.contextmanager
def unchanged_by_a_call(*layers: Any) -> Iterator[None]:
    """Restore, after a call in a step that the training does not make, the state of layers and Paddle's streams.

    Other streams are let alone: a thread that reads the next batches may draw from them meanwhile.
    """
    cpu = default_cpu_generator()
    cpu_state, device_states = cpu.get_state(), paddle.get_rng_state()
    try:
        with kept(*layers):
            yield
    finally:
        if _numbers(cpu.get_state()) != _numbers(cpu_state):
            cpu.set_state(cpu_state)
        if list(map(_numbers, paddle.get_rng_state())) != list(map(_numbers, device_states)):
            paddle.set_rng_state(device_states)


def _numbers(state: Any) -> list[str]:
    """What a generator's state holds, without addresses."""
    return [word for word in str(state).split() if not word.startswith("0x")]


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Restore the state of every random stream.

    These are Paddle's on the CPU and on the devices in use, and every `random.Random`, `numpy.random.Generator` and
    `numpy.random.RandomState` of the process, including the global ones and those of a data set.
    """
    # A generator of a data set may hang anywhere: on it, on a transform, in a closure, in a module.
    # By its type: `isinstance` asks a stand-in for its class, which may run foreign code, or raise.
    streams = [obj for obj in gc.get_objects() if issubclass(type(obj), _STREAMS)]
    states = [(stream, _state_of(stream)) for stream in streams]
    cpu = default_cpu_generator()
    cpu_state, device_states = cpu.get_state(), paddle.get_rng_state()
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        paddle.set_rng_state(device_states)
        cpu.set_state(cpu_state)
        for stream, state in states:
            _set_state(stream, state)


_STREAMS = (random.Random, np.random.BitGenerator, np.random.Generator, np.random.RandomState)


def _state_of(stream: Any) -> Any:
    """Its state; None where it has none that can be had, such as `random.SystemRandom`."""
    with contextlib.suppress(Exception):  # of a subclass
        if isinstance(stream, np.random.Generator):
            return stream.bit_generator.state
        if isinstance(stream, np.random.BitGenerator):
            return stream.state
        return stream.get_state() if isinstance(stream, np.random.RandomState) else stream.getstate()
    return None


def _set_state(stream: Any, state: Any) -> None:
    if state is None:
        return
    with contextlib.suppress(Exception):  # as above; the other streams are restored all the same
        if isinstance(stream, np.random.Generator):
            stream.bit_generator.state = state
        elif isinstance(stream, np.random.BitGenerator):
            stream.state = state
        elif isinstance(stream, np.random.RandomState):
            stream.set_state(state)
        else:
            stream.setstate(state)


def _describe(loader: Any) -> str:
    dataset = getattr(loader, "dataset", None)
    return (
        type(loader).__name__
        if dataset is None
        else f"a {type(loader).__name__} over {type(dataset).__name__}"
    )
