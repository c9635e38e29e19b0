"""Lets ranks wait for each other without a time limit, but not for a rank that is lost.

gloo gives up a rank that is 30 seconds late. Ranks may be later than that: before training, after the last epoch,
while rank 0 finds label issues or waits for its disk. For those waits they use the TCP store through which Paddle's
ranks found each other. Each rank counts a heartbeat there once a second, and writes a note before it exits early.
Rank 0 watches the heartbeats of the others. The store is in rank 0's process, so all notice when rank 0 exits.
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
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import paddle
from paddle.distributed import collective

from ..errors import CaptureError
from ..messages import warn

_T = TypeVar("_T")

_ROOT = "paddle_td_callback"
_HEARTBEAT_SECONDS = 1.0
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 30.0  # of the store; as long as gloo waits for a peer
_SILENT_SECONDS = 120.0  # one long call into C may keep a process from its heartbeat
_WARN_SECONDS = 20.0  # before gloo's 30 seconds, which a rank without the callback runs into
_READ_SECONDS = 60.0
_EXIT_SECONDS = 2.0
_PART_BYTES = 8 << 20
_ALIVE_SECONDS = 1800.0  # for a rank that lives and does not arrive: Paddle's own default for a process group
_SILENT = "no sign of life for"
MISSING_CALLBACK = "TrainingDynamicsCallback must be among the callbacks of every rank"


class _StoreThread:
    """The only thread that uses the store's client, which is made for one thread and has no timeout.

    Args:
        store: the client.
        heartbeat: called with it about once a second.
    """

    def __init__(self, store: Any, heartbeat: Callable[[Any], None]) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._broken: Exception | None = None
        # A queue whose `put` may be called anywhere, also by a finalizer that runs within another `put`.
        self._requests: queue.SimpleQueue[tuple[Callable[[Any], Any], concurrent.futures.Future[Any]] | None]
        self._requests = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="paddle_td_callback ranks", daemon=True)
        self._thread.start()

    def ask(self, operation: Callable[[Any], _T]) -> _T:
        """Run an operation on the store, and return its result.

        Raises:
            CaptureError: the store is lost or does not answer.
        """
        try:
            return self.submit(operation).result(_ANSWER_SECONDS)
        except concurrent.futures.TimeoutError:
            raise CaptureError(
                f"rank 0 has not answered for {_ANSWER_SECONDS:.0f} s; see its own log"
            ) from None
        except (RuntimeError, ValueError, OSError) as error:
            raise CaptureError(
                f"rank 0's process ended ({first_line(error)}); see its own log, and start again with resume=True"
            ) from error

    def submit(self, operation: Callable[[Any], _T]) -> concurrent.futures.Future[_T]:
        """Run an operation on the store later; does not wait."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self._requests.put((operation, future))
        return future

    def close(self) -> None:
        """Finish what was asked for and stop; does not wait for a store that does not answer."""
        self._requests.put(None)
        self._thread.join(_EXIT_SECONDS)

    def _serve(self) -> None:
        next_beat = time.monotonic()
        while True:
            try:
                request = self._requests.get(timeout=max(0.0, next_beat - time.monotonic()))
            except queue.Empty:
                request = self._heartbeat, concurrent.futures.Future()
                next_beat = time.monotonic() + _HEARTBEAT_SECONDS
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
    """The message of an error of Paddle, without its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class RankMonitor:
    """Knows which ranks are lost, and opens sessions.

    Args:
        store: a client of the TCP store, used by nothing else.
        rank: of this process.
        size: how many there are.
        patience_seconds: how long Paddle's own process group waits for a rank that does not arrive.
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
        self._heartbeats = [0] * size
        self._last_heard = [0.0] * size
        self._watched_at = 0.0
        self._store = _StoreThread(store, self._beat)
        self._process = os.getpid()
        atexit.register(self._end)

    def ask(self, operation: Callable[[Any], _T]) -> _T:
        """Run an operation on the store, and return its result.

        Raises:
            CaptureError: the store is lost or does not answer.
        """
        return self._store.ask(operation)

    def session(self, kind: str) -> Session:
        """The next one of its kind, which every rank opens in the same order."""
        number = self._sessions[kind] = self._sessions.get(kind, 0) + 1
        return Session(self, f"{_ROOT}/{kind}{number}")

    def leave(self, session: str | None, reason: str) -> None:
        """Tell the others that this rank leaves a session, or every session (None). Returns at once."""
        self._store.submit(lambda store: self._write(store, self.rank, session, reason))

    def read_notes(self, store: Any) -> None:
        """Read new notes."""
        n_notes = store.add(f"{_ROOT}/notes", 0)
        if n_notes == self._n_notes:
            return
        self._n_notes = n_notes
        for writer in range(self.size):
            for number in range(self._n_read[writer], store.add(f"{_ROOT}/notes{writer}", 0)):
                note = json.loads(store.get(f"{_ROOT}/note{writer}.{number}"))
                self._n_read[writer] = number + 1
                self._absences[note["rank"], note["session"]] = note["reason"]

    def why_absent(self, rank: int, session: str) -> str:
        """Why a rank will not arrive; "" if nothing is known."""
        return self._absences.get((rank, None)) or self._absences.get((rank, session), "")

    def describe_lost(self) -> str:
        """What is known of lost ranks, for a message."""
        try:
            self.ask(self.read_notes)
        except CaptureError as error:
            return str(error)
        return "; ".join(
            f"rank {rank}: {reason}"
            for (rank, _), reason in sorted(self._absences.items(), key=str)
            if reason
        )

    def has_sent_heartbeat(self, store: Any, rank: int) -> bool:
        """Whether a rank has ever sent a heartbeat."""
        return bool(store.add(f"{_ROOT}/heartbeat{rank}", 0))

    def _write(self, store: Any, rank: int, session: str | None, reason: str) -> None:
        note = {"rank": rank, "session": session, "reason": reason}
        store.set(f"{_ROOT}/note{self.rank}.{self._n_written}", json.dumps(note))
        self._n_written += 1
        store.add(f"{_ROOT}/notes{self.rank}", 1)  # counted once it is there: `get` would wait for it
        store.add(f"{_ROOT}/notes", 1)

    def _beat(self, store: Any) -> None:
        store.add(f"{_ROOT}/heartbeat{self.rank}", 1)
        if self.rank == 0:
            self._watch_others(store)

    def _watch_others(self, store: Any) -> None:
        now = time.monotonic()
        missed, self._watched_at = now - self._watched_at - _HEARTBEAT_SECONDS, now
        for rank in range(1, self.size):
            count = store.add(f"{_ROOT}/heartbeat{rank}", 0)
            if count != self._heartbeats[rank]:
                self._heartbeats[rank], self._last_heard[rank] = count, now
                if self._absences.get((rank, None), "").startswith(_SILENT):
                    self._write(store, rank, None, "")
                    self._absences[rank, None] = ""
                continue
            self._last_heard[rank] += max(0.0, missed)  # this process was kept from watching
            silence = now - self._last_heard[rank]
            if count and silence > self._silent_seconds and not self._absences.get((rank, None)):
                self._write(store, rank, None, f"{_SILENT} {silence:.0f} s, its process was killed or hangs")
                self._absences[rank, None] = _SILENT

    def _end(self) -> None:
        if os.getpid() != self._process:  # a forked process exits
            return
        error = getattr(sys, "last_value", None)
        why = "" if error is None else f" ({type(error).__name__}: {first_line(error)})"
        self.leave(None, f"its process ended{why}")
        self._store.close()


class Session:
    """Barriers and messages of all ranks in one fit, or of one recorder.

    Args:
        monitor: knows which ranks are lost.
        name: the same on all ranks.
    """

    def __init__(self, monitor: RankMonitor, name: str) -> None:
        self.name = name
        self._monitor = monitor
        self._n_barriers = 0

    def barrier(self, error: Exception | None = None, *, hint: str = "") -> None:
        """As `recording.gathering.Session.barrier`."""
        self._n_barriers += 1
        monitor, rank = self._monitor, self._monitor.rank
        name = f"{self.name}/barrier{self._n_barriers}"
        try:
            self._set(
                f"{name}/error{rank}", b"" if error is None else str(error).encode(errors="backslashreplace")
            )
            self.arrive(name)
            self.wait(name, range(monitor.size), seconds=_ALIVE_SECONDS, hint=hint)
            errors = [self._get(f"{name}/error{r}").decode() for r in range(monitor.size)]
            if rank > 0:
                self.arrive(f"{name}/known")
            else:  # the store ends with this process, which may be about to exit
                with contextlib.suppress(CaptureError):
                    self.wait(f"{name}/known", range(1, monitor.size), seconds=_EXIT_SECONDS)
        except CaptureError:
            if error is not None:
                raise error from None
            raise
        if error is not None:
            raise error
        for other, message in enumerate(errors):
            if message:
                raise CaptureError(f"rank {other} of {monitor.size} cannot record: {message}")

    def leave(self, reason: str) -> None:
        """Tell the others not to wait for this rank here. Returns at once, so a finalizer may call it."""
        self._monitor.leave(self.name, reason)

    def arrive(self, name: str) -> None:
        """Count this rank as arrived at `name`."""
        monitor = self._monitor
        monitor.ask(lambda store: (store.add(f"{name}/{monitor.rank}", 1), store.add(name, 1)))

    def has_arrived(self, name: str, rank: int) -> bool:
        """Whether a rank has arrived at `name`; does not wait."""
        return bool(self._monitor.ask(lambda store: store.add(f"{name}/{rank}", 0)))

    def wait(self, name: str, ranks: Sequence[int], *, seconds: float = math.inf, hint: str = "") -> None:
        """Wait until these ranks have arrived at `name`; do not wait for a lost rank.

        Args:
            name: what they arrive at.
            ranks: which ones.
            seconds: how long at most for a rank that lives.
            hint: what may be wrong if one does not arrive; also the text of a warning after a while.

        Raises:
            CaptureError: one of them will not arrive.
        """
        monitor = self._monitor
        begin = check_at = time.monotonic()
        has_warned, pause = not hint, 0.002
        while monitor.ask(lambda store: store.add(name, 0)) < len(ranks):
            waited = time.monotonic() - begin
            if begin + waited >= check_at:
                check_at += _HEARTBEAT_SECONDS
                missing = monitor.ask(lambda store: self._missing(store, name, ranks))
                for rank, is_alive in missing.items():
                    reason = monitor.why_absent(rank, self.name)
                    if not reason and waited > (seconds if is_alive else monitor.patience_seconds):
                        reason = "still there" if is_alive else "no sign of life ever"
                        reason = f"{reason} after {waited:.0f} s; {hint}".removesuffix("; ")
                    if reason:
                        raise CaptureError(f"rank {rank} of {monitor.size} did not arrive: {reason}")
                if waited > _WARN_SECONDS and not has_warned:
                    has_warned = True
                    warn(
                        f"rank {monitor.rank} still waits for ranks {list(missing)}; {hint}",
                        RuntimeWarning,
                        stacklevel=4,
                    )
            time.sleep(pause)
            pause = min(_POLL_SECONDS, 2 * pause)

    def _missing(self, store: Any, name: str, ranks: Sequence[int]) -> dict[int, bool]:
        """Ranks that have not arrived, and whether each has ever sent a heartbeat."""
        missing = [rank for rank in ranks if not store.add(f"{name}/{rank}", 0)]
        self._monitor.read_notes(store)
        return {rank: self._monitor.has_sent_heartbeat(store, rank) for rank in missing}

    def put(self, name: str, payload: bytes) -> Callable[[], None]:
        """Store bytes under `name`; returns what deletes them."""
        parts = [payload[i : i + _PART_BYTES] for i in range(0, len(payload), _PART_BYTES)]
        for number, part in enumerate(parts):
            self._set(f"{name}/part{number}", part)
        self._set(f"{name}/parts", str(len(parts)).encode())

        def delete() -> None:
            for number in range(len(parts)):
                self._set(f"{name}/part{number}", b"")

        return delete

    def _set(self, key: str, value: bytes) -> None:
        self._monitor.ask(lambda store: store.set(key, value))

    def _get(self, key: str) -> bytes:
        return self._monitor.ask(lambda store: bytes(store.get(key)))

    def get(self, name: str) -> bytes:
        """The bytes stored under `name`; they must be there."""
        n_parts = int(self._get(f"{name}/parts"))
        return b"".join(self._get(f"{name}/part{number}") for number in range(n_parts))

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        return self._monitor.rank, self._monitor.size


class SharedResult:
    """A result that rank 0 computes for one callback and sends to the same callback on other ranks.

    Every rank makes it early in a fit, so that rank 0 knows at the end which ranks wait.

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
        self._n_meetings = 0
        session.arrive(f"{self._name}/wanted")

    def meet(self) -> None:
        """Wait until rank 0 comes here too, which may work for longer than Paddle's ranks wait for each other.

        Raises:
            CaptureError: it does not come.
        """
        session, self._n_meetings = self._session, self._n_meetings + 1
        name = f"{self._name}/meeting{self._n_meetings}"
        if self.rank == 0:
            session.arrive(name)
        elif session.has_arrived(f"{self._name}/wanted", 0):
            session.wait(name, [0], seconds=_ALIVE_SECONDS)

    def publish(self, payload: bytes) -> None:
        """Send it to the ranks that want it, and wait up to a minute until they have it."""
        session, name = self._session, self._name
        readers = [r for r in range(1, self._size) if session.has_arrived(f"{name}/wanted", r)]
        if not readers:
            return
        delete = session.put(name, payload)
        session.arrive(f"{name}/ready")
        with contextlib.suppress(CaptureError):
            session.wait(f"{name}/read", readers, seconds=_READ_SECONDS)
            delete()  # the store would keep it as long as the process lives

    def fetch(self) -> bytes:
        """The result of rank 0; waits as long as rank 0 lives.

        Raises:
            CaptureError: rank 0 has no such callback, or exited.
        """
        session, name = self._session, self._name
        if not session.has_arrived(f"{name}/wanted", 0):
            raise CaptureError("rank 0 has no LabelIssuesCallback for this recording; give it to every rank")
        session.wait(f"{name}/ready", [0])
        payload = session.get(name)
        session.arrive(f"{name}/read")
        return payload


def connect() -> Any:
    """A new client of the store through which Paddle's ranks found each other.

    Paddle's own client belongs to the thread that trains; it is taken where the store cannot be reached anew.
    """
    address, port = os.getenv("MASTER_ADDR"), os.getenv("MASTER_PORT")
    if not (address and port):
        endpoints = os.getenv("PADDLE_MASTER") or os.getenv("PADDLE_TRAINER_ENDPOINTS") or ""
        address, _, port = endpoints.split(",")[0].rpartition(":")
    try:
        # No workers: the store does not wait for this client.
        return paddle.base.core.TCPStore(address, int(port), False, 0, int(_ANSWER_SECONDS))
    except (AttributeError, RuntimeError, TypeError, ValueError, OSError):
        return collective._default_store
