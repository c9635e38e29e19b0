"""Detectors as the stages that their files hold, and stages as detectors, checked."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..._version import __version__
from ...errors import DetectorError
from .config import DetectorConfig
from .weights_file import Stage

if TYPE_CHECKING:
    from .detector import NoiseDetector


def stages_of(detector: NoiseDetector) -> list[Stage]:
    """What goes into a file: the detector's own stage, and then those before it."""
    about = {
        "config": detector.config.as_json(),
        "temperature": detector.temperature,
        "bias": detector.bias,
        "provenance": detector.provenance,
        "package_version": __version__,
        "paddle_version": getattr(sys.modules.get("paddle"), "__version__", "none"),
    }
    shapes = detector.config.architecture.shapes()
    members = [{name: weights[name] for name in shapes} for weights in detector.members]
    return [
        Stage(about, members),
        *([] if detector.first_stage is None else stages_of(detector.first_stage)),
    ]


def detector_of(cls: type[NoiseDetector], stages: Sequence[Stage]) -> NoiseDetector:
    """The detector that `stages_of` took apart.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
        ValueError: a name or a size is wrong, or there are too many stages.
        DetectorError: weights or calibration do not fit the configuration.
    """
    made: NoiseDetector | None = None
    for stage in reversed(stages):
        config = DetectorConfig.from_json(stage.about["config"], is_first=made is None)
        shapes = config.architecture.shapes()
        if config.n_members != len(stage.members):
            raise DetectorError(f"{len(stage.members)} members, its configuration says {config.n_members}")
        for member in stage.members:
            got = {name: array.shape for name, array in member.items()}
            if got != shapes:
                raise DetectorError(f"arrays {got}, its configuration says {shapes}")
            if (member.get("features_scale", np.ones(1)) <= 0).any():
                raise DetectorError("a scale of features that is not above 0")
        made = cls.of_config(config, made)
        made.members = stage.members
        made.temperature, made.bias = float(stage.about["temperature"]), float(stage.about["bias"])
        if not (0 < made.temperature < math.inf and math.isfinite(made.bias)):
            raise DetectorError(f"calibration {made.temperature}, {made.bias}")
        made.provenance = dict(stage.about["provenance"])
    assert made is not None  # a file has at least one stage
    return made
