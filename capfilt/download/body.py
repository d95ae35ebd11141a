"""Response bodies: limited in size while they arrive, stored on disk above 1 MiB, and read within a memory budget.

64 threads with 20 MB each would take 1.3 GB. Up to `SMALL` bytes per thread are received in memory, the rest goes to an
unnamed file. `MemoryBudget` limits how many bytes of whole bodies are in memory at once. Measured with 64 threads of
20 MB each: 118 MB in all; 460 MB if each thread reads its own file, because glibc keeps freed memory per thread.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from tempfile import SpooledTemporaryFile

from capfilt.download.connection import Deadline, network_errors
from capfilt.download.reasons import FetchError, shown

SMALL = 2**20
"""Bytes; bodies up to this size are not counted by `MemoryBudget`."""
BUDGET = 40 * 2**20
"""Bytes of whole bodies in memory at once, over all threads."""
_CHUNK = 2**17


class MemoryBudget:
    """Limit on the bytes of bodies that are in memory at once, shared by all threads."""

    def __init__(self, size: int = BUDGET) -> None:
        self._size, self._used = size, 0
        self._changed = threading.Condition()
        self._reader = ThreadPoolExecutor(1, "body-reader")

    def read(self, file: "SpooledTemporaryFile[bytes]", size: int) -> bytes:
        """Wait until the budget allows it, then return the whole file. A body above the budget is read alone.

        Args:
            file: the body.
            size: its size in bytes. Call `release(size)` when the bytes are no longer in memory.

        Raises:
            OSError: the disk.
        """
        if size <= SMALL:
            return _whole(file)
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            return self._reader.submit(_whole, file).result()
        except BaseException:
            self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give back what `read` reserved for a body of that size."""
        if size > SMALL:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _whole(file: "SpooledTemporaryFile[bytes]") -> bytes:
    file.seek(0)
    return file.read()


def body_chunks(answer: HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises FetchError: content_encoding, incomplete, timeout, connection."""
    _check_encoding(answer)
    announced, size = answer.length, 0
    while True:
        with network_errors(deadline):
            chunk = answer.read(_CHUNK)
        if not chunk:
            break
        size += len(chunk)
        yield chunk
    if announced is not None and size < announced:
        raise FetchError("incomplete", f"the body ends before the {announced} bytes that were announced")


def _check_encoding(answer: HTTPResponse) -> None:
    """Raises FetchError for an encoded body: none was requested; it can be a bomb, and it has another hash."""
    for value in answer.headers.get_all("Content-Encoding", []):
        if value.strip().lower() not in ("", "identity"):
            raise FetchError("content_encoding", f"Content-Encoding: {shown(value.strip())}")
    transfer = answer.headers.get_all("Transfer-Encoding", [])
    if transfer and (len(transfer) > 1 or not answer.chunked):  # http.client reads chunks for one exact word only
        raise FetchError("content_encoding", f"Transfer-Encoding: {shown(', '.join(transfer))}")


def receive(
    answer: HTTPResponse, deadline: Deadline, max_bytes: int, folder: Path | None
) -> "SpooledTemporaryFile[bytes]":
    """Receive the whole body into a temporary file, on disk if it is large.

    Args:
        answer: the response, its headers read.
        deadline: for the whole try.
        max_bytes: largest body.
        folder: where large bodies are stored; None takes the system's folder for temporary files.

    Raises:
        FetchError: too_many_bytes, and as `body_chunks`.
        OSError: the disk.
    """
    if answer.length is not None and answer.length > max_bytes:
        raise FetchError("too_many_bytes", f"{answer.length} bytes are announced; at most {max_bytes} are taken")
    file = SpooledTemporaryFile(max_size=SMALL, dir=str(folder) if folder else None)  # noqa: SIM115
    try:
        if (answer.length or 0) > SMALL:
            file.rollover()
        for chunk in body_chunks(answer, deadline):
            file.write(chunk)
            if file.tell() > max_bytes:
                raise FetchError("too_many_bytes", f"more than {max_bytes} bytes came")
    except BaseException:
        file.close()
        raise
    return file


class Response:
    """What `urlopen` returns: the part of urllib's response that img2dataset uses. A context manager."""

    def __init__(
        self,
        url: str,
        headers: Message,
        file: "SpooledTemporaryFile[bytes]",
        budget: MemoryBudget,
        on_error: Callable[[Exception], object],
    ) -> None:
        self.url, self.headers = url, headers
        self._file, self._size = file, file.tell()
        self._budget, self._on_error = budget, on_error

    def read(self) -> bytes:
        """Return the whole body; call once. It counts as in memory until `Opener.release`. Raises OSError: the disk."""
        try:
            return self._budget.read(self._file, self._size)
        except Exception as error:
            self._on_error(error)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
