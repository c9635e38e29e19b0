"""This rank in a fit of several ranks: where they wait for each other, and what they agree on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ..recording.gathering import RanksEndedError
from .issues_callback import LabelIssuesCallback
from .ranks import current_ranks
from .rendezvous import MISSING_CALLBACK, Session, SharedResult


class FitRanks:
    """All ranks of one fit; alone, this process is rank 0 of 1.

    Attributes:
        ranks: None = this process is alone.
        rank: of this process.
        size: how many there are.
        have_ended: whether they have agreed to record no more, or lost each other.
        n_classes: as agreed; 0 = not yet.
        do_resume: whether rank 0 continues a file.
    """

    def __init__(self) -> None:
        self.ranks = current_ranks()
        self.rank, self.size = (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.size)
        self.have_ended = self.do_resume = False
        self.n_classes = 0
        self._session: Session | None = None
        self._on_fit_collected: weakref.finalize[..., Any] | None = None

    def begin(self, check: Callable[[], None]) -> None:
        """Begin on all ranks or on none.

        Raises:
            Exception: `check` fails here, or CaptureError: on another rank.
        """
        session = None if self.ranks is None else self.ranks.session("fit")
        try:
            check()
        except Exception as error:
            if session is not None:
                session.barrier(error)
            raise
        if session is not None:
            session.barrier(hint=MISSING_CALLBACK)
        self._session = session

    def begin_epoch(self, callbacks: Any, path: str) -> None:
        """Tell the others if `fit` ends between two epochs, and share the label issues of this recording."""
        session = self._session
        if session is None:
            return
        if self._on_fit_collected is None:
            why = "its fit ended between two epochs"
            self._on_fit_collected = weakref.finalize(callbacks, session.leave, why)
            self._on_fit_collected.atexit = False
        if self.n_classes == 0:
            issues_callbacks = [
                one for one in callbacks if isinstance(one, LabelIssuesCallback) and one.path == path
            ]
            for number, callback in enumerate(issues_callbacks):
                callback.share(SharedResult(session, str(number)))

    def agree(self, n_classes: int, resumes: bool) -> bool:
        """Agree on the number of classes, which a rank without a batch does not know; returns whether one does."""
        if self.n_classes == 0 and self.ranks is not None:
            agreed = self.ranks.all_gather([n_classes, int(resumes)])
            self.n_classes, self.do_resume = int(agreed[:, 0].max()), bool(agreed[0, 1])
        return self.n_classes > 0

    def are_all_well(self, well: bool) -> bool:
        """Whether every rank can go on."""
        if self.ranks is None:
            return well
        try:
            return bool(self.ranks.all_gather([int(well)]).all())
        except RanksEndedError:
            self.have_ended = True
            raise

    def leave(self, reason: str) -> None:
        """Tell the other ranks not to wait for this one in what is left of the fit."""
        session = self._end_session()
        if session is not None:
            session.leave(reason)

    def end(self) -> None:
        """Wait for the others at the end of the fit.

        Raises:
            CaptureError: one of them does not arrive.
        """
        finalizer = self._on_fit_collected
        fit = None if finalizer is None else finalizer.peek()
        session = self._end_session()
        if session is None:
            return
        try:
            session.barrier()
        finally:
            if fit is not None:  # if it fails now, the label issues of the other ranks would wait for ours
                weakref.finalize(fit[0], session.leave, "its fit has ended").atexit = False

    def _end_session(self) -> Session | None:
        """The session of this fit, which is not used any more."""
        if self._on_fit_collected is not None:
            self._on_fit_collected.detach()
            self._on_fit_collected = None
        session, self._session = self._session, None
        return session
