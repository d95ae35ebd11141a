"""A real HTTP server on 127.0.0.1 that misbehaves as its URLs say: `server.url("/cat.jpg", do="flaky", times=2)`.

What a request gets depends on its path and query and on how often that was asked before, never on time.
Every behaviour but `status` and the redirects is one of `bodies[path]` (with b"" for a path that is not there):

    (none)             200, or 404 if the path is not in `bodies`
    status             `code`; with `retry_after` that header
    flaky              `code` (500) for the first `times` (1) requests of this URL, then 200; `retry_after` as above
    redirect           `n` (1) hops of `code` (302), then 200; each `after` (0) seconds
    loop, far          to itself;   to a path of 9000 characters
    to                 redirect to `url`, written into the Location as it is; without it no Location
    drip_header        200 bytes of a header, one a pause, then the end
    drip_body          a byte a pause
    endless            a body without length that never ends; `chunked=1`: in chunks
    chunked            in chunks of `size` (1000) bytes
    bad_chunk          a chunk whose size is written `size`
    close              a body without length, ended by closing
    longer, shorter    Content-Length is 10 more, or 10 less, than what is sent
    huge               Content-Length of 1 GB, then silence
    html, gzip         an HTML page; a gzip body with Content-Encoding
    truncated, changed the body's first half; its bytes with the last one inverted
    tag                200 with the X-Robots-Tag headers `tag` (several times)
    encoding           200 with the Content-Encoding `value`
    transfer           a chunked body under the Transfer-Encoding headers `value` (several)
    headers            5000 headers;   long_header: one of 70,000 bytes;   fat_headers: 90 of 60,000 bytes
    garbage, old       no HTTP;   an answer of HTTP/0.9: the body alone
    reset, hang        the connection is reset;   nothing is ever sent
"""

import gzip
import socket
import socketserver
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

REASON = "So it is"


@dataclass(frozen=True)
class Request:
    """As it came."""

    target: str
    headers: dict[str, str]
    """By lower-case name."""


class HostileServer:
    """`bodies`: path -> bytes; may be added to. `robots`: what /robots.txt says, or its status.

    `pause`: seconds between two bytes of a drip. `tls`: certificate and key, for https. A context manager.
    """

    def __init__(
        self,
        bodies: Mapping[str, bytes] | None = None,
        *,
        robots: bytes | int = 404,
        pause: float = 0.05,
        tls: tuple[Path, Path] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.bodies = dict(bodies or {})
        self.robots, self.pause = robots, pause
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.hits: Counter[str] = Counter()
        """Requests by path and query."""
        self.requests: list[Request] = []
        self.connections = 0
        self.at_once = self.most_at_once = 0
        """Of drips; other answers may still count when their client has gone on."""
        self.context = _context(tls)
        self._server = _server(self, address)
        self.port = int(self._server.server_address[1])
        self.host = f"[{address}]" if ":" in address else address
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def url(self, path: str, do: str = "", host: str | None = None, **options: Any) -> str:
        """The URL at which a path behaves that way; `host`: another name in it."""
        query = urlencode(({"do": do} if do else {}) | options, doseq=True)
        scheme = "https" if self.context else "http"
        return f"{scheme}://{host or self.host}:{self.port}{path}" + (f"?{query}" if query else "")

    def __enter__(self) -> "HostileServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, request: Request) -> int:
        """Note a request; how many of its URL there were, this one included."""
        with self.lock:
            self.requests.append(request)
            self.hits[request.target] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            return self.hits[request.target]


def _context(tls: tuple[Path, Path] | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    return context


def _server(hostile: HostileServer, address: str) -> socketserver.ThreadingTCPServer:
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 256
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def get_request(self) -> tuple[socket.socket, Any]:
            found = super().get_request()
            hostile.connections += 1
            return found

        def finish_request(self, request: Any, client_address: Any) -> None:
            with suppress(OSError, ValueError):
                _Talk(hostile, request).run()

    return Server((address, 0), socketserver.BaseRequestHandler)


class _Talk:
    """One connection: one request, one answer."""

    def __init__(self, hostile: HostileServer, sock: socket.socket) -> None:
        self.hostile, self.sock = hostile, sock
        self.path = ""
        self.options: dict[str, list[str]] = {}
        self.nth = 0
        self.open = 1

    def run(self) -> None:
        self.sock.settimeout(20)
        if self.hostile.context:
            self.sock = self.hostile.context.wrap_socket(self.sock, server_side=True)
        try:
            self._answer()
        finally:
            if self.hostile.context:
                self.sock.close()

    def _answer(self) -> None:
        request = self._read()
        parts = urlsplit(request.target)
        self.path, self.options = parts.path, parse_qs(parts.query)
        self.nth = self.hostile.count(request)
        try:
            if self.path == "/robots.txt" and not isinstance(self.hostile.robots, int):
                self.send(200, self.hostile.robots)
            elif self.path == "/robots.txt":
                self.send(self.hostile.robots, b"")
            else:
                _DO[self.option("do", "plain")](self)
        finally:
            self.done()

    def done(self) -> None:
        """Before the last byte: the next request may come sooner than this thread goes on."""
        with self.hostile.lock:
            self.hostile.at_once -= self.open
            self.open = 0

    def _read(self) -> Request:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                raise ValueError("no request")
            data += piece
        first, *lines = data.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Request(first.split(" ")[1], {name.lower(): value.strip() for name, _, value in pairs})

    @property
    def body(self) -> bytes:
        return self.hostile.bodies.get(self.path, b"")

    def option(self, name: str, default: str) -> str:
        return self.options.get(name, [default])[0]

    def head(self, status: int, *lines: str) -> None:
        text = "".join(f"{line}\r\n" for line in lines)
        self.sock.sendall(f"HTTP/1.1 {status} {REASON}\r\nConnection: close\r\n{text}\r\n".encode())

    def send(self, status: int, body: bytes, *lines: str, off: int = 0) -> None:
        self.head(status, f"Content-Length: {len(body) + off}", *lines)
        self.sock.sendall(body)

    def waited(self) -> list[str]:
        return [f"Retry-After: {value}" for value in self.options.get("retry_after", [])]

    def drip(self, data: bytes) -> None:
        for i in range(len(data)):
            if self.hostile.stopping.wait(self.hostile.pause):
                return
            if i == len(data) - 1:
                self.done()
            self.sock.sendall(data[i : i + 1])


def _redirect(talk: _Talk) -> None:
    n = int(talk.option("n", "1"))
    code, after = int(talk.option("code", "302")), talk.option("after", "0")
    more = f"?do=redirect&n={n - 1}&code={code}&after={after}" if n > 1 else ""
    talk.hostile.stopping.wait(float(after))
    talk.send(code, b"", f"Location: {talk.path}{more}")


def _to(talk: _Talk) -> None:
    lines = [f"Location: {url}" for url in talk.options.get("url", [])]
    talk.send(int(talk.option("code", "302")), b"", *lines)


def _flaky(talk: _Talk) -> None:
    if talk.nth > int(talk.option("times", "1")):
        talk.send(200, talk.body)
    else:
        talk.send(int(talk.option("code", "500")), b"", *talk.waited())


def _endless(talk: _Talk) -> None:
    chunked = bool(talk.option("chunked", ""))
    talk.head(200, *["Transfer-Encoding: chunked"] * chunked)
    block = b"x" * 65536
    while not talk.hostile.stopping.is_set():
        talk.sock.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)


def _chunked(talk: _Talk) -> None:
    talk.head(200, *(f"Transfer-Encoding: {value}" for value in talk.options.get("value", ["chunked"])))
    size = int(talk.option("size", "1000"))
    pieces = [talk.body[i : i + size] for i in range(0, len(talk.body), size)]
    talk.sock.sendall(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")


def _bad_chunk(talk: _Talk) -> None:
    talk.head(200, "Transfer-Encoding: chunked")
    talk.sock.sendall(talk.option("size", "-1").encode() + b"\r\n")
    while not talk.hostile.stopping.is_set():
        talk.sock.sendall(b"x" * 65536)


def _drip_header(talk: _Talk) -> None:
    talk.sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    talk.drip(b"x" * 200)


def _drip_body(talk: _Talk) -> None:
    talk.head(200, f"Content-Length: {len(talk.body)}")
    talk.drip(talk.body)


def _silence(talk: _Talk) -> None:
    talk.hostile.stopping.wait(20)


def _huge(talk: _Talk) -> None:
    talk.head(200, f"Content-Length: {10**9}")
    _silence(talk)


def _close(talk: _Talk) -> None:
    talk.head(200)
    talk.sock.sendall(talk.body)


def _reset(talk: _Talk) -> None:
    talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    talk.sock.close()


def _plain(talk: _Talk) -> None:
    talk.send(200 if talk.path in talk.hostile.bodies else 404, talk.body)


_DO: dict[str, Callable[[_Talk], None]] = {
    "plain": _plain,
    "status": lambda talk: talk.send(int(talk.option("code", "404")), b"", *talk.waited()),
    "flaky": _flaky,
    "redirect": _redirect,
    "loop": lambda talk: talk.send(302, b"", f"Location: {talk.path}?do=loop"),
    "far": lambda talk: talk.send(302, b"", "Location: /" + "x" * 9000),
    "to": _to,
    "drip_header": _drip_header,
    "drip_body": _drip_body,
    "endless": _endless,
    "chunked": _chunked,
    "transfer": _chunked,
    "bad_chunk": _bad_chunk,
    "close": _close,
    "longer": lambda talk: talk.send(200, talk.body, off=10),
    "shorter": lambda talk: talk.send(200, talk.body, off=-10),
    "huge": _huge,
    "html": lambda talk: talk.send(200, b"<html>Not here any more</html>", "Content-Type: text/html"),
    "gzip": lambda talk: talk.send(200, gzip.compress(talk.body), "Content-Encoding: gzip"),
    "truncated": lambda talk: talk.send(200, talk.body[: len(talk.body) // 2]),
    "changed": lambda talk: talk.send(200, talk.body[:-1] + bytes(255 - byte for byte in talk.body[-1:])),
    "tag": lambda talk: talk.send(200, talk.body, *(f"X-Robots-Tag: {tag}" for tag in talk.options.get("tag", []))),
    "encoding": lambda talk: talk.send(200, talk.body, f"Content-Encoding: {talk.option('value', 'br')}"),
    "headers": lambda talk: talk.send(200, talk.body, *(f"X-{i}: x" for i in range(5000))),
    "long_header": lambda talk: talk.send(200, talk.body, "X-Long: " + "x" * 70_000),
    "fat_headers": lambda talk: talk.send(200, talk.body, *(f"X-{i}: " + "x" * 60_000 for i in range(90))),
    "garbage": lambda talk: talk.sock.sendall(b"\0\1\2 what?\r\n" * 100),
    "old": lambda talk: talk.sock.sendall(talk.body),
    "reset": _reset,
    "hang": _silence,
}
