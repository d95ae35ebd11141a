"""X-Robots-Tag: whether the owner of an image asks that it be left out of a data set.

One header may hold several directives, some with a value (`max-image-preview: large`), and a crawler's name before some
of them; there may be several headers. img2dataset 1.47 splits at the first colon only: it misses `noindex,
max-image-preview: large`. What is ambiguous is read as meant for everybody.
"""

import re
from collections.abc import Sequence

TOKEN = "capfilt"
"""The name by which X-Robots-Tag and robots.txt may address us."""
REFUSALS = frozenset({"noai", "noimageai", "noml", "noindex", "none"})
_WITH_VALUE = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
_WORDS = REFUSALS | _WITH_VALUE | {
    "all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "noimageindex", "notranslate",
    "nositelinkssearchbox", "indexifembedded", "noodp", "noydir",
}  # fmt: skip
"""After a colon one of these shows that the name before it is a crawler's, not a directive's."""


def refusal(headers: Sequence[str]) -> str | None:
    """The first directive that forbids the use, or None. `headers`: the values of all X-Robots-Tag headers."""
    return next((found for header in headers if (found := _refusal(header))), None)


def _refusal(header: str) -> str | None:
    ours = True
    for part in re.split("[,;]", header.lower()):
        name, colon, rest = (text.strip() for text in part.partition(":"))
        if name in _WITH_VALUE:
            continue
        words = re.findall("[a-z_-]+", rest if colon else name)
        if colon and _WORDS.intersection(words):
            ours = name.partition("/")[0] in (TOKEN, "*")
        found = REFUSALS.intersection(words)
        if ours and found:
            return min(found)
    return None
