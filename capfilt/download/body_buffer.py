"""Bodies on disk between the thread that fetched them and the row that they belong to.

A shard's downloads end in any order, and its rows are written in the list's: what came early waits here, not in memory.
A few wait in memory all the same. The file has no name, so nothing is left of it whatever stops the process.
"""

import os
import threading
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import NamedTuple


class Place(NamedTuple):
    """Where a body lies: bytes [start, start + size)."""

    start: int
    size: int


KEPT = 8 * 2**20
"""Bytes that wait in memory; the disk is for what is more."""


class Spool:
    """An unnamed file in `folder`; threads put bodies in, and take them out by place. A context manager.

    Raises OSError (no space left) from `put`.
    """

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._lock, self._end, self._kept = threading.Lock(), 0, 0

    def put(self, data: bytes) -> Place | bytes:
        """A place for it: itself, as long as not too much is kept."""
        with self._lock:
            if self._kept + len(data) <= KEPT:
                self._kept += len(data)
                return data
            place = Place(self._end, len(data))
            self._end += len(data)
        rest, at = memoryview(data), place.start
        while rest:
            written = os.pwrite(self._file.fileno(), rest, at)
            rest, at = rest[written:], at + written
        return place

    def take(self, place: Place | bytes, last: bool = True) -> bytes:
        """The bytes again; `last`: for the last time."""
        if isinstance(place, Place):
            return os.pread(self._file.fileno(), place.size, place.start)
        with self._lock:
            self._kept -= len(place) if last else 0
        return place

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
