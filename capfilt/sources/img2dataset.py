"""The folder that img2dataset wrote, in either format.

webdataset: `00000.tar` with the images that came, `00000.parquet` beside it with a row for every URL. The tar's rows
come first, then those of the Parquet file that the tar has not: failed downloads (`download_failed`, told by
error_message), and successes that a killed run left out (`source_damaged`).
parquet: images in a column that is named after their format; failed rows have none.
A row's key is its `uid` if it has one, else img2dataset's `key`.
"""

from collections.abc import Iterator
from dataclasses import replace

from capfilt.config.source import Source
from capfilt.errors import ConfigError
from capfilt.sources.base import RawRow, Reader
from capfilt.sources.columns import KEY, ColumnRoles
from capfilt.sources.files import Container, containers
from capfilt.sources.parquet import ParquetReader
from capfilt.sources.values import key_text
from capfilt.sources.webdataset import WebDatasetReader, sample_rows, samples, tar_stem
from capfilt.store.layout import ShardSpec


def open_img2dataset(source: Source, max_bytes: int) -> Reader:
    """The reader of its format: of tars where there are any. Raises ConfigError if there is neither."""
    try:
        tars = [file for file in containers(source, (".tar",)) if file.path.suffix == ".tar"]
    except ConfigError:
        tars = []
    return TarsReader(source, max_bytes, tars) if tars else ParquetReader(source, max_bytes)


class TarsReader(WebDatasetReader):
    """Tars, each with its Parquet file if there is one. See `Reader`."""

    def identity(self) -> list[list[str | int]]:
        return [file.identity() for tar in self.files for file in (tar, _sidecar(tar)) if file.path.is_file()]

    def _rows(self, file: Container, images: bool) -> Iterator[RawRow]:
        there = set()
        for sample in samples(file, self._stated, self._max_bytes, images):
            there.add(sample.key)
            key = sample.key if sample.reason is None else f"{tar_stem(file.name)}/{sample.key}"
            yield from sample_rows(sample, self._stated, key, KEY)
        sidecar = _sidecar(file)
        if sidecar.path.is_file():
            reader = _Sidecar(self.source.model_copy(update={"path": str(sidecar.path), "columns": {}}), there)
            yield from reader.rows(ShardSpec("", "", 0, reader.total()))


def _sidecar(tar: Container) -> Container:
    path = tar.path.with_suffix(".parquet")
    return Container("", f"{tar_stem(tar.name)}.parquet", path)


class _Sidecar(ParquetReader):
    """The rows of a Parquet file without images that are not in `there` (img2dataset keys)."""

    needs_image = False

    def __init__(self, source: Source, there: set[str]) -> None:
        super().__init__(source, max_bytes=0)
        self._there = there

    def total(self) -> int:
        """Rows of the file."""
        with self.open(self.files[0]) as table:
            return sum(group.rows for group in table.groups)

    def record_rows(
        self, file: Container, columns: ColumnRoles, values: dict[str, object], record: int
    ) -> Iterator[RawRow]:
        if key_text(values.get("key")) in self._there:
            return
        for row in super().record_rows(file, columns, values, record):
            lost = "source_damaged", "a success in the list that is not in the tar; download it again"
            reason, error = (row.reason, row.error) if row.reason else lost
            yield replace(row, image=None, reason=reason, error=error)
