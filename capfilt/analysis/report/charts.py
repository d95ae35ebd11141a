"""The score charts of the report, and the data with which its script moves the thresholds."""

import json
from typing import Any

from markupsafe import Markup

from capfilt.analysis.report.histogram import Axis, Counts, bars
from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies import policy_of
from capfilt.store.schema import ORIGINS

_SCORES = {
    "itm": ("ITM", "probability that text and image match, by cross-attention"),
    "itc": ("ITC", "cosine of the text's and the image's features"),
}


def chart(counts: Counts, axis: Axis, select: SelectSettings) -> dict[str, Any]:
    """Return one score's chart: an SVG path per origin, tick marks and the slider's position."""
    title, meaning = _SCORES[axis.score]
    own = axis.edges[axis.at]
    spacing = next(step for step in (0.1, 0.2, 0.5) if axis.high - axis.low <= 5.01 * step)
    ticks = [round(axis.low + k * spacing, 1) + 0.0 for k in range(int((axis.high - axis.low) / spacing + 1.01))]
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


def script_data(counts: Counts, select: SelectSettings) -> Markup:
    """Return the script's data as JSON: edges and threshold of both axes, the rule, and the counts by both bins."""
    axes = {
        axis.score: {"edges": [round(e, 7) for e in axis.edges], "at": axis.at} for axis in (counts.itm, counts.itc)
    }
    cells = {origin: [n for cell in counts.cells.get(origin, []) for n in cell] for origin in ("web", "synthetic")}
    text = json.dumps({**axes, "either": policy_of(select).either, "cells": cells}, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
