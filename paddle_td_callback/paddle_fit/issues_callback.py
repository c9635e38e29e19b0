"""The callback of `paddle.Model.fit` that says afterwards, and while it trains, which labels look wrong."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.callbacks import Callback

from ..detection.find_issues import check_method, find_label_issues
from ..detection.label_issues import LabelIssues
from ..detection.output_files import STDOUT, check_out, is_stdout
from ..errors import CaptureError
from ..messages import show, warn
from ..recording.open_recorders import is_open, wait_for_commits
from ..store.paths import absolute, path_text, resolve_output
from ..store.schema import is_whole
from .guard import guarded
from .ranks import current_ranks
from .rendezvous import SharedResult

recordings: weakref.WeakSet[Any] = (
    weakref.WeakSet()
)  # every `TrainingDynamicsCallback` that was ever given to a fit

_LARGE = 1000  # items of a list that a copy of a data set shares with it


class LabelIssuesCallback(Callback):  # type: ignore[misc]
    """Finds label issues in a recording once `fit` has ended: the same as calling `find_label_issues`.

    It may stand before or behind the `TrainingDynamicsCallback` of the same path. Should detection fail, it
    warns and `fit` returns as usual. With several ranks, rank 0 finds the issues, writes and prints them, and the
    callbacks of the other ranks get the same `issues`; so give it to every rank.

    With `every=n` it also ranks the recording so far after every n-th epoch, shows one line, and logs the noise rate,
    the data map and the pictures of the first suspects to `log_writer` and to Paddle's own `VisualDL` and
    `WandbCallback`, where they are among the callbacks of the fit. Training waits as long as `find_label_issues`
    takes on the recording so far. Place it behind the `TrainingDynamicsCallback`; before it, a line is an epoch old.

    Args:
        recording: the `TrainingDynamicsCallback` of the same fit, or the path that it records into.
        method: as for `find_label_issues`.
        detector: as for `find_label_issues`.
        device: as for `find_label_issues`.
        csv: where to write the ranking as CSV, None for nowhere.
        report: where to write a page to look at the suspects, None for nowhere. It shows the items of the data set.
        thumbnail: what the page and the logs show of an item, as for `write_report`: called as
            `thumbnail(dataset[index])`.
        every: after how many epochs to rank the recording so far, each time; None = only when `fit` has ended.
        log_writer: a `visualdl.LogWriter` to log to; it stays open.
        progress: whether to show a progress bar, the lines, and the head of the ranking; None follows fit's `verbose`.

    Attributes:
        issues: the `LabelIssues`, None before `fit` has ended.

    Raises:
        TypeError: a callback that records nothing.
        ValueError: an argument out of range.
        StoreError: from `fit`, before the first step: a file that cannot be written.
    """

    def __init__(
        self,
        recording: str | os.PathLike[str] | Callback,
        *,
        method: str = "lstm",
        detector: Any = None,
        device: str | None = None,
        csv: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
        thumbnail: Callable[[Any], Any] | None = None,
        every: int | None = None,
        log_writer: Any = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        path = getattr(recording, "path", None) if isinstance(recording, Callback) else recording
        if path is None:
            raise TypeError(
                f"recording must be a TrainingDynamicsCallback or a path, got a {type(recording).__name__}; pass "
                "the callback that records"
            )
        self.path = absolute(path_text(path, "recording"))  # the training may change the working folder
        check_method(method, detector)
        if every is not None and (not is_whole(every) or every < 1):
            raise ValueError(
                f"every must be a whole number of at least 1, got {every!r}; None = after fit only"
            )
        if log_writer is not None and every is None:
            raise ValueError("log_writer= is written to while fit runs; pass every=1 for after each epoch")
        if log_writer is not None and not hasattr(log_writer, "add_scalar"):
            raise TypeError(
                f"log_writer must be a visualdl.LogWriter, got a {type(log_writer).__name__}; pass one"
            )
        if thumbnail is not None and not callable(thumbnail):
            raise TypeError(
                f"thumbnail must be a function of one sample of the data set, got a {type(thumbnail).__name__}; pass "
                "one that returns a picture or a text"
            )
        self.issues: LabelIssues | None = None
        self._options: dict[str, Any] = {"method": method, "detector": detector, "device": device}
        self._csv = self._output(csv, "csv")
        self._report = self._output(report, "report")
        if self._csv is not None and self._csv == self._report:
            raise ValueError(f"csv and report are both {self._csv!r}; give each a path of its own")
        self._thumbnail = thumbnail
        self._every, self._log_writer = every, log_writer
        self._n_epochs_shown: int | None = None  # None = a line failed, and no more come
        self._progress = progress
        self._shared: SharedResult | None = None

    def _output(self, out: Any, name: str) -> str | None:
        """Where something is to be written, from the root; None = nowhere."""
        if out is None:
            return None
        path = path_text(out, name)
        if is_stdout(path):
            return STDOUT
        if not path:
            raise ValueError(f"{name}='' names no file; give a file name, or None for nowhere")
        if os.path.realpath(path) == os.path.realpath(self.path):
            raise ValueError(f"{name}={path!r} is the recording itself; give it another path")
        return absolute(path)

    def share(self, result: SharedResult) -> None:
        """Of several ranks in this fit, rank 0 finds and the others get this result."""
        self._shared = result

    def _judge(self, error: Exception, hook: str) -> None:
        if hook == "on_train_begin":
            raise error
        # No error of any kind may cost the training.
        if hook == "on_epoch_end":
            self._n_epochs_shown = None
            warn(
                f"label issues of '{self.path}' so far were not shown: {error}; no more lines come in this fit, "
                "training and recording go on",
                stacklevel=3,
            )
            return
        done = "found" if self.issues is None else "written"
        warn(
            f"label issues of '{self.path}' were not {done}: {error}; `paddle-td detect {self.path}` tries again once "
            "the cause is gone",
            stacklevel=3,
        )

    @guarded
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the issues of an earlier fit, and refuse what could not be found or written at the end."""
        self.issues = None
        self._shared = None
        self._n_epochs_shown = 0
        ranks = current_ranks()
        if ranks is None or ranks.rank == 0:  # the one that reads and writes
            for out in (self._csv, self._report):
                if out is not None:
                    check_out(out)
                    if Path(out).is_fifo():  # at its end, fit would wait until the pipe is read
                        resolve_output(out)
            self._check_recording()
        if ranks is not None:  # until a recorder of this fit shares another: it knows which fit this is
            self.share(SharedResult(ranks.session(f"finder of {self.path}, "), ""))

    @guarded
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Rank the recording so far, and show and log that, after every n-th epoch."""
        if self._every is None or (epoch + 1) % self._every:
            return
        shared = self._shared
        try:
            if self._n_epochs_shown is not None and (shared is None or shared.rank == 0):
                self._show_so_far(self._n_epochs_shown)
        finally:
            if shared is not None:
                shared.meet()

    @guarded
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Find the issues, and write and print them where that is wanted."""
        shared = self._shared
        if shared is not None and shared.rank > 0:
            self.issues = _unpack(shared.fetch())
            return
        try:
            wait_for_commits(self.path)
            if self._is_recorded():
                self.issues = find_label_issues(self.path, progress=self._is_verbose, **self._options)
                if self._recorders():  # of this fit, which is over, whichever callback stands first
                    self.issues = dataclasses.replace(self.issues, is_recording=False)
        finally:
            if shared is not None:
                self._publish(shared)
        if self.issues is None:
            return
        if self._is_verbose:
            show(self.issues)
        if self._csv is not None:
            self.issues.to_csv(self._csv)
        if self._report is not None:
            shown = {"dataset": self._dataset(), "thumbnail": self._thumbnail, "progress": self._is_verbose}
            self.issues.report(self.path, self._report, **shown)

    @property
    def _is_verbose(self) -> bool:
        return bool(self.params.get("verbose", 1)) if self._progress is None else self._progress

    def _recorders(self) -> list[Any]:
        """The callbacks of this fit that record into the path."""
        mine = os.path.realpath(self.path)
        return [one for one in self._all_recorders() if os.path.realpath(one.path) == mine]

    def _all_recorders(self) -> list[Any]:
        # Paddle makes a new `params` for each fit, and gives it to all its callbacks.
        return [one for one in recordings if one.params is self.params]

    def _dataset(self) -> Any:
        """What is trained on; None = unknown."""
        sessions = [one.session for one in self._recorders() if one.session is not None]
        dataset = sessions[0].dataset if sessions else None
        return None if isinstance(dataset, paddle.io.IterableDataset) else dataset

    def _check_recording(self) -> None:
        """Say before training where nothing of it would be ranked."""
        if self._recorders() or is_open(self.path):
            return
        others = sorted({f"'{one.path}'" for one in self._all_recorders()})
        into = (
            f"this fit records into {' and '.join(others)}" if others else "nothing is recorded in this fit"
        )
        way = "pass LabelIssuesCallback(recorder), with the TrainingDynamicsCallback that is among the callbacks"
        found = "so none will be found"
        if os.path.exists(self.path):
            found = "so the label issues will be those of the older recording there"
        warn(f"'{self.path}': {into}, {found}; {way}, for label issues of this fit")

    def _is_recorded(self) -> bool:
        """Whether there is something to rank: never what an earlier fit recorded in place of this one's."""
        mine = self._recorders()
        if not mine and not os.path.exists(self.path):  # said before training
            return False
        if mine and not any(one.n_recorded for one in mine):
            warn(
                f"'{self.path}': nothing of this fit was recorded there, so its label issues were not found; see the "
                "warnings above, and give find_label_issues the file of an earlier training if it is there"
            )
            return False
        return True

    def _show_so_far(self, n_epochs_shown: int) -> None:
        n_epochs = sum(one.n_recorded for one in self._recorders())
        if n_epochs == n_epochs_shown:
            return  # nothing new, as where this callback stands before the recorder in the first epoch
        self._n_epochs_shown = n_epochs
        writers = [] if self._log_writer is None else [self._log_writer]
        for one in self._recorders():
            writers += [found for found in map(_writer_of, one.session.callbacks) if found is not None]
        if not (self._is_verbose or writers):
            return
        wait_for_commits(self.path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # such as that one epoch tells little: the line says how many there are
            issues = find_label_issues(self.path, progress=self._is_verbose, **self._options)
            if self._is_verbose:
                show(issues.to_line())
            if writers:
                for writer in writers:
                    dataset = _copy_of(self._dataset())
                    thumbnail = None if dataset is None else self._thumbnail
                    issues.log_to(writer, self.path, dataset=dataset, thumbnail=thumbnail)

    def _publish(self, shared: SharedResult) -> None:
        try:
            shared.publish(_pack(self.issues))
        except Exception as error:  # as above
            warn(
                f"the other ranks did not get the label issues of '{self.path}': {error}; call find_label_issues there"
            )


def _writer_of(callback: Any) -> Any:
    """What Paddle's own callback for VisualDL or Weights & Biases writes to in this fit; None for other callbacks."""
    if isinstance(callback, paddle.callbacks.VisualDL):
        return getattr(callback, "writer", None)  # made with the first step
    wandb = getattr(paddle.callbacks, "WandbCallback", None)
    return callback.run if wandb is not None and isinstance(callback, wandb) else None


def _copy_of(dataset: Any) -> Any:
    """A copy of a data set, to read items from while the training goes on as if nobody had.

    Its own generators and counters are copied with it; arrays and long lists are shared.

    Returns:
        The copy, None where it cannot be copied.
    """
    shared: dict[int, Any] = {}
    try:
        _share(dataset, shared)
        return copy.deepcopy(dataset, shared)
    except Exception:  # an open file, a lock
        return None


def _share(value: Any, shared: dict[int, Any], depth: int = 4) -> None:
    """Note what a deep copy shall not copy, by identity."""
    if isinstance(value, (np.ndarray, paddle.Tensor)):
        shared[id(value)] = value
    elif isinstance(value, (list, tuple, dict)):
        if len(value) > _LARGE:
            shared[id(value)] = value
        elif depth:
            for one in value.values() if isinstance(value, dict) else value:
                _share(one, shared, depth - 1)
    elif depth:
        _share(getattr(value, "__dict__", {}), shared, depth - 1)


def _pack(issues: LabelIssues | None) -> bytes:
    """Label issues as bytes: arrays as NumPy writes them, the rest as JSON. Nothing where none were found."""
    if issues is None:
        return b""
    values = {field.name: getattr(issues, field.name) for field in dataclasses.fields(issues)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    arrays["plain"] = np.frombuffer(json.dumps(plain, default=_as_json).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot travel between ranks")


def _unpack(payload: bytes) -> LabelIssues:
    """The issues that `_pack` packed.

    Raises:
        CaptureError: rank 0 found none.
    """
    if not payload:
        raise CaptureError("rank 0 could not find them; see its own log")
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    return LabelIssues(**json.loads(values.pop("plain").tobytes()), **values)
