"""One file of a list as DuckDB reads it: a table of its rows, typed for the filter, and a row's cells as a record.

The values that a filter compares and the values of the record are read separately. Parquet: as typed; dates and
decimals become text in the record. JSON: types as DuckDB infers them over the whole file; the record is what Python
parses from the same text, so that integers stay exact. CSV and TSV: `capfilt.sources.url_list.text`.
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
from capfilt.sources.columns import ColumnRoles, Stated, check_columns, find_roles
from capfilt.sources.url_list.files import SCHEME, ListFile
from capfilt.sources.url_list.repair import open_parquet, stream

ROW = '"\x1frow"'
"""Column of a row's number in its file, from 0; no list has a column of this name."""
OBJECT_BYTES = 32 * 2**20
"""Longest object of a JSON file."""
_AS_TEXT = re.compile(r"DATE|TIME.*|INTERVAL|DECIMAL.*|UUID|BIT")

Types = Mapping[str, str]
"""Column of the list, in its first spelling -> the DuckDB type that holds the values of all files."""


class ListRecord(NamedTuple):
    """A row of the list as found."""

    default_key: str
    """`<file>#<row>`."""
    columns: ColumnRoles
    values: dict[str, object]


@dataclass(frozen=True)
class Scan:
    """A Parquet file. Base class of the other formats."""

    file: ListFile
    place: int
    """Position of the file in the list."""
    types: dict[str, str | None]
    """Columns in order, by DuckDB's names (a second one that differs only in case is `name_1`) -> type; None where no
    value shows the type."""
    columns: ColumnRoles

    @property
    def path(self) -> str:
        """Path for DuckDB."""
        return self.file.path if self.file.fs is None else f"{SCHEME}://{self.place}"

    @property
    def table(self) -> str:
        """SQL: the file's rows with `ROW`, in file order if one thread reads."""
        return f"(SELECT *, file_row_number AS {ROW} FROM read_parquet({literal(self.path)}, file_row_number=true))"

    @property
    def raw(self) -> list[str]:
        """SQL expressions of the cells of a record."""
        return [
            f"CAST({identifier(name)} AS VARCHAR)" if _AS_TEXT.fullmatch(kind or "") else identifier(name)
            for name, kind in self.types.items()
        ]

    @cached_property
    def _spelt(self) -> dict[str, str]:
        return {name.lower(): name for name in self.types}

    def typed(self, column: str, kind: str) -> str:
        """SQL: a column of the list, in any spelling, as this type; null if it is missing or a value does not fit."""
        name = self._spelt.get(column.lower())
        return f"CAST(NULL AS {kind})" if name is None else self.cast(name, kind)

    def cast(self, name: str, kind: str) -> str:
        """`typed` for a column of this file."""
        return identifier(name) if self.types[name] == kind else f"TRY_CAST({identifier(name)} AS {kind})"

    def record(self, cells: Sequence[Any]) -> dict[str, object]:
        """Return the cells of `raw` by column. Raises DataError: not JSON."""
        return dict(zip(self.types, cells, strict=True))


class JsonScan(Scan):
    """JSON objects: in a list, one per line, or one after another."""

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
            found = f"{cells[0][:80]!r} is not JSON ({error})"
            raise DataError(f"{self.file.label}: {found}; fix or remove it") from error
        return found if isinstance(found, dict) else {"json": found}


def scan_parquet(connection: duckdb.DuckDBPyConnection, file: ListFile, place: int, stated: Stated) -> Scan:
    """Read the footer. Raises DataError, and errors of DuckDB, pyarrow and the filesystem."""
    with open_parquet(file) as opened:
        check_columns(opened.schema_arrow.names, stated, file.label)
    bare = Scan(file, place, {}, find_roles(()))
    return replace(bare, **_described(connection, f"read_parquet({literal(bare.path)})", stated))


def scan_json(connection: duckdb.DuckDBPyConnection, file: ListFile, place: int, stated: Stated) -> Scan:
    """Read the whole file. Raises as `scan_parquet`."""
    inferring = ", sample_size=-1, map_inference_threshold=-1, field_appearance_threshold=0"
    try:
        found = _described(connection, _json_reader("read_json", file, inferring), stated)
    except duckdb.Error as error:
        line = _broken_line(file)
        if line is None:
            raise
        raise DataError(f"{file.label}: line {line} is not a JSON object; fix or remove that line") from error
    check_columns(list(found["types"]), stated, file.label)
    return JsonScan(file, place, **found)


def _broken_line(file: ListFile) -> int | None:
    """Number of the first line that is not JSON (DuckDB 2.0 counts one too many); None without lines."""
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
    return {"types": types, "columns": find_roles(tuple(types), stated)}


def identifier(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
