"""The Retry-After header."""

from datetime import UTC
from email.utils import parsedate_to_datetime


def retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds to wait by a Retry-After header, or None if it is neither a number nor an HTTP date.

    Args:
        text: the header's value.
        now: as of `time.time`.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
