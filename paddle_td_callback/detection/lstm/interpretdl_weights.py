"""The detector InterpretDL serves: an LSTM in a Paddle `.pdparams` file, under our names."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np

from ...errors import DetectorError
from ...messages import escape
from ...store.paths import path_text
from .config import Architecture, Weights
from .weights_pickle import read_arrays

MAX_BYTES = 64 << 20  # a detector has some hundred kilobytes


def read_lstm(path: str | os.PathLike[str]) -> tuple[Weights, Architecture]:
    """Weights of an LSTM with a two-class head, by the names of `Architecture.shapes`, and their architecture.

    Raises:
        FileNotFoundError: there is no such file.
        DetectorError: it holds anything else than such weights.
    """
    name = escape(path_text(path))
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise DetectorError("is no regular file")
        if about.st_size > MAX_BYTES:
            raise DetectorError(f"{about.st_size} bytes, a detector has at most {MAX_BYTES}")
        return _by_our_names(read_arrays(Path(path).read_bytes()))
    except FileNotFoundError:
        raise FileNotFoundError(f"'{name}': no such file; give the path of a .pdparams file") from None
    except DetectorError as error:
        raise DetectorError(f"'{name}': {error}; give the .pdparams file that InterpretDL serves") from None
    except OSError as error:
        raise DetectorError(f"'{name}': cannot be read: {error}; give a file that can be read") from error


def _by_our_names(arrays: Weights) -> tuple[Weights, Architecture]:
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
    got = escape({key: array.shape for key, array in arrays.items()}, limit=1000)
    if set(head) != {"weight", "bias"} or head["bias"].shape != (2,) or head["weight"].shape[1:] != (2,):
        raise DetectorError(f"wanted an LSTM and one linear layer with two outputs, got {got}")
    # Of a softmax over two classes, the log-odds of the second are the difference of its inputs.
    weights["head_weight"] = head["weight"][:, 1:] - head["weight"][:, :1]
    weights["head_bias"] = head["bias"][1:] - head["bias"][:1]
    first, recurrent = weights.get("weight_ih_l0"), weights.get("weight_hh_l0")
    if first is None or recurrent is None or first.ndim != 2 or recurrent.ndim != 2:
        raise DetectorError(f"wanted an LSTM, got {got}")
    n_layers = sum(key.startswith("weight_ih") for key in weights)
    architecture = Architecture(first.shape[1], recurrent.shape[1], n_layers, n_features=0)
    if {key: array.shape for key, array in weights.items()} != architecture.shapes():
        raise DetectorError(f"wanted {architecture.shapes()} and two outputs, got {got}")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DetectorError("holds values that are not finite")
    return weights, architecture
