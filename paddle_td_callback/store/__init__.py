"""One recording as one HDF5 file: numpy and h5py only."""
