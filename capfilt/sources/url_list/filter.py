"""The filter of a list: one DuckDB expression over the list's own columns, checked before any row is read.

DuckDB itself parses it to a tree. It is refused if it is more than one expression (`a) OR (b`, `a FROM t`), reads
tables of its own, or changes from call to call (`random()`, `now()`), because a sample evaluates it twice. DuckDB
itself refuses aggregates and windows in a WHERE.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from capfilt.errors import ConfigError
from capfilt.sources.url_list.scan import Types, identifier

_ALONE = {"type", "select_list", "from_table", "aggregate_handling", "cte_map"}
"""Keys in the tree of a SELECT of expressions only."""


def check_filter(connection: duckdb.DuckDBPyConnection, text: str, types: Types, where: str) -> None:
    """Raises ConfigError with DuckDB's message and the list's columns; `where` is the prefix of the message."""
    try:
        for problem in _problems(connection, text, types):
            raise ConfigError(f"{where}: {problem}; the list has {', '.join(types)}")
    except duckdb.Error as error:
        raise ConfigError(f"{where}: {first_line(error)}; the list has {', '.join(types)}") from error


def _problems(connection: duckdb.DuckDBPyConnection, text: str, types: Types) -> Iterator[str]:
    yield from _of_the_tree(connection, text, types)
    nulls = ", ".join(f"CAST(NULL AS {kind}) AS {identifier(name)}" for name, kind in types.items())
    connection.execute(f"SELECT 1 FROM (SELECT {nulls}) WHERE (\n{text}\n)").fetchall()
    ((_, kind, *_),) = connection.execute(f"DESCRIBE SELECT (\n{text}\n) FROM (SELECT {nulls})").fetchall()
    if kind != "BOOLEAN":
        yield f"it is {kind}, expected a condition, true or false (compare it: `punsafe < 0.5`)"


def _of_the_tree(connection: duckdb.DuckDBPyConnection, text: str, types: Types) -> Iterator[str]:
    asked = "SELECT json_serialize_sql(?, skip_null := true, skip_empty := true)"
    ((label,),) = connection.execute(asked, [f"SELECT {text}\n"]).fetchall()
    tree = json.loads(label)
    if tree["error"]:
        yield f"{tree['error_type'].capitalize()} Error: {tree['error_message'].splitlines()[0]}"
    nodes = [statement["node"] for statement in tree["statements"]]
    if len(nodes) != 1 or set(nodes[0]) - _ALONE or nodes[0]["from_table"]["type"] != "EMPTY":
        yield "give one expression, as after WHERE"
    parts = list(_parts(nodes[0]["select_list"]))
    if len(nodes[0]["select_list"]) != 1 or any(part["class"] == "PARAMETER" for part in parts):
        yield "give one expression, as after WHERE"
    if any(part["class"] == "SUBQUERY" for part in parts):
        yield "it reads a table of its own; compare the list's columns"
    if any(part["class"] == "STAR" for part in parts):
        yield "name the columns one by one"
    own = {name.lower() for name in types}
    changing = sorted({_name(part) for part in parts} & _volatile(connection) - own)
    if changing:
        yield f"{', '.join(changing)}: changes from call to call; draw a sample with `rows` and `seed`"


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of the tree that has a class."""
    if isinstance(tree, dict) and "class" in tree:
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(below)


def _name(part: dict[str, Any]) -> str:
    """Name of a function, or of a column that may be one (`current_date`)."""
    return str(part.get("function_name") or "".join(part.get("column_names", ()))).lower()


def _volatile(connection: duckdb.DuckDBPyConnection) -> set[str]:
    asked = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    return {name for (name,) in connection.execute(asked).fetchall()}


def first_line(error: duckdb.Error) -> str:
    """The first line of DuckDB's message."""
    return str(error).strip().split("\n", 1)[0]
