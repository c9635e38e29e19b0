"""The callback of `paddle.Model.fit` that records."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy.typing as npt
import paddle

from ..names import ordered_names
from ..recording.batches import as_integers
from ..recording.open_recorders import close_abandoned
from ..store.paths import absolute
from ..store.schema import Keep
from .fit_file import History
from .fit_session import FitSession
from .guard import guarded
from .index_field import SampleIds
from .issues_callback import recordings
from .options import RecordingOptions
from .ranks import current_ranks


class TrainingDynamicsCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """Records the network's outputs for every training sample, epoch by epoch, into one HDF5 file.

    Add it to `callbacks` of `paddle.Model.fit` and change nothing else. Training runs as without it, to the
    last bit. An epoch is on disk, whole, when its commit has ended, or it is not there at all.

    Row `i` of a batch is taken for the sample at place `i` of the sampler's batch. A collate function that adds,
    drops or repeats rows is noticed; one that permutes them is not, so keep them in the sampler's order.

    A second `fit` of the same network with the same callback continues its file. For another network, make another
    callback.

    What is wrong from the start (another file at the path, labels that are no classes, data without indices) raises
    before the end of the first step. Labels that differ from those of the file to resume raise in the first epoch,
    with several ranks at its end and on all of them. What goes wrong later never ends the training: a row with a
    label out of range is left out, a batch with another number of rows than its sampler gave is left out, both with
    a warning and a count. What cannot be repaired ends the recording with a warning.

    Args:
        path: the HDF5 file to make. An earlier recording there is kept under the next free name, such as `run-1.h5`,
            and a warning says so; see `resume` and `overwrite`.
        keep: "all" classes' probabilities, the `k` largest of them, or only that of the "given" label. Every
            score but EL2N is the same with "given"; suggested labels are coarser.
        mode: "train": the outputs of the training step itself, before its update. "eval": those of one more pass
            over the training data after each epoch, in evaluation mode and in the order of the samples.
        every: record every n-th epoch of a `fit`, beginning with its first. The others run without a tap and are not
            in the file, whose epoch `e` is then epoch `e * every` of the training.
        labels: `[sample]` integers, the given labels, where the loss does not get them as classes (mixup, soft
            labels) or shifts them; None takes the loss's.
        n_samples: size of the data set, or the largest that it will have; None asks the loader's data set.
        class_names: one for each class, for the reports: a list, or a mapping from class to name.
        index_field: where a batch of the data carries its sample indices (or ids, with `sample_ids`): a place such
            as -1, the last, or a key; the field is taken out before the model sees the batch. For data without a
            batch sampler: an IterableDataset, `batch_size=None`, a generator.
        sample_ids: `[sample]` strings or integers that name the samples, for every output: a list, or a mapping
            from index to id. None takes those of a data set that has them (`DatasetFolder`, `ImageFolder`, their
            subsets), and its class names; False takes none, so that samples are known by their indices.
        resume: continue an existing file after its last committed epoch; a number keeps that many epochs and drops
            the rest, for a checkpoint that is older than the recording.
        overwrite: replace an existing file.
        on_error: what to do with errors after the first step: "warn" and go on, or "raise".
        logits: which output of the network holds the logits: its place, its key in a dictionary of outputs, or
            a function of all outputs. Buffers of the layers that it calls, and Paddle's random streams, are put back
            after it; it must not draw from those of Python or NumPy.
        label: which of the loss's labels is the class.
        ignore_label: the label of samples that have none; None goes by the loss's `ignore_index`.
        outputs: whether the network gives "logits" or "probabilities"; "auto" goes by the loss.
        dtype: of the stored probabilities of all or the largest classes: "float16" or "float32".
        compression: "gzip" or None.
        memory_limit_bytes: where two epochs are larger, they are kept in a nameless file beside the store
            instead of in memory; None = a quarter of the machine's memory.

    Attributes:
        path: absolute.

    Raises:
        TypeError: names or ids without an order.
        ValueError: an argument out of range.
        CaptureError: from `fit`, a training that cannot be recorded as it stands.
        StoreError: from `fit`, a path that cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: Keep = "all",
        mode: str = "train",
        every: int = 1,
        labels: npt.ArrayLike | None = None,
        n_samples: int | None = None,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        index_field: int | str | None = None,
        sample_ids: Sequence[Any] | Mapping[int, Any] | Literal[False] | None = None,
        resume: bool | int = False,
        overwrite: bool = False,
        on_error: str = "warn",
        logits: int | str | Callable[..., Any] = 0,
        label: int = 0,
        ignore_label: int | None = None,
        outputs: str = "auto",
        dtype: str = "float16",
        compression: str | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.path = absolute(path)  # the training may change the working folder
        self._options = RecordingOptions(
            path=self.path,
            keep=keep,
            mode=mode,
            every=every,
            labels=None
            if labels is None
            else as_integers(labels, "labels").copy(),  # the caller may change them
            n_samples=n_samples,
            class_names=ordered_names(class_names, "class_names"),
            index_field=index_field,
            sample_ids=None if sample_ids is None or sample_ids is False else SampleIds(sample_ids),
            takes_names=sample_ids is not False,
            resume=resume,
            overwrite=overwrite,
            on_error=on_error,
            logits=logits,
            label=label,
            ignore_label=ignore_label,
            outputs=outputs,
            dtype=dtype,
            compression=compression,
            memory_limit_bytes=memory_limit_bytes,
        )
        self._history = History()
        self.session: FitSession | None = None
        current_ranks()  # the heartbeat begins, so the others know that this rank lives, however late its fit begins

    @property
    def n_recorded(self) -> int:
        """Epochs of the current or last `fit` that were recorded."""
        return 0 if self.session is None else self.session.n_epochs

    @property
    def n_skipped(self) -> int:
        """Rows of it that were left out, because their label is no class or their index no sample."""
        return 0 if self.session is None else self.session.n_skipped

    @property
    def n_nonfinite(self) -> int:
        """Rows of it with NaN or infinite outputs; they are recorded as unseen."""
        return 0 if self.session is None else self.session.n_nonfinite

    def _judge(self, error: Exception, hook: str) -> None:
        if self.session is None:
            raise error
        self.session.judge(error)

    def set_params(self, params: dict[str, Any]) -> None:
        """Show the finders of the fit, before it begins, that this callback is in it."""
        super().set_params(params)
        recordings.add(self)

    @guarded
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse what cannot be recorded before a step is run."""
        # Close what a fit that failed between two epochs has left: this callback's, or an earlier one's of this path.
        if self.session is not None:
            self.session.abandon("its fit ended early")
        close_abandoned(self.path)
        self.session = FitSession(self._options, self.model, self.params, self._history)
        self.session.begin()

    @guarded
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Make the coming epoch run under the taps."""
        if self.session is not None:
            self.session.begin_epoch(epoch)

    @guarded
    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Record the step that has ended."""
        if self.session is not None:
            self.session.end_step(step)

    @guarded
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Commit the epoch in the background."""
        if self.session is not None:
            self.session.end_epoch()

    @guarded
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last commit and release the file."""
        if self.session is not None:
            self.session.end()
