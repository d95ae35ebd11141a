"""The version of capfilt."""

__version__ = "0.1.0"
