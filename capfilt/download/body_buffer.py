"""A buffer on disk for finished downloads that wait for their row to be written.

A shard's downloads end in any order, but its rows are written in the order of the list. Bodies that arrive early wait
here, the first few in memory. The file has no name, so nothing of it remains however the process ends.
"""

import os
import threading
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import NamedTuple


class Place(NamedTuple):
    """A body's bytes [start, start + size) in the file."""

    start: int
    size: int


MAX_IN_MEMORY = 8 * 2**20
"""Bytes that wait in memory; everything beyond goes to the disk."""


class BodyBuffer:
    """An unnamed file in `folder` that threads store bodies in and read them from. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._lock, self._end, self._in_memory = threading.Lock(), 0, 0

    def put(self, data: bytes) -> Place | bytes:
        """Store a body and return a handle for `take`.

        The handle is the body itself while at most MAX_IN_MEMORY bytes are in memory, else its place in the file.

        Raises:
            OSError: no space left.
        """
        with self._lock:
            if self._in_memory + len(data) <= MAX_IN_MEMORY:
                self._in_memory += len(data)
                return data
            place = Place(self._end, len(data))
            self._end += len(data)
        rest, at = memoryview(data), place.start
        while rest:
            written = os.pwrite(self._file.fileno(), rest, at)
            rest, at = rest[written:], at + written
        return place

    def take(self, place: Place | bytes, last: bool = True) -> bytes:
        """Return the body of a handle. Pass `last=False` if it will be taken again."""
        if isinstance(place, Place):
            return os.pread(self._file.fileno(), place.size, place.start)
        with self._lock:
            self._in_memory -= len(place) if last else 0
        return place

    def __enter__(self) -> "BodyBuffer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
