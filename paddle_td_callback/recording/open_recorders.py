"""Recorders that this process has open, so that a reader of their files can wait for their commits."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from ..messages import warn
from ..store.paths import absolute


class _Recorder(Protocol):
    path: str

    def flush(self) -> None: ...

    def close(self) -> None: ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()
# Sinks of recorders that were collected without being closed, for example because `fit` failed between two epochs. The
# garbage collector may run anywhere, even inside h5py with the lock that a commit needs, so they are closed later.
_abandoned: list[Any] = []


def register(recorder: _Recorder, sink: Any) -> weakref.finalize[..., Any]:
    """Note an open recorder. If it is collected without being closed, its sink is closed later.

    Returns:
        What `unregister` needs.
    """
    _open.add(recorder)
    finalizer = weakref.finalize(recorder, _abandoned.append, sink)
    finalizer.atexit = False
    return finalizer


def unregister(recorder: _Recorder, finalizer: weakref.finalize[..., Any]) -> None:
    """Forget a recorder that is being closed."""
    _open.discard(recorder)
    finalizer.detach()


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether this process has a recorder of `path` that is not closed."""
    return bool(_recorders_of(path))


def close_abandoned(path: str | os.PathLike[str] | None = None) -> None:
    """Close the recorders that were collected, and every recorder of `path`, so that another can be made."""
    while _abandoned:
        sink = _abandoned.pop()
        try:
            sink.close()
        except Exception as error:  # of an earlier training; must not stop this one
            warn(
                f"an abandoned recording could not be closed: {error}; see what it holds with `paddle-td info`",
                RuntimeWarning,
                stacklevel=3,
            )
    for recorder in [] if path is None else _recorders_of(path):
        recorder.close()


def wait_for_commits(path: str | os.PathLike[str]) -> None:
    """Wait until every ended epoch of this process's recorders of `path` is on disk."""
    close_abandoned()
    for recorder in _recorders_of(path):
        recorder.flush()


def _recorders_of(path: str | os.PathLike[str]) -> list[Any]:
    wanted = absolute(path)
    return [recorder for recorder in list(_open) if recorder.path == wanted]
