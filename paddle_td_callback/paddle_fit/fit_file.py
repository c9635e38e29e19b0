"""The file of one fit: whose training it holds, which names it gets, and the recorder that writes it."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Any

from ..dataset_names import names_of
from ..detection.writing_lock import is_being_written
from ..errors import CaptureError, StoreError
from ..messages import show, warn
from ..recording.gathering import Ranks
from ..recording.open_recorders import is_open
from ..recording.recorder import TrainingDynamicsRecorder
from ..store import TrainingDynamicsStore
from ..store.paths import check_path, set_aside
from .options import RecordingOptions
from .outputs import sigmoids, softmax
from .planted_label_errors import label_shifts_of


@dataclass
class History:
    """What a callback remembers from fit to fit: whether its file is begun, and by which network's training."""

    has_begun: bool = False
    network: weakref.ref[Any] | None = None


class FitFile:
    """One fit's file, whose recorder opens with the first batch.

    Args:
        options: what to record.
        model: the fitting `paddle.Model`.
        history: of earlier fits with the same callback.
        ranks: all of them, None = this process is alone.
        epochs: that are to come, None = unknown.
        verbose: whether the fit prints.

    Attributes:
        recorder: None = not open.
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
    ) -> None:
        self._options, self._model, self._history = options, model, history
        self._ranks, self._expected_epochs, self._is_verbose = ranks, epochs, verbose
        self._is_new = False
        self.recorder: TrainingDynamicsRecorder | None = None

    @property
    def _resume(self) -> bool | int:
        """A second fit with the same callback continues its own file."""
        return True if self._history.has_begun else self._options.resume

    @property
    def _overwrite(self) -> bool:
        return self._options.overwrite and not self._history.has_begun

    @property
    def resumes(self) -> bool:
        """Whether there is, or was, a file to continue, as far as this rank can see."""
        if self.recorder is not None:
            return not self._is_new
        return bool(self._resume) and os.path.exists(self._options.path)

    @property
    def _keeps_earlier(self) -> bool:
        """Whether this process makes the file, and an earlier recording there gets another name."""
        is_writer = self._ranks is None or self._ranks.rank == 0
        return is_writer and not (self._resume or self._overwrite) and is_finished(self._options.path)

    def check_network(self) -> None:
        """Raise CaptureError if the file holds the training of another network."""
        options, history = self._options, self._history
        if self.recorder is not None and history.network is not None:
            if history.network() is not self._model.network:
                raise CaptureError(
                    f"the model has got another network, and '{options.path}' holds the training of the first one; "
                    "give each network a fit and a path of its own"
                )
            return
        is_same = history.network is not None and history.network() is self._model.network
        if history.has_begun and not is_same and not options.resume:
            raise CaptureError(
                f"'{options.path}' holds the training of another network, recorded by this callback; use a new "
                "callback with a path of its own, or resume=True to append to it on purpose"
            )

    def check_path(self) -> None:
        """Raise StoreError if the path cannot be written, or exists and is neither continued nor replaced."""
        check_path(
            self._options.path, resume=bool(self._resume), overwrite=self._overwrite or self._keeps_earlier
        )

    def open(
        self, dataset: Any, n_samples: int, n_classes: int, *, has_one_column: bool = False
    ) -> TrainingDynamicsRecorder:
        """Open the recorder.

        Args:
            dataset: that is trained on, None = unknown.
            n_samples: size of the data set.
            n_classes: of the network.
            has_one_column: whether the network gives one column.

        Raises:
            CaptureError: another callback records there, or the arguments do not fit the data.
            StoreError: the path cannot be written.
        """
        path = self._options.path
        if is_open(path):
            raise CaptureError(
                f"'{path}' is being recorded by another callback of this fit; give each a path of its own"
            )
        self._is_new = not self.resumes
        if self._keeps_earlier:
            kept = os.path.basename(set_aside(path) or path)
            warn(f"'{path}': the earlier recording there is kept as '{kept}'; training and recording go on")
        given = self._options.of_recorder | self._names(dataset, n_samples, n_classes)
        has_labels = self._options.labels is not None
        shifts = label_shifts_of(dataset, n_samples, n_classes, has_labels=has_labels)
        if shifts is not None:
            given["label_shifts"] = shifts
        self.recorder = TrainingDynamicsRecorder(
            path,
            n_samples=n_samples,
            n_classes=n_classes,
            resume=self._resume,
            overwrite=self._overwrite,
            expected_epochs=self._expected_epochs,
            distributed=self._ranks or False,
            softmax=sigmoids if has_one_column else softmax,
            **given,
        )
        self._history.has_begun = True
        self._history.network = weakref.ref(self._model.network)
        return self.recorder

    def _names(self, dataset: Any, n_samples: int, n_classes: int) -> dict[str, Any]:
        """Sample ids and class names of the data set itself, where none were given."""
        options = self._options
        if not options.takes_names or dataset is None or options.field is not None:
            return {}
        found = names_of(dataset)
        names: dict[str, Any] = {}
        is_said = self._is_verbose and (self._ranks is None or self._ranks.rank == 0)
        for name, length in (("sample_ids", n_samples), ("class_names", n_classes)):
            its_own = getattr(found, name)
            if getattr(options, name) is not None or its_own is None:
                continue
            if len(its_own) == length:
                names[name] = its_own
            elif is_said:
                what = "samples" if name == "sample_ids" else "outputs of the network"
                show(
                    f"'{options.path}': the data set has {len(its_own)} {name} for {length} {what}, so they are left "
                    f"out; pass {name}= if they are known"
                )
        if names and is_said:
            show(
                f"'{options.path}': {' and '.join(names)} are those of the data set; sample_ids=False leaves them out"
            )
        return names

    def close(self) -> None:
        """Wait for the last commit and release the file."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        is_empty = recorder.n_epochs == 0
        try:
            recorder.close()
        finally:
            if is_empty and self._is_new:  # the store has removed it
                self._history.has_begun = False


def is_finished(path: str) -> bool:
    """Whether there is a recording that can be read, and that no process is writing."""
    try:
        TrainingDynamicsStore(path).close()
    except StoreError:
        return False
    return not is_being_written(path)
