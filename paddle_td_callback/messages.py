"""Messages to users: escaped, in the encoding of the stream, and never a reason to fail."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

# What moves the cursor, ends a line, turns the direction of writing, or cannot be encoded at all.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f"))


def escape(text: object, *, limit: int | None = None, lines: bool = False) -> str:
    r"""Text that is safe on a terminal: `"\x1b[2J"` becomes `"\\x1b[2J"`.

    Args:
        text: anything; its `str` is taken.
        limit: of characters; what is longer ends in "...".
        lines: whether newlines and tabs stay, as in a table that we laid out ourselves.
    """
    try:
        plain = str(text)
    except Exception as error:  # a foreign `__str__`
        plain = f"<{type(text).__name__} without text: {type(error).__name__}>"
    if limit is not None and len(plain) > limit:
        plain = plain[: max(0, limit - 3)] + "..."
    unsafe = _UNSAFE_IN_LINES if lines else _UNSAFE
    return unsafe.sub(lambda found: found[0].encode("unicode_escape").decode(), plain)


def show(text: object, stream: TextIO | None = None) -> bool:
    """Print a text that may have several lines, if that is possible.

    Args:
        text: what to print; control characters other than newline and tab are escaped.
        stream: where to; None = standard output.

    Returns:
        Whether it was printed. A stream that is closed, full, missing or has lost its reader is no error.
    """
    stream = sys.stdout if stream is None else stream
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        line = escape(text, lines=True) + "\n"
        data = line.encode(encoding, "backslashreplace")
        stream.flush()
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if raw is None:
            stream.write(data.decode(encoding))
            stream.flush()
        else:
            # Not through the buffer: text that a full or closed stream refuses would stay there, and Python would
            # fail to write it again when it exits, with status 120.
            rest = memoryview(data)
            while rest:
                n_bytes = raw.write(rest)
                if not n_bytes:  # a full pipe that does not block
                    return False
                rest = rest[n_bytes:]
    except Exception:
        return False
    return True


def warn(message: object, category: type[Warning] = RuntimeWarning, *, stacklevel: int = 1) -> None:
    """Warn as `warnings.warn` does, but never raise: where warnings are errors, print to standard error.

    Args:
        message: becomes one line.
        category: of the warning.
        stacklevel: as for `warnings.warn`: 1 is the caller of this function.
    """
    text = escape(message)
    try:
        warnings.warn(text, category, stacklevel=stacklevel + 1)
    except Exception:
        if sys.stderr is not None:
            show(f"{category.__name__}: {text}", sys.stderr)


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output, for a command whose result goes there.

    Raises:
        BrokenPipeError: its reader has gone.
        OSError: it is full or failing, which the message says.
    """
    try:
        yield sys.stdout or io.StringIO()  # None where the process was started without one
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            f"standard output cannot be written: {error}; give it room, or write into another file"
        ) from error


class Forgiving:
    """A stream for progress bars: what cannot be written is dropped.

    Args:
        stream: where to; None = nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what the stream can take."""
        with contextlib.suppress(Exception):
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))  # type: ignore[union-attr]
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(Exception):
            self._stream.flush()  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
