"""Check the columns of the Parquet files of an evaluation by their schemas, and read the rows."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from capfilt.errors import DataError
from capfilt.store.parquet import is_image, open_parquet, parquet_errors

_ROWS = 256
"""Rows read at once: about 25 MB of images at 100 kB each."""


@dataclass(frozen=True)
class Row:
    """One row as read."""

    file: str
    number: int
    """Number of the row in its file, from 0."""
    image: bytes | None
    """The encoded image."""
    image_id: str | None
    """None without an id column, or if the cell is null."""
    texts: list[str | None]
    """All texts as stored; some may be null."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    image: str
    texts: list[str]
    image_id: str | None
    """None: no id column."""

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        return list(dict.fromkeys([self.image, *self.texts, *([self.image_id] if self.image_id else [])]))

    def check(self, file: Path, schema: pa.Schema) -> None:
        """Raise DataError if a column is missing or of another type, with the file and the columns that it has."""
        if not self.texts:
            raise DataError(f"{file}: name at least one text column; it has {', '.join(schema.names)}")
        for name in self.names:
            if schema.names.count(name) != 1:
                raise DataError(_no_column(file, name, schema.names))
        _check_type(file, schema, self.image, is_image, "binary or a struct with 'bytes'")
        for name in self.texts:
            _check_type(file, schema, name, _is_text, "string or list of strings")
        if self.image_id:
            _check_type(file, schema, self.image_id, _is_id, "string or integer")


def read_rows(files: list[Path], columns: Columns, limit: int | None = None) -> Iterator[list[Row]]:
    """Yield the rows of all files in order, in batches, at most `limit` rows. Raises DataError for a damaged page."""
    left = limit
    for file in files:
        with open_parquet(file) as opened, parquet_errors(file, "a page"):
            first = 0
            for batch in opened.iter_batches(_ROWS, columns=columns.names, use_threads=False):
                rows = (batch if left is None else batch.slice(0, left)).to_pylist()
                yield [_row(str(file), first + i, row, columns) for i, row in enumerate(rows)]
                first += len(rows)
                left = None if left is None else left - len(rows)
                if left == 0:
                    return


def _row(file: str, number: int, row: dict[str, Any], columns: Columns) -> Row:
    image = row[columns.image]
    texts: list[str | None] = []
    for name in columns.texts:
        texts += row[name] if isinstance(row[name], list) else [row[name]]
    image_id = row[columns.image_id] if columns.image_id else None
    return Row(
        file,
        number,
        image.get("bytes") if isinstance(image, dict) else image,
        None if image_id is None else str(image_id),
        texts,
    )


def _no_column(file: Path, name: str, there: list[str]) -> str:
    if name in there:
        return f"{file}: column {name!r} is there {there.count(name)} times; give the columns different names"
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{file}: no column {name!r}; it has {', '.join(there)}{hint}"


def _check_type(file: Path, schema: pa.Schema, name: str, fits: Callable[[Any], bool], expected: str) -> None:
    kind = schema.field(name).type
    if not fits(kind):
        raise DataError(f"{file}: column {name!r} is {kind}; expected {expected}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return _is_string(kind)


def _is_id(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_string(kind)


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
