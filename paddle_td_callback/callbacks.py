"""The two callbacks of `paddle.Model.fit`: one records, one says afterwards which labels look wrong."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
import paddle

from .capture import Batch, EpochTap, check_model, find_n_samples, intercept_next_epoch
from .errors import CaptureError, TrainingDynamicsError
from .issues import LabelIssues, check_csv_path, find_label_issues
from .outputs import OUTPUTS, OutputReader
from .recorder import TrainingDynamicsRecorder, as_integers, check_on_error, gzip_level_of, wait_for_commits
from .store import Keep, check_keep, check_path


class TrainingDynamicsCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """Records what the network says of every training sample, epoch by epoch, into one HDF5 file.

    Add it to `callbacks` of `paddle.Model.fit` and change nothing else. Training runs as without it, to the
    last bit. An epoch is on disk, whole, when its commit has ended, or it is not there at all.

    What is wrong from the start (the path exists, labels that are no classes, data without indices) raises
    before the end of the first step. What goes wrong later warns once and lets training go on.

    Args:
        path: the HDF5 file to make.
        keep: "all" classes' probabilities, the `k` largest of them, or only that of the "given" label. Every
            score but EL2N needs no more than "given".
        mode: "train": the outputs of the training step itself, before its update.
        labels: `[sample]` integers, the given labels, where the loss does not get them as classes (mixup, soft
            labels); None takes the loss's.
        n_samples: size of the data set; None asks the loader's data set.
        class_names: one for each class, for the reports.
        resume: continue an existing file after its last committed epoch.
        overwrite: replace an existing file.
        on_error: what to do with errors after the first step: "warn" once and go on, or "raise".
        logits: which output of the network holds the logits: its place, its key in a dictionary of outputs, or
            a function of all outputs.
        label: which of the loss's labels is the class.
        outputs: whether the network gives "logits" or "probabilities"; "auto" goes by the loss.
        dtype: of the stored probabilities of all or the largest classes: "float16" or "float32".
        compression: "gzip" or None.

    Attributes:
        path: as given.

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
        resume: bool = False,
        overwrite: bool = False,
        on_error: str = "warn",
        logits: int | str | Callable[..., Any] = 0,
        label: int = 0,
        outputs: str = "auto",
        dtype: str = "float16",
        compression: str | None = None,
    ) -> None:
        super().__init__()
        check_keep(keep)
        check_on_error(on_error)
        gzip_level_of(compression)
        if mode != "train":
            raise ValueError(f"mode must be 'train', got {mode!r}")
        if outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {OUTPUTS}, got {outputs!r}")
        self.path = os.fspath(path)
        self._labels = None if labels is None else as_integers(labels, "labels")
        self._n_samples = n_samples
        self._resume = resume
        self._overwrite = overwrite
        self._on_error = on_error
        self._reader = OutputReader(logits=logits, label=label, outputs=outputs, tap_labels=labels is None)
        self._recorder_options: dict[str, Any] = {
            "keep": keep,
            "mode": mode,
            "class_names": class_names,
            "dtype": dtype,
            "compression": compression,
            "on_error": on_error,
        }
        self._recorder: TrainingDynamicsRecorder | None = None
        self._tap: EpochTap | None = None
        self._loader: Any = None
        self._stopped = False
        self._skipped_batches = 0
        self._began = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse what cannot be recorded before a step is run."""
        check_model(self.model)
        if self.params.get("epochs") == 0:
            raise CaptureError(
                "fit was called with epochs=0: there is nothing to record; give epochs=1 or more"
            )
        if self._recorder is not None:  # a fit that died between two epochs left it open
            self._recorder.close()
            self._recorder = None
        # A second fit with the same callback goes on in its own file.
        resume = self._resume or self._began
        check_path(self.path, resume=resume, overwrite=self._overwrite and not self._began)
        self._stopped = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Make the coming epoch run under the taps."""
        if not self._stopped:
            intercept_next_epoch(self.model, self, self._tapped)

    @contextlib.contextmanager
    def _tapped(self, loader: Any) -> Iterator[None]:
        self._loader = loader
        try:
            self._tap = EpochTap(self.model, loader, self._reader)
        except CaptureError as error:
            self._give_up(error)
        try:
            yield
        except BaseException:
            # fit dies here without on_train_end: the epoch under way is forgotten, the others stay.
            self._close_recorder()
            raise
        finally:
            if self._tap is not None:
                self._tap.remove()
            self._tap = self._loader = None

    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Take the step's outputs to the host, after Paddle took the loss there, and record them."""
        if self._tap is None or self._stopped:
            return
        try:
            batch = self._tap.take()
        except CaptureError as error:
            if self._recorder is None:
                self._give_up(error)
            else:
                self._skip(step, error)
            return
        try:
            self._record(batch)
        except (TrainingDynamicsError, ValueError, TypeError) as error:
            self._give_up(error)

    def _record(self, batch: Batch) -> None:
        recorder = self._recorder or self._open_recorder(batch.logits.shape[1])
        if batch.labels is not None:
            labels = batch.labels
        else:
            assert self._labels is not None
            labels = self._labels[batch.indices]
        recorder.update(batch.indices, batch.logits, labels, probabilities=batch.probabilities)

    def _open_recorder(self, n_classes: int) -> TrainingDynamicsRecorder:
        n_samples = find_n_samples(self._loader) if self._n_samples is None else self._n_samples
        if self._labels is not None and len(self._labels) != n_samples:
            raise CaptureError(
                f"labels= has {len(self._labels)} entries for a data set of {n_samples} samples"
            )
        self._recorder = TrainingDynamicsRecorder(
            self.path,
            n_samples=n_samples,
            n_classes=n_classes,
            resume=self._resume or self._began,
            overwrite=self._overwrite and not self._began,
            **self._recorder_options,
        )
        self._began = True
        return self._recorder

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Commit the epoch, beside the training that goes on."""
        if self._recorder is not None and not self._stopped:
            self._recorder.end_epoch()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last commit and release the file."""
        self._close_recorder()
        if self._skipped_batches:
            self._warn(f"{self._skipped_batches} batches in all could not be recorded")
            self._skipped_batches = 0

    def _close_recorder(self) -> None:
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            recorder.close()

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
        self._stopped = True
        self._close_recorder()
        self._warn(f"{error}; recording ends here, committed epochs stay, training goes on")

    def _warn(self, message: str) -> None:
        warnings.warn(f"'{self.path}': {message}", RuntimeWarning, stacklevel=3)


class LabelIssuesCallback(paddle.callbacks.Callback):  # type: ignore[misc]
    """Finds label issues in a recording once `fit` has ended: the same as calling `find_label_issues`.

    It may stand before or behind the `TrainingDynamicsCallback` of the same path. Should detection fail, it
    warns and `fit` returns as usual.

    Args:
        path: the recording, as given to `TrainingDynamicsCallback`.
        method: as for `find_label_issues`.
        detector: as for `find_label_issues`.
        device: as for `find_label_issues`.
        csv: where to write the ranking as CSV, None for nowhere.
        progress: whether to show a progress bar and print the head of the ranking; None follows fit's `verbose`.

    Attributes:
        issues: the `LabelIssues`, None before `fit` has ended.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        method: str = "lstm",
        detector: Any = None,
        device: str | None = None,
        csv: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.issues: LabelIssues | None = None
        self._options: dict[str, Any] = {"method": method, "detector": detector, "device": device}
        self._csv = csv
        self._progress = progress

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the issues of an earlier fit, and refuse a CSV path that could not be written at the end."""
        self.issues = None
        if self._csv is not None:
            check_csv_path(self._csv)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Find the issues and write them where they were asked for."""
        progress = bool(self.params.get("verbose", 1)) if self._progress is None else self._progress
        try:
            wait_for_commits(self.path)
            self.issues = find_label_issues(self.path, progress=progress, **self._options)
            if self._csv is not None:
                self.issues.to_csv(self._csv)
        except Exception as error:  # whatever it is, the training that just ended must not be lost to it
            warnings.warn(
                f"label issues of '{self.path}' were not found: {error}; the recording stays, "
                f"`paddle-td detect {self.path}` tries again",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        if progress:
            print(self.issues)
