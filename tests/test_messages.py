"""Whatever is said arrives, or does not; it never raises."""

import io
import os
import subprocess
import sys
import textwrap
import warnings
from typing import Any

import pytest
from tqdm import tqdm

from paddle_td_callback import messages
from paddle_td_callback.messages import Forgiving, escape, show, standard_output, warn


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("猫 é plain", "猫 é plain"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("abc\u202ecba\u2066\u200f", "abc\\u202ecba\\u2066\\u200f"),
        ("a\u2028b\ufeff", "a\\u2028b\\ufeff"),
        ("\udc80", "\\udc80"),
        (7, "7"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: Any, wanted: str) -> None:
    assert escape(text) == wanted


def test_lines_of_our_own_stay_lines() -> None:
    assert escape("a\tb\nc\x1b\r", lines=True) == "a\tb\nc\\x1b\\r"


def test_a_long_text_is_cut() -> None:
    assert escape("x" * 1000, limit=10) == "x" * 7 + "..."
    assert escape("x" * 10, limit=10) == "x" * 10


def test_an_object_whose_text_fails() -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    assert escape(Bad()) == "<Bad without text: RuntimeError>"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8", "utf-16"])
def test_any_text_in_any_encoding(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert show("猫\u202e\ud800 é", stream)
    stream.seek(0)
    assert stream.read().rstrip().endswith("é" if encoding != "ascii" else "\\xe9")


def test_a_full_pipe_that_does_not_block_is_given_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        assert not show("x" * 1_000_000, stream)
    os.close(reader)


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed(), object()], ids=["broken", "closed", "no stream"])
def test_a_stream_that_takes_nothing_is_no_error(stream: Any) -> None:
    assert not show("text", stream)


def test_no_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert not show("text")


def test_a_result_without_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with standard_output() as out:
        assert out.write("text") == 4


def test_show_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("a\nb")
    assert capsys.readouterr().out == "a\nb\n"


def test_a_warning_has_the_place_of_the_caller() -> None:
    with pytest.warns(RuntimeWarning, match=r"a\\x1bb") as caught:
        warn("a\x1bb")
    assert caught[0].filename == __file__


@pytest.mark.expects_unraised
def test_a_warning_that_is_an_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("something")
    assert "RuntimeWarning: something" in capsys.readouterr().err


@pytest.mark.expects_unraised
@pytest.mark.parametrize("stream", [None, closed(), Broken()])
def test_a_warning_that_nobody_can_read(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("something")
    monkeypatch.setattr(warnings, "showwarning", lambda *_arguments, **_named: 1 / 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warn("something")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_full_output_does_not_spoil_the_exit_status(encoding: str) -> None:
    script = textwrap.dedent("""
        import sys
        from paddle_td_callback.messages import show
        assert not show("猫" * 5)
        print("end", file=sys.stderr)
    """)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"end\n")


@pytest.mark.parametrize("stream", [Broken(), closed(), None], ids=["broken", "closed", "none"])
def test_a_progress_bar_without_a_terminal(stream: Any) -> None:
    assert list(tqdm(range(3), file=Forgiving(stream), mininterval=0)) == [0, 1, 2]


def test_a_progress_bar_in_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with tqdm(total=2, file=Forgiving(stream), desc="猫", ascii=False) as bar:
        bar.update()
    stream.seek(0)
    assert "\\u732b" in stream.read()


def test_nothing_but_python_is_needed() -> None:
    assert "paddle" not in vars(messages)
