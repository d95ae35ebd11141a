"""One try at a URL: follow redirects, each one checked, to a response with a body.

For each URL, in this order: check it, look up its host once, call `before` (robots.txt), wait for a slot of the host.
Only then does the deadline run. A redirect gives the slot back before it waits for the next host's.
"""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse
from typing import TypeVar
from urllib.parse import urljoin

from capfilt.config.source import Download
from capfilt.download.connection import Deadline, send_request
from capfilt.download.hosts import Hosts
from capfilt.download.reasons import FetchError, may_pass, shown
from capfilt.download.retry import retry_after
from capfilt.download.url_policy import Target, UrlPolicy, check_characters
from capfilt.version import __version__

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = (200, 203)

T = TypeVar("T")
Take = Callable[[Target, HTTPResponse, Deadline], T]


class RedirectFollower:
    """Requests URLs under the rules of one source; threads share it."""

    def __init__(self, rules: Download, policy: UrlPolicy, hosts: Hosts, context: ssl.SSLContext) -> None:
        self._rules, self._policy, self._hosts, self._context = rules, policy, hosts, context
        contact = f" (+{rules.contact})" if rules.contact else ""
        self._headers = f"User-Agent: capfilt/{__version__}{contact}\r\nAccept-Encoding: identity\r\nConnection: close"

    def follow(self, url: str, before: Callable[[Target], object], take: Take[T]) -> T:
        """Request a URL and return what `take` returns for the final response, called while the connection is open.

        Args:
            url: not yet checked.
            before: called with each target before its request; may raise FetchError.
            take: gets the target, the response and the deadline.

        Raises:
            FetchError: the image cannot be had.
        """
        deadline = Deadline(self._rules.timeout)
        for redirects in range(self._rules.max_redirects + 1):
            target, addresses = self._checked_target(url, redirects)
            before(target)
            request = f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n{self._headers}\r\n\r\n".encode(
                "ascii"
            )
            with (
                self._hosts.slot(target.host),
                deadline,
                send_request(target, addresses, request, deadline, self._context) as answer,
            ):
                if answer.status not in REDIRECTS:
                    self._check_status(target, answer)
                    return take(target, answer, deadline)
                url = location(target, answer)
        raise FetchError("redirects", f"more than {self._rules.max_redirects} redirects")

    def _checked_target(self, url: str, redirects: int) -> tuple[Target, list[str]]:
        try:
            target = self._policy.check(url)
            return target, self._policy.addresses(target)
        except FetchError as error:
            if not redirects:
                raise
            raise FetchError(error.reason, f"redirected to {shown(url)}: {error}") from error

    def _check_status(self, target: Target, answer: HTTPResponse) -> None:
        """Raises FetchError http_<code> for all but 200 and 203. Holds the host if it sends Retry-After."""
        if answer.status in _OK:
            return
        reason = f"http_{answer.status}"
        wait = retry_after(answer.headers.get("Retry-After"), time.time()) if may_pass(reason) else None
        if wait is not None and wait <= self._rules.max_wait:
            self._hosts.hold(target.host, wait)
        raise FetchError(reason, f"the server answered {answer.status}", wait)


def location(target: Target, answer: HTTPResponse) -> str:
    """Return the URL that a redirect leads to, not yet checked. Raises FetchError: redirects, url_refused."""
    text = (answer.headers.get("Location") or "").strip()
    if not text:
        raise FetchError("redirects", f"the server answered {answer.status} without a Location")
    with suppress(UnicodeError):  # then it is Latin-1, as http.client decoded it
        text = text.encode("latin-1").decode("utf-8")
    check_characters(text)  # urljoin drops line ends and tabs silently
    try:
        return urljoin(target.url, text)
    except ValueError as error:
        raise FetchError("url_refused", f"redirected to {shown(text)}") from error
