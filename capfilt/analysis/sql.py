"""SQL over a run: DuckDB views on its Parquet shards, each with a column `uid` to join on.

The views are pairs, captions, scores, duplicates, candidates and dataset; a stage that has written nothing has no view.
Nothing is copied: DuckDB reads the columns that a query names. Once the views exist, the connection can read only their
files (no other path, no network, no extension) and its settings are locked. `query` allows only SELECTs, because DuckDB
would let a COPY overwrite a file that it may read.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from rich.table import Table
from rich.text import Text

from capfilt.errors import DataError, InputError
from capfilt.stages.catalog import STAGES, tables
from capfilt.store.layout import RunLayout
from capfilt.store.parquet import open_parquet
from capfilt.store.schema import CANDIDATES, DATASET, ShardTable

_JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need."""
WIDTH = 60
"""Maximum number of characters that `render` shows of a value."""


class QueryResult(NamedTuple):
    """Column names, and rows of Python values (among them bytes, lists and dictionaries)."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def connect(layout: RunLayout) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with a view for every kind of row that the run has.

    Where two stages have the same view (near and dedup: `duplicates`), it shows the rows of the later one.
    `scores.image_embedding` is FLOAT[], as DuckDB reads half floats.

    Raises:
        DataError: the footer of a shard is damaged, or an earlier version of capfilt wrote the candidates.
    """
    found = {view: (columns, files) for view, (columns, files) in _views(layout).items() if files}
    check_candidates(found[CANDIDATES.view][1] if CANDIDATES.view in found else [])
    connection = duckdb.connect()
    try:
        for view, (columns, files) in found.items():
            connection.execute(f"CREATE VIEW {view} AS SELECT {columns} FROM read_parquet({_array(files)})")
    except duckdb.Error as error:
        connection.close()
        raise DataError(
            f"{layout.run}: a shard cannot be read ({error}); `capfilt verify` lists the damaged ones"
        ) from error
    allowed = _array([file for _, files in found.values() for file in files])
    connection.execute(f"SET allowed_paths = {allowed}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def check_candidates(shards: Sequence[Path]) -> None:
    """Refuse candidates that an earlier version wrote: their column `origin` was called `source`.

    A damaged file is not reported here: reading it raises its own error.

    Raises:
        DataError: with the folder, if `candidates` has a column `source` and no `origin`.
    """
    names: list[str] = []
    with suppress(DataError):
        for shard in shards[:1]:
            with open_parquet(shard) as file:
                names = file.schema_arrow.names
    if "source" in names and "origin" not in names:
        raise DataError(
            f"{shards[0].parent}: written by an earlier version of capfilt (its column `source` is now `origin`); "
            "`capfilt run` of its pipeline, with the same --out, writes it again"
        )


def views(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Return view -> names of its columns, both in order."""
    text = "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() WHERE NOT internal "
    return dict(connection.execute(text + "GROUP BY 1 ORDER BY min(table_oid)").fetchall())


def ask(connection: duckdb.DuckDBPyConnection, text: str, values: Mapping[str, Any] | None = None) -> QueryResult:
    """Run one query over the views.

    Args:
        connection: from `connect`.
        text: one SELECT (or WITH, FROM, DESCRIBE, SUMMARIZE).
        values: values of the query's `$name` parameters.

    Raises:
        InputError: another statement, or one that DuckDB refuses. The message has DuckDB's reason and lists the views
            and their columns.
    """
    try:
        statements = connection.extract_statements(text)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise InputError(f"{text.strip()!r}: give one SELECT; SQL can read a run, not change it")
        connection.execute(statements[0], values)
        return QueryResult([column[0] for column in connection.description or []], connection.fetchall())
    except duckdb.Error as error:
        raise InputError(f"{str(error).strip()}\n\nThis run has:\n{_describe(views(connection))}") from error


def query(layout: RunLayout, text: str, values: Mapping[str, Any] | None = None) -> QueryResult:
    """Open a connection and run one query, as `ask`. Raises as `connect` and `ask`."""
    with connect(layout) as connection:
        return ask(connection, text, values)


def plain(value: Any) -> Any:
    """Convert a value to one that JSON can hold; bytes become `<1234 bytes>`."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def visible(text: str) -> str:
    """Make untrusted text safe to display: white space becomes spaces, control and direction characters U+FFFD."""
    return "".join(" " if c.isspace() else "\ufffd" if _is_invisible(c) else c for c in text)


def cell(value: Any, width: int = WIDTH) -> Text:
    """Format a value for the terminal: at most `width` characters, no markup, no control or direction characters."""
    value = plain(value)
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    text = visible(text[: width + 1])
    return Text(text if len(text) <= width else text[: width - 1] + "…")


def render(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    """Return a table for the terminal; columns with numbers only are right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        values = [row[i] for row in rows if row[i] is not None]
        right = bool(values) and all(isinstance(value, int | float) for value in values)
        table.add_column(cell(name), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table


def _views(layout: RunLayout) -> dict[str, tuple[str, list[Path]]]:
    """Return view -> its SELECT list and its files."""
    found = {table.view: (_select_list(table), _shards(layout, table)) for table in tables(layout)}
    dataset = sorted((layout.run / DATASET.folder / "data").resolve().glob("*.parquet"))
    return {**found, "dataset": ("*", dataset)}


def _select_list(table: ShardTable) -> str:
    """Return the table's columns, and nulls for columns that only another stage's table of the same view has."""
    own = {column.name for column in table}
    others = (stage.spec.table for stage in STAGES)
    missing = {c.name for other in others if other and other.view == table.view for c in other} - own
    return ", ".join(["*", *(f"NULL::VARCHAR AS {name}" for name in sorted(missing))])


def _shards(layout: RunLayout, table: ShardTable) -> list[Path]:
    shards = (layout.shard(table, index).resolve() for index in range(len(layout.shards)))
    return [shard for shard in shards if shard.is_file()]


def _array(files: Sequence[Path]) -> str:
    return "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"


def _describe(found: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"  {view}: {', '.join(columns)}" for view, columns in found.items()) or "  no views yet"


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and character not in _JOINERS
