"""A folder written by img2dataset, in either of its formats.

webdataset: `00000.tar` with the downloaded images, and `00000.parquet` with one row per URL. The tar's rows come first,
then the rows of the Parquet file that are not in the tar: failed downloads (`download_failed`, with error_message), and
successes that a killed run did not write (`source_damaged`).
parquet: images in a column named after their format; failed rows have no image.
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
    """Create the reader of tars if there are any, else of Parquet files. Raises ConfigError if there is neither."""
    try:
        tars = [file for file in containers(source, (".tar",)) if file.path.suffix == ".tar"]
    except ConfigError:
        tars = []
    return TarsReader(source, max_bytes, tars) if tars else ParquetReader(source, max_bytes)


class TarsReader(WebDatasetReader):
    """Tars, each with its Parquet file if it exists. See `Reader`."""

    def identity(self) -> list[list[str | int]]:
        return [file.identity() for tar in self.files for file in (tar, _sidecar(tar)) if file.path.is_file()]

    def _rows(self, file: Container, images: bool) -> Iterator[RawRow]:
        in_tar = set()
        for sample in samples(file, self._stated, self._max_bytes, images):
            in_tar.add(sample.key)
            key = sample.key if sample.reason is None else f"{tar_stem(file.name)}/{sample.key}"
            yield from sample_rows(sample, self._stated, key, KEY)
        sidecar = _sidecar(file)
        if sidecar.path.is_file():
            reader = _Sidecar(self.source.model_copy(update={"path": str(sidecar.path), "columns": {}}), in_tar)
            yield from reader.rows(ShardSpec("", "", 0, reader.total()))


def _sidecar(tar: Container) -> Container:
    path = tar.path.with_suffix(".parquet")
    return Container("", f"{tar_stem(tar.name)}.parquet", path)


class _Sidecar(ParquetReader):
    """The rows of a Parquet file without images whose img2dataset key is not in `in_tar`."""

    needs_image = False

    def __init__(self, source: Source, in_tar: set[str]) -> None:
        super().__init__(source, max_bytes=0)
        self._in_tar = in_tar

    def total(self) -> int:
        """Number of rows of the file."""
        with self.open(self.files[0]) as table:
            return sum(group.rows for group in table.groups)

    def record_rows(
        self, file: Container, columns: ColumnRoles, values: dict[str, object], record: int
    ) -> Iterator[RawRow]:
        if key_text(values.get("key")) in self._in_tar:
            return
        for row in super().record_rows(file, columns, values, record):
            lost = "source_damaged", "a success in the list that is not in the tar; download it again"
            reason, error = (row.reason, row.error) if row.reason else lost
            yield replace(row, image=None, reason=reason, error=error)
