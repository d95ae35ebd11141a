"""The reasons why an image was not downloaded: one list for rows, funnels and `capfilt retry`.

`http_<code>` covers every status but 200 and 203. `url_missing` and `hash_missing` are set by the reader of the list.
"""

import re

REASONS = frozenset(
    {
        "url_missing",
        "url_refused",
        "address_refused",
        "blocked_host",
        "redirects",
        "timeout",
        "connection",
        "dns",
        "dns_temporary",
        "tls",
        "incomplete",
        "too_many_bytes",
        "content_encoding",
        "opt_out",
        "robots_txt",
        "hash_missing",
    }
)
_MAY_PASS = frozenset({"timeout", "connection", "dns_temporary", "incomplete", "http_408", "http_425", "http_429"})
_SHOWN = 200
"""Most characters of an untrusted text in a message."""


class FetchError(Exception):
    """An image cannot be downloaded. The message is the same whenever the server behaves the same."""

    def __init__(self, reason: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.wait = wait
        """Seconds that the server asks to wait (Retry-After), or None."""


def may_pass(reason: str) -> bool:
    """Return True if another try, now or by `capfilt retry`, can help. Never after a refusal by server or capfilt."""
    return reason in _MAY_PASS or re.fullmatch(r"http_5[0-9]{2}", reason) is not None


def shown(text: str) -> str:
    """Quote an untrusted text for a message: escaped to ASCII and shortened."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
