"""Numbers and examples of the report, by SQL aggregates: only what is shown is held in memory."""

from typing import Any

import duckdb

from capfilt.analysis.sql import ask, views
from capfilt.store.schema import CAPTIONS, SCORES

Rows = list[dict[str, Any]]
EXAMPLES = 3
"""Examples per reason."""
GROUPS, MEMBERS = 2, 3
"""Duplicate groups per kind, and members per group next to the row that is kept."""

_ORIGIN = "list_position(['web', 'synthetic', 'human'], origin)"
_ROWS = """
    SELECT count(*) AS total, count(*) FILTER (status = 'quarantined') AS quarantined,
           count(*) FILTER (status = 'rejected') AS refused
    FROM pairs"""
_TEXTS = f"""
    SELECT origin, count(*) AS total, count(*) FILTER (kept) AS kept, count(*) FILTER (NOT kept) AS rejected,
           count(itm) + count(itc) > 0 AS scored
    FROM candidates WHERE text IS NOT NULL GROUP BY origin ORDER BY {_ORIGIN}"""
_REASONS = f"""
    SELECT reason, origin, count(*) AS n, list(text ORDER BY uid, sample)[:{EXAMPLES}] AS texts
    FROM candidates WHERE NOT kept AND NOT regexp_matches(reason, '^(quarantined|rejected):')
    GROUP BY reason, origin ORDER BY reason, {_ORIGIN}"""
_REFUSED = f"""
    SELECT status, reason, count(*) AS n,
           list({{'key': key, 'text': text, 'url': url, 'error': error}} ORDER BY uid)[:{EXAMPLES}] AS examples
    FROM pairs WHERE status <> 'ok' GROUP BY status, reason ORDER BY status, n DESC, reason"""
_FAILED = f"""
    SELECT '%s' AS stage, error, count(*) AS n, list(uid ORDER BY uid)[:{EXAMPLES}] AS uids
    FROM %s WHERE status = 'failed' GROUP BY error ORDER BY n DESC, error LIMIT 10"""
_KINDS = """
    SELECT duplicate_kind AS kind, count(*) AS n, count(DISTINCT duplicate_of) AS groups, min(similarity) AS least
    FROM duplicates WHERE duplicate_of IS NOT NULL GROUP BY kind ORDER BY kind"""
_GROUPS = f"""
    WITH keepers AS (
        SELECT duplicate_kind AS kind, duplicate_of AS keeper FROM duplicates
        WHERE duplicate_of IS NOT NULL AND duplicate_kind <> 'key' GROUP BY 1, 2
        QUALIFY row_number() OVER (PARTITION BY duplicate_kind ORDER BY duplicate_of) <= {GROUPS})
    SELECT duplicate_of AS keeper, d.uid, duplicate_kind AS kind, similarity FROM duplicates d
    WHERE duplicate_of IN (SELECT keeper FROM keepers) AND duplicate_kind <> 'key'
    QUALIFY row_number() OVER (PARTITION BY duplicate_of ORDER BY similarity, d.uid) <= {MEMBERS}
    ORDER BY keeper, similarity, d.uid"""
_CONTAMINATED = f"""
    SELECT split_part(contaminates, ':', 1) AS evaluation, count(*) AS n,
           list(contaminates ORDER BY uid)[:{EXAMPLES}] AS examples
    FROM duplicates WHERE contaminates IS NOT NULL GROUP BY 1 ORDER BY 1"""
_UNIQUE = """
    SELECT count(*) FROM pairs p
    WHERE status = 'ok' AND NOT EXISTS (SELECT 1 FROM duplicates d WHERE d.uid = p.uid AND %s)"""


def funnel(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Steps (label, n, lost, share) from all rows to the rows with a kept text, each a part of the one before."""
    there = views(connection)
    total, quarantined, refused = ask(connection, _ROWS).rows[0]
    steps = [("came in", total, ""), ("can be processed", total - quarantined, f"{quarantined:,} quarantined")]
    usable = total - quarantined - refused
    steps.append(("pass the rules of ingest", usable, f"{refused:,} refused"))
    if "duplicates" in there:
        marked = "(duplicate_of IS NOT NULL OR contaminates IS NOT NULL)"
        unique = ask(connection, _UNIQUE % marked).rows[0][0]
        steps.append(("neither duplicate nor contaminated", unique, f"{usable - unique:,} marked"))
    if "candidates" in there:
        kept = ask(connection, "SELECT count(DISTINCT uid) FROM candidates WHERE kept").rows[0][0]
        steps.append(("have a text that is kept", kept, f"{steps[-1][1] - kept:,} have none"))
    return [{"label": label, "n": n, "lost": lost, "share": n / total if total else 0} for label, n, lost in steps]


def texts(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Texts per origin: total, kept, rejected, and whether any has a score."""
    return ask(connection, _TEXTS).records()


def reasons(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Reasons against texts of usable rows: reason, origin, n, example texts."""
    return ask(connection, _REASONS).records()


def refused(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Reasons why ingest rejected or quarantined rows: status, reason, n, examples."""
    return ask(connection, _REFUSED).records()


def failed(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Rows on which a model failed: stage, error, n, example uids."""
    there = views(connection)
    stages = [(table.stage, table.view) for table in (CAPTIONS, SCORES)]
    return [
        row for stage, view in stages if view in there for row in ask(connection, _FAILED % (stage, view)).records()
    ]


def kinds(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Duplicates per kind: number of rows, number of groups, least similarity."""
    return ask(connection, _KINDS).records()


def groups(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Example groups per kind with their least similar members: keeper, uid, kind, similarity."""
    return ask(connection, _GROUPS).records()


def contaminated(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Rows that repeat an image of an evaluation set: evaluation, n, example keys."""
    return ask(connection, _CONTAMINATED).records()
