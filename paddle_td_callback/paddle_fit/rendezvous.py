"""Where ranks wait for each other for as long as it takes, but not for one that is gone.

gloo gives up on a peer that is 30 seconds late. Where ranks may be apart for longer (before training, after the last
epoch, while rank 0 looks for label issues or waits for its disk), they wait at the TCP store with which Paddle's ranks
found each other. Each shows there once a second that it lives and leaves a note where it goes before its time; rank 0
looks after the others. The store itself is in rank 0's process, so all hear at once when that is gone.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import json
import math
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import paddle
from paddle.distributed import collective

from ..errors import CaptureError

_T = TypeVar("_T")

_ROOT = "paddle_td_callback"
_BEAT_SECONDS = 1.0
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 30.0  # of the store; as long as gloo waits for a peer
_SILENT_SECONDS = 120.0  # one long call into C may keep a process from its beat
_SAY_SECONDS = 20.0  # a rank without the callback meets gloo's 30 seconds first: say before what is wrong
_READ_SECONDS = 60.0
_EXIT_SECONDS = 2.0
_PART_BYTES = 8 << 20
_ALIVE_SECONDS = 1800.0  # for a rank that lives and does not come: Paddle's own default for a process group
_SILENT = "no sign of life for"
MISSING_CALLBACK = "TrainingDynamicsCallback must be among the callbacks of every rank"


class _Line:
    """A connection to the store in the hands of one thread: Paddle's client is made for one, and has no timeout.

    Args:
        store: the client.
        beat: called with it about once a second.
    """

    def __init__(self, store: Any, beat: Callable[[Any], None]) -> None:
        self._store = store
        self._beat = beat
        self._broken: Exception | None = None
        # A queue whose `put` may be called anywhere, also by a finalizer that runs within another `put`.
        self._requests: queue.SimpleQueue[tuple[Callable[[Any], Any], concurrent.futures.Future[Any]] | None]
        self._requests = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="paddle_td_callback ranks", daemon=True)
        self._thread.start()

    def ask(self, operation: Callable[[Any], _T]) -> _T:
        """What the operation returns, given the store.

        Raises:
            CaptureError: the store is gone or does not answer.
        """
        try:
            return self.post(operation).result(_ANSWER_SECONDS)
        except concurrent.futures.TimeoutError:
            raise CaptureError(f"rank 0 has not answered for {_ANSWER_SECONDS:.0f} s") from None
        except (RuntimeError, ValueError, OSError) as error:
            raise CaptureError(f"rank 0's process ended ({first_line(error)})") from error

    def post(self, operation: Callable[[Any], _T]) -> concurrent.futures.Future[_T]:
        """Have the operation done, without waiting for it."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self._requests.put((operation, future))
        return future

    def close(self) -> None:
        """Do what was asked for so far, and end; a store that does not answer is not waited for."""
        self._requests.put(None)
        self._thread.join(_EXIT_SECONDS)

    def _serve(self) -> None:
        next_beat = time.monotonic()
        while True:
            try:
                request = self._requests.get(timeout=max(0.0, next_beat - time.monotonic()))
            except queue.Empty:
                request = self._beat, concurrent.futures.Future()
                next_beat = time.monotonic() + _BEAT_SECONDS
            if request is None:
                return
            operation, future = request
            try:
                if self._broken is not None:
                    raise self._broken
                future.set_result(operation(self._store))
            except Exception as error:
                self._broken = error
                future.set_exception(error)
            del request, operation, future  # not to be kept until the next comes


def first_line(error: BaseException) -> str:
    """What an error of Paddle says, without its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Lookout:
    """Knows which ranks are gone, and holds the sessions in which they meet.

    Args:
        store: a client of the TCP store, for this object alone.
        rank: of this process.
        size: how many there are.
        patience_seconds: how long Paddle's own process group waits for a rank that does not come.
    """

    def __init__(self, store: Any, rank: int, size: int, patience_seconds: float) -> None:
        self.rank = rank
        self.size = size
        self.patience_seconds = patience_seconds
        self._silent_seconds = min(_SILENT_SECONDS, patience_seconds)
        self._sessions: dict[str, int] = {}
        self._absences: dict[tuple[int, str | None], str] = {}
        self._n_notes = 0
        self._n_read = [0] * size
        self._n_written = 0
        self._beats = [0] * size
        self._heard_at = [0.0] * size
        self._looked_at = 0.0
        self._line = _Line(store, self._beat)
        self._process = os.getpid()
        atexit.register(self._end)

    def ask(self, operation: Callable[[Any], _T]) -> _T:
        """What the operation returns, given the store.

        Raises:
            CaptureError: the store is gone or does not answer.
        """
        return self._line.ask(operation)

    def session(self, kind: str) -> Session:
        """The next one of its kind, which every rank opens in the same order."""
        number = self._sessions[kind] = self._sessions.get(kind, 0) + 1
        return Session(self, f"{_ROOT}/{kind}{number}")

    def leave(self, session: str | None, reason: str) -> None:
        """Tell the others that this rank comes to no more meetings of a session, or of any. Waits for nobody."""
        self._line.post(lambda store: self._write(store, self.rank, session, reason))

    def news(self, store: Any) -> None:
        """Read the notes that are new."""
        n_notes = store.add(f"{_ROOT}/notes", 0)
        if n_notes == self._n_notes:
            return
        self._n_notes = n_notes
        for writer in range(self.size):
            for number in range(self._n_read[writer], store.add(f"{_ROOT}/notes{writer}", 0)):
                note = json.loads(store.get(f"{_ROOT}/note{writer}.{number}"))
                self._n_read[writer] = number + 1
                self._absences[note["rank"], note["session"]] = note["reason"]

    def absence(self, rank: int, session: str) -> str:
        """Why a rank will not come, "" if nothing is known against it."""
        return self._absences.get((rank, None)) or self._absences.get((rank, session), "")

    def gone(self) -> str:
        """What is known of ranks that are gone, for a message."""
        try:
            self.ask(self.news)
        except CaptureError as error:
            return str(error)
        return "; ".join(
            f"rank {rank}: {reason}"
            for (rank, _), reason in sorted(self._absences.items(), key=str)
            if reason
        )

    def has_shown_itself(self, store: Any, rank: int) -> bool:
        """Whether a rank has given a sign of life at any time."""
        return bool(store.add(f"{_ROOT}/beat{rank}", 0))

    def _write(self, store: Any, rank: int, session: str | None, reason: str) -> None:
        note = {"rank": rank, "session": session, "reason": reason}
        store.set(f"{_ROOT}/note{self.rank}.{self._n_written}", json.dumps(note))
        self._n_written += 1
        store.add(f"{_ROOT}/notes{self.rank}", 1)  # counted once it is there: `get` would wait for it
        store.add(f"{_ROOT}/notes", 1)

    def _beat(self, store: Any) -> None:
        store.add(f"{_ROOT}/beat{self.rank}", 1)
        if self.rank == 0:
            self._look_after_others(store)

    def _look_after_others(self, store: Any) -> None:
        now = time.monotonic()
        missed, self._looked_at = now - self._looked_at - _BEAT_SECONDS, now
        for rank in range(1, self.size):
            beats = store.add(f"{_ROOT}/beat{rank}", 0)
            if beats != self._beats[rank]:
                self._beats[rank], self._heard_at[rank] = beats, now
                if self._absences.get((rank, None), "").startswith(_SILENT):
                    self._write(store, rank, None, "")
                    self._absences[rank, None] = ""
                continue
            self._heard_at[rank] += max(0.0, missed)  # this process was kept from looking
            silence = now - self._heard_at[rank]
            if beats and silence > self._silent_seconds and not self._absences.get((rank, None)):
                self._write(store, rank, None, f"{_SILENT} {silence:.0f} s, its process was killed or hangs")
                self._absences[rank, None] = _SILENT

    def _end(self) -> None:
        if os.getpid() != self._process:  # a fork ends
            return
        error = getattr(sys, "last_value", None)
        why = "" if error is None else f" ({type(error).__name__}: {first_line(error)})"
        self.leave(None, f"its process ended{why}")
        self._line.close()


class Session:
    """What ranks do together in one fit, or with one recorder.

    Args:
        lookout: knows who is gone; None where Paddle has no store, and nobody can wait.
        name: the same on all ranks.
    """

    def __init__(self, lookout: Lookout | None, name: str) -> None:
        self.name = name
        self._lookout = lookout
        self._n_meetings = 0

    def meet(self, error: Exception | None = None, *, hint: str = "") -> None:
        """Wait until every rank is here, however late.

        Args:
            error: what is wrong on this rank; every rank raises then.
            hint: what may be wrong where a rank does not come.

        Raises:
            CaptureError: something is wrong on another rank, or one will not come.
        """
        self._n_meetings += 1
        lookout = self._lookout
        if lookout is None:
            if error is not None:
                raise error
            return
        name, rank = f"{self.name}/meeting{self._n_meetings}", lookout.rank
        try:
            self._set(f"{name}/error{rank}", b"" if error is None else str(error).encode())
            self.come(name)
            self.wait(name, range(lookout.size), seconds=_ALIVE_SECONDS, hint=hint)
            errors = [self._get(f"{name}/error{r}").decode() for r in range(lookout.size)]
            if rank > 0:
                self.come(f"{name}/known")
            else:  # the store goes with this process, which may be about to end
                with contextlib.suppress(CaptureError):
                    self.wait(f"{name}/known", range(1, lookout.size), seconds=_EXIT_SECONDS)
        except CaptureError:
            if error is not None:
                raise error from None
            raise
        if error is not None:
            raise error
        for other, message in enumerate(errors):
            if message:
                raise CaptureError(f"rank {other} of {lookout.size} cannot record: {message}")

    def leave(self, reason: str) -> None:
        """Tell the others not to wait for this rank here. Waits for nobody, and may be called by a finalizer."""
        if self._lookout is not None:
            self._lookout.leave(self.name, reason)

    def come(self, name: str) -> None:
        """Be counted among the ranks that are at a place."""
        lookout = self._lookout
        if lookout is not None:
            lookout.ask(lambda store: (store.add(f"{name}/{lookout.rank}", 1), store.add(name, 1)))

    def is_there(self, name: str, rank: int) -> bool:
        """Whether a rank has come to a place, without waiting for it."""
        return self._lookout is not None and bool(
            self._lookout.ask(lambda store: store.add(f"{name}/{rank}", 0))
        )

    def wait(self, name: str, ranks: Sequence[int], *, seconds: float = math.inf, hint: str = "") -> None:
        """Wait until these ranks have come to a place, but for none that is gone.

        Args:
            name: of the place.
            ranks: whom to wait for.
            seconds: how long at most for one that lives.
            hint: what may be wrong where one does not come; said after a while, too.

        Raises:
            CaptureError: one of them will not come.
        """
        lookout = self._lookout
        assert lookout is not None
        begin = look_at = time.monotonic()
        said, pause = not hint, 0.002
        while lookout.ask(lambda store: store.add(name, 0)) < len(ranks):
            waited = time.monotonic() - begin
            if begin + waited >= look_at:
                look_at += _BEAT_SECONDS
                missing = lookout.ask(lambda store: self._look(store, name, ranks))
                for rank, is_alive in missing.items():
                    reason = lookout.absence(rank, self.name)
                    if not reason and waited > (seconds if is_alive else lookout.patience_seconds):
                        reason = "still there" if is_alive else "no sign of life ever"
                        reason = f"{reason} after {waited:.0f} s; {hint}".removesuffix("; ")
                    if reason:
                        raise CaptureError(f"rank {rank} of {lookout.size} does not come: {reason}")
                if waited > _SAY_SECONDS and not said:
                    said = True
                    warnings.warn(
                        f"rank {lookout.rank} still waits for ranks {list(missing)}; {hint}",
                        RuntimeWarning,
                        stacklevel=4,
                    )
            time.sleep(pause)
            pause = min(_POLL_SECONDS, 2 * pause)

    def _look(self, store: Any, name: str, ranks: Sequence[int]) -> dict[int, bool]:
        """The ranks that are missing, and whether each has ever been heard of."""
        assert self._lookout is not None
        missing = [rank for rank in ranks if not store.add(f"{name}/{rank}", 0)]
        self._lookout.news(store)
        return {rank: self._lookout.has_shown_itself(store, rank) for rank in missing}

    def put(self, name: str, payload: bytes) -> Callable[[], None]:
        """Leave bytes at a place; returns what takes them away again."""
        parts = [payload[i : i + _PART_BYTES] for i in range(0, len(payload), _PART_BYTES)]
        for number, part in enumerate(parts):
            self._set(f"{name}/part{number}", part)
        self._set(f"{name}/parts", str(len(parts)).encode())

        def take_away() -> None:
            for number in range(len(parts)):
                self._set(f"{name}/part{number}", b"")

        return take_away

    def _set(self, key: str, value: bytes) -> None:
        assert self._lookout is not None
        self._lookout.ask(lambda store: store.set(key, value))

    def _get(self, key: str) -> bytes:
        assert self._lookout is not None
        return self._lookout.ask(lambda store: bytes(store.get(key)))

    def get(self, name: str) -> bytes:
        """The bytes that were left at a place; they must be there."""
        n_parts = int(self._get(f"{name}/parts"))
        return b"".join(self._get(f"{name}/part{number}") for number in range(n_parts))

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        return (0, 1) if self._lookout is None else (self._lookout.rank, self._lookout.size)


class SharedResult:
    """What rank 0 finds for one callback, and the callbacks of other ranks want too.

    Every rank makes it early in a fit, so that rank 0 knows at the end who waits.

    Args:
        session: of the fit.
        name: the same on all ranks, and of this callback alone.

    Attributes:
        rank: of this process.
    """

    def __init__(self, session: Session, name: str) -> None:
        self.rank, self._size = session.ranks
        self._session = session
        self._name = f"{session.name}/result{name}"
        session.come(f"{self._name}/wanted")

    def publish(self, payload: bytes) -> None:
        """Give it to the ranks that want it, and wait until they have it (a minute, then they are on their own)."""
        session, name = self._session, self._name
        readers = [r for r in range(1, self._size) if session.is_there(f"{name}/wanted", r)]
        if not readers:
            return
        take_away = session.put(name, payload)
        session.come(f"{name}/ready")
        with contextlib.suppress(CaptureError):
            session.wait(f"{name}/read", readers, seconds=_READ_SECONDS)
            take_away()  # the store would keep it as long as the process lives

    def fetch(self) -> bytes:
        """What rank 0 published; waits for it as long as rank 0 lives.

        Raises:
            CaptureError: rank 0 has no such callback, or ended.
        """
        session, name = self._session, self._name
        if not session.is_there(f"{name}/wanted", 0):
            raise CaptureError("rank 0 has no LabelIssuesCallback for this recording; give it to every rank")
        session.wait(f"{name}/ready", [0])
        payload = session.get(name)
        session.come(f"{name}/read")
        return payload


def connect() -> Any:
    """A client of the store with which Paddle's ranks found each other, None where there is none.

    One of our own, since Paddle's is for the training's thread.
    """
    shared = getattr(collective, "_default_store", None)
    if shared is None:
        return None
    address, port = os.getenv("MASTER_ADDR"), os.getenv("MASTER_PORT")
    if not (address and port):
        endpoints = os.getenv("PADDLE_MASTER") or os.getenv("PADDLE_TRAINER_ENDPOINTS") or ""
        address, _, port = endpoints.split(",")[0].rpartition(":")
    try:
        # No workers: this client is none of those that the store waits for.
        return paddle.base.core.TCPStore(address, int(port), False, 0, int(_ANSWER_SECONDS))
    except (AttributeError, RuntimeError, TypeError, ValueError, OSError):
        return shared
