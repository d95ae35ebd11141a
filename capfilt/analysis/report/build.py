"""Write the report of a run: numbers, charts, pictures and the run's facts in one HTML file.

Untrusted text never becomes a link, an event handler or a part of the script. The script's data are numbers, written as
JSON with `<` escaped. Equal runs give equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from capfilt.analysis.report import data, gallery
from capfilt.analysis.report.charts import chart, script_data
from capfilt.analysis.report.histogram import count
from capfilt.analysis.report.page import render
from capfilt.analysis.sql import connect, views
from capfilt.errors import DataError
from capfilt.selection.calibration import effective, read_calibration
from capfilt.selection.policies import policy_of
from capfilt.store.layout import RunLayout
from capfilt.store.schema import ORIGINS
from capfilt.store.shards import write_atomic


def write_report(layout: RunLayout, facts: Mapping[str, Any], accounting: Mapping[str, Any] | None, out: Path) -> Path:
    """Write the report of a run and return `out`.

    Args:
        layout: the run; the report leaves out stages that have not written yet.
        facts: content of run.json; versions, fingerprints and seconds are shown if present.
        accounting: `account(layout).to_dict()`, and the result of `truth(layout)` under `truth`; None: count by SQL.
        out: the HTML file to write.

    Raises:
        DataError: nothing is ingested yet, or a shard is damaged; the message names it.
        InputError: a shard is damaged in a way that only a query finds.
    """
    with connect(layout) as connection:
        context = _context(connection, layout, facts, accounting or {})
    write_atomic(out, render("report.html.j2", context))
    return out


def _context(
    connection: duckdb.DuckDBPyConnection, layout: RunLayout, facts: Mapping[str, Any], accounting: Mapping[str, Any]
) -> dict[str, Any]:
    there = views(connection)
    if "pairs" not in there:
        raise DataError(f"{layout.run}: nothing is ingested yet, so there is nothing to report; use `capfilt run`")
    calibration = read_calibration(layout) if "candidates" in there else None
    select = effective(layout.pipeline.select, calibration)
    layout = replace(layout, pipeline=layout.pipeline.model_copy(update={"select": select}))
    context: dict[str, Any] = {
        "name": layout.pipeline.name,
        "select": layout.pipeline.select,
        "policy": policy_of(layout.pipeline.select),
        "calibration": None if calibration is None else calibration.sentence,
        "truth": accounting.get("truth"),
    }
    context |= {"funnel": data.funnel(connection), "refused": data.refused(connection)}
    context |= {"failed": data.failed(connection), "facts": _facts(layout, facts)}
    context |= _texts(connection, layout) if "candidates" in there else {"texts": [], "scores": None, "cards": []}
    context["tiles"] = _tiles(context, accounting.get("rows"))
    context |= (
        _duplicates(connection, layout) if "duplicates" in there else {"kinds": [], "groups": [], "contaminated": []}
    )
    return context


def _tiles(context: Mapping[str, Any], rows: Mapping[str, int] | None) -> dict[str, int]:
    """Return the sums at the top of the page; without an accounting they are taken from the funnel's steps."""
    steps = context["funnel"]
    if rows is None:
        came, quarantined = steps[0]["n"], steps[0]["n"] - steps[1]["n"]
        kept = steps[-1]["n"] if context["texts"] else 0
        rows = {"in": came, "kept": kept, "rejected": came - kept - quarantined, "quarantined": quarantined}
    pairs = sum(row["kept"] for row in context["texts"])
    return {
        "rows in": rows["in"],
        **{name: rows[name] for name in ("kept", "rejected", "quarantined")},
        "pairs out": pairs,
    }


def _texts(connection: duckdb.DuckDBPyConnection, layout: RunLayout) -> dict[str, Any]:
    select, found = layout.pipeline.select, data.texts(connection)
    counts = count(connection, select)
    uids = gallery.choose(connection, select)
    pictures = gallery.thumbnails(layout, uids)
    cards = [
        gallery.card(uid, pictures.get(uid), lines, counts) for uid, lines in gallery.texts(connection, uids).items()
    ]
    score = gallery.deciding(select)[0]
    cards.sort(key=lambda card: (card[score], card["uid"]))
    scored = any(row["scored"] for row in found)
    return {
        "texts": found,
        "reasons": data.reasons(connection),
        "judged": {origin: sum(n for _, _, n in counts.cells.get(origin, [])) for origin in ORIGINS},
        "scores": [chart(counts, axis, select) for axis in (counts.itm, counts.itc)] if scored else None,
        "data": script_data(counts, select) if scored else None,
        "cards": cards,
    }


def _duplicates(connection: duckdb.DuckDBPyConnection, layout: RunLayout) -> dict[str, Any]:
    found = data.groups(connection)
    uids = sorted({uid for row in found for uid in (row["keeper"], row["uid"])})
    pictures = gallery.thumbnails(layout, uids)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        grouped.setdefault(row["keeper"], []).append(row | {"picture": pictures.get(row["uid"])})
    groups = [{"keeper": uid, "picture": pictures.get(uid), "members": rows} for uid, rows in grouped.items()]
    return {"kinds": data.kinds(connection), "groups": groups, "contaminated": data.contaminated(connection)}


def _facts(layout: RunLayout, facts: Mapping[str, Any]) -> dict[str, Any]:
    stages = [
        {
            "name": name,
            "folder": layout.folders[name],
            "fingerprint": facts.get("fingerprints", {}).get(name),
            "seconds": facts.get("seconds", {}).get(name),
        }
        for name in layout.folders
    ]
    models = [
        {"role": role, "model": use.model, "revision": use.revision, "digest": layout.digests.get(role)}
        for role, use in (("caption", layout.pipeline.caption), ("score", layout.pipeline.score))
        if use is not None
    ]
    pipeline = layout.pipeline.model_dump(mode="json", exclude_none=True)
    versions = {"capfilt": facts.get("capfilt"), **facts.get("versions", {})}
    return {
        "stages": stages,
        "models": models,
        "caption": layout.pipeline.caption,
        "versions": {name: version for name, version in versions.items() if version},
        "pipeline": json.dumps(pipeline, indent=2, ensure_ascii=False),
    }
