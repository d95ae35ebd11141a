"""`capfilt inspect`: the history of one row, and sample texts of every verdict, to check a filter by eye."""

from typing import Any

import duckdb
from rich.console import Group
from rich.table import Table

from capfilt.analysis.sql import QueryResult, ask, cell, connect, plain, query, render, views
from capfilt.errors import InputError
from capfilt.store.layout import RunLayout

_HISTORY = {
    "pairs": """
        SELECT * EXCLUDE (image) REPLACE (format('{:016x}', phash) AS phash), image.path AS image_path,
               octet_length(image.bytes) AS image_bytes
        FROM pairs WHERE uid = $uid""",
    "duplicates": "SELECT * FROM duplicates WHERE uid = $uid",
    "kept_instead_of": """
        SELECT uid, duplicate_kind, similarity FROM duplicates WHERE duplicate_of = $uid AND uid <> $uid
        ORDER BY similarity DESC, uid""",
    "captions": "SELECT * FROM captions WHERE uid = $uid",
    "scores": "SELECT * EXCLUDE (image_embedding) FROM scores WHERE uid = $uid",
    "candidates": "SELECT * FROM candidates WHERE uid = $uid",
    "dataset": "SELECT text, origin, itc, itm FROM dataset WHERE uid = $uid",
}
"""Key of the history -> its query."""
_VIEW = {name: name for name in _HISTORY} | {"kept_instead_of": "duplicates"}
"""Key of the history -> the view that it needs."""
_NEAREST = """
    SELECT uid FROM pairs GROUP BY uid
    ORDER BY list_sum(list_transform(range(1, 17), lambda k: starts_with(uid, $uid[:k])::INT)) DESC, uid LIMIT 5"""
_SAMPLES = """
    SELECT verdict, origin, uid, text, itc, itm FROM (
        SELECT *, coalesce(reason, 'kept') AS verdict,
               row_number() OVER (PARTITION BY kept, reason, origin ORDER BY uid, sample, text) AS place
        FROM candidates)
    WHERE place <= $n
    ORDER BY kept DESC, verdict, list_position(['web', 'synthetic', 'human'], origin), place"""


def history(layout: RunLayout, uid: str) -> dict[str, Any]:
    """Collect everything that is stored about one row, as JSON values.

    Returns:
        uid: the given one. All other keys have a list of rows as dictionaries; more than one if a key occurs twice in
            the source.
        pairs: the row itself; image_bytes is the number of bytes, phash 16 hex digits.
        duplicates: which row is kept in its place, and which evaluation image it repeats.
        kept_instead_of: the rows that are duplicates of this one.
        captions, scores: what the models wrote, without the embedding.
        candidates: its texts with verdict and reason.
        dataset: what was emitted.

    Raises:
        InputError: there is no such uid; the message names the five with the longest common prefix.
    """
    with connect(layout) as connection:
        existing = views(connection)
        queries = {name: text if _VIEW[name] in existing else None for name, text in _HISTORY.items()}
        found = {name: _rows(connection, text, uid) if text else [] for name, text in queries.items()}
        if not found["pairs"]:
            nearest = _rows(connection, _NEAREST, uid) if "pairs" in existing else []
            similar = ", ".join(row["uid"] for row in nearest) or "none: nothing is ingested yet"
            raise InputError(f"{uid!r}: no row of this run has that uid; the most similar are {similar}")
    return {"uid": uid, **found}


def render_history(found: dict[str, Any]) -> Group:
    """Format the result of `history` for the terminal: the row as a list, its texts as a table."""
    tables = [_list(f"pairs {found['uid']}", row) for row in found["pairs"]]
    for name in ("duplicates", "scores"):
        columns = [{key: value for key, value in row.items() if key != "uid"} for row in found[name]]
        tables += [_list(name, row) for row in columns if any(value is not None for value in row.values())]
    captions = [{**caption, "status": row["status"]} for row in found["captions"] for caption in row["captions"] or []]
    texts = [
        {key: row[key] for key in ("origin", "text", "itc", "itm", "kept", "reason")} for row in found["candidates"]
    ]
    for name, rows in (("kept instead of", found["kept_instead_of"]), ("captions", captions), ("candidates", texts)):
        if rows:
            tables.append(render(list(rows[0]), [list(row.values()) for row in rows], name))
    return Group(*tables)


def samples(layout: RunLayout, n: int = 3) -> QueryResult:
    """Return `n` texts per verdict and origin, always the same ones: kept first, then by reason.

    Columns: verdict (`kept` or the reason), origin, uid, text, itc, itm.
    """
    return query(layout, _SAMPLES, {"n": n})


def _rows(connection: duckdb.DuckDBPyConnection, text: str, uid: str) -> list[dict[str, Any]]:
    return [dict(plain(row)) for row in ask(connection, text, {"uid": uid}).records()]


def _list(title: str, row: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in row.items():
        if value is not None:
            table.add_row(cell(name), cell(value, 200))
    return table
