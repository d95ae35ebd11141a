"""One row's whole history by its uid, and samples by verdict: what a person looks at before trusting a filter."""

from typing import Any

import duckdb
from rich.console import Group
from rich.table import Table

from capfilt.analysis.sql import Answer, ask, cell, connect, plain, query, render, views
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
_VIEW = {name: name for name in _HISTORY} | {"kept_instead_of": "duplicates"}
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
    """Everything that the run knows of one row, JSON-able.

    Returns:
        uid, then each of these with its rows as dictionaries (more than one where a key was given twice), empty where
        there is none: pairs (image_bytes is their number), duplicates (what is kept in this row's place, what it
        contaminates), kept_instead_of (the rows that this one stands for), captions, scores (no embedding),
        candidates (its texts with verdict and reason), dataset (what was emitted).

    Raises:
        InputError: no such uid; the five that begin most alike are named.
    """
    with connect(layout) as connection:
        there = views(connection)
        asked = {name: text if _VIEW[name] in there else None for name, text in _HISTORY.items()}
        found = {name: _rows(connection, text, uid) if text else [] for name, text in asked.items()}
        if not found["pairs"]:
            nearest = _rows(connection, _NEAREST, uid) if "pairs" in there else []
            near = ", ".join(row["uid"] for row in nearest) or "none: nothing is ingested yet"
            raise InputError(f"{uid!r}: no row of this run has that uid; the nearest are {near}")
    return {"uid": uid, **found}


def render_history(found: dict[str, Any]) -> Group:
    """`history` for the terminal: the row as a list, its texts as a table, the rest where there is any."""
    tables = [_list(f"pairs {found['uid']}", row) for row in found["pairs"]]
    for name in ("duplicates", "scores"):
        told = [{key: value for key, value in row.items() if key != "uid"} for row in found[name]]
        tables += [_list(name, row) for row in told if any(value is not None for value in row.values())]
    captions = [{**caption, "status": row["status"]} for row in found["captions"] for caption in row["captions"] or []]
    texts = [
        {key: row[key] for key in ("origin", "text", "itc", "itm", "kept", "reason")} for row in found["candidates"]
    ]
    for name, rows in (("kept instead of", found["kept_instead_of"]), ("captions", captions), ("candidates", texts)):
        if rows:
            tables.append(render(list(rows[0]), [list(row.values()) for row in rows], name))
    return Group(*tables)


def samples(layout: RunLayout, n: int = 3) -> Answer:
    """`n` texts of every verdict and origin, always the same: kept first, then the reasons by name.

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
