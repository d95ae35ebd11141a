"""The filter of a list: one DuckDB expression over the list's own columns, checked before any row is read.

It is parsed to a tree by DuckDB itself, and refused if it is more than one expression (`a) OR (b`, `a FROM t`), asks
tables of its own, or gives another answer each time (`random()`, `now()`): rows are asked twice where a sample is
drawn. Aggregates and windows DuckDB refuses in a WHERE.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from capfilt.errors import ConfigError
from capfilt.sources.url_list.scan import Types, named

_ALONE = {"type", "select_list", "from_table", "aggregate_handling", "cte_map"}
"""Parts of the tree of a SELECT that is nothing but expressions."""


def check_filter(connection: duckdb.DuckDBPyConnection, text: str, types: Types, where: str) -> None:
    """Raises ConfigError with DuckDB's own words and the list's columns; `where` begins it."""
    try:
        for problem in _problems(connection, text, types):
            raise ConfigError(f"{where}: {problem}; the list has {', '.join(types)}")
    except duckdb.Error as error:
        raise ConfigError(f"{where}: {first_line(error)}; the list has {', '.join(types)}") from error


def _problems(connection: duckdb.DuckDBPyConnection, text: str, types: Types) -> Iterator[str]:
    yield from _of_the_tree(connection, text, types)
    nulls = ", ".join(f"CAST(NULL AS {kind}) AS {named(name)}" for name, kind in types.items())
    connection.execute(f"SELECT 1 FROM (SELECT {nulls}) WHERE (\n{text}\n)").fetchall()
    ((_, kind, *_),) = connection.execute(f"DESCRIBE SELECT (\n{text}\n) FROM (SELECT {nulls})").fetchall()
    if kind != "BOOLEAN":
        yield f"it is {kind}, expected a condition, true or false (compare it: `punsafe < 0.5`)"


def _of_the_tree(connection: duckdb.DuckDBPyConnection, text: str, types: Types) -> Iterator[str]:
    asked = "SELECT json_serialize_sql(?, skip_null := true, skip_empty := true)"
    ((told,),) = connection.execute(asked, [f"SELECT {text}\n"]).fetchall()
    tree = json.loads(told)
    if tree["error"]:
        yield f"{tree['error_type'].capitalize()} Error: {tree['error_message'].splitlines()[0]}"
    nodes = [statement["node"] for statement in tree["statements"]]
    if len(nodes) != 1 or set(nodes[0]) - _ALONE or nodes[0]["from_table"]["type"] != "EMPTY":
        yield "give one expression, as it would stand behind WHERE"
    parts = list(_parts(nodes[0]["select_list"]))
    if len(nodes[0]["select_list"]) != 1 or any(part["class"] == "PARAMETER" for part in parts):
        yield "give one expression, as it would stand behind WHERE"
    if any(part["class"] == "SUBQUERY" for part in parts):
        yield "it asks a table of its own; compare the list's columns"
    if any(part["class"] == "STAR" for part in parts):
        yield "name the columns one by one"
    own = {name.lower() for name in types}
    changing = sorted({_name(part) for part in parts} & _volatile(connection) - own)
    if changing:
        yield f"{', '.join(changing)}: gives another answer each time; draw a sample with `rows` and `seed`"


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node that has a class."""
    if isinstance(tree, dict) and "class" in tree:
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(below)


def _name(part: dict[str, Any]) -> str:
    """Of a function, or of a column that may be one (`current_date`)."""
    return str(part.get("function_name") or "".join(part.get("column_names", ()))).lower()


def _volatile(connection: duckdb.DuckDBPyConnection) -> set[str]:
    asked = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    return {name for (name,) in connection.execute(asked).fetchall()}


def first_line(error: duckdb.Error) -> str:
    """DuckDB's own words."""
    return str(error).strip().split("\n", 1)[0]
