"""What every reader gives: rows as found, numbered the same way in every process.

A row of several texts is spread, one row a text, before anything is counted: `ShardSpec.start` and `ShardSpec.stop`
count rows of `pairs`. Damage is the one exception: what cannot be read is told by a single row with the reason
`source_damaged`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from capfilt.config.source import Source, source_name
from capfilt.errors import DataError
from capfilt.sources.values import Json
from capfilt.store.layout import ShardSpec


@dataclass(frozen=True)
class RawRow:
    """One image and one text, nothing verified. With a `reason` the reader found it unusable."""

    key: str
    """Unique in a well-formed source."""
    image: bytes | None = None
    path: str | None = None
    """File name of the image as the source has it; never opened from here."""
    text: str | None = None
    url: str | None = None
    meta: dict[str, Json] = field(default_factory=dict)
    """The source's other understood columns under their lower-case names; `text_mended`: bad UTF-8 became U+FFFD."""
    sha256: str | None = None
    """What the source states for `image`: 64 lower-case hex digits."""
    md5: str | None = None
    """32 lower-case hex digits."""
    reason: str | None = None
    """too_many_bytes, tar_member, download_failed, source_damaged, image_missing, blocked, or of download.reasons."""
    error: str | None = None


class Reader(Protocol):
    """One source. Cheap to make; holds no open file between calls."""

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        """All rows, cut into shards of at most that many; a shard never crosses a file, but ranges of a list may.

        Always the same for the same files: by name, then as rows lie in the file. Reads footers, headers or the list.
        Raises DataError if there is no row, no image column, or something that is refused (extension types).
        """
        ...

    def identity(self) -> list[list[str | int]]:
        """JSON-able facts that change when the source does, for ingest's fingerprint.

        Container files (Parquet, tar, arrow, JSON lists): relative name, size, sha256 over the first and last 64 KiB.
        Images of a folder: relative name and size. Its texts and metadata: relative name, size and mtime in ns, for
        opening millions of .txt files takes too long. Images that a BLIP json names are not looked at.
        """
        ...

    def rows(self, unit: ShardSpec) -> Iterator[RawRow]:
        """The rows of one unit, in order, one at a time.

        Raises DataError for a file that is gone or cannot be opened; never because of what is in it.
        """
        ...


class SourceDamagedError(DataError):
    """A file, or the rest of it, that cannot be read: becomes a row."""


def damaged(key: str, error: object) -> RawRow:
    """The row that stands for everything that could not be read."""
    return RawRow(key, reason="source_damaged", error=str(error))


def cut(source: Source, path: str, total: int, rows_per_shard: int) -> list[ShardSpec]:
    """Units of one file of `total` rows."""
    starts = range(0, total, rows_per_shard)
    return [ShardSpec(source_name(source), path, start, min(start + rows_per_shard, total)) for start in starts]


def some(units: list[ShardSpec], source: Source) -> list[ShardSpec]:
    """The units. Raises DataError where there is none."""
    if not units:
        raise DataError(f"{source.path}: the source {source_name(source)!r} has no row")
    return units
