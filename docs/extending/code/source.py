"""Example of a source: a folder of images and one `captions.tsv` with lines of `file name<TAB>text`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from capfilt.config.source import Source
from capfilt.errors import ConfigError
from capfilt.sources.base import RawRow, at_positions, require_rows, split_into_shards
from capfilt.store.layout import ShardSpec


class TsvReader:
    """See `capfilt.sources.base.Reader`. Cheap to construct, because every worker creates one."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.source, self.max_bytes, self.folder = source, max_bytes, Path(source.path)
        if not (self.folder / "captions.tsv").is_file():
            raise ConfigError(f"sources.{source.name}.path: {self.folder}: no captions.tsv there")

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the list, in its order: the same in every process."""
        return (self.folder / "captions.tsv").read_text(encoding="utf-8", errors="replace").splitlines()

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        """Return all rows, cut into shards."""
        return require_rows(split_into_shards(self.source, "", len(self.lines), rows_per_shard), self.source)

    def identity(self) -> list[list[str | int]]:
        """Return what changes when the source changes: it becomes part of the fingerprint of `ingest`."""
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        return [[path.name, path.stat().st_size] for path in files]

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        """Yield the rows of one shard. A bad row never raises: it is yielded with a reason."""
        numbered = enumerate(self.lines[spec.start : spec.stop], spec.start)
        yield from at_positions((self._row(number, line) for number, line in numbered), positions)

    def _row(self, number: int, line: str) -> RawRow:
        name, _, text = line.partition("\t")
        key = f"{number}/{name}"
        file = self.folder / Path(name).name  # a name from a stranger's list must not leave the folder
        if not file.is_file():
            return RawRow(key, text=text, reason="image_missing", error=f"{name} is not in the folder")
        if file.stat().st_size > self.max_bytes:
            return RawRow(key, text=text, reason="too_many_bytes", error=f"{name} is above ingest.max_bytes")
        return RawRow(key, image=file.read_bytes(), path=name, text=text)
