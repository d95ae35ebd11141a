"""A list of URLs: stored once in the run's folder, then downloaded one shard at a time.

`RUN/lists/<name>-<fp>.parquet` holds the rows that pass the filter and the sample; a shard is a range of its rows. A
URL that occurs several times in a shard is requested once. Every row of the list becomes a row of pairs. A row without
an image has a reason (`capfilt.download.reasons`). `meta.fetch` records where redirects ended and what the site says
about machine use. No file of a shard exists under its final name before the whole shard is done.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from capfilt.config.source import Source, source_name
from capfilt.download.result import FetchResult
from capfilt.errors import ConfigError, RunError
from capfilt.media.blocklist import BlockList, FileDigests
from capfilt.media.images import ImageError
from capfilt.sources.base import RawRow, ReaderOptions, require_rows, split_into_shards
from capfilt.sources.hashes import hash_mismatch
from capfilt.sources.url_list import LIST, UrlList
from capfilt.store.layout import ShardSpec
from capfilt.store.shards import batches, manifest

if TYPE_CHECKING:
    from capfilt.download.fetcher import Fetcher
    from capfilt.download.resize import Resize

LISTS = "lists"
"""Folder in the run."""
EARLY = 200
"""Rows after which a shard's failure rate is checked for the first time."""
LEAST = 50
"""Fewest rows for which a failure rate is computed."""
_NOT_REQUESTED = ("blocked", "blocked_host", "hash_missing", "opt_out", "robots_txt")
"""Reasons that do not count as failures: capfilt does not request the row, or the owner opts out."""


class UrlsReader:
    """See `Reader`."""

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        self.source, self._options, self._folder = source, options, options.run / LISTS

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        path = UrlList(self.source).snapshot(self._folder)
        specs = split_into_shards(self.source, path.name, manifest(path)["rows"], rows_per_shard)
        return require_rows(specs, self.source)

    def identity(self) -> list[list[str | int]]:
        return UrlList(self.source).identity()

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        """See `Reader`. Only the rows at `positions` are requested.

        Raises:
            RunError: nearly all downloads of a whole shard fail.
            OSError: the disk is full.
        """
        if positions is not None:
            return self._downloaded(list(self._records(spec, positions)))
        total = spec.stop - spec.start
        return self._checked(self._downloaded(list(self._records(spec, range(total)))), total)

    def _checked(self, rows: Iterator[RawRow], total: int) -> Iterator[RawRow]:
        """The rows. Raises RunError after `EARLY` rows, or after the last one, if too many failed."""
        reasons: Counter[str | None] = Counter()
        for n, row in enumerate(rows, 1):
            reasons[row.reason] += 1
            if n in (EARLY, total):
                self._check_failures(reasons)
            yield row

    def _records(self, spec: ShardSpec, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows of the stored list, columns as in `LIST`."""
        wanted, path = set(positions), self._folder / spec.path
        records = (record for batch in batches(path, LIST.names, 1000) for record in batch)
        for position, record in enumerate(islice(records, spec.start, spec.stop)):
            if position in wanted:
                yield record

    def _downloaded(self, records: list[dict[str, Any]]) -> Iterator[RawRow]:
        refusals = [self._refusal(record) for record in records]
        urls = [record["url"] for record, refusal in zip(records, refusals, strict=True) if refusal is None]
        with closing(self._fetcher.fetch(urls)) as results:
            for record, refusal in zip(records, refusals, strict=True):
                yield self._row(record, refusal or next(results))

    def _refusal(self, record: dict[str, Any]) -> FetchResult | None:
        """Why the URL is not requested; None if it is."""
        if not record["url"]:
            return FetchResult(None, "url_missing", "no URL in the list", {})
        if self._block_list.lists(record["sha256"], record["md5"]):
            return FetchResult(None, "blocked", "its hash is in ingest.block_hashes; not asked for", {})
        if self.source.download.require_hash and not (record["sha256"] or record["md5"]):
            return FetchResult(None, "hash_missing", "the list states no sha256 or md5 (download.require_hash)", {})
        return None

    def _row(self, record: dict[str, Any], result: FetchResult) -> RawRow:
        meta = json.loads(record["meta"] or "{}") | ({"fetch": result.notes} if result.notes else {})
        row = RawRow(record["key"], text=record["text"], url=record["url"], meta=meta)
        if result.reason is not None or result.image is None:
            return replace(row, reason=result.reason, error=result.message)
        row = replace(row, image=result.image, sha256=record["sha256"], md5=record["md5"])
        return row if self.source.download.resize == "keep" else self._resized(row, result.image)

    def _resized(self, row: RawRow, data: bytes) -> RawRow:
        """The row with a smaller image. The downloaded file is verified first, and its sha256 noted in `meta.fetch`."""
        digests = FileDigests(data)
        wrong = hash_mismatch(row, digests)
        if wrong is not None:
            return replace(row, image=None, reason="hash_mismatch", error=wrong)
        if self._block_list.blocks(digests):
            return replace(row, image=None, reason="blocked", error="its hash is in ingest.block_hashes")
        fetch = row.meta.get("fetch") or {}
        meta = row.meta | {"fetch": {**fetch, "sha256": digests.sha256}}  # type: ignore[dict-item]
        try:
            image = self._resize(data, self._options.rules.max_pixels)
        except ImageError as error:
            return replace(row, meta=meta, image=None, reason=error.reason, error=str(error))
        return replace(row, meta=meta, image=image, sha256=None, md5=None)

    @cached_property
    def _block_list(self) -> BlockList:
        given = self._options.block_list
        return BlockList(self._options.rules.block_hashes) if given is None else given

    @cached_property
    def _fetcher(self) -> "Fetcher":
        """Imported here because its packages are an optional extra. Raises ConfigError without them."""
        try:
            from capfilt.download.fetcher import Fetcher
        except ImportError as error:
            raise ConfigError(
                f"sources of type urls need a package that is not here ({error}): pip install 'capfilt[urls]'"
            ) from error
        return Fetcher(self.source.download, self._folder)

    @cached_property
    def _resize(self) -> "Resize":
        from capfilt.download.resize import Resize

        return Resize(self.source.download.resize, self.source.download.image_size)

    def _check_failures(self, reasons: Counter[str | None]) -> None:
        """Raises RunError with advice if too many rows failed."""
        counted = {reason: n for reason, n in reasons.items() if reason not in _NOT_REQUESTED}
        total, failed = sum(counted.values()), sum(n for reason, n in counted.items() if reason is not None)
        limit = self.source.download.max_error_rate
        if total < LEAST or failed <= limit * total:
            return
        most = max((reason for reason in counted if reason is not None), key=lambda reason: (counted[reason], reason))
        raise RunError(
            f"sources.{source_name(self.source)}: {failed} of the first {total} images of a shard did not come, most "
            f"of them {most} ({counted[most]}): {_advice(most)}. Finished shards are kept; fix this and run the same "
            f"command again, or raise download.max_error_rate ({limit:g}) if this is normal for the list"
        )


def _advice(reason: str) -> str:
    """What to check first."""
    if reason in ("dns", "dns_temporary", "connection", "timeout"):
        return "is this machine on the network, and is its name server fast enough (`capfilt doctor`)?"
    if reason in ("url_missing", "url_refused"):
        return "is the right column taken for URLs (columns: {url: NAME})?"
    if reason in ("http_401", "http_403", "http_429", "robots_txt", "opt_out"):
        return "the servers refuse this user agent; set download.contact, and lower download.threads and per_host"
    if reason in ("address_refused", "blocked_host"):
        return "the list names private addresses; download.allow_hosts lets single hosts through"
    return "look at the list's age and at the errors of single rows"
