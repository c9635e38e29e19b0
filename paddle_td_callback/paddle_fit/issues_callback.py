"""The callback of `paddle.Model.fit` that finds label issues afterwards."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import weakref
from typing import Any

import numpy as np
from paddle.callbacks import Callback

from ..detection.find_issues import check_method, find_label_issues
from ..detection.label_issues import LabelIssues, check_csv_path
from ..errors import CaptureError
from ..messages import show, warn
from ..recording.open_recorders import wait_for_commits
from ..store.paths import resolve_output
from .guard import guarded
from .ranks import current_ranks
from .rendezvous import SharedResult

recordings: weakref.WeakSet[Any] = (
    weakref.WeakSet()
)  # every `TrainingDynamicsCallback` that was ever in a fit


class LabelIssuesCallback(Callback):  # type: ignore[misc]
    """Finds label issues in a recording once `fit` has ended: the same as calling `find_label_issues`.

    It may stand before or behind the `TrainingDynamicsCallback` of the same path. Should detection fail, it
    warns and `fit` returns as usual. With several ranks, rank 0 finds the issues, writes and prints them, and the
    callbacks of the other ranks get the same `issues`; so give it to every rank.

    Args:
        recording: the `TrainingDynamicsCallback` of the same fit, or the path that it records into.
        method: as for `find_label_issues`.
        detector: as for `find_label_issues`.
        device: as for `find_label_issues`.
        csv: where to write the ranking as CSV, None for nowhere.
        report: where to write a page to look at the suspects, None for nowhere. It shows the items of the data set.
        progress: whether to show a progress bar and print the head of the ranking; None follows fit's `verbose`.

    Attributes:
        issues: the `LabelIssues`, None before `fit` has ended.
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
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        path = recording.path if isinstance(recording, Callback) else recording
        check_method(method, detector)
        for name, out in (("csv", csv), ("report", report)):
            if out is not None and not os.fspath(out):
                raise ValueError(f"{name}='' names no file; give a file name, or None for nowhere")
            if out is not None and os.path.realpath(out) == os.path.realpath(path):
                raise ValueError(f"{name}={os.fspath(out)!r} is the recording itself; give it another path")
        self.path = os.path.abspath(path)  # the training may change the working folder
        self.issues: LabelIssues | None = None
        self._options: dict[str, Any] = {"method": method, "detector": detector, "device": device}
        self._csv = None if csv is None else os.path.abspath(csv)
        self._report = None if report is None else os.path.abspath(report)
        self._progress = progress
        self._shared: SharedResult | None = None

    def share(self, result: SharedResult) -> None:
        """Of several ranks in this fit, rank 0 finds and the others get this result."""
        self._shared = result

    def _judge(self, error: Exception, hook: str) -> None:
        if hook == "on_train_begin":
            raise error
        # No error of any kind may cost the training that has just ended.
        done = "found" if self.issues is None else "written"
        warn(
            f"label issues of '{self.path}' were not {done}: {error}; `paddle-td detect {self.path}` tries again once "
            "the cause is gone",
            stacklevel=3,
        )

    @guarded
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the issues of an earlier fit, and refuse a CSV path that could not be written at the end."""
        self.issues = None
        self._shared = None
        ranks = current_ranks()
        if self._csv is not None and (ranks is None or ranks.rank == 0):  # the one that writes it
            check_csv_path(self._csv)
        if self._report is not None and (ranks is None or ranks.rank == 0):
            resolve_output(self._report)
        if ranks is not None:  # until a recorder of this fit shares another: it knows which fit this is
            self.share(SharedResult(ranks.session(f"finder of {self.path}, "), ""))

    @guarded
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Find the issues, and write and print them where that is wanted."""
        progress = bool(self.params.get("verbose", 1)) if self._progress is None else self._progress
        shared = self._shared
        if shared is not None and shared.rank > 0:
            self.issues = _unpack(shared.fetch())
            return
        try:
            wait_for_commits(self.path)
            if self._is_recorded():
                self.issues = find_label_issues(self.path, progress=progress, **self._options)
        finally:
            if shared is not None:
                self._publish(shared)
        if self.issues is None:
            return
        if progress:
            show(self.issues)
        if self._csv is not None:
            self.issues.to_csv(self._csv)
        if self._report is not None:
            datasets = [one.session.dataset for one in self._recorders() if one.session is not None]
            self.issues.report(self.path, self._report, dataset=datasets[0] if datasets else None)

    def _recorders(self) -> list[Any]:
        """The callbacks of this fit that record into the path."""
        # Paddle makes a new `params` for each fit, and gives it to all its callbacks.
        return [one for one in recordings if one.path == self.path and one.params is self.params]

    def _is_recorded(self) -> bool:
        """Whether there is something to rank: never what an earlier fit recorded in place of this one's."""
        mine = self._recorders()
        if mine and not any(one.n_recorded for one in mine):
            warn(
                f"'{self.path}': nothing of this fit was recorded there, so its label issues were not found; see the "
                "warnings above, and give find_label_issues the file of an earlier training if it is there"
            )
            return False
        if not mine and os.path.exists(self.path):
            warn(
                f"'{self.path}': no TrainingDynamicsCallback of this fit recorded into it, so the label issues are "
                "those of an older recording; give this fit one, or call find_label_issues on its own"
            )
        return True

    def _publish(self, shared: SharedResult) -> None:
        try:
            shared.publish(_pack(self.issues))
        except Exception as error:  # as above
            warn(
                f"the other ranks did not get the label issues of '{self.path}': {error}; call find_label_issues there"
            )


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
