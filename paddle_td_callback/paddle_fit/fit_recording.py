"""The recording of one fit: its recorder, its rows, and the doubts about them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..dataset_names import names_of
from ..errors import CaptureError
from ..messages import show
from ..recording.gathering import Ranks
from ..recording.open_recorders import is_open
from ..recording.recorder import TrainingDynamicsRecorder
from .options import RecordingOptions
from .outputs import Batch, sigmoids, softmax
from .plausibility import Plausibility
from .rows import RowFilter, RowsError


@dataclass
class History:
    """What a callback remembers from fit to fit: whether its file is begun, and by which network's training."""

    has_begun: bool = False
    network: weakref.ref[Any] | None = None


class FitRecording:
    """One fit's recorder, which opens with the first batch.

    Args:
        options: what to record.
        model: the fitting `paddle.Model`.
        history: of earlier fits with the same callback.
        ranks: all of them, None = this process is alone.
        epochs: that are to come, None = unknown.
        verbose: whether the fit prints.
        tell: is called with an error for rows that cannot be recorded.
        warn: is called with what is odd.

    Attributes:
        recorder: None = not open.
        is_settled: whether a step could be recorded, so that nothing is wrong from the start.
        n_epochs: that were recorded.
        n_rows: of the epoch under way.
        n_nonfinite: rows with NaN or infinite outputs.
        dataset: what is trained on, None = unknown.
        rows: which can be recorded.
    """

    def __init__(
        self,
        options: RecordingOptions,
        model: Any,
        history: History,
        *,
        ranks: Ranks | None,
        epochs: int | None,
        verbose: bool,
        tell: Callable[[RowsError], None],
        warn: Callable[[str], None],
    ) -> None:
        self._options, self._model, self._history = options, model, history
        self._ranks, self._expected_epochs, self._warn = ranks, epochs, warn
        self._is_verbose = verbose
        self._plausibility: Plausibility | None = Plausibility(options.outputs)
        self._is_new_file = False
        self._n_skipped_by_recorder = 0
        self.rows = RowFilter(options, model, tell)
        self.recorder: TrainingDynamicsRecorder | None = None
        self.is_settled = False
        self.dataset: Any = None
        self.n_epochs = self.n_rows = self.n_nonfinite = 0

    @property
    def n_skipped(self) -> int:
        """Rows that were left out because they could not be recorded."""
        return self.rows.n_lost + self._n_skipped_by_recorder

    @property
    def resume(self) -> bool | int:
        """A second fit with the same callback goes on in its own file."""
        return True if self._history.has_begun else self._options.resume

    @property
    def overwrite(self) -> bool:
        """As `resume`."""
        return self._options.overwrite and not self._history.has_begun

    @property
    def resumes(self) -> bool:
        """Whether there is, or was, a file to go on with, as far as this rank can see."""
        if self.recorder is not None:
            return not self._is_new_file
        return bool(self.resume) and os.path.exists(self._options.path)

    def check_network(self) -> None:
        """Raise CaptureError if the file holds the training of another network."""
        options, history = self._options, self._history
        is_same = history.network is not None and history.network() is self._model.network
        if history.has_begun and not is_same and not options.resume:
            raise CaptureError(
                f"'{options.path}' holds the training of another network, recorded by this callback; use a new "
                "callback with a path of its own, or resume=True to append to it on purpose"
            )

    def open(
        self, n_samples: int, n_classes: int, *, has_one_column: bool = False
    ) -> TrainingDynamicsRecorder:
        """Open the recorder.

        Raises:
            CaptureError: another callback records there, or the arguments do not fit the data.
            StoreError: the path cannot be written.
        """
        path = self._options.path
        self.rows.check_labels(n_samples, n_classes)
        if is_open(path):
            raise CaptureError(
                f"'{path}' is being recorded by another callback of this fit; give each a path of its own"
            )
        self._is_new_file = not self.resumes
        given = self._options.of_recorder | self._names(n_samples, n_classes)
        self.recorder = TrainingDynamicsRecorder(
            path,
            n_samples=n_samples,
            n_classes=n_classes,
            resume=self.resume,
            overwrite=self.overwrite,
            expected_epochs=self._expected_epochs,
            distributed=self._ranks or False,
            softmax=sigmoids if has_one_column else softmax,
            **given,
        )
        self._history.has_begun = True
        self._history.network = weakref.ref(self._model.network)
        return self.recorder

    def _names(self, n_samples: int, n_classes: int) -> dict[str, Any]:
        """Sample ids and class names that the data set carries itself, where none were given."""
        options = self._options
        if not options.takes_names or self.dataset is None or options.field is not None:
            return {}
        there = names_of(self.dataset)
        names: dict[str, Any] = {}
        if options.sample_ids is None and there.sample_ids is not None and len(there.sample_ids) == n_samples:
            names["sample_ids"] = there.sample_ids
        if (
            options.class_names is None
            and there.class_names is not None
            and len(there.class_names) == n_classes
        ):
            names["class_names"] = there.class_names
        if names and self._is_verbose and (self._ranks is None or self._ranks.rank == 0):
            show(
                f"'{options.path}': {' and '.join(names)} are those of the data set; sample_ids=False leaves them out"
            )
        return names

    def look_at(self, batch: Batch, n_samples: int) -> None:
        """See whether batches such as this one can be recorded, and open the recorder."""
        self.rows.recordable(batch, n_samples, is_first=True)
        self.open(n_samples, batch.outputs.shape[1], has_one_column=batch.has_one_column)
        self.is_settled = True

    def record(self, batch: Batch, n_samples: int) -> None:
        """Record a batch."""
        batch = self.rows.recordable(batch, n_samples, is_first=not self.is_settled)
        recorder = self.recorder
        if recorder is None:
            recorder = self.open(n_samples, batch.outputs.shape[1], has_one_column=batch.has_one_column)
        doubt = None if self._plausibility is None else self._plausibility.see(batch)
        if doubt is not None:
            self._warn(doubt)
        kind = "probabilities" if batch.are_probabilities else "logits"
        recorder.update(batch.indices, labels=batch.labels, steps=batch.steps, **{kind: batch.outputs})
        self.is_settled = True
        self.n_rows += len(batch.labels)

    def end_epoch(self, **options: bool) -> None:
        """End an epoch of the open recorder, as `TrainingDynamicsRecorder.agree_on_epoch` does."""
        recorder = self.recorder
        assert recorder is not None
        recorder.agree_on_epoch(**options)
        self.n_epochs += 1
        self.n_nonfinite, self._n_skipped_by_recorder = recorder.n_nonfinite, recorder.skipped_rows
        plausibility, self._plausibility = self._plausibility, None
        if plausibility is not None:
            for doubt in plausibility.doubts(recorder.labels, recorder.layout.n_classes):
                self._warn(doubt)

    def close(self) -> None:
        """Wait for the last commit and release the file."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        is_empty = recorder.n_epochs == 0
        try:
            recorder.close()
        finally:
            if is_empty and self._is_new_file:  # the store has removed it
                self._history.has_begun = False
