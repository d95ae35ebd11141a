"""What every reader yields: rows as found in the source, in an order that is the same in every process.

A row with several texts is expanded to one row per text before rows are counted: `ShardSpec.start` and `ShardSpec.stop`
count rows of `pairs`. Damage is the one exception: everything that cannot be read becomes a single row with the reason
`source_damaged`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source, source_name
from capfilt.errors import DataError
from capfilt.media.blocklist import BlockList
from capfilt.sources.values import Json
from capfilt.store.layout import ShardSpec


@dataclass(frozen=True)
class RawRow:
    """One image and one text, not verified. `reason` is set if the reader found the row unusable."""

    key: str
    """Unique in a well-formed source."""
    image: bytes | None = None
    path: str | None = None
    """File name of the image as the source states it; never opened."""
    text: str | None = None
    url: str | None = None
    meta: dict[str, Json] = field(default_factory=dict)
    """The source's other known columns, by lower-case name. `text_mended`: bad UTF-8 was replaced by U+FFFD."""
    sha256: str | None = None
    """What the source states for `image`: 64 lower-case hex digits."""
    md5: str | None = None
    """32 lower-case hex digits."""
    reason: str | None = None
    """too_many_bytes, tar_member, download_failed, source_damaged, image_missing, blocked, or see download.reasons."""
    error: str | None = None


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader may need beside its source."""

    rules: IngestSettings
    run: Path
    """Folder of the run."""
    block_list: BlockList | None
    """None: read it from `rules.block_hashes` when needed."""


class Reader(Protocol):
    """Reads one source. Cheap to construct; keeps no file open between calls."""

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        """Split all rows into shards of at most `rows_per_shard` rows. A shard never spans two files.

        The result is the same whenever the files are the same: files by name, rows in file order. Reads footers,
        headers or the list.

        Raises:
            DataError: there is no row or no image column, or the file has something that is refused (extension types).
        """
        ...

    def identity(self) -> list[list[str | int]]:
        """JSON-able facts that change when the source changes, for the fingerprint of ingest.

        Container files (Parquet, tar, Arrow, JSON lists): relative name, size, sha256 over the first and last 64 KiB.
        Images of a folder: relative name and size. Texts and metadata of a folder: relative name, size and mtime in
        ns, because opening millions of .txt files takes too long. Images that a BLIP JSON list names are not checked.
        """
        ...

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        """Yield the rows of one shard, in order, one at a time.

        Args:
            spec: as `shard_specs` returned it.
            positions: only these rows, ascending, counted from `spec.start`; None yields all.

        Raises:
            DataError: a file is missing or cannot be opened. Never because of its content.
        """
        ...


class SourceDamagedError(DataError):
    """A file, or the rest of it, cannot be read. Readers turn it into a row."""


def damaged(key: str, error: object) -> RawRow:
    """Return the row that represents everything that could not be read."""
    return RawRow(key, reason="source_damaged", error=str(error))


def split_into_shards(source: Source, path: str, total: int, rows_per_shard: int) -> list[ShardSpec]:
    """Return the shards of one file of `total` rows."""
    starts = range(0, total, rows_per_shard)
    return [ShardSpec(source_name(source), path, start, min(start + rows_per_shard, total)) for start in starts]


def require_rows(specs: list[ShardSpec], source: Source) -> list[ShardSpec]:
    """Return the shards unchanged. Raises DataError if there is none."""
    if not specs:
        raise DataError(f"{source.path}: the source {source_name(source)!r} has no row")
    return specs


def at_positions(rows: Iterator[RawRow], positions: Sequence[int] | None) -> Iterator[RawRow]:
    """Return the rows at these positions (counted from 0), or all; for readers that have to read every row anyway."""
    if positions is None:
        return rows
    wanted = frozenset(positions)
    return (row for position, row in enumerate(rows) if position in wanted)
