"""The detector InterpretDL serves: a Paddle `.pdparams` pickle, read without running anything that is in it."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DetectorError
from .network import Architecture, Weights

MAX_BYTES = 64 << 20  # a detector has some hundred kilobytes; a hostile pickle can ask for any memory


class _Dtype:
    """Stands in for numpy.dtype: float types and byte orders alone."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in ("f2", "f4", "f8"):
            raise DetectorError(f"arrays of dtype {code!r} are refused; weights are f2, f4 or f8")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise DetectorError(f"byte order {state[1]!r} is refused")
        self.order = state[1]


class _Array:
    """Stands in for numpy.ndarray: built from its bytes by numpy's public functions."""

    value: NDArray[np.float32] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        array = np.frombuffer(data, dtype.order + dtype.code)
        self.value = array.reshape(shape, order="F" if fortran else "C").astype(np.float32)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise DetectorError(f"encoding {encoding!r} is refused")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument of _reconstruct: a name will do
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DetectorError(f"it asks for {module}.{name}, which weights do not need; refused") from None

    def persistent_load(self, pid: Any) -> Any:
        raise DetectorError("it refers to objects outside the file; refused")


def read_lstm(path: str | os.PathLike[str]) -> tuple[Weights, Architecture]:
    """Weights of an LSTM with a two-class head, by the names of `Architecture.shapes`, and their architecture."""
    name = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name!r}: no such file")
    if os.path.getsize(path) > MAX_BYTES:
        raise DetectorError(f"{name!r}: {os.path.getsize(path)} bytes, a detector has at most {MAX_BYTES}")
    try:
        with open(path, "rb") as file:
            state = _Unpickler(file).load()
    except DetectorError as error:
        raise DetectorError(f"{name!r}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise DetectorError(f"{name!r}: not a .pdparams file that can be read: {error!r}") from error
    if not isinstance(state, dict):
        raise DetectorError(f"{name!r}: holds a {type(state).__name__}, wanted a dictionary of weights")
    arrays = {str(key): found for key, value in state.items() if (found := _array(value)) is not None}
    return _by_our_names(arrays, name)


def _array(value: Any) -> NDArray[np.float32] | None:
    # A tensor saved outside a state dict is a tuple (name, array).
    if isinstance(value, tuple) and len(value) == 2:
        value = value[1]
    return value.value if isinstance(value, _Array) else None


def _by_our_names(arrays: Weights, path: str) -> tuple[Weights, Architecture]:
    weights: Weights = {}
    head: Weights = {}
    for key, array in arrays.items():
        # Paddle names each array of an LSTM twice: `weight_ih_l0` and `0.cell.weight_ih`.
        flat = re.search(r"(?:^|\.)((?:weight|bias)_[ih]h_l\d+)$", key)
        cell = re.search(r"(?:^|\.)(\d+)\.cell\.((?:weight|bias)_[ih]h)$", key)
        if flat or cell:
            weights[flat[1] if flat else f"{cell[2]}_l{cell[1]}"] = array  # type: ignore[index]
        elif key.endswith((".weight", ".bias")):
            head[key.rpartition(".")[2]] = array
    got = {key: array.shape for key, array in arrays.items()}
    if set(head) != {"weight", "bias"} or head["bias"].shape != (2,) or head["weight"].shape[1:] != (2,):
        raise DetectorError(f"{path!r}: wanted an LSTM and one linear layer with two outputs, got {got}")
    # Of a softmax over two classes, the log-odds of the second are the difference of its inputs.
    weights["head_weight"] = head["weight"][:, 1:] - head["weight"][:, :1]
    weights["head_bias"] = head["bias"][1:] - head["bias"][:1]
    first, recurrent = weights.get("weight_ih_l0"), weights.get("weight_hh_l0")
    if first is None or recurrent is None or first.ndim != 2 or recurrent.ndim != 2:
        raise DetectorError(f"{path!r}: wanted an LSTM, got {got}")
    n_layers = sum(key.startswith("weight_ih") for key in weights)
    architecture = Architecture(first.shape[1], recurrent.shape[1], n_layers, 0)
    if {key: array.shape for key, array in weights.items()} != architecture.shapes():
        raise DetectorError(f"{path!r}: wanted {architecture.shapes()} and two outputs, got {got}")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DetectorError(f"{path!r}: holds values that are not finite")
    return weights, architecture
