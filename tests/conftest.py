"""What every test shares: one thread for Paddle, a path to record to, fresh random streams."""

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, and the machine left to the other tests
os.environ.pop("PYTHONUNBUFFERED", None)  # processes that tests start write as those of users do

import numpy as np
import pytest

from paddle_td_callback import messages
from paddle_td_callback.recording import open_recorders

try:
    import paddle
except ModuleNotFoundError:
    paddle = None

# Some shells and CI runners start processes with SIGINT ignored; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_random_streams() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the global stream is what Paddle draws from)
    if paddle is not None:
        paddle.seed(0)


@pytest.fixture(autouse=True)
def _warnings_are_errors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`messages.warn` never raises, so a warning that no test asked for has to be noticed here."""
    unraised: list[str] = []
    show = messages.show

    def noticing(text: object, stream: TextIO | None = None) -> bool:
        if stream is not None and stream is sys.stderr:
            unraised.append(str(text))
        return show(text, stream)

    monkeypatch.setattr(messages, "show", noticing)
    yield
    if request.node.get_closest_marker("expects_unraised") is None:
        assert not unraised


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a recording may be made."""
    return str(tmp_path / "run.h5")


@pytest.fixture(scope="session", autouse=True)
def _close_what_was_abandoned() -> Iterator[None]:
    """Some tests leave recordings as a fit that dies does; Python would complain of the files when it ends."""
    yield
    gc.collect()
    for path in [one.path for one in open_recorders._open]:
        open_recorders.close_abandoned(path)
    open_recorders.close_abandoned()


@pytest.fixture(scope="session", autouse=True)
def _end_persistent_workers() -> Iterator[None]:
    """Paddle never ends them; its reader threads would log that they died, into a stream that pytest has closed."""
    yield
    if paddle is None:
        return
    readers = paddle.io.dataloader.dataloader_iter._DataLoaderIterMultiProcess
    for reader in [one for one in gc.get_objects() if isinstance(one, readers)]:
        reader._try_shutdown_all(timeout=1)
