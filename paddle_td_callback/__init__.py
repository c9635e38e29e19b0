"""Find mislabeled training samples: record a `paddle.Model.fit`, rank the labels that look wrong."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import _zlib_guard
from ._version import __version__

_zlib_guard.heal()  # before anything imports h5py

if TYPE_CHECKING:
    from .detection import scores
    from .detection.find_issues import detector_features, detector_input, find_label_issues
    from .detection.label_issues import LabelIssues
    from .detection.lstm.detector import NoiseDetector
    from .errors import (
        CaptureError,
        DetectorError,
        StoreError,
        StoreExistsError,
        StoreNotFoundError,
        TrainingDynamicsError,
    )
    from .paddle_fit.issues_callback import LabelIssuesCallback
    from .paddle_fit.planted_label_errors import PlantedLabelErrors
    from .paddle_fit.recording_callback import TrainingDynamicsCallback
    from .paddle_fit.train_several_runs import train_several_runs
    from .recording.gathering import Ranks as _Ranks
    from .recording.recorder import TrainingDynamicsRecorder
    from .store import TrainingDynamicsStore

# Public names and where they are defined. They are imported when first asked for: neither the package nor
# `paddle-td --help` waits for NumPy and HDF5, and a recording can be read without Paddle.
_HOMES = {
    "CaptureError": "errors",
    "DetectorError": "errors",
    "LabelIssues": "detection.label_issues",
    "LabelIssuesCallback": "paddle_fit.issues_callback",
    "NoiseDetector": "detection.lstm.detector",
    "PlantedLabelErrors": "paddle_fit.planted_label_errors",
    "StoreError": "errors",
    "StoreExistsError": "errors",
    "StoreNotFoundError": "errors",
    "TrainingDynamicsCallback": "paddle_fit.recording_callback",
    "TrainingDynamicsError": "errors",
    "TrainingDynamicsRecorder": "recording.recorder",
    "TrainingDynamicsStore": "store",
    "detector_features": "detection.find_issues",
    "detector_input": "detection.find_issues",
    "find_label_issues": "detection.find_issues",
    "scores": "detection",
    "train_several_runs": "paddle_fit.train_several_runs",
}

__all__ = [
    "CaptureError",
    "DetectorError",
    "LabelIssues",
    "LabelIssuesCallback",
    "NoiseDetector",
    "PlantedLabelErrors",
    "StoreError",
    "StoreExistsError",
    "StoreNotFoundError",
    "TrainingDynamicsCallback",
    "TrainingDynamicsError",
    "TrainingDynamicsRecorder",
    "TrainingDynamicsStore",
    "__version__",
    "detector_features",
    "detector_input",
    "find_label_issues",
    "scores",
    "train_several_runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES[name]}"
    try:
        if name == "scores":  # a module, the others are its contents
            value: Any = importlib.import_module(f"{home}.{name}")
        else:
            module: Any = importlib.import_module(home)
            value = getattr(module, name)
            if name == "TrainingDynamicsRecorder":  # which knows no framework by itself
                module.find_ranks = _paddle_ranks
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ModuleNotFoundError(
            f"{name} needs PaddlePaddle, which is not installed: pip install paddlepaddle, "
            "or install Paddle for your device as its install page says",
            name="paddle",
        ) from error
    globals()[name] = value
    return value


def _paddle_ranks() -> _Ranks | None:
    """All ranks of Paddle's parallel environment; None without one, or without Paddle."""
    if "paddle.distributed" not in sys.modules:
        return None
    from .paddle_fit.ranks import current_ranks

    return current_ranks()


def __dir__() -> list[str]:
    return sorted(__all__)
