"""One recording as one HDF5 file: numpy and h5py only."""

from .reader import TrainingDynamicsStore
from .writer import StoreWriter

__all__ = ["StoreWriter", "TrainingDynamicsStore"]
