"""Rows of a training into a store, whatever the framework."""
