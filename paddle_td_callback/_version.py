"""The version, alone, so that building the package needs none of its dependencies."""

__version__ = "0.1.0"
