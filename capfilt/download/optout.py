"""X-Robots-Tag: does the owner of an image ask to leave it out of data sets?

One header may have several directives, some with a value (`max-image-preview: large`), and a crawler's name before some
of them; there may be several headers. img2dataset 1.47 splits at the first colon only: it misses `noindex,
max-image-preview: large`. An ambiguous header is read as addressed to everybody.
"""

import re
from collections.abc import Sequence

TOKEN = "capfilt"
"""The name that X-Robots-Tag and robots.txt may use for capfilt."""
REFUSALS = frozenset({"noai", "noimageai", "noml", "noindex", "none"})
_WITH_VALUE = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
_WORDS = REFUSALS | _WITH_VALUE | {
    "all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "noimageindex", "notranslate",
    "nositelinkssearchbox", "indexifembedded", "noodp", "noydir",
}  # fmt: skip
"""One of these words after a colon shows that the word before the colon is the name of a crawler."""


def refusal(headers: Sequence[str]) -> str | None:
    """Return the first directive that forbids the use, or None.

    Args:
        headers: the values of all X-Robots-Tag headers of a response.
    """
    return next((found for header in headers if (found := _refusal(header))), None)


def _refusal(header: str) -> str | None:
    addressed = True
    for part in re.split("[,;]", header.lower()):
        name, colon, rest = (text.strip() for text in part.partition(":"))
        if name in _WITH_VALUE:
            continue
        words = re.findall("[a-z_-]+", rest if colon else name)
        if colon and _WORDS.intersection(words):
            addressed = name.partition("/")[0] in (TOKEN, "*")
        found = REFUSALS.intersection(words)
        if addressed and found:
            return min(found)
    return None
