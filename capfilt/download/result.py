"""The result of a download. In a file of its own because it needs none of the packages of the extra `urls`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchResult:
    """The result for one URL."""

    image: bytes | None
    """The body as the server sent it."""
    reason: str | None
    """Why there is no image: one of `capfilt.download.reasons`."""
    message: str
    notes: dict[str, str]
    """url (where redirects ended, if elsewhere), x_robots_tag, robots_txt: those that are known."""
