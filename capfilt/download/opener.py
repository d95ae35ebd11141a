"""The opener that takes the place of `urllib.request.urlopen`: downloads images from untrusted URLs, within limits.

It shares nothing with urllib's openers: no file, ftp or data handlers, no proxies from the environment, no cookies, no
passwords, and the headers of a request are not sent. img2dataset 1.47 turns every exception into a text; `last` gives
the caller in the same thread what really happened.
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
from capfilt.download.body import MemoryBudget, Response, body_chunks, receive
from capfilt.download.connection import Deadline
from capfilt.download.hosts import Hosts
from capfilt.download.optout import refusal
from capfilt.download.reasons import FetchError, may_pass, shown
from capfilt.download.redirects import RedirectFollower
from capfilt.download.url_policy import Resolver, Target, UrlPolicy

T = TypeVar("T")


@dataclass
class Outcome:
    """The result of one call of `Opener.open`."""

    url: str
    """The URL requested last: where redirects led."""
    reason: str | None = None
    """One of `reasons`; None if the image arrived or `local_error` is set."""
    message: str = ""
    x_robots_tag: str | None = None
    """The headers' text, several joined by ` | `, cut at 1000 characters."""
    robots_txt: robots.Verdict | None = None
    """Verdict of the last host's robots.txt; None if it was not requested, or forbids the image (see reason)."""
    local_error: Exception | None = None
    """Not the row's fault: disk full, out of memory or descriptors, the run was stopped. The caller must raise it."""


class Opener:
    """Downloads for one source. All threads of the process share it."""

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
        """Read the lists of hosts; nothing is requested.

        Args:
            rules: limits and politeness.
            resolve: looks up a host name.
            sleep: waits between tries; `clock` advances meanwhile.
            clock: seconds.
            context: TLS settings; the system's certificates by default.
            folder: where large bodies are stored until they are read.

        Raises:
            ConfigError: allow_hosts or block_hosts cannot be used.
        """
        block = read_hosts(Path(rules.block_hosts)) if rules.block_hosts else frozenset[str]()
        policy = UrlPolicy(allow_list(rules.allow_hosts), block, resolve)
        hosts = Hosts(rules.per_host, clock, sleep)
        self._rules, self._sleep, self._folder = rules, sleep, folder
        self._redirects = RedirectFollower(rules, policy, hosts, context or _tls())
        self._robots = robots.Robots(self._robots_txt)
        self._budget = MemoryBudget()
        self._local = threading.local()

    def open(self, request: urllib.request.Request, data: object = None, timeout: object = None) -> Response:
        """Download one image completely.

        Args:
            request: a GET request without a body.
            data: must be None.
            timeout: not used; the rules have one for a whole try.

        Raises:
            FetchError: the image cannot be had; `last().reason` says why.
            OSError, MemoryError: an error of this machine or of `sleep`, also in `last().local_error`.
        """
        self._local.outcome = outcome = Outcome(request.full_url.encode(errors="replace").decode())
        try:
            if data is not None or request.data is not None or request.get_method() != "GET":
                raise FetchError("url_refused", "only GET without a body")
            return self._retried(lambda: self._image(request.full_url, outcome))
        except FetchError as error:
            outcome.reason, outcome.message = error.reason, str(error)
            raise
        except Exception as error:
            outcome.local_error = error
            raise

    def last(self) -> Outcome:
        """The outcome of this thread's last `open`: a new object for each call, an empty one before the first."""
        if not hasattr(self._local, "outcome"):
            self._local.outcome = Outcome("")
        found: Outcome = self._local.outcome
        return found

    def release(self, size: int) -> None:
        """Give back the memory of one body. Call once per `Response.read` that returned, when its bytes are freed.

        Do not wait for another image before this call.
        """
        self._budget.release(size)

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
                if error.wait is None:  # else `Hosts.hold` waits
                    self._sleep(self._rules.backoff * 2**tries)
            tries += 1

    def _image(self, url: str, outcome: Outcome) -> Response:
        return self._redirects.follow(url, partial(self._prepare, outcome), partial(self._take, outcome))

    def _prepare(self, outcome: Outcome, target: Target) -> None:
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
        return Response(target.url, answer.headers, file, self._budget, partial(setattr, outcome, "local_error"))

    def _robots_txt(self, url: str) -> bytes | None:
        """Download a robots.txt. Returns None if there is none (4xx). Raises FetchError."""
        try:
            return self._retried(lambda: self._redirects.follow(url, lambda _: None, _first_bytes))
        except FetchError as error:
            if error.reason.startswith("http_4"):
                return None
            raise


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _first_bytes(target: Target, answer: HTTPResponse, deadline: Deadline) -> bytes:
    """The first robots.MAX_BYTES of the body."""
    kept = b""
    for chunk in body_chunks(answer, deadline):
        kept += chunk
        if len(kept) >= robots.MAX_BYTES:
            break
    return kept[: robots.MAX_BYTES]
