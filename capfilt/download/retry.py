"""How long a server asks to wait."""

from datetime import UTC
from email.utils import parsedate_to_datetime


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds from `now` (of `time.time`) by a Retry-After header: a number or an HTTP date. None: neither."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
