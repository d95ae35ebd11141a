"""Rows of Arrow data from any file: one group of records at a time, a few records in memory.

Strings are read as bytes, because a Parquet file may contain text that is not UTF-8; it is repaired value by value.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pyarrow as pa

from capfilt.config.source import Source
from capfilt.errors import DataError
from capfilt.sources.base import RawRow, SourceDamagedError, at_positions, damaged, require_rows, split_into_shards
from capfilt.sources.columns import ColumnRoles, check_columns, find_roles, key_of, one_row_per_text, row_without_image
from capfilt.sources.files import Container, container, containers, too_large
from capfilt.sources.values import optional_text
from capfilt.store.layout import ShardSpec
from capfilt.store.parquet import is_binary, is_image, is_list, is_string

BATCH = 8
"""Records decoded at once: 800 kB of images of 100 kB, and at most 512 MB under the default cap of 64 MiB."""


@dataclass(frozen=True)
class RecordGroup:
    """Records that are read together: a Parquet row group, an Arrow batch."""

    records: int
    rows: int
    """Rows of pairs: a record with a list of texts has one per text."""
    batches: Callable[[], Iterator[pa.RecordBatch]]
    """Raises SourceDamagedError."""


@dataclass(frozen=True)
class OpenTable:
    """An opened file."""

    columns: ColumnRoles
    groups: list[RecordGroup]


def unreadable(error: object) -> RecordGroup:
    """A group for what cannot be read: it becomes one row."""

    def fail() -> Iterator[pa.RecordBatch]:
        raise SourceDamagedError(str(error))

    return RecordGroup(1, 1, fail)


class TableReader:
    """Base class of the readers of Parquet and Arrow files. See `Reader`."""

    suffixes: tuple[str, ...]

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.source, self._max_bytes = source, max_bytes
        self.files = self._list()

    def _list(self) -> list[Container]:
        return containers(self.source, self.suffixes)

    def open(self, file: Container) -> AbstractContextManager[OpenTable]:
        """Open a file. Raises DataError: missing, refused, or its columns cannot be used."""
        raise NotImplementedError

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        found = []
        for file in self.files:
            with self.open(file) as table:
                total = sum(group.rows for group in table.groups)
            found += split_into_shards(self.source, file.spec_path, total, rows_per_shard)
        return require_rows(found, self.source)

    def identity(self) -> list[list[str | int]]:
        return [file.identity() for file in self.files]

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        return at_positions(self._all_rows(spec), positions)

    def _all_rows(self, spec: ShardSpec) -> Iterator[RawRow]:
        file = container(self.files, spec.path)
        with self.open(file) as table:
            row, record = 0, 0
            for group in table.groups:
                if row < spec.stop and row + group.rows > spec.start:
                    yield from self._group(file, table.columns, group, record, spec.start - row, spec.stop - row)
                row, record = row + group.rows, record + group.records

    def _group(
        self, file: Container, columns: ColumnRoles, group: RecordGroup, record: int, start: int, stop: int
    ) -> Iterator[RawRow]:
        """Yield rows [start, stop) of a group, counted in the group. Its first record is the file's `record`-th."""
        position = 0
        try:
            for batch in group.batches():
                for values in batch_rows(batch, columns.names):
                    for row in self.record_rows(file, columns, values, record):
                        if start <= position < stop:
                            yield row
                        position += 1
                    record += 1
                if position >= stop:
                    return
        except SourceDamagedError as error:
            message = str(error).replace(str(file.path), file.name)
            yield damaged(f"{file.name}#{record}-", f"{file.name}: from record {record} on: {message}")

    def record_rows(
        self, file: Container, columns: ColumnRoles, values: dict[str, object], record: int
    ) -> Iterator[RawRow]:
        """Yield the rows of one record of a file."""
        row = row_without_image(key_of(values, columns, f"{file.name}#{record}"), values, columns)
        if columns.image is not None:
            row = with_image(row, values[columns.image], self._max_bytes)
        yield from one_row_per_text(row, values[columns.text] if columns.text else None)


def with_image(row: RawRow, cell: object, max_bytes: int) -> RawRow:
    """Add the image of a cell: bytes, or a struct with `bytes` and perhaps `path` (never opened)."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    row = replace(row, path=optional_text(path))
    if isinstance(data, bytes) and len(data) > max_bytes and row.reason is None:
        return replace(row, reason="too_many_bytes", error=too_large(f"{len(data)} bytes", max_bytes))
    return replace(row, image=data) if isinstance(data, bytes) else row


def find_columns(source: Source, file: Container, schema: pa.Schema, needs_image: bool = True) -> ColumnRoles:
    """Find the file's columns. Raises DataError: no image column, a stated column is missing, a type does not fit."""
    stated = tuple(source.columns.items())
    check_columns(schema.names, stated, str(file.path))
    columns = find_roles(tuple(schema.names), stated)
    if columns.image is None and needs_image:
        raise DataError(
            f"{file.path}: no image column; it has {', '.join(schema.names) or 'no column'}. Name it in columns.image. "
            "If it lists URLs, take it as a list (type: urls)"
        )
    if columns.image is not None and not is_image(schema.field(columns.image).type):
        kind = schema.field(columns.image).type
        raise DataError(
            f"{file.path}: image column {columns.image!r} is {kind}; expected binary or a struct with 'bytes'"
        )
    if columns.text is None and needs_image and ("text", "") not in stated:
        raise DataError(
            f"{file.path}: no text column; it has {', '.join(schema.names)}. Name it in columns.text, or set that to "
            "'' if the images come without texts (and ingest.min_chars to 0)"
        )
    if columns.text is not None and not _is_text(schema.field(columns.text).type):
        kind = schema.field(columns.text).type
        raise DataError(f"{file.path}: text column {columns.text!r} is {kind}; expected string or a list of strings")
    return columns


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if is_list(kind) else kind
    return is_string(kind) or is_binary(kind) or pa.types.is_string_view(kind)


def batch_rows(batch: pa.RecordBatch, names: list[str]) -> Iterator[dict[str, object]]:
    """Yield records as dictionaries, strings as bytes. Raises SourceDamagedError if the buffers are inconsistent."""
    try:
        columns = [as_bytes(batch.column(name)).to_pylist() for name in names]
    except (pa.ArrowException, ValueError) as error:
        raise SourceDamagedError(f"values cannot be read ({str(error).strip()})") from error
    for row in range(batch.num_rows):
        yield {name: column[row] for name, column in zip(names, columns, strict=True)}


def as_bytes(array: pa.Array) -> pa.Array:
    """Return the validated buffers with strings as binary and dictionaries decoded. Raises ArrowInvalid."""
    if pa.types.is_dictionary(array.type):
        coded = pa.DictionaryArray.from_arrays(array.indices, as_bytes(array.dictionary))
        return coded.dictionary_decode()
    array.validate()
    viewed = array.view(_bytes_type(array.type))
    viewed.validate(full=True)
    return viewed


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    swapped = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    if pa.types.is_list(kind):
        return pa.list_(_bytes_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(child.name, _bytes_type(child.type)) for child in kind])
    return swapped.get(kind, kind)
