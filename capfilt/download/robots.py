"""robots.txt (RFC 9309), requested once per host and parsed by protego.

protego 0.7 is fast on hostile patterns, but copies every rule of a group for every crawler of the group: 20,000 names
above 20,000 rules, 400 kB, would be 400 million objects. It also matches `User-agent: cap` with capfilt. So it gets
only the groups that are addressed to capfilt, by its whole name, or to everybody.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from protego import Protego

from capfilt.download.optout import TOKEN
from capfilt.download.reasons import FetchError
from capfilt.download.url_policy import Target

MAX_BYTES = 512 * 1024
"""The rest of a longer file is not read (RFC 9309, section 2.5: at least 500 KiB)."""
CACHED = 2 * 2**20
"""Most characters of rules that are kept; protego takes up to 40 bytes per character."""
_HOST_COST = 256
_AGENT = re.compile(r"user[- ]?agent\s*:?\s*(?P<name>[A-Za-z_*-]*)", re.I)
_NO_RULE = re.compile(r"(site-?maps?|host)\b", re.I)

Verdict = Literal["allowed", "none"]


class Robots:
    """The rules of all hosts met so far.

    robots.txt is requested once per scheme, host and port, by one thread while others wait. When more than CACHED
    characters are kept, the least recently used rules are dropped.

    Args:
        fetch: gets the URL of a robots.txt; returns at most MAX_BYTES of it, or None if there is none (4xx), or raises
            FetchError.
    """

    def __init__(self, fetch: Callable[[str], bytes | None]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Future[Protego | FetchError | None]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._total = 0

    def verdict(self, target: Target) -> Verdict:
        """Return "allowed" by the host's rules, or "none" if it has none.

        Raises:
            FetchError: robots_txt: forbidden, or the rules cannot be had.
        """
        rules = self._rules(target.origin)
        if isinstance(rules, FetchError):
            raise FetchError("robots_txt", f"{target.origin}/robots.txt cannot be had: {rules}") from rules
        if rules is None:
            return "none"
        if not rules.can_fetch(target.url, TOKEN):
            raise FetchError("robots_txt", f"{target.origin}/robots.txt forbids it")
        return "allowed"

    def _rules(self, origin: str) -> Protego | FetchError | None:
        with self._lock:
            coming = self._known.get(origin)
            mine = coming is None
            if coming is None:
                coming = self._known[origin] = Future()
            self._known.move_to_end(origin)
        if mine:
            self._ask(origin, coming)
        return coming.result()

    def _ask(self, origin: str, coming: "Future[Protego | FetchError | None]") -> None:
        size = 0
        try:
            text = self._fetch(f"{origin}/robots.txt")
            rules = None if text is None else own_rules(text.decode("utf-8-sig", "replace"))
            size = len(rules or "")
            coming.set_result(None if rules is None else Protego.parse(rules))
        except FetchError as error:
            coming.set_result(FetchError(error.reason, str(error)))
        except BaseException as error:
            # An error of this machine, or the run was stopped: nothing is known about the host.
            with self._lock:
                del self._known[origin]
            coming.set_exception(error)
            return
        self._trim(origin, size + _HOST_COST)

    def _trim(self, origin: str, size: int) -> None:
        """Drop the least recently used rules until all fit; requests in progress stay."""
        with self._lock:
            self._sizes[origin] = size
            self._total += size
            while self._total > CACHED:
                oldest = next(name for name in self._known if name in self._sizes)
                del self._known[oldest]
                self._total -= self._sizes.pop(oldest)


def own_rules(text: str) -> str:
    """Return the groups addressed to `capfilt` or `*`, without other names and other groups."""
    kept: list[str] = []
    mine = in_rules = False
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        agent = _AGENT.match(line)
        if agent:
            name = agent["name"].lower()
            named = name in (TOKEN, f"{TOKEN}*", "*")  # protego also accepts a star
            mine, in_rules = named or (mine and not in_rules), False
            if named:
                kept.append(f"User-agent: {name}")
        elif line and not _NO_RULE.match(line):
            in_rules = True
            if mine:
                kept.append(line)
    return "\n".join(kept)
