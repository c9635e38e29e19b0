"""The recipe of the shipped weights: record many small trainings, then train the detector on them."""
