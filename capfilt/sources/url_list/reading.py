"""One reading of a list: its columns, filter and sample, and then its records in order.

A sample of N is the N smallest md5(seed:file#row) among the rows that pass: a first pass over the filter's columns
finds the N-th hash, a second one takes the rows up to it. Rows stream, so memory does not grow with the list.

While it reads, DuckDB has the list's files and their copies and nothing else: no other path, no network, no extension,
settings locked. Files are read one after another: DuckDB would give them in order too, but not say in
which one it stumbled, and a row's number in its file is part of its key.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import duckdb

from capfilt.config.source import Source, source_name
from capfilt.errors import ConfigError, DataError
from capfilt.sources.url_list.files import SCHEME, ListFile, Remote, reading
from capfilt.sources.url_list.filter import check_filter, first_line
from capfilt.sources.url_list.repair import Copies, fit, mended_parquet
from capfilt.sources.url_list.scan import ROW, Record, Scan, literal, named, scan_json, scan_parquet
from capfilt.sources.url_list.text import scan_text

ROWS = 2048
"""Taken from DuckDB at once."""


class Reading:
    """Reads the files of a source as they are now."""

    def __init__(self, source: Source, files: list[ListFile], copies: Copies) -> None:
        self._source, self._copies = source, copies
        self._where = f"sources.{source_name(source)}.filter"
        self._files = [fit(file, copies) for file in files]
        self._spare = [copies.new() for _ in files]
        self._scans: list[Scan] = []
        self._types: dict[str, str] = {}

    def records(self) -> Iterator[Record]:
        """Those that pass, in order. Raises ConfigError and DataError as `UrlList.snapshot` does."""
        with self._connect() as connection:
            self._scans = [self._scan(connection, place, file) for place, file in enumerate(self._files)]
            self._types = together(connection, self._scans)
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
        """To the list's files alone. One thread gives rows in order."""
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
            told = ", ".join(found.types) or "none"
            raise DataError(f"{file.told}: no url column among its columns ({told}); name it in columns.url")
        return found

    def _last_hash(self, connection: duckdb.DuckDBPyConnection, rows: int) -> str | None:
        """The largest of the sample; None where no more rows pass than it may have."""
        smallest = f"SELECT hash FROM hashes ORDER BY hash LIMIT {rows}"
        connection.execute("CREATE TABLE hashes (hash VARCHAR)")
        for place in range(len(self._scans)):
            list(self._answers(connection, place, lambda scan, _: f"INSERT INTO hashes {self._hashes(scan, rows)}"))
            ((held,),) = connection.execute("SELECT count(*) FROM hashes").fetchall()
            if held >= 2 * rows:
                connection.execute(f"CREATE OR REPLACE TABLE hashes AS {smallest}")
        last = connection.execute(f"{smallest} OFFSET {rows - 1}").fetchone()
        return None if last is None else str(last[0])

    def _passing(self, connection: duckdb.DuckDBPyConnection, last: str | None) -> Iterator[Record]:
        for place, scan in enumerate(self._scans):
            for number, *cells in self._answers(connection, place, lambda scan, row: self._cells(scan, row, last)):
                yield Record(f"{scan.file.name}#{number}", scan.columns, scan.record(cells))

    def _nothing(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Why there is no row."""
        total = sum(connection.execute(f"SELECT count(*) FROM {scan.table}").fetchall()[0][0] for scan in self._scans)
        if not total:
            return f"{self._source.path}: the list has no row"
        return f"{self._where}: none of the {total} rows passes; look at the list's values, and write it otherwise"

    def _answers(
        self, connection: duckdb.DuckDBPyConnection, place: int, ask: Callable[[Scan, int], str]
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, asked with the file and the first column of the last row that came (-1 before).

        A Parquet file in which DuckDB finds a string that is no UTF-8 is copied, mended and asked for the rest.
        """
        row, ended = -1, False
        while not ended:
            scan = self._scans[place]
            with reading(scan.file):
                try:
                    for answer in _streamed(connection, ask(scan, row)):
                        yield answer
                        row = answer[0]
                    ended = True
                except duckdb.Error as error:
                    if "Invalid string encoding" in str(error) and scan.file == self._files[place]:
                        self._scans[place] = replace(scan, file=mended_parquet(scan.file, self._spare[place]))
                    elif self._source.filter is None or not _whole(connection, scan):
                        raise
                    else:
                        told = f"{first_line(error)}, in a row of {scan.file.told}"
                        raise ConfigError(f"{self._where}: {told}; let it be null there: try_cast, try") from error

    def _cells(self, scan: Scan, row: int, last: str | None) -> str:
        """Row numbers and cells of what passes, behind a row."""
        raw = [f"{cell} AS {_cell(n)}" for n, cell in enumerate(scan.raw)]
        conditions = [f"{ROW} > {row}"] * (row >= 0) + [f"{self._hash(scan)} <= '{last}'"] * (last is not None)
        cells = "".join(f", {_cell(n)}" for n in range(len(raw)))
        return f"SELECT {ROW}{cells} FROM {self._filtered(scan, raw, conditions)}"

    def _hashes(self, scan: Scan, rows: int) -> str:
        """The smallest hashes of what passes."""
        return f"SELECT {self._hash(scan)} AS hash FROM {self._filtered(scan, [], [])} ORDER BY hash LIMIT {rows}"

    def _hash(self, scan: Scan) -> str:
        return f"md5({literal(f'{self._source.seed}:{scan.file.name}#')} || {ROW})"

    def _filtered(self, scan: Scan, more: Sequence[str], conditions: Sequence[str]) -> str:
        """`FROM` what, `WHERE` what."""
        if self._source.filter is None:
            typed: list[str] = []
        else:
            typed = [f"{scan.typed(name, kind)} AS {named(name)}" for name, kind in self._types.items()]
            conditions = [f"(\n{self._source.filter}\n)", *conditions]
        table = f"(SELECT {', '.join([ROW, *more, *typed])} FROM {scan.table})"
        return f"{table} WHERE {' AND '.join(conditions)}" if conditions else table


def together(connection: duckdb.DuckDBPyConnection, scans: Sequence[Scan]) -> dict[str, str]:
    """Every column of the list, as it is first spelt -> the type that holds the values of all files."""
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
    """Whether the file can be read to its end."""
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
