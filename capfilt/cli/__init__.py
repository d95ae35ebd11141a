"""The command line: parsing, tables, messages."""

from capfilt.cli.app import main

__all__ = ["main"]
