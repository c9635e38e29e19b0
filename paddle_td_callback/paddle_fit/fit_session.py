"""All that lives for one fit: its taps, its file, and what an error costs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import paddle

from ..dataset_names import selection_of
from ..errors import CaptureError
from ..messages import warn
from ..recording.batches import BLOCK_BYTES
from ..recording.gathering import RanksEndedError, RanksLostError
from ..recording.recorder import TrainingDynamicsRecorder
from .evaluation_pass import EvaluationPass
from .fit_file import FitFile, History
from .fit_ranks import FitRanks
from .index_field import FIELD_WAY
from .internals import LOSS, RUN_ONE_EPOCH, check_model
from .options import RecordingOptions
from .outputs import Batch, BatchError, DeviceBatch, RowFilter, RowsError
from .plausibility import Plausibility
from .rendezvous import first_line
from .replacement import LastCallback, Replacement, intercept_next_epoch
from .taps import StepTap, TappedLoader, real_loader

_MOST_STEPS = 64  # that wait; more of them make a step no cheaper


class FitSession:
    """One `fit` and its recording.

    Args:
        options: what to record.
        model: the fitting `paddle.Model`.
        params: that Paddle made for this fit.
        history: of earlier fits with the same callback.

    Attributes:
        n_epochs: that were recorded.
        n_nonfinite: rows with NaN or infinite outputs.
        dataset: what is trained on, None = unknown.
    """

    def __init__(
        self, options: RecordingOptions, model: Any, params: dict[str, Any], history: History
    ) -> None:
        self.options = options
        self._model, self._params = model, params
        self._is_verbose = bool(params.get("verbose", 1))
        self._reader = options.reader
        self._ranks = FitRanks()
        self._file = FitFile(
            options,
            model,
            history,
            ranks=self._ranks.ranks,
            epochs=None if params.get("epochs") is None else -(-params["epochs"] // options.every),
            verbose=self._is_verbose,
        )
        self._rows = RowFilter(options.labels, options.ignore_label, model, self.judge)
        self._plausibility: Plausibility | None = Plausibility(options.outputs)
        self.dataset: Any = None
        self.n_epochs = self.n_nonfinite = self._n_skipped_by_recorder = 0
        self._is_settled = False  # a step could be recorded, so nothing is wrong from the start
        self._is_stopped = self._is_over = False
        self._raised: Exception | None = None
        self._refusal: Exception | None = None  # all ranks raise it at the end of the first epoch
        self._warned: set[type[Exception]] = set()
        self._n_lost_batches = 0
        self._size: int | None = None  # of the data set when the last epoch began
        self._selection: tuple[int, int] | None = (
            None  # size and checksum of what the last epoch chose from a data set
        )
        # The epoch under way.
        self._epoch: int | None = None  # None = none that is recorded
        self._loader: Any = None
        self._is_padded = False
        self._tap: StepTap | None = None
        self._intercept: Replacement | None = None
        self._has_last_callback = False
        self._doubt: CaptureError | None = None  # of the samples of an epoch that has ended
        self._n_steps = self._n_rows = 0
        self._callbacks: Callable[[], Any] = lambda: ()  # weak: see `FitRanks.begin_epoch`
        self._waiting: list[
            DeviceBatch
        ] = []  # steps that are still to be recorded, with copies of their outputs
        self._n_waiting = 0  # numbers in these outputs

    @property
    def callbacks(self) -> list[Any]:
        """All callbacks of this fit, once its first epoch has begun."""
        return list(self._callbacks() or ())

    @property
    def n_skipped(self) -> int:
        """Rows that were left out because they could not be recorded."""
        return self._rows.n_lost + self._n_skipped_by_recorder

    # What an error costs is decided here and nowhere else.

    def judge(self, error: Exception, *, all_ranks: bool = False) -> None:
        """Raise an error that was wrong from the start; for others leave out rows or a batch, or end the recording.

        Args:
            error: of any kind.
            all_ranks: whether every rank gets an error at this point.

        Raises:
            Exception: `error`, if it was wrong from the start or `on_error` is "raise".
        """
        if error is self._raised:
            raise error
        if isinstance(error, Warning):  # a filter makes errors of warnings: it is printed, and costs nothing
            self._warn(str(error))
            return
        is_small, is_lost = isinstance(error, (RowsError, BatchError)), isinstance(error, RanksLostError)
        self._ranks.have_ended |= isinstance(error, RanksEndedError)
        has_warned = self._is_stopped and self._refusal is None
        if all_ranks and self._refusal is not None:
            error, self._refusal = self._refusal, None
        is_wrong = not self._is_settled and not isinstance(error, RowsError)
        if self.n_epochs == 0 and isinstance(error, CaptureError) and not is_small:
            is_wrong |= (self._ranks.do_resume and not is_lost) if all_ranks else self._file.resumes
        must_raise = is_wrong or self.options.on_error == "raise"
        if self._is_over:
            if self.options.on_error == "raise":
                raise error
            self._warn(f"{error}; committed epochs stay")
        elif is_wrong and self._is_settled and self._ranks.size > 1 and not all_ranks:
            self._is_stopped, self._refusal = True, error
        elif must_raise:
            self._raised = error
            self.abandon(f"its recording ended: {error}")
            raise error
        elif is_small:
            self._leave_out(error)
        else:
            self._is_stopped = True
            if not has_warned:
                self._warn(f"{error}; recording ends here, committed epochs stay, training goes on")
            if self._ranks.size == 1 or self._ranks.have_ended:
                self._close_or_warn()

    def _leave_out(self, error: Exception) -> None:
        is_batch = isinstance(error, BatchError)
        self._n_lost_batches += is_batch
        if type(error) not in self._warned:
            self._warned.add(type(error))
            what = "this batch is" if is_batch else "such rows are"
            self._warn(f"{error}; {what} left out and counted, training and recording go on")

    @contextlib.contextmanager
    def _judged(self, *, all_ranks: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.judge(error, all_ranks=all_ranks)

    def _warn(self, message: str) -> None:
        warn(f"'{self.options.path}': {message}", stacklevel=2)

    # The fit.

    def begin(self) -> None:
        """Refuse what cannot be recorded before a step is run; with several ranks, on all of them.

        Raises:
            CaptureError: the training cannot be recorded.
            StoreError: the path cannot be written.
        """
        self._ranks.begin(self._refuse_early)

    def _refuse_early(self) -> None:
        if self._model is None:
            raise CaptureError(
                "this callback was given no model: a callback made of others must hand on set_model, set_params, "
                "on_train_*, on_epoch_* and on_train_batch_end; or give this one to fit itself"
            )
        check_model(self._model)
        if self._params.get("epochs") == 0:
            raise CaptureError(
                "fit was called with epochs=0: there is nothing to record; give epochs=1 or more"
            )
        self._file.check_network()
        if self._ranks.rank == 0:
            self._file.check_path()

    def end(self) -> None:
        """Wait for the last commit and release the file; with several ranks, for that of rank 0."""
        if self._is_over:  # called twice, also by another callback
            return
        self._is_over = True
        self._loader = None
        if self._file.recorder is None and self._ranks.size == 1 and not self._is_stopped:
            self._warn(
                "no training step was seen, so nothing is recorded; is the loader empty? A callback made of others "
                "must hand on set_model, set_params, on_train_*, on_epoch_* and on_train_batch_end"
            )
        lost = [(self._n_lost_batches, "batches"), (self._rows.n_lost, "rows")]
        counts = " and ".join(f"{n} {what}" for n, what in lost if n)
        if counts:
            self._warn(f"{counts} in all could not be recorded; see the first warning of each kind")
        try:
            self._file.close()
        except BaseException as error:
            self._ranks.leave(f"its recording ended by {type(error).__name__}: {first_line(error)}")
            raise
        try:
            self._ranks.end()
        except CaptureError as error:
            self._warn(f"{error}; committed epochs stay")

    def abandon(self, reason: str) -> None:
        """The fit fails: drop the epoch under way, keep the others, remove all hooks."""
        self._ranks.leave(reason)
        self._waiting.clear()
        self._clean_up()
        self._close_or_warn()

    def _clean_up(self) -> None:
        """Leave nothing of ours on the model, also of what another callback has put back."""
        if self._intercept is not None:
            self._intercept.remove()
        if self._tap is not None:
            self._tap.release()
        self._intercept = self._tap = None
        for name in (LOSS, RUN_ONE_EPOCH) if self._model is not None else ():
            Replacement.clear(vars(self._model), name)

    # An epoch.

    def begin_epoch(self, epoch: int) -> None:
        """Make the coming epoch run under the taps."""
        self._epoch, self._loader = None if epoch % self.options.every else epoch, None
        self._n_steps = self._n_rows = 0
        self._waiting.clear()
        if self._intercept is not None:
            self._intercept.remove()
        # Where recording has ended, the model still cannot take the index field.
        if not self._is_stopped or self.options.field is not None:
            self._intercept = intercept_next_epoch(self._model, self._params, self._tapped)

    @contextlib.contextmanager
    def _tapped(self, loader: Any, callbacks: Any) -> Iterator[Any]:
        self._callbacks = weakref.ref(callbacks)
        self._loader = real_loader(loader)
        self.dataset = getattr(self._loader, "dataset", None)
        try:
            with self._judged():
                self._ranks.begin_epoch(callbacks, self.options.path)
                if not self._is_stopped:
                    self._check_epoch(callbacks)
            with self._judged():
                loader = self._tap_loader(loader, callbacks)
            yield loader
            self._doubt = None if self._tap is None else self._tap.doubt
        except BaseException as cause:
            # fit fails here without on_train_end.
            self.abandon(f"its fit ended by {type(cause).__name__}: {first_line(cause)}")
            raise
        finally:
            self._clean_up()

    def _check_epoch(self, callbacks: Any) -> None:
        """Refuse what cannot be recorded in this epoch.

        Raises:
            CaptureError: the callback twice, data that cannot be evaluated, a data set of another size than before.
        """
        if sum(getattr(callback, "session", None) is self for callback in callbacks) > 1:
            raise CaptureError("this callback is twice among the callbacks of fit; give it once")
        if self.options.mode == "eval":
            self._evaluation()
        elif self.options.field is not None:
            return  # the data carry their indices
        self._file.check_network()
        self._check_selection()
        try:
            size, before = len(self._loader.dataset), self._size
        except Exception:  # a stream has none
            return
        self._size = size
        ids = self.options.sample_ids
        if before is None and ids is not None and self.options.n_samples is None and len(ids) != size:
            raise ValueError(
                f"sample_ids= has {len(ids)} ids for a data set of {size} samples; give one for each, in the order of "
                "the data set, or n_samples= too where the data set grows to as many"
            )
        if before in (None, size):
            return
        changed = f"the data set had {before} samples when the epoch before began, and has {size} now"
        if self.options.known_n_samples is None:
            raise CaptureError(
                f"{changed}, so an index may mean another sample; if every sample keeps its index, pass "
                f"n_samples= (the largest size), and if not, {FIELD_WAY}"
            )
        if size < before:
            self._warn(
                f"{changed}; rows are right only if every sample kept its index, otherwise {FIELD_WAY}"
            )

    def _check_selection(self) -> None:
        """Refuse a `Subset` that holds other samples than when the fit began.

        Raises:
            CaptureError: it does.
        """
        selection = selection_of(self.dataset)
        before, self._selection = self._selection, selection
        if before is None or selection is None or before[0] != selection[0]:
            return  # another size is judged by the next check
        if before != selection:
            raise CaptureError(
                "the subset that is trained on holds other samples than in the epoch before, so an index means another "
                f"one; {FIELD_WAY}, or record each selection to a path of its own"
            )

    def _tap_loader(self, loader: Any, callbacks: Any) -> Any:
        field, is_trained = self.options.field, self.options.mode == "train"
        sampler, padding = getattr(self._loader, "batch_sampler", None), paddle.io.DistributedBatchSampler
        self._is_padded = isinstance(sampler, padding) and type(sampler).__iter__ is padding.__iter__
        tap = None
        is_needed = is_trained or self._file.recorder is None
        if is_needed and self._epoch is not None and not self._is_stopped:
            tap = StepTap(self._model, self._reader, needs_indices=is_trained)
        if tap is None and field is None:
            return loader
        tapped = TappedLoader(loader, tap, field)
        if tap is not None and not self._has_last_callback:
            callbacks.append(LastCallback(self._begin_step, self._clean_up))
            self._has_last_callback = True
        self._tap = tap
        return tapped

    def _begin_step(self) -> None:
        with self._judged():
            if self._tap is not None and not self._is_stopped:
                self._tap.arm()

    def end_step(self, step: int) -> None:
        """Keep the step's outputs, and record them with those of other steps once there are enough."""
        if self._tap is None or self._is_stopped:
            return
        try:
            taken = self._tap.take()
        except CaptureError as error:
            raise BatchError(f"step {step}: {error}") from error
        if taken is None:  # called a second time for this step, by another callback
            return
        self._n_steps += 1
        taken.number = step
        self._waiting.append(taken)
        n_rows, n_columns = taken.values.shape
        self._n_waiting += n_rows * n_columns
        n_next = self._n_waiting + n_rows * n_columns
        # What is wrong from the start is found in the first step.
        if not self._is_settled or len(self._waiting) >= _MOST_STEPS or 4 * n_next > BLOCK_BYTES:
            self._record_steps()

    def _record_steps(self) -> None:
        """Take the outputs of the steps that wait to the host, after Paddle took their loss there, and record them."""
        steps, self._waiting, self._n_waiting = self._waiting, [], 0
        for batch in self._reader.batches_of(steps):
            with self._judged():
                if isinstance(batch, BatchError):
                    raise batch
                self._record(batch)
                if (
                    self.options.mode == "eval"
                ):  # one step shows whether the pass after the epoch can be recorded
                    self._tap = None

    def _record(self, batch: Batch) -> None:
        """Record the rows that have a sample and a class; a batch without indices is only checked."""
        is_checked = batch.indices is None
        batch = self._rows.recordable(batch, self._n_samples, is_first=is_checked or not self._is_settled)
        recorder = self._file.recorder or self._open(batch.outputs.shape[1], batch.has_one_column)
        if not is_checked:
            odd = None if self._plausibility is None else self._plausibility.check_batch(batch)
            if odd is not None:
                self._warn(odd)
            kind = "probabilities" if batch.are_probabilities else "logits"
            recorder.update(batch.indices, labels=batch.labels, steps=batch.steps, **{kind: batch.outputs})
            self._n_rows += len(batch.labels)
        self._is_settled = True

    def _open(self, n_classes: int, has_one_column: bool = False) -> TrainingDynamicsRecorder:
        self._rows.check_labels(self._n_samples, n_classes)
        return self._file.open(self.dataset, self._n_samples, n_classes, has_one_column=has_one_column)

    def end_epoch(self) -> None:
        """Commit the epoch in the background."""
        if self._epoch is None:
            return
        epoch, self._epoch = self._epoch, None
        doubt, self._doubt = self._doubt, None
        with self._judged():
            if doubt is not None and not self._is_stopped:
                raise doubt
        if not self._is_stopped:
            self._record_steps()
        if self.options.mode == "eval":
            if not self._is_stopped and self._loader is not None:
                with (
                    self._judged()
                ):  # also what the data set or the network raises: training did without this pass
                    self._evaluate(epoch)
            elif self._is_stopped and not self._ranks.have_ended:
                # The other ranks may not know yet, and ask in the first step of their pass.
                with contextlib.suppress(RanksEndedError):
                    self._ranks.are_all_well(False)
        if self._ranks.size > 1:
            if not self._ranks.have_ended:
                with self._judged(all_ranks=True):
                    self._end_epoch_of_ranks()
        elif self._file.recorder is None or self._is_stopped:
            return
        elif self._n_rows:
            self._commit(self._file.recorder)
        else:
            why = "none of its rows could be recorded" if self._n_steps else "no training step was seen"
            self._warn(
                f"epoch {epoch}: {why}; the recording has no such epoch; see whether the loader gave any sample"
            )

    def _end_epoch_of_ranks(self) -> None:
        """All ranks come here at the end of every epoch, until they have agreed to record no more."""
        recorder = self._file.recorder
        known = 0 if recorder is None else recorder.layout.n_classes
        if not self._ranks.agree(known, self._file.resumes):
            return
        if recorder is None:  # no batch came to this rank
            recorder = self._open(self._ranks.n_classes)
            self._is_settled = True
        self._commit(recorder, failed=self._is_stopped, count_once=self._is_padded)

    def _commit(self, recorder: TrainingDynamicsRecorder, **options: bool) -> None:
        recorder.agree_on_epoch(**options)
        self.n_epochs += 1
        self.n_nonfinite, self._n_skipped_by_recorder = recorder.n_nonfinite, recorder.skipped_rows
        plausibility, self._plausibility = self._plausibility, None
        if plausibility is not None:
            for odd in plausibility.check_epoch(recorder.labels, recorder.layout.n_classes):
                self._warn(odd)

    def _evaluation(self) -> EvaluationPass:
        field, ranks = self.options.field, self._ranks
        strip = None if field is None else field.without
        return EvaluationPass(
            self._model, self._loader, self._reader, strip=strip, rank=ranks.rank, n_ranks=ranks.size
        )

    def _evaluate(self, epoch: int) -> None:
        self._evaluation().run(
            self._record,
            agree=self._ranks.are_all_well,
            description=f"training dynamics, epoch {epoch + 1}",
            progress=self._is_verbose and self._ranks.rank == 0,
        )

    @property
    def _n_samples(self) -> int:
        if self._file.recorder is not None:
            return self._file.recorder.layout.n_samples
        if self.options.known_n_samples is not None:
            return self.options.known_n_samples
        try:
            return len(self._loader.dataset)
        except (AttributeError, TypeError) as error:
            raise CaptureError(
                f"the size of the training data is unknown ({error}); pass n_samples= to TrainingDynamicsCallback"
            ) from error

    def _close_or_warn(self) -> None:
        try:
            self._file.close()
        except Exception as error:  # must not hide the error that ended fit
            self._warn(str(error))
