"""What this package raises when a caller might want to catch it."""


class TrainingDynamicsError(Exception):
    """Base of every error of this package; wrong arguments raise ValueError or TypeError instead."""


class CaptureError(TrainingDynamicsError):
    """A training cannot be recorded as it stands; the message says why and names the way out."""


class StoreError(TrainingDynamicsError):
    """A recording cannot be created, read or written; the message names the file."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no file, or no folder, at the path."""


class StoreExistsError(StoreError, FileExistsError):
    """There is a file already, and neither `resume=True` nor `overwrite=True` was said."""


class DetectorError(TrainingDynamicsError):
    """Detector weights cannot be read, or do not fit the trajectories given to them."""
