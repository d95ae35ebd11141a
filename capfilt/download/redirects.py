"""One try at a URL: from hop to hop, each guarded, to an answer with a body.

In each hop, in this order: the URL is checked, its name looked up once, `before` asked (robots.txt), a slot of the host
waited for. Only then does the deadline run. A redirect gives the slot back before the next host's is waited for.
"""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse
from typing import TypeVar
from urllib.parse import urljoin

from capfilt.config.source import Download
from capfilt.download.connection import Deadline, ask
from capfilt.download.hosts import Hosts
from capfilt.download.reasons import FetchError, may_pass, shown
from capfilt.download.retry import retry_after
from capfilt.download.url_policy import Guard, Target, sound
from capfilt.version import __version__

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FINE = (200, 203)

T = TypeVar("T")
Take = Callable[[Target, HTTPResponse, Deadline], T]


class Hops:
    """Fetches under the rules of one source; threads share it."""

    def __init__(self, rules: Download, guard: Guard, hosts: Hosts, context: ssl.SSLContext) -> None:
        self._rules, self._guard, self._hosts, self._context = rules, guard, hosts, context
        contact = f" (+{rules.contact})" if rules.contact else ""
        self._headers = f"User-Agent: capfilt/{__version__}{contact}\r\nAccept-Encoding: identity\r\nConnection: close"

    def follow(self, url: str, before: Callable[[Target], object], take: Take[T]) -> T:
        """What `take` makes of the last answer, while its connection is open. Raises FetchError."""
        deadline = Deadline(self._rules.timeout)
        for hop in range(self._rules.max_redirects + 1):
            target, addresses = self._guarded(url, hop)
            before(target)
            request = f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n{self._headers}\r\n\r\n".encode(
                "ascii"
            )
            with (
                self._hosts.slot(target.host),
                deadline,
                ask(target, addresses, request, deadline, self._context) as answer,
            ):
                if answer.status not in REDIRECTS:
                    self._look(target, answer)
                    return take(target, answer, deadline)
                url = location(target, answer)
        raise FetchError("redirects", f"more than {self._rules.max_redirects} redirects")

    def _guarded(self, url: str, hop: int) -> tuple[Target, list[str]]:
        try:
            target = self._guard.check(url)
            return target, self._guard.addresses(target)
        except FetchError as error:
            if not hop:
                raise
            raise FetchError(error.reason, f"redirected to {shown(url)}: {error}") from error

    def _look(self, target: Target, answer: HTTPResponse) -> None:
        """Raises FetchError http_<code> for all but 200 and 203; holds the host back if it asks for it."""
        if answer.status in _FINE:
            return
        reason = f"http_{answer.status}"
        wait = retry_after(answer.headers.get("Retry-After"), time.time()) if may_pass(reason) else None
        if wait is not None and wait <= self._rules.max_wait:
            self._hosts.hold(target.host, wait)
        raise FetchError(reason, f"the server answered {answer.status}", wait)


def location(target: Target, answer: HTTPResponse) -> str:
    """Where a redirect leads, unguarded. Raises FetchError: redirects, url_refused."""
    text = (answer.headers.get("Location") or "").strip()
    if not text:
        raise FetchError("redirects", f"the server answered {answer.status} without a Location")
    with suppress(UnicodeError):  # then it is Latin-1, as http.client has read it
        text = text.encode("latin-1").decode("utf-8")
    sound(text)  # urljoin drops line ends and tabs in silence
    try:
        return urljoin(target.url, text)
    except ValueError as error:
        raise FetchError("url_refused", f"redirected to {shown(text)}") from error
