"""The features that a detector reads, made complete: from trajectories where none are given, with the first stage's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...messages import warn
from ..dataset_features import feature_table_of_trajectories
from ..feature_table import FeatureTable
from ..trajectories import Array, Arrays, checked

if TYPE_CHECKING:
    from .detector import NoiseDetector

Tables = FeatureTable | Sequence[FeatureTable]


def warn_without_features(detector: NoiseDetector, features: Tables | None, stacklevel: int = 3) -> None:
    """Warn if a detector that reads features is given none."""
    if detector.config.dataset_features and features is None:
        warn(
            "this detector reads features of the whole recording, and none are given: they are made of the "
            "trajectories, as if all labels were one class, which ranks worse and is badly calibrated where a "
            "detector was trained on the whole; pass dataset_features=detector_features(store)",
            UserWarning,
            stacklevel=stacklevel,
        )


def each_table(
    detector: NoiseDetector, trajectories: Arrays, features: Tables | None, device: str | None
) -> list[FeatureTable]:
    """The features of each recording, of one or of a list, with all that the network reads."""
    warn_without_features(detector, features, stacklevel=4)
    raws = list(trajectories) if isinstance(trajectories, (list, tuple)) else [trajectories]
    tables: list[FeatureTable | None] = [None] * len(raws)
    if features is not None:
        tables = [features] if isinstance(features, FeatureTable) else list(features)
    if len(tables) != len(raws):
        raise ValueError(
            f"got {len(raws)} recordings and {len(tables)} tables in dataset_features; give one for each"
        )
    return [
        complete_table(detector, checked(raw), table, 4096, device)
        for raw, table in zip(raws, tables, strict=True)
    ]


def complete_table(
    detector: NoiseDetector, raw: Array, table: FeatureTable | None, batch_size: int, device: str | None
) -> FeatureTable:
    """The features of these samples, with all that the network reads."""
    if not detector.config.dataset_features:
        return FeatureTable({}, {}, np.zeros(len(raw), np.int64), np.zeros(len(raw), np.int64))
    if table is None:
        table = feature_table_of_trajectories(raw)
    if not isinstance(table, FeatureTable) or len(table) != len(raw):
        got = f"one of {len(table)} samples" if isinstance(table, FeatureTable) else type(table).__name__
        raise ValueError(
            f"dataset_features must be a FeatureTable of the {len(raw)} samples of the trajectories, got {got}; "
            "detector_features(store) makes that of a recording"
        )
    if detector.first_stage is not None and not set(detector.config.dataset_features) <= set(table.names):
        if table.is_slice:
            raise ValueError(
                "dataset_features of a part of a recording lack what the first stage says of all of it; "
                "make them with run_first_stage"
            )
        table = detector.run_first_stage([(raw, table)], table, device=device, batch_size=batch_size)
    return table
