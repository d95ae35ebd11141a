"""Parquet files with an image column: as `datasets`, img2dataset or capfilt write them.

Opened by `capfilt.store.parquet`, so extension types are refused and page checksums verified. A row group is read a
page at a time. A row group whose pages are damaged gives the rows before the damage and one row that tells of the rest;
so does one with bad UTF-8 in a column stored as an Arrow dictionary, for pyarrow refuses that before it can be mended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from capfilt.errors import DataError
from capfilt.sources.base import SourceDamagedError
from capfilt.sources.columns import Columns, choose
from capfilt.sources.files import Container
from capfilt.sources.tables import BATCH, Group, Table, TableReader, broken, find_columns
from capfilt.store.parquet import is_list, open_parquet, parquet_errors


class ParquetReader(TableReader):
    """A file, a folder of `*.parquet` or a glob. See `Reader`."""

    suffixes = (".parquet",)
    needs_image = True

    @contextmanager
    def open(self, file: Container) -> Iterator[Table]:
        try:
            opened = open_parquet(file.path)
        except DataError as error:
            if not _is_damage(error.__cause__):
                raise
            yield Table(choose(()), [broken(error)])
            return
        with opened:
            columns = find_columns(self.source, file, opened.schema_arrow, self.needs_image)
            groups = range(opened.metadata.num_row_groups)
            yield Table(columns, [_group(file, opened, columns, i) for i in groups])


def _is_damage(cause: object) -> bool:
    """Whether pyarrow did not understand the file, in contrast to a missing file or a refused schema."""
    return isinstance(cause, pa.ArrowInvalid) or (isinstance(cause, OSError) and cause.errno is None)


def _group(file: Container, opened: Any, columns: Columns, number: int) -> Group:
    metadata = opened.metadata.row_group(number)

    def batches() -> Iterator[pa.RecordBatch]:
        parts = opened.iter_batches(BATCH, row_groups=[number], columns=columns.names, use_threads=False)
        while True:
            try:
                with parquet_errors(file.path, f"row group {number}"):
                    batch = next(parts, None)
            except DataError as error:
                raise SourceDamagedError(str(error)) from error
            if batch is None:
                return
            yield batch

    return Group(metadata.num_rows, _rows(opened, columns, number), batches)


def _rows(opened: Any, columns: Columns, number: int) -> int:
    """A list's leaf has as many levels as rows of pairs: one a text, one for a null or empty list."""
    metadata = opened.metadata.row_group(number)
    if columns.text is None or not is_list(opened.schema_arrow.field(columns.text).type):
        return int(metadata.num_rows)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return int(next(chunk.num_values for chunk in chunks if chunk.path_in_schema.startswith(f"{columns.text}.")))
