"""Exceptions of this package that a caller might want to catch."""

from .messages import escape


class TrainingDynamicsError(Exception):
    """Base of every error of this package; wrong arguments raise ValueError or TypeError instead.

    Its text is one line without control characters, whatever names and paths are in it.
    """

    def __str__(self) -> str:
        return escape(super().__str__())


class CaptureError(TrainingDynamicsError):
    """A training cannot be recorded as it is; the message says why and what to change."""


class StoreError(TrainingDynamicsError):
    """A recording cannot be created, read or written; the message names the file."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """The file, or its folder, does not exist."""


class StoreExistsError(StoreError, FileExistsError):
    """The file exists, and neither `resume=True` nor `overwrite=True` was given."""


class DetectorError(TrainingDynamicsError):
    """Detector weights cannot be read, or do not fit the given trajectories."""
