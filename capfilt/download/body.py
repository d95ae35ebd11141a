"""A body: capped while it comes, kept on disk above 1 MiB, and handed over only when there is room in memory.

64 threads with 20 MB each would be 1.3 GB. Received bytes are in memory up to `FREE` a thread, further ones in an
unnamed file; `Room` lets so many be whole in memory at once as fit. Measured, 64 threads, 20 MB each: 118 MB in all;
460 MB if each thread reads its own file, for glibc keeps what was freed for the thread that had it.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from tempfile import SpooledTemporaryFile

from capfilt.download.connection import Deadline, translated
from capfilt.download.reasons import FetchError, shown

FREE = 2**20
"""Bytes; smaller bodies are not counted by `Room`."""
ROOM = 40 * 2**20
_PIECE = 2**17


class Room:
    """Bytes of bodies that may be in memory at once, shared by all threads."""

    def __init__(self, size: int = ROOM) -> None:
        self._size, self._used = size, 0
        self._changed = threading.Condition()
        self._reader = ThreadPoolExecutor(1, "room")

    def read(self, file: "SpooledTemporaryFile[bytes]", size: int) -> bytes:
        """The whole file of that size, when there is room; one larger than all of it goes alone. Raises OSError."""
        if size <= FREE:
            return _whole(file)
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            return self._reader.submit(_whole, file).result()
        except BaseException:
            self.give(size)
            raise

    def give(self, size: int) -> None:
        """The room that `read` took for a body of that size."""
        if size > FREE:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _whole(file: "SpooledTemporaryFile[bytes]") -> bytes:
    file.seek(0)
    return file.read()


def pieces(answer: HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
    """The body as it comes. Raises FetchError: content_encoding, incomplete, timeout, connection."""
    _check_encoding(answer)
    announced, size = answer.length, 0
    while True:
        with translated(deadline):
            piece = answer.read(_PIECE)
        if not piece:
            break
        size += len(piece)
        yield piece
    if announced is not None and size < announced:
        raise FetchError("incomplete", f"the body ends before the {announced} bytes that were announced")


def _check_encoding(answer: HTTPResponse) -> None:
    """Raises FetchError: we asked for the bytes as they are. A compressed body can be a bomb, and has another hash."""
    for value in answer.headers.get_all("Content-Encoding", []):
        if value.strip().lower() not in ("", "identity"):
            raise FetchError("content_encoding", f"Content-Encoding: {shown(value.strip())}")
    transfer = answer.headers.get_all("Transfer-Encoding", [])
    if transfer and (len(transfer) > 1 or not answer.chunked):  # http.client reads chunks for one exact word only
        raise FetchError("content_encoding", f"Transfer-Encoding: {shown(', '.join(transfer))}")


def receive(
    answer: HTTPResponse, deadline: Deadline, max_bytes: int, folder: Path | None
) -> "SpooledTemporaryFile[bytes]":
    """The whole body, at most max_bytes, in a file of `folder` if it is large.

    Raises FetchError: too_many_bytes, and see `pieces`. OSError: the disk.
    """
    if answer.length is not None and answer.length > max_bytes:
        raise FetchError("too_many_bytes", f"{answer.length} bytes are announced; at most {max_bytes} are taken")
    file = SpooledTemporaryFile(max_size=FREE, dir=str(folder) if folder else None)  # noqa: SIM115
    try:
        if (answer.length or 0) > FREE:
            file.rollover()
        for piece in pieces(answer, deadline):
            file.write(piece)
            if file.tell() > max_bytes:
                raise FetchError("too_many_bytes", f"more than {max_bytes} bytes came")
    except BaseException:
        file.close()
        raise
    return file


class Response:
    """What `urlopen` returns: as much of urllib's as img2dataset uses. A context manager."""

    def __init__(
        self,
        url: str,
        headers: Message,
        file: "SpooledTemporaryFile[bytes]",
        room: Room,
        on_error: Callable[[Exception], object],
    ) -> None:
        self.url, self.headers = url, headers
        self._file, self._size = file, file.tell()
        self._room, self._on_error = room, on_error

    def read(self) -> bytes:
        """The whole body, once; its place in memory is taken until `Opener.landed`. Raises OSError: the disk."""
        try:
            return self._room.read(self._file, self._size)
        except Exception as error:
            self._on_error(error)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
