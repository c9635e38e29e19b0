"""What a NoiseDetector reads and how large it is: names and sizes, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..arguments import whole
from ..dataset_features import feature_names
from . import first_pass_features
from .architecture import Architecture
from .channels import CHANNELS, Inputs

MAX_STAGES = 4


@dataclass(frozen=True)
class DetectorConfig:
    """Names and sizes of one stage of a detector; the arguments are those of `NoiseDetector`.

    Raises:
        ValueError: an unknown name, or a size out of its range.
    """

    channels: tuple[str, ...]
    n_steps: int | None
    hidden_size: int
    n_layers: int
    n_members: int
    dataset_features: tuple[str, ...]
    mix_sizes: tuple[int, ...]

    @classmethod
    def checked(
        cls,
        *,
        channels: Iterable[str],
        n_steps: int | None,
        hidden_size: int,
        n_layers: int,
        n_members: int,
        dataset_features: Iterable[str],
        mix_sizes: Iterable[int] | None,
        is_first: bool,
    ) -> DetectorConfig:
        """The configuration, or a ValueError that names what is wrong.

        Args:
            channels: see `NoiseDetector`, and so are the others.
            n_steps: see there.
            hidden_size: see there.
            n_layers: see there.
            n_members: see there.
            dataset_features: see there.
            mix_sizes: see there.
            is_first: whether no stage runs before this one.
        """
        known = (*feature_names(), *(() if is_first else first_pass_features.feature_names()))
        hidden_size = whole(hidden_size, "hidden_size")
        features = _names(dataset_features, "dataset_features", known)
        if mix_sizes is None:
            mix_sizes = (hidden_size,) if features else ()
        if not hasattr(mix_sizes, "__iter__"):
            raise ValueError(f"mix_sizes must be a sequence of whole numbers, got {mix_sizes!r}")
        config = cls(
            channels=_names(channels, "channels", tuple(CHANNELS)),
            n_steps=None if n_steps is None else whole(n_steps, "n_steps"),
            hidden_size=hidden_size,
            n_layers=whole(n_layers, "n_layers"),
            n_members=whole(n_members, "n_members"),
            dataset_features=features,
            mix_sizes=tuple(whole(size, "mix_sizes") for size in mix_sizes),
        )
        if not config.channels:
            raise ValueError("channels is empty; give at least one name")
        return config

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], *, is_first: bool) -> DetectorConfig:
        """The configuration that `as_json` gave, checked as if a user had written it.

        Raises:
            KeyError: a field is missing.
            ValueError: a field is wrong.
        """
        return cls.checked(**{field.name: stored[field.name] for field in fields(cls)}, is_first=is_first)

    def as_json(self) -> dict[str, Any]:
        """What a detector's file holds of it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def architecture(self) -> Architecture:
        """The sizes of the network."""
        return Architecture(
            n_channels=len(self.channels),
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            n_features=len(self.dataset_features),
            mix_sizes=self.mix_sizes,
        )

    @property
    def inputs(self) -> Inputs:
        """What makes the channels."""
        return Inputs(self.channels, self.n_steps)


def _names(names: Any, argument: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise ValueError(f"{argument} must be a list or tuple of names, got {names!r}")
    allowed = frozenset(known)
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise ValueError(f"{argument} must be names of {', '.join(known)}, got {name!r}")
    return tuple(names)
