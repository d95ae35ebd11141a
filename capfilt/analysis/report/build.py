"""Write the report of a run: numbers, charts, pictures and the run's facts in one HTML file.

The report shows texts, keys and URLs of strangers. Therefore Jinja2 escapes everything. No such text becomes a link, an
event handler or a part of the script. The script's data are numbers, as JSON with `<` escaped. The
Content-Security-Policy allows one script by its hash, inline styles and pictures inside the file, and no request.
Equal runs give equal bytes.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from capfilt.analysis.report import data, gallery
from capfilt.analysis.report.histogram import Axis, Counts, bars, count
from capfilt.analysis.sql import connect, views, visible
from capfilt.config.pipeline import SelectSettings
from capfilt.errors import DataError
from capfilt.selection.calibration import effective, read_calibration
from capfilt.selection.policies import policy_of
from capfilt.store.layout import RunLayout
from capfilt.store.schema import ORIGINS
from capfilt.store.shards import write_atomic

_HERE = Path(__file__).parent
_LONGEST = 400
"""Characters of a text that are shown at most."""
_SCORES = {
    "itm": ("ITM", "probability that text and image match, by cross-attention"),
    "itc": ("ITC", "cosine of the text's and the image's features"),
}


def write_report(layout: RunLayout, facts: Mapping[str, Any], accounting: Mapping[str, Any] | None, out: Path) -> Path:
    """Write the report of a run and return `out`.

    Args:
        layout: the run; the report leaves out stages that have not written yet.
        facts: content of run.json; versions, fingerprints and seconds are shown if present.
        accounting: `account(layout).to_dict()`, and the result of `truth(layout)` under `truth`; None: count by SQL.
        out: the HTML file to write.

    Raises:
        DataError: nothing is ingested yet, or a shard is damaged, by name.
        InputError: a shard is damaged in a way that only a query finds.
    """
    with connect(layout) as connection:
        context = _context(connection, layout, facts, accounting or {})
    write_atomic(out, _render(context))
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
    """Sums at the top of the page; without an accounting they come from the first and last step of the funnel."""
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
    cards = [_card(uid, pictures.get(uid), lines, counts) for uid, lines in gallery.texts(connection, uids).items()]
    score = gallery.deciding(select)[0]
    cards.sort(key=lambda card: (card[score], card["uid"]))
    scored = any(row["scored"] for row in found)
    return {
        "texts": found,
        "reasons": data.reasons(connection),
        "judged": {origin: sum(n for _, _, n in counts.cells.get(origin, [])) for origin in ORIGINS},
        "scores": [_chart(counts, axis, select) for axis in (counts.itm, counts.itc)] if scored else None,
        "data": _json(counts, select) if scored else None,
        "cards": cards,
    }


def _card(uid: str, picture: str | None, lines: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
    """One image and its texts, with its own text's scores to sort by; null scores sort first."""
    texts = [line | {"i": counts.itm.bin(line["itm"]), "j": counts.itc.bin(line["itc"])} for line in lines]
    own = {score: -2.0 if lines[0][score] is None else lines[0][score] for score in ("itm", "itc")}
    verdicts = sorted({f"{line['origin']}-{'kept' if line['kept'] else 'rejected'}" for line in lines})
    return {"uid": uid, "picture": picture, "texts": texts, "verdicts": " ".join(verdicts), **own}


def _chart(counts: Counts, axis: Axis, select: SelectSettings) -> dict[str, Any]:
    title, meaning = _SCORES[axis.score]
    own = axis.edges[axis.at]
    apart = next(step for step in (0.1, 0.2, 0.5) if axis.high - axis.low <= 5.01 * step)
    ticks = [round(axis.low + k * apart, 1) + 0.0 for k in range(int((axis.high - axis.low) / apart + 1.01))]
    return {
        "score": axis.score,
        "title": title,
        "meaning": meaning,
        "low": axis.low,
        "high": axis.high,
        "step": 0.005 if axis.score == "itm" else 0.01,
        "at": own,
        "place": axis.place(own),
        "off": axis.at == 0 and not policy_of(select).either,
        "ticks": [{"place": axis.place(tick), "label": f"{tick:.1f}".removesuffix(".0")} for tick in ticks],
        "rows": [row for origin in ORIGINS if (row := _bars(origin, counts.marginal(origin, axis.score)))["n"]],
    }


def _bars(origin: str, steps: list[int]) -> dict[str, Any]:
    return {"origin": origin, "n": sum(steps), "path": bars(steps)}


def _json(counts: Counts, select: SelectSettings) -> Markup:
    """Data of the script: edges and the run's position on both axes, the rule, and the counts by both bins."""
    axes = {
        axis.score: {"edges": [round(e, 7) for e in axis.edges], "at": axis.at} for axis in (counts.itm, counts.itc)
    }
    cells = {origin: [n for cell in counts.cells.get(origin, []) for n in cell] for origin in ("web", "synthetic")}
    text = json.dumps({**axes, "either": policy_of(select).either, "cells": cells}, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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


def _render(context: Mapping[str, Any]) -> str:
    env = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"short": short, "words": _words, "verdict": _verdict, "num": _number, "int": _integer}
    env.filters |= {"percent": "{:.1%}".format, "score": lambda x: "–" if x is None else f"{x:.3f}"}
    script, style = (_HERE / "report.js").read_text("utf-8"), (_HERE / "report.css").read_text("utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assets = {"script": Markup(script), "style": Markup(style), "digest": digest}
    return env.get_template("report.html.j2").render(**context, **assets)


def short(text: str | None) -> str:
    """Shorten a text to what the report shows, without invisible characters."""
    return "" if text is None else visible(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _words(name: str | None) -> str:
    """Format a column's value as words: `duplicate:exact` -> `duplicate: exact`."""
    return "–" if name is None else name.replace("_", " ").replace(":", ": ")


def _verdict(reason: str | None) -> str:
    """Format a reason for a card; None is `kept`."""
    return "kept" if reason is None else _words(reason.removesuffix("_threshold"))


def _number(value: float) -> str:
    """Format a threshold as the script does."""
    return f"{value:.3f}".removesuffix("0")


def _integer(n: int) -> str:
    return f"{n:,}"
