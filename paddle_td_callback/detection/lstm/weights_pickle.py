"""A reader of the few pickle operations that Paddle's weights need. It runs no code and takes no more than it reads.

Python's own unpickler is not used: a file of 273 bytes can make it hash 2^60 nested tuples, or copy one string a
million times. Here every operation costs what it takes off the stack, copies are charged against the size of the
file, and the keys of dictionaries are strings.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import DetectorError
from ...messages import escape

COPIES = 4  # bytes made for each byte read: float16 doubles, and protocol 2 carries bytes as text

FUNCTIONS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),  # only ever an argument of _reconstruct
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
DTYPES = ("f2", "f4", "f8")
MAX_AXES = 8


class _Function(NamedTuple):
    module: str
    name: str


class _Dtype:
    def __init__(self, code: Any) -> None:
        if code not in DTYPES:
            raise DetectorError(f"arrays of dtype {_told(code)} are refused; weights are {', '.join(DTYPES)}")
        self.code, self.order = code, "<"


class _Array:
    """An array, empty until its state has been read."""

    value: NDArray[np.float32] | None = None


def _told(value: Any) -> str:
    """A value for a message; nested tuples, whose text may have no end, as the name of their type."""
    return repr(escape(value, limit=40)) if isinstance(value, str) else type(value).__name__


class _Mark:
    """Where the arguments of an operation begin on the stack."""


def read_arrays(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The arrays of a pickled dictionary, by their keys; what else is in it is left out.

    Args:
        data: a pickle of protocol 2 to 4.

    Raises:
        DetectorError: it is no such dictionary, or needs an operation that weights do not need.
    """
    try:
        state = _Machine(data).run()
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
    ) as error:
        raise DetectorError(
            f"not a .pdparams file that can be read ({type(error).__name__}: {escape(error, limit=200)})"
        ) from None
    if not isinstance(state, dict):
        raise DetectorError(f"holds a {type(state).__name__.lstrip('_')}, wanted a dictionary of weights")
    found = {}
    for key, value in state.items():
        # A tensor saved outside a state dict is a tuple (name, array).
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
        if isinstance(array, _Array) and array.value is not None:
            found[key] = array.value
    return found


class _Machine:
    """A stack, a memo, and one method for each group of operations."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = COPIES * len(data)

    def run(self) -> Any:
        while (code := self._take(1)) != b".":
            try:
                operation = _OPERATIONS[code]
            except KeyError:
                raise DetectorError(f"operation {code!r} is none that weights need; refused") from None
            operation(self)
        return self._stack[-1]

    def _take(self, n_bytes: int) -> bytes:
        taken = self._data[self._place : self._place + n_bytes]
        if len(taken) < n_bytes:
            raise ValueError("it ends in the middle of an operation")
        self._place += n_bytes
        return taken

    def _number(self, n_bytes: int) -> int:
        return int.from_bytes(self._take(n_bytes), "little")

    def _text(self, n_bytes: int) -> None:
        self._stack.append(self._take(self._number(n_bytes)).decode("utf-8", "surrogatepass"))

    def _line(self) -> str:
        end = self._data.index(b"\n", self._place)
        text = self._data[self._place : end].decode()
        self._place = end + 1
        return text

    def _charge(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise DetectorError(f"it makes more than {COPIES} bytes of each of its own; refused")

    def _pop(self, n: int) -> list[Any]:
        if len(self._stack) < n:
            raise ValueError("an operation lacks its arguments")
        taken = self._stack[len(self._stack) - n :]
        del self._stack[len(self._stack) - n :]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):
            place -= 1
            if place < 0:
                raise ValueError("an operation lacks its mark")
        taken = self._stack[place + 1 :]
        del self._stack[place:]
        return taken

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise DetectorError(f"a key is a {type(key).__name__.lstrip('_')}, wanted a string; refused")
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("items for something that is no list")
        self._stack[-1].extend(items)

    def _function(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(
            name, str
        ):  # a nested tuple has no hash in finite time
            raise DetectorError("it asks for a function whose name is no text; refused")
        if (module, name) not in FUNCTIONS:
            asked = escape(f"{module}.{name}", limit=80)
            raise DetectorError(f"it asks for {asked}, which weights do not need; refused")
        self._stack.append(_Function(module, name))

    def _reduce(self) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no function")
        if function.name == "_reconstruct":
            self._stack.append(_Array())
        elif function.name == "dtype":
            self._stack.append(_Dtype(arguments[0]))
        elif function.name == "OrderedDict":
            self._stack.append({})
        elif function.name == "encode":
            text, encoding = arguments
            if encoding != "latin1":
                raise DetectorError(f"encoding {_told(encoding)} is refused")
            self._charge(len(text))
            self._stack.append(text.encode("latin1"))
        else:
            raise DetectorError(
                f"it calls {function.module}.{function.name}, which weights do not need; refused"
            )

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._stack[-1]
        if isinstance(target, _Dtype):
            if state[1] not in ("<", ">", "=", "|"):
                raise DetectorError(f"byte order {_told(state[1])} is refused")
            target.order = state[1]
        elif isinstance(target, _Array):
            _, shape, dtype, fortran, data = state
            if not isinstance(data, bytes) or not isinstance(dtype, _Dtype):
                raise ValueError("an array without its bytes")
            self._charge(2 * len(data))
            array = np.frombuffer(data, dtype.order + dtype.code)
            if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
                raise ValueError("an array whose shape is none")
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
                target.value = array.reshape(shape, order="F" if fortran else "C").astype(np.float32)
        else:
            raise ValueError("a state for something that has none")


_MARK = _Mark()


def _push(value: Any) -> Any:
    return lambda m: m._stack.append(value)


def _push_new(kind: Any) -> Any:
    return lambda m: m._stack.append(kind())


def _tuple(n: int) -> Any:
    return lambda m: m._stack.append(tuple(m._pop(n)))


def _keep(n_bytes: int) -> Any:
    return lambda m: m._memo.__setitem__(m._number(n_bytes), m._stack[-1])


def _recall(n_bytes: int) -> Any:
    return lambda m: m._stack.append(m._memo[m._number(n_bytes)])


_OPERATIONS: dict[bytes, Any] = {
    b"\x80": lambda m: m._take(1),  # protocol
    b"\x95": lambda m: m._take(8),  # frame: nothing to do
    b"(": _push(_MARK),
    b"0": lambda m: m._pop(1),
    b"N": _push(None),
    b"\x88": _push(True),
    b"\x89": _push(False),
    b"K": lambda m: m._stack.append(m._number(1)),
    b"M": lambda m: m._stack.append(m._number(2)),
    b"J": lambda m: m._stack.append(struct.unpack("<i", m._take(4))[0]),
    b"\x8a": lambda m: m._stack.append(int.from_bytes(m._take(m._number(1)), "little", signed=True)),
    b"G": lambda m: m._stack.append(struct.unpack(">d", m._take(8))[0]),
    b"X": lambda m: m._text(4),
    b"\x8c": lambda m: m._text(1),
    b"\x8d": lambda m: m._text(8),
    b"C": lambda m: m._stack.append(m._take(m._number(1))),
    b"B": lambda m: m._stack.append(m._take(m._number(4))),
    b"\x8e": lambda m: m._stack.append(m._take(m._number(8))),
    b"}": _push_new(dict),
    b"]": _push_new(list),
    b")": _push(()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": lambda m: m._stack.append(tuple(m._pop_to_mark())),
    b"s": lambda m: m._set_items(m._pop(2)),
    b"u": lambda m: m._set_items(m._pop_to_mark()),
    b"a": lambda m: m._append(m._pop(1)),
    b"e": lambda m: m._append(m._pop_to_mark()),
    b"q": _keep(1),
    b"r": _keep(4),
    b"\x94": lambda m: m._memo.__setitem__(len(m._memo), m._stack[-1]),
    b"h": _recall(1),
    b"j": _recall(4),
    b"c": lambda m: m._function(m._line(), m._line()),
    b"\x93": lambda m: m._function(*m._pop(2)),
    b"R": lambda m: m._reduce(),
    b"b": lambda m: m._build(),
}
