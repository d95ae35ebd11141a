"""The opener below `urllib.request.urlopen`: asks for images on untrusted URLs, within limits, and tells why not.

    opener = Opener(rules)
    urllib.request.install_opener(opener)

It is none of urllib's: no file, ftp or data handlers, no proxies from the environment, no cookies, no passwords, and
the headers of a request are not sent. img2dataset 1.47 calls urlopen and turns every exception into a text; `last`
tells the caller in the same thread what it was.
"""

import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import TypeVar

from capfilt.config.source import Download
from capfilt.download import robots
from capfilt.download.blocklist import allow_list, read_hosts
from capfilt.download.body import Response, Room, pieces, receive
from capfilt.download.connection import Deadline
from capfilt.download.hosts import Hosts
from capfilt.download.optout import refusal
from capfilt.download.reasons import FetchError, may_pass, shown
from capfilt.download.redirects import Hops
from capfilt.download.url_policy import Guard, Resolver, Target

T = TypeVar("T")


@dataclass
class Outcome:
    """What became of one `open`."""

    url: str
    """The one asked last: where redirects led."""
    reason: str | None = None
    """One of `reasons`; None: the image came, or `trouble` did."""
    told: str = ""
    x_robots_tag: str | None = None
    """The headers' text, several joined by ` | `, cut at 1000 characters."""
    robots_txt: robots.Verdict | None = None
    """Of the host asked last; None: not asked, or it forbids (see reason)."""
    trouble: Exception | None = None
    """No fault of the row: our disk is full, no memory, no descriptors, the run is stopped. Must be raised."""


class Opener:
    """One in a process; threads share it."""

    def __init__(
        self,
        rules: Download,
        *,
        resolve: Resolver = socket.getaddrinfo,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        context: ssl.SSLContext | None = None,
        folder: Path | None = None,
    ) -> None:
        """`sleep`: between tries, `clock` shows it. `context`: the system's certificates by default. `folder`: where
        large bodies lie until they are read.

        Raises ConfigError: allow_hosts or block_hosts are wrong.
        """
        block = read_hosts(Path(rules.block_hosts)) if rules.block_hosts else frozenset[str]()
        guard = Guard(allow_list(rules.allow_hosts), block, resolve)
        hosts = Hosts(rules.per_host, clock, sleep)
        self._rules, self._sleep, self._folder = rules, sleep, folder
        self._hops = Hops(rules, guard, hosts, context or _tls())
        self._robots = robots.Robots(self._robots_txt)
        self._room = Room()
        self._local = threading.local()

    def open(self, request: urllib.request.Request, data: object = None, timeout: object = None) -> Response:
        """The image, whole. `timeout` is not used: the rules have one for all of a try.

        Raises FetchError for all that is the row's. What is not (`Outcome.trouble`) leaves as itself: OSError of our
        disk or of `sleep`, MemoryError.
        """
        self._local.outcome = outcome = Outcome(request.full_url.encode(errors="replace").decode())
        try:
            if data is not None or request.data is not None or request.get_method() != "GET":
                raise FetchError("url_refused", "only GET without a body")
            return self._retried(lambda: self._image(request.full_url, outcome))
        except FetchError as error:
            outcome.reason, outcome.told = error.reason, str(error)
            raise
        except Exception as error:
            outcome.trouble = error
            raise

    def last(self) -> Outcome:
        """Of this thread's last `open`: a new object for each; an empty one before the first."""
        if not hasattr(self._local, "outcome"):
            self._local.outcome = Outcome("")
        found: Outcome = self._local.outcome
        return found

    def landed(self, size: int) -> None:
        """To be called once for each `Response.read` that returned, when its bytes are out of memory; must not wait for
        another image's."""
        self._room.give(size)

    def _retried(self, one: Callable[[], T]) -> T:
        tries = 0
        while True:
            try:
                return one()
            except FetchError as error:
                if (
                    tries == self._rules.retries
                    or not may_pass(error.reason)
                    or (error.wait or 0) > self._rules.max_wait
                ):
                    raise
                if error.wait is None:  # else the host is held back
                    self._sleep(self._rules.backoff * 2**tries)
            tries += 1

    def _image(self, url: str, outcome: Outcome) -> Response:
        return self._hops.follow(url, partial(self._before, outcome), partial(self._take, outcome))

    def _before(self, outcome: Outcome, target: Target) -> None:
        outcome.robots_txt = outcome.x_robots_tag = None
        if self._rules.robots_txt:
            outcome.robots_txt = self._robots.verdict(target)
        outcome.url = target.url

    def _take(self, outcome: Outcome, target: Target, answer: HTTPResponse, deadline: Deadline) -> Response:
        tags = answer.headers.get_all("X-Robots-Tag", [])
        outcome.x_robots_tag = " | ".join(" ".join(tag.split()) for tag in tags)[:1000] or None
        found = refusal(tags) if self._rules.x_robots_tag else None
        if found:
            raise FetchError("opt_out", f"X-Robots-Tag has {found}: {shown(outcome.x_robots_tag or '')}")
        file = receive(answer, deadline, self._rules.max_bytes, self._folder)
        return Response(target.url, answer.headers, file, self._room, partial(setattr, outcome, "trouble"))

    def _robots_txt(self, url: str) -> bytes | None:
        """Raises FetchError: it cannot be had."""
        try:
            return self._retried(lambda: self._hops.follow(url, lambda _: None, _start))
        except FetchError as error:
            if error.reason.startswith("http_4"):
                return None
            raise


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _start(target: Target, answer: HTTPResponse, deadline: Deadline) -> bytes:
    """At most robots.MAX_BYTES of the body."""
    kept = b""
    for piece in pieces(answer, deadline):
        kept += piece
        if len(kept) >= robots.MAX_BYTES:
            break
    return kept[: robots.MAX_BYTES]
