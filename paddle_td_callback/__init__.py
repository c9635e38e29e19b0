"""Find mislabeled training samples: record a `paddle.Model.fit`, rank the labels that look wrong."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import _zlib_guard

_zlib_guard.heal()  # before anything imports h5py

from ._version import __version__  # noqa: E402
from .detection import scores  # noqa: E402
from .detection.find_issues import detector_evidence, detector_input, find_label_issues  # noqa: E402
from .detection.label_issues import LabelIssues  # noqa: E402
from .errors import (  # noqa: E402
    CaptureError,
    DetectorError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    TrainingDynamicsError,
)
from .recording import recorder as _recorder  # noqa: E402
from .recording.recorder import TrainingDynamicsRecorder  # noqa: E402
from .store import TrainingDynamicsStore  # noqa: E402

if TYPE_CHECKING:
    from .detection.lstm.detector import NoiseDetector
    from .paddle_fit.issues_callback import LabelIssuesCallback
    from .paddle_fit.recording_callback import TrainingDynamicsCallback
    from .recording.gathering import Ranks as _Ranks

__all__ = [
    "CaptureError",
    "DetectorError",
    "LabelIssues",
    "LabelIssuesCallback",
    "NoiseDetector",
    "StoreError",
    "StoreExistsError",
    "StoreNotFoundError",
    "TrainingDynamicsCallback",
    "TrainingDynamicsError",
    "TrainingDynamicsRecorder",
    "TrainingDynamicsStore",
    "__version__",
    "detector_evidence",
    "detector_input",
    "find_label_issues",
    "scores",
]

# These need Paddle, so they are imported when first asked for: a recording can be read without it.
_NEED_PADDLE = {
    "LabelIssuesCallback": "paddle_fit.issues_callback",
    "TrainingDynamicsCallback": "paddle_fit.recording_callback",
    "NoiseDetector": "detection.lstm.detector",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_PADDLE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_NEED_PADDLE[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ModuleNotFoundError(
            f"{name} needs PaddlePaddle, which is not installed: pip install 'paddle_td_callback[cpu]', "
            "or install Paddle for your device as its install page says",
            name="paddle",
        ) from error
    return getattr(module, name)


def _paddle_ranks() -> _Ranks | None:
    """All ranks of Paddle's parallel environment; None without one, or without Paddle."""
    if "paddle.distributed" not in sys.modules:
        return None
    from .paddle_fit.ranks import current_ranks

    return current_ranks()


_recorder.find_ranks = _paddle_ranks


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
