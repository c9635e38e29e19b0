"""Labelled noise made to order: data sets, wrong labels, networks, and the recordings of their training."""
