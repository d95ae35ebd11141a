"""One connection, one request, one answer: `http.client`'s parser over a socket that keeps to one deadline.

A timeout of a socket is per call: a server that sends a byte a second never meets it. Here every read of the socket is
given only what is left of the whole try. `http.client` caps a header line (64 KiB) and their number (100), not their
sum, and reads a chunk of stated size -1 to the end of the stream, whatever its length (3.11): both are stopped here.
"""

import errno
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, IncompleteRead, LineTooLong, RemoteDisconnected
from typing import Any, cast

from capfilt.download.reasons import FetchError
from capfilt.download.url_policy import Target

MAX_HEADERS = 2**16
"""Bytes of status line and headers together; 100 headers of 64 KiB in 64 threads would be 400 MB."""
_BUFFER = 2**16
SLACK = 0.05
"""Seconds by which a deadline may be missed."""
_TRIED = 4
"""Addresses of one host at most; each gets an equal share of the time left."""
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""What this machine lacks is no fault of the row."""
_CLOSED = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Deadline:
    """Seconds that run inside its `with` block only: waiting for a slot, robots.txt or the resolver is apart."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._left = seconds
        self._clock = clock
        self._end = 0.0
        self._given: tuple[socket.socket | None, float] = None, 0.0

    def __enter__(self) -> "Deadline":
        self._end = self._clock() + self._left
        return self

    def __exit__(self, *_: object) -> None:
        self._left = self._end - self._clock()

    def left(self) -> float:
        """Seconds, more than 0. Raises TimeoutError when there are none; inside the block only."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError
        return left

    def limit(self, sock: socket.socket) -> None:
        """Give the socket's next call what is left, or up to SLACK more: each `settimeout` costs a thread its turn."""
        left, (given, seconds) = self.left(), self._given
        if given is not sock or seconds - left > SLACK:
            sock.settimeout(left)
            self._given = sock, left


class _Raw(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._deadline.limit(self._sock)
        return self._sock.recv_into(buffer)


class _Lines(io.BufferedReader):
    """Counts what is read by lines until `headers_done`; never reads to an end that is not in sight."""

    _room: float = MAX_HEADERS

    def headers_done(self) -> None:
        self._room = float("inf")

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self._room -= len(line)
        if self._room < 0:
            raise LineTooLong("headers")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise IncompleteRead(b"")
        return super().read(size)


class _Makefile:
    """All that HTTPResponse wants of a socket."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def makefile(self, mode: str) -> _Lines:
        return self._lines


@contextmanager
def ask(
    target: Target, addresses: list[str], request: bytes, deadline: Deadline, context: ssl.SSLContext
) -> Iterator[HTTPResponse]:
    """Connect to one of the addresses, send, read the headers; the connection ends with the block.

    Raises FetchError: timeout, connection, tls, too_many_bytes (headers). OSError: this machine is out of descriptors.
    """
    with translated(deadline):
        sock = _connect(addresses[:_TRIED], target.port, deadline)
    try:
        with translated(deadline):
            if target.scheme == "https":
                deadline.limit(sock)
                sock = context.wrap_socket(sock, server_hostname=target.bare)
            answer = _answer(sock, request, deadline)
        yield answer
    finally:
        sock.close()


def _connect(addresses: list[str], port: int, deadline: Deadline) -> socket.socket:
    for n, address in enumerate(addresses):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if n == len(addresses) - 1:
                deadline.limit(sock)
            else:
                sock.settimeout(deadline.left() / (len(addresses) - n))
            sock.connect((address, port))
            return sock
        except OSError:
            sock.close()
            if n == len(addresses) - 1:
                raise
    raise AssertionError("no address")


def _answer(sock: socket.socket, request: bytes, deadline: Deadline) -> HTTPResponse:
    deadline.limit(sock)
    sock.sendall(request)
    lines = _Lines(_Raw(sock, deadline), _BUFFER)
    answer = HTTPResponse(cast(socket.socket, _Makefile(lines)), method="GET")
    answer.begin()
    lines.headers_done()
    return answer


@contextmanager
def translated(deadline: Deadline) -> Iterator[None]:
    """What the network does, as a FetchError. Only around reads and writes of the network, none of the disk."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", f"not done after {deadline.seconds:g} s") from error
    except IncompleteRead as error:
        raise FetchError("incomplete", "the body ends too early") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OURS and not isinstance(error, ssl.SSLError):
            raise
        raise _told(error) from error


def _told(error: Exception) -> FetchError:
    """Without numbers of lines, ports or addresses, which some messages have."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError("tls", f"the certificate was refused: {error.verify_message}")
    if isinstance(error, (RemoteDisconnected, *_CLOSED)):
        return FetchError("connection", "the server closed the connection")
    if isinstance(error, ssl.SSLError):
        return FetchError("tls", f"TLS failed: {error.reason}")
    if isinstance(error, OSError):
        return FetchError("connection", os.strerror(error.errno) if error.errno else "the connection failed")
    if isinstance(error, LineTooLong) or type(error) is HTTPException:  # the bare one: more than 100 headers
        return FetchError("too_many_bytes", f"headers of more than 100 lines or {MAX_HEADERS} bytes")
    return FetchError("connection", "no answer in HTTP")
