"""A misbehaving server, a resolver that knows what it is told, and one call that asks as img2dataset does."""

import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from capfilt.config.source import Download
from capfilt.download.opener import Opener, Outcome
from capfilt.download.reasons import FetchError
from tests.download.server import HostileServer

CONTEXT = ssl.create_default_context()  # 15 ms each
BODY = bytes(range(256)) * 100  # 25.6 kB


class Names:
    """A resolver of given names; a list of lists is answered one after the other, the last one for ever."""

    def __init__(self, names: Mapping[str, Sequence[Any]] | None = None) -> None:
        self.names = dict(names or {})
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        known = self.names.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if known and isinstance(known[0], list):
            known = known[min(self.asked.count(host), len(known)) - 1]
        return [_answer(str(address), port) for address in known]


def _answer(address: str, port: int) -> tuple[Any, ...]:
    bare, _, scope = address.partition("%")
    if ":" in bare:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (bare, port, 0, int(scope or 0)))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (bare, port))


class FakeTime:
    """Sleeping takes no time, but the clock shows it."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)

    def clock(self) -> float:
        with self._lock:
            return time.monotonic() + sum(self.slept)


def fetch(opener: Opener, url: str) -> tuple[bytes | None, Outcome]:
    """The body, or None, and what is told of it."""
    try:
        with opener.open(urllib.request.Request(url)) as response:
            body = response.read()
    except FetchError as refused:
        error, outcome = refused, opener.last()
    else:
        opener.release(len(body))
        assert (opener.last().reason, opener.last().local_error) == (None, None)
        return body, opener.last()
    assert (outcome.reason, outcome.message) == (error.reason, str(error))
    assert outcome.message.isascii()
    return None, outcome


def reason(opener: Opener, url: str) -> str | None:
    return fetch(opener, url)[1].reason


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer({"/a.jpg": BODY, "/b.jpg": b"b" * 500}) as running:
        yield running


@pytest.fixture
def ask_server(server: HostileServer) -> Callable[..., Opener]:
    """ask_server(**rules): an opener that may ask the server; one try of 2 s, no time lost by sleeping."""

    def make(resolve: Any = None, fake: FakeTime | None = None, **rules: Any) -> Opener:
        given = {"timeout": 2.0, "retries": 0, "allow_hosts": [f"127.0.0.1:{server.port}"]} | rules
        fake = fake or FakeTime()
        names = resolve or Names()
        return Opener(Download(**given), resolve=names, sleep=fake.sleep, clock=fake.clock, context=CONTEXT)

    return make
