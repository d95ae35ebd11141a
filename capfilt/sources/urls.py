"""A list of URLs: read once into the run's folder, then downloaded a shard at a time.

`RUN/lists/<name>-<fp>.parquet` holds what passed the filter and the sample; a unit is a range of its rows. An URL that
occurs several times in a unit is asked once. Every row of the list becomes a row of pairs: what does not come has the
reason why (`capfilt.download.reasons`), and `meta.fetch` tells where redirects ended and what the site said of machine
use. Nothing of a shard is on disk under a name before the whole of it is.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source, source_name
from capfilt.download.result import Arrival
from capfilt.errors import ConfigError, RunError
from capfilt.media.blocklist import Blocked
from capfilt.media.images import ImageError
from capfilt.sources.base import RawRow, cut, some
from capfilt.sources.hashes import mismatch
from capfilt.sources.url_list import LIST, UrlList
from capfilt.store.layout import ShardSpec
from capfilt.store.shards import batches, manifest

if TYPE_CHECKING:
    from capfilt.download.fetcher import Crew
    from capfilt.download.resize import Resize

LISTS = "lists"
"""Folder in the run."""
EARLY = 200
"""Rows after which a shard's share of failures is looked at first."""
LEAST = 50
"""Rows that a share is taken of."""
_OURS = ("blocked", "blocked_host", "hash_missing", "opt_out", "robots_txt")
"""Rows that we would not ask for, or that their owner keeps: no sign of a broken set-up."""

Record = dict[str, Any]


class UrlsReader:
    """See `Reader`."""

    def __init__(self, source: Source, rules: IngestSettings, run: Path) -> None:
        self.source, self._rules, self._folder = source, rules, run / LISTS
        self._blocked = Blocked(rules.block_hashes)

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        path = UrlList(self.source).snapshot(self._folder)
        return some(cut(self.source, path.name, manifest(path)["rows"], rows_per_shard), self.source)

    def identity(self) -> list[list[str | int]]:
        return UrlList(self.source).identity()

    def rows(self, unit: ShardSpec) -> Iterator[RawRow]:
        """As of `Reader`. Raises RunError where nearly nothing comes, OSError where the disk is full."""
        found: Counter[str | None] = Counter()
        rows = unit.stop - unit.start
        for n, row in enumerate(self.some_rows(unit, range(rows)), 1):
            found[row.reason] += 1
            if n in (EARLY, rows):
                self._check(found)
            yield row

    def some_rows(self, unit: ShardSpec, positions: Sequence[int]) -> Iterator[RawRow]:
        """The rows at these positions of the unit, ascending, counted from its start; only they are asked for."""
        return self._fetched(list(self._records(unit, positions)))

    def _records(self, unit: ShardSpec, positions: Sequence[int]) -> Iterator[Record]:
        wanted, path = set(positions), self._folder / unit.path
        rows = (row for part in batches(path, LIST.names, 1000) for row in part)
        for position, row in enumerate(islice(rows, unit.start, unit.stop)):
            if position in wanted:
                yield row

    def _fetched(self, records: list[Record]) -> Iterator[RawRow]:
        refusals = [self._refusal(record) for record in records]
        asked = [record["url"] for record, refused in zip(records, refusals, strict=True) if refused is None]
        with closing(self._crew.fetch(asked)) as coming:
            for record, refused in zip(records, refusals, strict=True):
                yield self._row(record, refused or next(coming))

    def _refusal(self, record: Record) -> Arrival | None:
        """Why it is not asked for."""
        if not record["url"]:
            return Arrival(None, "url_missing", "no URL in the list", {})
        if self._blocked.has(record["sha256"], record["md5"]):
            return Arrival(None, "blocked", "its hash is in ingest.block_hashes; not asked for", {})
        if self.source.download.require_hash and not (record["sha256"] or record["md5"]):
            return Arrival(None, "hash_missing", "the list states no sha256 or md5 (download.require_hash)", {})
        return None

    def _row(self, record: Record, arrival: Arrival) -> RawRow:
        meta = json.loads(record["meta"] or "{}") | ({"fetch": arrival.notes} if arrival.notes else {})
        row = RawRow(record["key"], text=record["text"], url=record["url"], meta=meta)
        if arrival.reason is not None or arrival.image is None:
            return replace(row, reason=arrival.reason, error=arrival.told)
        row = replace(row, image=arrival.image, sha256=record["sha256"], md5=record["md5"])
        return row if self.source.download.resize == "keep" else self._resized(row, arrival.image)

    def _resized(self, row: RawRow, data: bytes) -> RawRow:
        """What was fetched is verified and its sha256 noted; what is kept is another file."""
        found, told = mismatch(row, data)
        if told is not None:
            return replace(row, image=None, reason="hash_mismatch", error=told)
        if self._blocked.bytes(data):
            return replace(row, image=None, reason="blocked", error="its hash is in ingest.block_hashes")
        fetch = row.meta.get("fetch") or {}
        meta = row.meta | {"fetch": {**fetch, "sha256": found}}  # type: ignore[dict-item]
        try:
            image = self._resize(data, self._rules.max_pixels)
        except ImageError as error:
            return replace(row, meta=meta, image=None, reason=error.reason, error=str(error))
        return replace(row, meta=meta, image=image, sha256=None, md5=None)

    @cached_property
    def _crew(self) -> "Crew":
        """Imported when it is needed: its packages are an extra. Raises ConfigError without them."""
        try:
            from capfilt.download.fetcher import Crew
        except ImportError as error:
            raise ConfigError(
                f"sources of type urls need a package that is not here ({error}): pip install 'capfilt[urls]'"
            ) from error
        return Crew(self.source.download, self._folder)

    @cached_property
    def _resize(self) -> "Resize":
        from capfilt.download.resize import Resize

        return Resize(self.source.download.resize, self.source.download.image_size)

    def _check(self, found: Counter[str | None]) -> None:
        """Raises RunError with advice if too many rows did not come."""
        counted = {reason: n for reason, n in found.items() if reason not in _OURS}
        total, failed = sum(counted.values()), sum(n for reason, n in counted.items() if reason is not None)
        limit = self.source.download.max_error_rate
        if total < LEAST or failed <= limit * total:
            return
        most = max((reason for reason in counted if reason is not None), key=lambda reason: (counted[reason], reason))
        raise RunError(
            f"sources.{source_name(self.source)}: {failed} of the first {total} images of a shard did not come, most "
            f"of them {most} ({counted[most]}): {_advice(most)}. Finished shards stay; mend it and give the same "
            f"command again, or raise download.max_error_rate ({limit:g}) if the list is like that"
        )


def _advice(reason: str) -> str:
    """What to look at first."""
    if reason in ("dns", "dns_temporary", "connection", "timeout"):
        return "is this machine on the network, and is its name server fast enough (`capfilt doctor`)?"
    if reason in ("url_missing", "url_refused"):
        return "is the right column taken for URLs (columns: {url: NAME})?"
    if reason in ("http_401", "http_403", "http_429", "robots_txt", "opt_out"):
        return "the servers refuse this user agent; set download.contact, and lower download.threads and per_host"
    if reason in ("address_refused", "blocked_host"):
        return "the list names private addresses; download.allow_hosts lets single hosts through"
    return "look at the list's age and at the errors of single rows"
