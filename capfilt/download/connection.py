"""One connection, one request, one response: `http.client`'s parser over a socket with one deadline for everything.

A socket's timeout is per call, so a server that sends one byte per second never exceeds it. Here every read gets only
the time that is left of the whole try. `http.client` limits a header line (64 KiB) and the number of lines (100), but
not their sum, and reads a chunk of stated size -1 to the end of the stream (3.11). Both are stopped here.
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
"""Bytes of status line and headers together; 100 headers of 64 KiB in 64 threads would take 400 MB."""
_BUFFER = 2**16
SLACK = 0.05
"""Seconds by which a deadline may be exceeded."""
_MAX_ADDRESSES = 4
"""Most addresses of one host that are tried; each gets an equal share of the remaining time."""
_LOCAL_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""This machine is out of descriptors or memory: not the row's fault."""
_CLOSED = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Deadline:
    """A time budget that runs only inside its `with` block: not while waiting for a slot, robots.txt or a resolver."""

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
        """Return the seconds left, more than 0. Inside the block only. Raises TimeoutError if there are none."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError
        return left

    def limit(self, sock: socket.socket) -> None:
        """Set the socket's timeout to the time left, or leave it if it is at most SLACK longer.

        (Each `settimeout` makes the thread give up the interpreter lock.)
        """
        left, (given, seconds) = self.left(), self._given
        if given is not sock or seconds - left > SLACK:
            sock.settimeout(left)
            self._given = sock, left


class _SocketReader(io.RawIOBase):
    """Reads of a socket under a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._deadline.limit(self._sock)
        return self._sock.recv_into(buffer)


class _Lines(io.BufferedReader):
    """Limits the bytes read line by line until `headers_done`; refuses reads without a size."""

    _left: float = MAX_HEADERS

    def headers_done(self) -> None:
        self._left = float("inf")

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("headers")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise IncompleteRead(b"")
        return super().read(size)


class _Makefile:
    """The only method of a socket that HTTPResponse calls."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def makefile(self, mode: str) -> _Lines:
        return self._lines


@contextmanager
def send_request(
    target: Target, addresses: list[str], request: bytes, deadline: Deadline, context: ssl.SSLContext
) -> Iterator[HTTPResponse]:
    """Connect to one of the addresses, send the request and read the headers; close the connection after the block.

    Raises:
        FetchError: timeout, connection, tls, too_many_bytes (headers).
        OSError: this machine is out of descriptors or memory.
    """
    with network_errors(deadline):
        sock = _connect(addresses[:_MAX_ADDRESSES], target.port, deadline)
    try:
        with network_errors(deadline):
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
    lines = _Lines(_SocketReader(sock, deadline), _BUFFER)
    answer = HTTPResponse(cast(socket.socket, _Makefile(lines)), method="GET")
    answer.begin()
    lines.headers_done()
    return answer


@contextmanager
def network_errors(deadline: Deadline) -> Iterator[None]:
    """Turn network errors into FetchError. Only for reads and writes of the network, not of the disk."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", f"not done after {deadline.seconds:g} s") from error
    except IncompleteRead as error:
        raise FetchError("incomplete", "the body ends too early") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS and not isinstance(error, ssl.SSLError):
            raise
        raise _fetch_error(error) from error


def _fetch_error(error: Exception) -> FetchError:
    """The FetchError of an exception, without line numbers, ports and addresses: they differ between equal tries."""
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
