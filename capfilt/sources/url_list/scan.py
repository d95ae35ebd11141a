"""One file of a list as DuckDB reads it: a table of its rows, typed for the filter, and a row's cells as a record.

What a filter compares and what is carried along are read apart. Parquet: as typed; dates and decimals are told as text.
JSON: types as DuckDB infers them over the whole file, and a record is what Python reads from the same text, so that
integers stay exact. CSV and TSV: `capfilt.sources.url_list.text`.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import duckdb

from capfilt.errors import DataError
from capfilt.sources.columns import Columns, Stated, choose, require
from capfilt.sources.url_list.files import SCHEME, ListFile
from capfilt.sources.url_list.repair import open_parquet, stream

ROW = '"\x1frow"'
"""A row's number in its file, from 0, under a name that no list has."""
OBJECT_BYTES = 32 * 2**20
"""Longest object of a JSON file."""
_AS_TEXT = re.compile(r"DATE|TIME.*|INTERVAL|DECIMAL.*|UUID|BIT")

Types = Mapping[str, str]
"""Column of the list, as it is first spelt -> the DuckDB type that holds the values of all files."""


class Record(NamedTuple):
    """A row as found."""

    default_key: str
    """`<file>#<row>`."""
    columns: Columns
    values: dict[str, object]


@dataclass(frozen=True)
class Scan:
    """A Parquet file, and what the others share with it."""

    file: ListFile
    place: int
    """Of the file in the list."""
    types: dict[str, str | None]
    """Columns in order, under DuckDB's names (a second one that differs in case alone is `name_1`) -> type; None where
    no value tells it."""
    columns: Columns

    @property
    def path(self) -> str:
        """As DuckDB is told."""
        return self.file.path if self.file.fs is None else f"{SCHEME}://{self.place}"

    @property
    def table(self) -> str:
        """The file's rows with `ROW`, in the order of the file where one thread reads."""
        return f"(SELECT *, file_row_number AS {ROW} FROM read_parquet({literal(self.path)}, file_row_number=true))"

    @property
    def raw(self) -> list[str]:
        """Expressions of which a record is made."""
        return [
            f"CAST({named(name)} AS VARCHAR)" if _AS_TEXT.fullmatch(kind or "") else named(name)
            for name, kind in self.types.items()
        ]

    @cached_property
    def _spelt(self) -> dict[str, str]:
        return {name.lower(): name for name in self.types}

    def typed(self, column: str, kind: str) -> str:
        """An expression: the list's column, whatever its case in this file, as this type; null where it is not there
        or a value does not fit."""
        name = self._spelt.get(column.lower())
        return f"CAST(NULL AS {kind})" if name is None else self.cast(name, kind)

    def cast(self, name: str, kind: str) -> str:
        """`typed` for a column that there is."""
        return named(name) if self.types[name] == kind else f"TRY_CAST({named(name)} AS {kind})"

    def record(self, cells: Sequence[Any]) -> dict[str, object]:
        """The cells of `raw` by column. Raises DataError: no JSON."""
        return dict(zip(self.types, cells, strict=True))


class JsonScan(Scan):
    """JSON objects: in a list, one a line, or one after another."""

    @property
    def table(self) -> str:
        reader = _json_reader("read_json_objects", self.file)
        return f"(SELECT json, row_number() OVER () - 1 AS {ROW} FROM {reader})"

    @property
    def raw(self) -> list[str]:
        return ["json"]

    def cast(self, name: str, kind: str) -> str:
        pointer = literal("/" + name.replace("~", "~0").replace("/", "~1"))
        nested = kind == "JSON" or kind.endswith(("]", ")"))
        return f"TRY_CAST(json_extract{'' if nested else '_string'}(json, {pointer}) AS {kind})"

    def record(self, cells: Sequence[Any]) -> dict[str, object]:
        try:
            found = json.loads(cells[0])
        except (ValueError, RecursionError) as error:
            told = f"{cells[0][:80]!r} is no JSON ({error})"
            raise DataError(f"{self.file.told}: {told}; mend or remove it") from error
        return found if isinstance(found, dict) else {"json": found}


def scan_parquet(connection: duckdb.DuckDBPyConnection, file: ListFile, place: int, stated: Stated) -> Scan:
    """Its footer is read. Raises DataError, and what DuckDB, pyarrow and the filesystem do."""
    with open_parquet(file) as opened:
        require(opened.schema_arrow.names, stated, file.told)
    bare = Scan(file, place, {}, choose(()))
    return replace(bare, **_described(connection, f"read_parquet({literal(bare.path)})", stated))


def scan_json(connection: duckdb.DuckDBPyConnection, file: ListFile, place: int, stated: Stated) -> Scan:
    """The whole file is read. Raises as `scan_parquet`."""
    inferring = ", sample_size=-1, map_inference_threshold=-1, field_appearance_threshold=0"
    try:
        found = _described(connection, _json_reader("read_json", file, inferring), stated)
    except duckdb.Error as error:
        line = _broken_line(file)
        if line is None:
            raise
        raise DataError(f"{file.told}: line {line} is no JSON object; mend or remove that line") from error
    require(list(found["types"]), stated, file.told)
    return JsonScan(file, place, **found)


def _broken_line(file: ListFile) -> int | None:
    """The first line of JSON lines that is none (DuckDB 2.0 counts one too many); None where lines mean nothing."""
    with stream(file) as opened:
        for number, line in enumerate(io.TextIOWrapper(opened, encoding="utf-8"), 1):
            if number == 1 and not (line.startswith("{") and line.rstrip().endswith("}")):
                return None
            if line.strip() and not _parses(line):
                return number
    return None


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_reader(function: str, file: ListFile, more: str = "") -> str:
    options = f"format='auto', maximum_object_size={OBJECT_BYTES}, compression='{file.compression}'"
    return f"{function}({literal(file.path)}, {options}{more})"


def _described(connection: duckdb.DuckDBPyConnection, reader: str, stated: Stated) -> dict[str, Any]:
    rows = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
    types = {name: None if kind.strip('"') == "NULL" else kind for name, kind, *_ in rows}
    return {"types": types, "columns": choose(tuple(types), stated)}


def named(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
