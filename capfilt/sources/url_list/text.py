"""CSV and TSV lists. Nothing is guessed from a sample, because the guess would depend on the sample.

CSV: the delimiter is the first of comma, tab, semicolon and bar that the first line has; quotes as in RFC 4180. TSV:
quotes are special unless the file cannot be read that way, or every line has the same number of tabs without them (CC3M
and CC12M do not quote, and have stray quotes). A list has no header if a value of its first row begins with http:// or
https:// and none is the name of a url column.

Cells are text. A column in which every value is a number without leading zeros is numeric in the filter and in records,
and a column of true and false is boolean. To find the types, the file is read once to its end, so a broken line is
found before any row is returned. A million rows of eleven columns (258 MB), filtered and 100,000 of them drawn, took
6.6 s of CPU and 315 MB.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from capfilt.errors import DataError
from capfilt.sources.columns import URL, Stated, check_columns, find_roles
from capfilt.sources.url_list.files import ListFile
from capfilt.sources.url_list.repair import stream
from capfilt.sources.url_list.scan import ROW, Scan, identifier, literal

LINE_BYTES = 8 * 2**20
"""Longest row; DuckDB's buffer is four times that per thread."""
_HTTP = re.compile(r"https?://", re.I)
_INTEGER = r"-?(0|[1-9][0-9]*)"
_NUMBER = r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
_NOT_FINITE = r"[+-]?(?i:nan|inf|infinity)"
_SHORT, _LONG, _FLOAT, _BOOL, _OTHER = 1, 2, 4, 8, 16
"""Kinds of a column's values as bits: integers of up to 18 and up to 38 digits, numbers, true or false, text."""


@dataclass(frozen=True)
class TextScan(Scan):
    """A CSV or TSV file."""

    dialect: str
    """Options of read_csv."""

    @property
    def table(self) -> str:
        return f"(SELECT *, row_number() OVER () - 1 AS {ROW} FROM {self.reader})"

    @property
    def reader(self) -> str:
        """The rows without their numbers."""
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self.types)
        return (
            f"read_csv({literal(self.path)}, columns={{{columns}}}, {self.dialect}, auto_detect=false, "
            f"strict_mode=true, max_line_size={LINE_BYTES}, buffer_size={4 * LINE_BYTES}, "
            f"compression='{self.file.compression}')"
        )

    @property
    def raw(self) -> list[str]:
        return [identifier(name) for name in self.types]

    def cast(self, name: str, kind: str) -> str:
        return identifier(name) if kind == "VARCHAR" else f"TRY_CAST({identifier(name)} AS {kind})"

    def record(self, cells: Sequence[Any]) -> dict[str, object]:
        return {name: _value(cell, self.types[name]) for name, cell in zip(self.types, cells, strict=True)}


def scan_text(connection: duckdb.DuckDBPyConnection, file: ListFile, place: int, stated: Stated) -> Scan:
    """Read the whole file. Raises DataError, and DuckDB's error for a broken line."""
    if file.kind == "csv":
        return _typed(connection, _untyped(file, stated, _delimiter(file), '"'))[0]
    try:
        found, doubtful = _typed(connection, _untyped(file, stated, "\t", '"'))
    except (duckdb.Error, DataError):
        unquoted = _unquoted(connection, file, stated)
        if unquoted is None:
            raise
        return unquoted
    return (_unquoted(connection, file, stated) if doubtful else None) or found


def _unquoted(connection: duckdb.DuckDBPyConnection, file: ListFile, stated: Stated) -> Scan | None:
    """The scan of a TSV in which quotes are not special, or None if the file cannot be read that way."""
    try:
        return _typed(connection, _untyped(file, stated, "\t", ""))[0]
    except (duckdb.Error, DataError):
        return None


def _delimiter(file: ListFile) -> str:
    with stream(file) as opened:
        line = opened.read(2**16).split(b"\n", 1)[0].decode("utf-8", "replace")
    return next((one for one in ",\t;|" if one in line), ",")


def _untyped(file: ListFile, stated: Stated, delimiter: str, quote: str) -> TextScan:
    first = _first_record(file, delimiter, quote)
    known = {*URL, *(name.lower() for _, name in stated)}
    header = not any(map(_HTTP.match, first)) or any(cell.lower() in known for cell in first)
    names = first if header else _by_content(file, first, stated)
    check_columns(names, stated, file.label)
    unique = _unique(names)
    dialect = f"header={str(header).lower()}, delim={literal(delimiter)}, quote='{quote}', escape='{quote}'"
    return TextScan(file, 0, dict.fromkeys(unique), find_roles(tuple(unique), stated), dialect)


def _first_record(file: ListFile, delimiter: str, quote: str) -> list[str]:
    with stream(file) as opened:
        lines = io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")
        try:
            first = next(csv.reader(lines, delimiter=delimiter, quoting=0 if quote else 3), [])
            return [cell.strip() for cell in first]
        except csv.Error as error:
            raise DataError(f"{file.label}: line 1: {error}; give the list a header, or write it as Parquet") from error


def _by_content(file: ListFile, first: list[str], stated: Stated) -> list[str]:
    """Column names without a header: url and text if unambiguous, else column0, column1, ..."""
    numbered = [f"column{i}" for i in range(len(first))]
    if "url" in dict(stated):
        return numbered
    urls = [i for i, cell in enumerate(first) if _HTTP.match(cell)]
    if len(urls) == 1 and len(first) <= 2:
        return ["url" if i in urls else "text" for i in range(len(first))]
    shown = ", ".join(f"{name} ({cell[:40]!r})" for name, cell in zip(numbered, first, strict=True))
    raise DataError(
        f"{file.label}: it has no header, and its first row is {shown}. Say which column is which: columns: "
        f"{{url: column{urls[0]}, text: ...}} (text: '' if there is none)"
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Unique names, as DuckDB names the columns of a Parquet file: names that differ only in case get _1, _2, ..."""
    found: dict[str, str] = {}
    for i, name in enumerate(names):
        name, n = name or f"column{i}", 0
        while (free := f"{name}_{n}" if n else name).lower() in found:
            n += 1
        found[free.lower()] = free
    return list(found.values())


def _typed(connection: duckdb.DuckDBPyConnection, scan: TextScan) -> tuple[TextScan, bool]:
    """Return the scan with types, and True if a value or name has a line end. Raises DataError for mixed line ends."""
    columns = scan.columns
    texts = {columns.url, columns.text, columns.key, *(name for _, name in columns.meta if _hash(name))}
    flags = [str(_OTHER) if name in texts else f"bit_or({_flag(identifier(name))})" for name in scan.types]
    ends = " OR ".join(f"contains({identifier(name)}, chr(10))" for name in scan.types)
    asked = f"SELECT {', '.join(flags)}, bool_or({ends}) FROM {scan.reader}"
    try:
        *found, ended = connection.execute(asked).fetchone() or ()
    except duckdb.Error as error:
        if "state machine" not in str(error):
            raise
        raise DataError(
            f"{scan.file.label}: line {_odd_line(scan.file)}: it ends differently from the lines before it, or has a "
            "misplaced quote; write the list with one kind of line end, or as Parquet"
        ) from error
    ended = ended or any("\n" in name for name in scan.types)
    return replace(scan, types=dict(zip(scan.types, map(_kind, found), strict=True))), bool(ended)


def _odd_line(file: ListFile) -> int:
    """Number of the first line (from 1) with another line end than the first; 1 if all are equal."""
    usual = ""
    with stream(file) as opened:
        for number, line in enumerate(io.TextIOWrapper(opened, encoding="utf-8", newline=""), 1):
            end = line[len(line.rstrip("\r\n")) :]
            usual = usual or end
            if end not in (usual, ""):
                return number
    return 1


def _hash(name: str) -> bool:
    return name.lower() in ("sha256", "md5")


def _flag(cell: str) -> str:
    def like(pattern: str) -> str:
        return f"regexp_full_match({cell}, {literal(pattern)})"

    return (
        f"CASE WHEN {cell} IS NULL THEN 0 WHEN {like(_INTEGER)} THEN CASE WHEN length({cell}) <= 18 THEN {_SHORT} "
        f"WHEN length({cell}) <= 38 THEN {_LONG} ELSE {_OTHER} END WHEN {like(_NUMBER)} OR {like(_NOT_FINITE)} "
        f"THEN {_FLOAT} WHEN lower({cell}) IN ('true', 'false') THEN {_BOOL} ELSE {_OTHER} END"
    )


def _kind(bits: int | None) -> str | None:
    if not bits:
        return None
    if bits < _FLOAT:
        return "BIGINT" if bits == _SHORT else "HUGEINT"
    return "DOUBLE" if bits < _BOOL else "BOOLEAN" if bits == _BOOL else "VARCHAR"


def _value(cell: str | None, kind: str | None) -> object:
    """A cell as a value of its column's type."""
    if cell is None or kind == "VARCHAR":
        return cell
    if re.fullmatch(_INTEGER, cell):
        return int(cell)
    if re.fullmatch(_NUMBER, cell) or re.fullmatch(_NOT_FINITE, cell):
        return float(cell)
    return cell.lower() == "true"
