"""Parquet files with an image column, as `datasets`, img2dataset or capfilt write them.

They are opened by `capfilt.store.parquet`, which refuses extension types and verifies page checksums, and read page by
page. A row group with damaged pages yields the rows before the damage and one row for the rest. So does a row group
with bad UTF-8 in a column stored as an Arrow dictionary, because pyarrow refuses it before it can be repaired.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from capfilt.errors import DataError
from capfilt.sources.base import SourceDamagedError
from capfilt.sources.columns import ColumnRoles, find_roles
from capfilt.sources.files import Container
from capfilt.sources.tables import BATCH, OpenTable, RecordGroup, TableReader, find_columns, unreadable
from capfilt.store.parquet import is_list, open_parquet, parquet_errors


class ParquetReader(TableReader):
    """A file, a folder of `*.parquet` or a glob. See `Reader`."""

    suffixes = (".parquet",)
    needs_image = True

    @contextmanager
    def open(self, file: Container) -> Iterator[OpenTable]:
        try:
            opened = open_parquet(file.path)
        except DataError as error:
            if not _is_damage(error.__cause__):
                raise
            yield OpenTable(find_roles(()), [unreadable(error)])
            return
        with opened:
            columns = find_columns(self.source, file, opened.schema_arrow, self.needs_image)
            groups = range(opened.metadata.num_row_groups)
            yield OpenTable(columns, [_group(file, opened, columns, i) for i in groups])


def _is_damage(cause: object) -> bool:
    """Return True if pyarrow cannot parse the file; False for a missing file or a refused schema."""
    return isinstance(cause, pa.ArrowInvalid) or (isinstance(cause, OSError) and cause.errno is None)


def _group(file: Container, opened: Any, columns: ColumnRoles, number: int) -> RecordGroup:
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

    return RecordGroup(metadata.num_rows, _rows(opened, columns, number), batches)


def _rows(opened: Any, columns: ColumnRoles, number: int) -> int:
    """Rows of pairs in a row group: a list's leaf has one level per text, and one for a null or empty list."""
    metadata = opened.metadata.row_group(number)
    if columns.text is None or not is_list(opened.schema_arrow.field(columns.text).type):
        return int(metadata.num_rows)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return int(next(chunk.num_values for chunk in chunks if chunk.path_in_schema.startswith(f"{columns.text}.")))
