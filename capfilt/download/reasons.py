"""Why an image did not come: one list, for rows, funnels and `capfilt retry`.

`http_<code>` stands for every status but 200 and 203. Two reasons are never raised here, but by whoever reads the list:
`url_missing`, `hash_missing`.
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
"""Characters of a stranger's text that are told."""


class FetchError(Exception):
    """An image that does not come. `str()` says what was found, the same for the same behaviour of the server."""

    def __init__(self, reason: str, told: str, wait: float | None = None) -> None:
        super().__init__(told)
        self.reason = reason
        self.wait = wait
        """Seconds that the server asked to wait (Retry-After); None: it did not."""


def may_pass(reason: str) -> bool:
    """Whether asking again, now or by `capfilt retry`, can help. Never for a refusal, theirs or ours."""
    return reason in _MAY_PASS or re.fullmatch(r"http_5[0-9]{2}", reason) is not None


def shown(text: str) -> str:
    """A stranger's text, quoted, escaped to ASCII and cut."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
