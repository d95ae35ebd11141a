"""Read a list once: its columns, filter and sample, then its records in order.

A sample of N rows is the N smallest md5(seed:file#row) of the rows that pass the filter. A first pass over the filter's
columns finds the N-th hash, a second pass takes the rows up to it. Rows stream, so memory does not grow with the list.

DuckDB can open the list's files and their copies and nothing else: no other path, no network, no extension, settings
locked. Files are read one after another, because a row's number in its file is part of its key, and because DuckDB
would not say in which of several files an error is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import duckdb

from capfilt.config.source import Source, source_name
from capfilt.errors import ConfigError, DataError
from capfilt.sources.url_list.files import SCHEME, ListFile, Remote, reading
from capfilt.sources.url_list.filter import check_filter, first_line
from capfilt.sources.url_list.repair import Copies, readable_copy, repaired_parquet
from capfilt.sources.url_list.scan import ROW, ListRecord, Scan, identifier, literal, scan_json, scan_parquet
from capfilt.sources.url_list.text import scan_text

ROWS = 2048
"""Rows taken from DuckDB at once."""


class Reading:
    """Reads the current files of a source."""

    def __init__(self, source: Source, files: list[ListFile], copies: Copies) -> None:
        self._source, self._copies = source, copies
        self._where = f"sources.{source_name(source)}.filter"
        self._files = [readable_copy(file, copies) for file in files]
        self._spare = [copies.new() for _ in files]
        self._scans: list[Scan] = []
        self._types: dict[str, str] = {}

    def records(self) -> Iterator[ListRecord]:
        """Yield the rows that pass, in order. Raises ConfigError and DataError as `UrlList.snapshot` does."""
        with self._connect() as connection:
            self._scans = [self._scan(connection, place, file) for place, file in enumerate(self._files)]
            self._types = merged_types(connection, self._scans)
            if self._source.filter is not None:
                check_filter(connection, self._source.filter, self._types, self._where)
            last = None if self._source.rows is None else self._last_hash(connection, self._source.rows)
        with self._connect(threads=1) as connection:
            first = None
            for record in self._passing(connection, last):
                first = first or record
                yield record
            if first is None:
                raise DataError(self._nothing(connection))

    def _connect(self, **config: Any) -> duckdb.DuckDBPyConnection:
        """Connect DuckDB to the list's files only. With one thread, rows come in order."""
        config |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        connection = duckdb.connect(config=config)
        connection.register_filesystem(Remote(self._files))
        paths = [str(copy) for copy in self._spare]
        paths += [f"{SCHEME}://{place}" if file.fs is not None else file.path for place, file in enumerate(self._files)]
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {literal(str(self._copies.new()))}")
        connection.execute(f"SET allowed_paths = [{', '.join(map(literal, paths))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return connection

    def _scan(self, connection: duckdb.DuckDBPyConnection, place: int, file: ListFile) -> Scan:
        scan = {"parquet": scan_parquet, "json": scan_json}.get(file.kind, scan_text)
        with reading(file):
            found = scan(connection, file, place, tuple(self._source.columns.items()))
            empty = found.columns.url is None and not connection.execute(f"FROM {found.table} LIMIT 1").fetchall()
        if found.columns.url is None and not empty:
            names = ", ".join(found.types) or "none"
            raise DataError(f"{file.label}: no url column among its columns ({names}); name it in columns.url")
        return found

    def _last_hash(self, connection: duckdb.DuckDBPyConnection, rows: int) -> str | None:
        """Return the largest hash of the sample; None if at most `rows` rows pass."""
        smallest = f"SELECT hash FROM hashes ORDER BY hash LIMIT {rows}"
        connection.execute("CREATE TABLE hashes (hash VARCHAR)")
        for place in range(len(self._scans)):
            list(self._query(connection, place, lambda scan, _: f"INSERT INTO hashes {self._hashes(scan, rows)}"))
            ((held,),) = connection.execute("SELECT count(*) FROM hashes").fetchall()
            if held >= 2 * rows:
                connection.execute(f"CREATE OR REPLACE TABLE hashes AS {smallest}")
        last = connection.execute(f"{smallest} OFFSET {rows - 1}").fetchone()
        return None if last is None else str(last[0])

    def _passing(self, connection: duckdb.DuckDBPyConnection, last: str | None) -> Iterator[ListRecord]:
        for place, scan in enumerate(self._scans):
            for number, *cells in self._query(connection, place, lambda scan, row: self._cells(scan, row, last)):
                yield ListRecord(f"{scan.file.name}#{number}", scan.columns, scan.record(cells))

    def _nothing(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Explain why there is no row."""
        total = sum(connection.execute(f"SELECT count(*) FROM {scan.table}").fetchall()[0][0] for scan in self._scans)
        if not total:
            return f"{self._source.path}: the list has no row"
        return f"{self._where}: none of the {total} rows passes; look at the list's values and change the filter"

    def _query(
        self, connection: duckdb.DuckDBPyConnection, place: int, ask: Callable[[Scan, int], str]
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of a query over one file. `ask` gets the scan and the number of the last row so far (-1 at first).

        If DuckDB finds a string that is not UTF-8 in a Parquet file, the rest is read from a repaired copy.
        """
        row, ended = -1, False
        while not ended:
            scan = self._scans[place]
            with reading(scan.file):
                try:
                    for found_row in _streamed(connection, ask(scan, row)):
                        yield found_row
                        row = found_row[0]
                    ended = True
                except duckdb.Error as error:
                    if "Invalid string encoding" in str(error) and scan.file == self._files[place]:
                        self._scans[place] = replace(scan, file=repaired_parquet(scan.file, self._spare[place]))
                    elif self._source.filter is None or not _whole(connection, scan):
                        raise
                    else:
                        found = f"{first_line(error)}, in a row of {scan.file.label}"
                        raise ConfigError(f"{self._where}: {found}; make it null there: try_cast, try") from error

    def _cells(self, scan: Scan, row: int, last: str | None) -> str:
        """SQL: numbers and cells of the rows after `row` that pass."""
        raw = [f"{cell} AS {_cell(n)}" for n, cell in enumerate(scan.raw)]
        conditions = [f"{ROW} > {row}"] * (row >= 0) + [f"{self._hash(scan)} <= '{last}'"] * (last is not None)
        cells = "".join(f", {_cell(n)}" for n in range(len(raw)))
        return f"SELECT {ROW}{cells} FROM {self._filtered(scan, raw, conditions)}"

    def _hashes(self, scan: Scan, rows: int) -> str:
        """SQL: the smallest hashes of the rows that pass."""
        return f"SELECT {self._hash(scan)} AS hash FROM {self._filtered(scan, [], [])} ORDER BY hash LIMIT {rows}"

    def _hash(self, scan: Scan) -> str:
        return f"md5({literal(f'{self._source.seed}:{scan.file.name}#')} || {ROW})"

    def _filtered(self, scan: Scan, more: Sequence[str], conditions: Sequence[str]) -> str:
        """SQL of the FROM and WHERE clauses."""
        if self._source.filter is None:
            typed: list[str] = []
        else:
            typed = [f"{scan.typed(name, kind)} AS {identifier(name)}" for name, kind in self._types.items()]
            conditions = [f"(\n{self._source.filter}\n)", *conditions]
        table = f"(SELECT {', '.join([ROW, *more, *typed])} FROM {scan.table})"
        return f"{table} WHERE {' AND '.join(conditions)}" if conditions else table


def merged_types(connection: duckdb.DuckDBPyConnection, scans: Sequence[Scan]) -> dict[str, str]:
    """Every column of the list, in its first spelling -> the type that holds the values of all files."""
    spelt: dict[str, str] = {}
    types: dict[str, dict[str, None]] = {}
    for scan in scans:
        for name, kind in scan.types.items():
            spelt.setdefault(name.lower(), name)
            types.setdefault(name.lower(), {}).update({kind: None} if kind else {})
    return {name: _union(connection, list(types[lower])) for lower, name in spelt.items()}


def _union(connection: duckdb.DuckDBPyConnection, types: list[str]) -> str:
    if len(types) < 2:
        return types[0] if types else "VARCHAR"
    asked = " UNION ALL ".join(f"SELECT CAST(NULL AS {kind}) AS x" for kind in types)
    try:
        return str(connection.execute(f"DESCRIBE {asked}").fetchall()[0][1])
    except duckdb.Error:
        return "VARCHAR"


def _whole(connection: duckdb.DuckDBPyConnection, scan: Scan) -> bool:
    """Return True if the file can be read to its end."""
    try:
        connection.execute(f"SELECT bit_xor(hash({', '.join(scan.raw)})) FROM {scan.table}").fetchall()
    except duckdb.Error:
        return False
    return True


def _streamed(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[tuple[Any, ...]]:
    connection.execute(query)
    while rows := connection.fetchmany(ROWS):
        yield from rows


def _cell(n: int) -> str:
    return f'"\x1f{n}"'
