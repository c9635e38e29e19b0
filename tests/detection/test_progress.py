"""The progress bar: named stages, on terminals only, and only past a second."""

import io
import sys

import pytest

from paddle_td_callback.detection import progress
from paddle_td_callback.detection.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(wanted: bool = True) -> None:
    with Progress("work", ["first", "second"], 10, wanted=wanted) as bar:
        for stage in ("first", "second"):
            bar.start(stage)
            for _ in range(2):
                bar.done(5)


def test_stages_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    run()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "work, 1 of 2: first:  50%" in shown
    assert "work, 2 of 2: second:   0%" in shown


def test_short_work_pipes_and_missing_streams_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        run()
        assert stream.getvalue().strip() == ""
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    for stream, wanted in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        run(wanted)
        assert stream.getvalue() == ""
    closed = Terminal()
    closed.close()
    closed_file = io.StringIO()
    closed_file.close()
    for missing in (None, closed, closed_file):
        monkeypatch.setattr(sys, "stderr", missing)
        run()
