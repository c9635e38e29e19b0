"""The callback of `paddle.Model.fit` that records."""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from ..errors import CaptureError
from ..recording.arguments import check_on_error, gzip_level_of
from ..recording.batches import as_integers, check_indices, check_labels, check_rows
from ..recording.gathering import Ranks, RanksEndedError, RanksLostError
from ..recording.open_recorders import close_abandoned, is_open
from ..recording.recorder import TrainingDynamicsRecorder
from ..store.paths import check_path
from ..store.schema import Keep, Layout, is_whole
from .evaluation_pass import EvaluationPass
from .index_field import FieldTap, SampleIds, split_field
from .issues_callback import LabelIssuesCallback, recordings
from .outputs import OUTPUTS, OutputReader
from .ranks import current_ranks
from .rendezvous import MISSING_CALLBACK, Session, SharedResult, first_line
from .taps import (
    Batch,
    EpochTap,
    IndexTap,
    LossTap,
    call_before_steps,
    check_model,
    find_n_samples,
    intercept_next_epoch,
)

_MANY_CLASSES = 2**31 - 1  # more than any network has


class TrainingDynamicsCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """Records what the network says of every training sample, epoch by epoch, into one HDF5 file.

    Add it to `callbacks` of `paddle.Model.fit` and change nothing else. Training runs as without it, to the
    last bit. An epoch is on disk, whole, when its commit has ended, or it is not there at all.

    A row of a batch is taken for the sample that the batch sampler dealt in its place. A collate function that adds,
    drops or repeats rows is noticed; one that permutes them is not, so keep them in the sampler's order.

    A second `fit` of the same network with the same callback goes on in the callback's own file. For another
    network, make another callback.

    What is wrong from the start (the path exists, labels that are no classes, data without indices) raises
    before the end of the first step; labels that are not those of the file to resume raise in the first epoch,
    with several ranks on all of them at its end.
    What goes wrong later warns once and lets training go on.

    Args:
        path: the HDF5 file to make.
        keep: "all" classes' probabilities, the `k` largest of them, or only that of the "given" label. Every
            score but EL2N is the same with "given"; suggested labels are coarser.
        mode: "train": the outputs of the training step itself, before its update. "eval": those of one more pass
            over the training data after each epoch, in evaluation mode and in the order of the samples.
        labels: `[sample]` integers, the given labels, where the loss does not get them as classes (mixup, soft
            labels); None takes the loss's.
        n_samples: size of the data set; None asks the loader's data set.
        class_names: one for each class, for the reports.
        index_field: where a batch of the data carries its sample indices (or ids, with `sample_ids`): a place such
            as -1, the last, or a key; the field is taken out before the model sees the batch. For data without a
            batch sampler: an IterableDataset, `batch_size=None`, a generator.
        sample_ids: `[sample]` strings or integers that name the samples, for every output; None = their places in
            the data set.
        resume: continue an existing file after its last committed epoch.
        overwrite: replace an existing file.
        on_error: what to do with errors after the first step: "warn" once and go on, or "raise".
        logits: which output of the network holds the logits: its place, its key in a dictionary of outputs, or
            a function of all outputs.
        label: which of the loss's labels is the class.
        outputs: whether the network gives "logits" or "probabilities"; "auto" goes by the loss.
        dtype: of the stored probabilities of all or the largest classes: "float16" or "float32".
        compression: "gzip" or None.
        memory_limit_bytes: where two epochs are larger, they are kept in a nameless file beside the store
            instead of in memory; None = a quarter of the machine's memory.

    Attributes:
        path: absolute.
        n_recorded: epochs of the current or last `fit` that were recorded.
        n_nonfinite: rows of it with NaN or infinite outputs; they are recorded as unseen.

    Raises:
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
        labels: npt.ArrayLike | None = None,
        n_samples: int | None = None,
        class_names: Sequence[str] | None = None,
        index_field: int | str | None = None,
        sample_ids: Sequence[Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        on_error: str = "warn",
        logits: int | str | Callable[..., Any] = 0,
        label: int = 0,
        outputs: str = "auto",
        dtype: str = "float16",
        compression: str | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        super().__init__()
        check_on_error(on_error)
        ids = None if sample_ids is None else SampleIds(sample_ids)
        if n_samples is not None and (not is_whole(n_samples) or n_samples < 1):
            raise ValueError(f"n_samples must be a whole number of at least 1, got {n_samples!r}")
        if ids is not None:
            if n_samples not in (None, len(ids)):
                raise ValueError(f"n_samples={n_samples}, but there are {len(ids)} sample_ids")
            n_samples = len(ids)
        layout = Layout(  # checks what is known; the sizes may not be so far
            n_samples=1 if n_samples is None else int(n_samples),
            n_classes=_MANY_CLASSES,
            keep=keep,
            dtype=dtype,
            mode=mode,
            gzip_level=gzip_level_of(compression),
        )
        if outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {OUTPUTS}, got {outputs!r}")
        self.path = os.path.abspath(path)  # the training may change the working folder
        self._labels = None if labels is None else as_integers(labels, "labels")
        self._n_samples = n_samples
        if self._labels is not None and n_samples not in (None, len(self._labels)):
            raise ValueError(f"labels= has {len(self._labels)} entries for {n_samples} samples")
        self._mode = mode
        self._index_field = index_field
        self._ids = ids
        self._resume = resume
        self._overwrite = overwrite
        self._on_error = on_error
        self._reader = OutputReader(logits=logits, label=label, outputs=outputs, tap_labels=labels is None)
        self._recorder_options: dict[str, Any] = {
            "keep": layout.keep,
            "mode": mode,
            "class_names": class_names,
            "sample_ids": None if ids is None else ids.names,
            "dtype": dtype,
            "compression": compression,
            "memory_limit_bytes": memory_limit_bytes,
            "on_error": on_error,
        }
        self._recorder: TrainingDynamicsRecorder | None = None
        self._tap: EpochTap | None = None
        self._first_step: LossTap | None = None
        self._loader: Any = None
        self._ranks: Ranks | None = None
        self._session: Session | None = None  # of all ranks, from the start of a fit to its end
        self._leave_when_fit_is_gone: weakref.finalize[..., Any] | None = None
        self._classes_agreed = False
        self._padded = False
        self._in_fit = False
        self._in_epoch = False
        self.n_recorded = 0
        self.n_nonfinite = 0
        self._like_sigmoid = False
        self._stopped = False
        self._ranks_ended = False
        self._resumed = False  # as all ranks agreed
        self._refusal: Exception | None = None  # of the first epoch of a resumed recording
        self._skipped_batches = 0
        self._began = False
        self._network: weakref.ref[Any] | None = None  # whose training this callback has begun to record
        self._is_new_file = False
        self._call_off: Callable[[], None] | None = None
        current_ranks()  # shows the others from here on that this one lives, however late its fit begins

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse what cannot be recorded before a step is run."""
        # What a fit that died between two epochs left: this callback's, or an earlier one's of the same path.
        if self._call_off is not None:
            self._call_off()
        self._in_fit = True
        self._recorder = None
        self.n_recorded = self.n_nonfinite = 0
        recordings.add(self)
        self._skipped_batches = 0
        close_abandoned(self.path)
        self._stopped = self._ranks_ended = self._classes_agreed = self._resumed = False
        self._refusal = None
        self._leave("its fit ended early")
        self._ranks = current_ranks()
        session = None if self._ranks is None else self._ranks.session("fit")
        try:
            self._refuse_early()
        except Exception as error:
            if session is not None:
                session.barrier(error)
            raise
        if session is not None:
            session.barrier(hint=MISSING_CALLBACK)
        self._session = session

    def _refuse_early(self) -> None:
        check_model(self.model)
        if self.params.get("epochs") == 0:
            raise CaptureError(
                "fit was called with epochs=0: there is nothing to record; give epochs=1 or more"
            )
        same = self._network is not None and self._network() is self.model.network
        if self._began and not same and not self._resume:
            raise CaptureError(
                f"'{self.path}' holds the training of another network, recorded by this callback; use a new callback "
                "with a path of its own, or resume=True to append to it on purpose"
            )
        if self._ranks is None or self._ranks.rank == 0:
            # A second fit with the same callback goes on in its own file.
            resume = self._resume or self._began
            check_path(self.path, resume=resume, overwrite=self._overwrite and not self._began)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Make the coming epoch run under the taps."""
        self._loader = None
        self._in_epoch = True
        if self._call_off is not None:
            self._call_off()
        # Where recording has ended, the model still cannot take the index field.
        if not self._stopped or self._index_field is not None:
            self._call_off = intercept_next_epoch(self.model, self, self._tapped)

    @contextlib.contextmanager
    def _tapped(self, loader: Any, callbacks: Any) -> Iterator[Any]:
        self._loader = loader
        if self._session is not None and self._leave_when_fit_is_gone is None:
            # Where fit dies between two epochs, nobody tells the callback.
            self._leave_when_fit_is_gone = weakref.finalize(
                callbacks, self._session.leave, "its fit ended between two epochs"
            )
            self._leave_when_fit_is_gone.atexit = False
        indices: IndexTap | FieldTap | None = None
        stop_arming: Callable[[], None] | None = None
        try:
            if sum(callback is self for callback in callbacks) > 1:
                raise CaptureError("this callback is twice among the callbacks of fit; give it once")
            indices = self._tap_indices(loader)
            if self._stopped:
                pass  # only the field is taken out
            elif indices is not None and self._mode == "train":
                self._tap = EpochTap(self.model, indices, self._reader)
            elif self._mode == "eval" and self._recorder is None:
                self._first_step = LossTap(self.model, self._reader)
            tap = self._tap or self._first_step
            if tap is not None:
                stop_arming = call_before_steps(callbacks, tap.arm)
        except CaptureError as error:
            self._give_up(error)
        try:
            self._share_issues(callbacks)
            yield loader if indices is None else indices.loader
        except BaseException as death:
            # fit dies here without on_train_end: the epoch under way is forgotten, the others stay.
            self._leave(f"its fit ended by {type(death).__name__}: {first_line(death)}")
            try:
                self._close_recorder()
            except Exception as error:  # must not hide what fit died of
                self._warn(str(error))
            raise
        finally:
            if stop_arming is not None:
                stop_arming()
            for one in (self._tap, self._first_step, indices):
                if one is not None:
                    one.remove()
            self._tap = self._first_step = None

    def _tap_indices(self, loader: Any) -> IndexTap | FieldTap | None:
        if self._mode == "eval" and not self._stopped:
            self._evaluation(loader)  # refuses what it cannot read
        sampler = getattr(loader, "batch_sampler", None)
        padding = paddle.io.DistributedBatchSampler
        self._padded = isinstance(sampler, padding) and type(sampler).__iter__ is padding.__iter__
        if self._index_field is not None:
            return FieldTap(loader, self._index_field, self._ids)
        return None if self._mode == "eval" else IndexTap(loader)

    def _evaluation(self, loader: Any) -> EvaluationPass:
        field, ranks = self._index_field, self._ranks
        return EvaluationPass(
            self.model,
            loader,
            self._reader,
            strip=None if field is None else lambda batch: split_field(batch, field)[1],
            rank=0 if ranks is None else ranks.rank,
            n_ranks=1 if ranks is None else ranks.size,
        )

    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Take the step's outputs to the host, after Paddle took the loss there, and record them."""
        if self._first_step is not None and not self._stopped:
            self._check_first_step(self._first_step)
        if self._tap is None or self._stopped:
            return
        try:
            batch = self._tap.take()
        except Exception as error:
            if self._recorder is None:
                self._give_up(error)
            else:
                self._skip(step, error)
            return
        if batch is None:  # this callback hears of the step a second time, from another one
            return
        try:
            self._record(batch)
        except Exception as error:  # whatever it is, the training must not die of it later on
            self._give_up(error)

    def _check_first_step(self, tap: LossTap) -> None:
        """See before the first epoch is spent whether the pass after it can be recorded."""
        try:
            logits, _, labels = tap.take()
            if labels is not None:
                ignored = labels == self._reader.ignored_label(self.model._loss)
                check_labels(np.where(ignored, 0, labels), logits.shape[1], "first step")
            self._doubt(logits)
            self._open_recorder(logits.shape[1])
        except Exception as error:
            self._give_up(error)
        finally:
            tap.remove()
            self._first_step = None

    def _record(self, batch: Batch) -> None:
        labels = batch.labels
        if labels is None:
            labels = self._labels_of(batch.indices)
        kept = labels != self._reader.ignored_label(self.model._loss)
        if not kept.all():
            labels, batch = labels[kept], batch.only(kept)
        recorder = self._recorder
        is_first = recorder is None
        if recorder is None:  # refuse a first batch before a file is made, or one replaced
            check_rows(batch.indices, labels, self._count_samples(), batch.logits.shape[1], "first step")
            self._doubt(batch.logits)
            recorder = self._open_recorder(batch.logits.shape[1])
        if self._like_sigmoid and not self.n_recorded:
            self._like_sigmoid = self._reader.may_be_sigmoid(batch.logits)
        try:
            recorder.update(batch.indices, batch.logits, labels, probabilities=batch.probabilities)
            self.n_nonfinite = recorder.n_nonfinite
        except Exception as error:
            # Labels that are not those of the file to go on with were wrong from the start, wherever in the epoch.
            # With several ranks, all of them raise at the end of the epoch.
            from_the_start = (
                isinstance(error, CaptureError)
                and self._resumes()
                and not self.n_recorded
                and not self._ranks
            )
            if is_first or from_the_start:
                self._close_recorder()
            raise

    def _doubt(self, logits: npt.NDArray[np.float32]) -> None:
        """Say what is odd about the first batch."""
        doubts = self._reader.doubts(logits)
        if doubts is not None:
            self._warn(doubts)
        self._like_sigmoid = True  # until a batch shows that it is none

    def _count_samples(self) -> int:
        return find_n_samples(self._loader) if self._n_samples is None else self._n_samples

    def _open_recorder(self, n_classes: int) -> TrainingDynamicsRecorder:
        n_samples = self._count_samples()
        if self._labels is not None:
            self._check_labels(self._labels, n_samples, n_classes)
        if is_open(self.path):
            raise CaptureError(
                f"'{self.path}' is being recorded by another callback of this fit; give each a path of its own"
            )
        resume = self._resume or self._began
        self._is_new_file = not self._resumes()
        self._recorder = TrainingDynamicsRecorder(
            self.path,
            n_samples=n_samples,
            n_classes=n_classes,
            resume=resume,
            overwrite=self._overwrite and not self._began,
            expected_epochs=self.params.get("epochs"),
            distributed=self._ranks or False,
            **self._recorder_options,
        )
        self._began = True
        self._network = weakref.ref(self.model.network)
        return self._recorder

    def _resumes(self) -> bool:
        """Whether there is, or was, a file to go on with, as far as this rank can see."""
        if self._recorder is not None:
            return not self._is_new_file
        return (self._resume or self._began) and os.path.exists(self.path)

    def _labels_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        assert self._labels is not None
        if self._recorder is None:
            self._check_n_labels(self._labels, self._count_samples())
        check_indices(indices, len(self._labels), "labels=")
        return self._labels[indices]

    def _check_n_labels(self, labels: npt.NDArray[np.int64], n_samples: int) -> None:
        if len(labels) != n_samples:
            raise CaptureError(
                f"labels= has {len(labels)} entries for a data set of {n_samples} samples; give one for each, in the "
                "order of the data set"
            )

    def _check_labels(self, labels: npt.NDArray[np.int64], n_samples: int, n_classes: int) -> None:
        self._check_n_labels(labels, n_samples)
        rows = np.flatnonzero(labels != self._reader.ignored_label(self.model._loss))
        check_rows(rows, labels[rows], n_samples, n_classes, "labels=")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Commit the epoch, beside the training that goes on."""
        if not self._in_epoch:
            return
        self._in_epoch = False
        if self._mode == "eval":
            if not self._stopped and self._loader is not None:
                self._evaluate(epoch)
            elif self._stopped and self._ranks is not None and not self._ranks_ended:
                # The others may not know yet, and meet in the first step of their pass.
                with contextlib.suppress(RanksEndedError):
                    self._all_well(self._ranks, False)
        if self._ranks is not None:
            self._end_epoch_of_ranks(self._ranks)
        elif self._recorder is not None and not self._stopped:
            try:
                self._recorder.end_epoch()
                self._count_epoch()
            except Exception as error:
                self._give_up(error)

    def _count_epoch(self) -> None:
        self.n_recorded += 1
        if self._recorder is not None:
            self.n_nonfinite = self._recorder.n_nonfinite
        if self.n_recorded == 1 and self._like_sigmoid:
            self._warn(
                "the network's one output is recorded as a logit, as the loss takes it, but was in [0, 1] all through "
                "the first epoch, like a sigmoid's; pass outputs='probabilities' if it is one, or outputs='logits' to "
                "say that it is not"
            )

    def _evaluate(self, epoch: int) -> None:
        ranks = self._ranks
        first_rank = ranks is None or ranks.rank == 0
        try:
            self._evaluation(self._loader).run(
                self._record,
                agree=(lambda well: well) if ranks is None else lambda well: self._all_well(ranks, well),
                description=f"training dynamics, epoch {epoch + 1}",
                progress=bool(self.params.get("verbose", 1)) and first_rank,
            )
        except (
            Exception
        ) as error:  # also what the data set or the network raises: training did without this pass
            self._give_up(error)

    def _all_well(self, ranks: Ranks, well: bool) -> bool:
        try:
            return bool(ranks.all_gather([int(well)]).all())
        except RanksEndedError:
            self._ranks_ended = True
            raise

    def _end_epoch_of_ranks(self, ranks: Ranks) -> None:
        """All ranks come here at the end of every epoch, until they have agreed to record no more."""
        if self._ranks_ended:
            return
        try:
            if not self._classes_agreed:
                known = 0 if self._recorder is None else self._recorder.layout.n_classes
                agreed = ranks.all_gather([known, int(self._resumes())])
                n_classes, self._resumed = int(agreed[:, 0].max()), bool(agreed[0, 1])
                if n_classes == 0:
                    return
                self._classes_agreed = True
                if self._recorder is None:  # no batch came to this rank
                    self._open_recorder(n_classes)
            assert self._recorder is not None
            self._recorder.agree_on_epoch(failed=self._stopped, count_once=self._padded)
            self._count_epoch()
        except CaptureError as error:
            self._ranks_ended = isinstance(error, RanksEndedError)
            refusal, self._refusal = self._refusal or error, None
            if self._resumed and self.n_recorded == 0 and not isinstance(error, RanksLostError):
                # Wrong from the start, and all ranks are here to say so.
                self._leave(f"its recording ended: {refusal}")
                self._close_recorder()
                raise refusal from None
            if not self._stopped or refusal is not error:
                self._stop(refusal)
            if self._ranks_ended:
                self._close_recorder()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last commit and release the file; with several ranks, for that of rank 0."""
        if not self._in_fit:  # told twice, also by another callback
            return
        self._in_fit = False
        if self._recorder is None and self._ranks is None and not self._stopped:
            self._warn(
                "no training step was seen, so nothing is recorded; is the loader empty? A callback made of others "
                "must hand on set_model, set_params, on_train_*, on_epoch_* and on_train_batch_end"
            )
        try:
            self._close_recorder()
        except BaseException as error:
            self._leave(f"its recording ended by {type(error).__name__}: {first_line(error)}")
            raise
        fit = None if self._leave_when_fit_is_gone is None else self._leave_when_fit_is_gone.peek()
        session = self._end_session()
        if session is not None:
            try:
                session.barrier()
            except CaptureError as error:
                self._warn(f"{error}; committed epochs stay")
            if fit is not None:  # where it dies now, a finder of the others would wait for ours
                weakref.finalize(fit[0], session.leave, "its fit has ended").atexit = False
        if self._skipped_batches:
            self._warn(f"{self._skipped_batches} batches in all could not be recorded")
            self._skipped_batches = 0

    def _close_recorder(self) -> None:
        if self._recorder is None:
            return
        recorder, self._recorder = self._recorder, None
        is_empty = recorder.n_epochs == 0
        recorder.close()
        if is_empty and self._is_new_file and (self._ranks is None or self._ranks.rank == 0):
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # a file without an epoch would only be in the way of the next try
            self._began = False

    def _end_session(self) -> Session | None:
        """The session of this fit, which is left alone from now on."""
        if self._leave_when_fit_is_gone is not None:
            self._leave_when_fit_is_gone.detach()
            self._leave_when_fit_is_gone = None
        session, self._session = self._session, None
        return session

    def _leave(self, reason: str) -> None:
        """Tell the other ranks not to wait for this one in what is left of the fit."""
        session = self._end_session()
        if session is not None:
            session.leave(reason)

    def _share_issues(self, callbacks: Any) -> None:
        """Let the finders of this recording's issues know that one rank finds and the others get the result."""
        session = self._session
        if session is None or self._classes_agreed:
            return
        finders = [
            callback
            for callback in callbacks
            if isinstance(callback, LabelIssuesCallback) and callback.path == self.path
        ]
        for number, finder in enumerate(finders):
            finder.share(SharedResult(session, str(number)))

    def _skip(self, step: int, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        if self._skipped_batches == 0:
            self._warn(f"step {step}: {error}; this batch is left out, training and recording go on")
        self._skipped_batches += 1

    def _give_up(self, error: Exception) -> None:
        """Raise what was wrong from the start; later, keep what is committed and let training go on."""
        if self._recorder is None or self._on_error == "raise":
            raise error
        from_the_start = self._resumes() and self.n_recorded == 0 and isinstance(error, CaptureError)
        if self._ranks is None:
            self._close_recorder()
            if from_the_start:
                raise error
        elif from_the_start:
            self._stopped, self._refusal = True, error
            return  # all ranks raise at the end of the epoch
        self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Record no more. With several ranks, the others are told at the end of the epoch."""
        if self._on_error == "raise":
            raise error
        self._stopped = True
        self._warn(f"{error}; recording ends here, committed epochs stay, training goes on")

    def _warn(self, message: str) -> None:
        warnings.warn(f"'{self.path}': {message}", RuntimeWarning, stacklevel=3)
