"""The report of a loop, RUN/report.html: rounds compared by noise removed, texts kept, metrics, losses and captions.

Each round has a report of its own in its folder. Untrusted text is escaped, as it is there. The page's
Content-Security-Policy allows no script and no request.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capfilt.analysis.report.gallery import thumbnails
from capfilt.analysis.report.page import render
from capfilt.analysis.sql import ask, connect
from capfilt.errors import DataError
from capfilt.selection.policies import JUDGED
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import open_run, read_json
from capfilt.store.schema import ORIGINS
from capfilt.store.shards import write_atomic

CARDS = 12
"""Images whose captions of every round are shown."""
STAGES = ("pretrain", "finetune_captioner", "finetune_filter")
TERMS = ("itc", "itm", "lm")
WIDTH, HEIGHT = 300, 90
"""Size of a chart in SVG units."""
METRICS = (
    ("pretrained_t2i_r1", "text to image R@1, pre-trained, ITC"),
    ("pretrained_i2t_r1", "image to text R@1, pre-trained, ITC"),
    ("filter_t2i_r1", "text to image R@1, filter, ITC"),
    ("filter_t2i_r1_itm", "text to image R@1, filter, re-ranked by ITM"),
    ("filter_itc_auc", "AUC of the filter's ITC"),
    ("filter_itm_auc", "AUC of the filter's ITM"),
    ("captioner_cider", "CIDEr of the captioner"),
    ("captioner_cider_nearest", "CIDEr of the nearest training image's text"),
)
_CAPTIONS = """
    SELECT uid, text, itm, kept FROM candidates
    WHERE origin = 'synthetic' AND sample = 0 AND uid IN (SELECT unnest($uids))"""
_OWN = "SELECT uid, text, itm, kept FROM candidates WHERE origin = 'web' AND uid IN (SELECT unnest($uids))"
_CHOICE = "SELECT uid FROM candidates WHERE origin = 'synthetic' AND itm IS NOT NULL GROUP BY uid ORDER BY uid LIMIT $n"


def write_loop_report(run: Path) -> Path:
    """Write RUN/report.html from RUN/loop.json and the rounds' folders. Raises DataError if RUN is no loop."""
    facts = read_json(run / "loop.json")
    if facts is None:
        raise DataError(f"{run}: no loop.json there; `capfilt run` of a pipeline with `pretrain` writes it")
    rounds = facts["rounds"]
    layouts = [open_run(run / f"round-{one['round']}").layout for one in rounds]
    context = {
        "name": facts["pipeline"]["name"],
        "rounds": [_counts(one) for one in rounds],
        "metrics": _metrics([one["metrics"] for one in rounds]),
        "images": rounds[0]["metrics"].get("images"),
        "stages": _stages(run, rounds),
        "cards": _cards(layouts),
    }
    write_atomic(run / "report.html", render("loop.html.j2", context))
    return run / "report.html"


def _counts(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts that a round kept, and the share of judged texts that it rejected: the paper's noise ratio."""
    counts = one["accounting"]
    texts = {origin: counts["texts"][origin] for origin in ORIGINS if origin in counts["texts"]}
    origins = [{"origin": origin, **_judged(of)} for origin, of in texts.items() if of["candidates"]]
    return {"round": one["round"], "rows": counts["rows"]["in"], "origins": origins}


def _judged(texts: Mapping[str, Any]) -> dict[str, Any]:
    refused = sum(n for reason, n in texts["rejected"].items() if reason in JUDGED)
    judged = refused + texts["kept"]
    return {"texts": texts["candidates"], "kept": texts["kept"], "noise": refused / judged if judged else 0.0}


def _metrics(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for key, title in METRICS:
        if all(key in one for one in rounds):
            cells = [{"value": one[key], "ci": one.get(f"{key}_ci")} for one in rounds]
            rows.append({"title": title, "cells": cells})
    return rows


def _stages(run: Path, rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the charts of the losses per training stage."""
    stages = []
    for stage in (stage for stage in STAGES if stage in rounds[0]["folders"]):
        logs = [_log(run / f"round-{one['round']}" / one["folders"][stage] / "log.jsonl") for one in rounds]
        charts = [chart(term, logs) for term in TERMS if any(term in line for log in logs for line in log)]
        stages.append({"stage": stage.replace("_", " "), "charts": charts})
    return stages


def _log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def chart(term: str, logs: Sequence[Iterable[Mapping[str, float]]]) -> dict[str, Any]:
    """Return the chart of a loss over the steps: one SVG path per round, on common axes, in WIDTH x HEIGHT."""
    curves = [[(line["step"], line[term]) for line in log if term in line] for log in logs]
    points = [point for curve in curves for point in curve]
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0

    def place(step: float, value: float) -> str:
        return f"{WIDTH * step / last:.1f} {HEIGHT * (high - value) / span:.1f}"

    paths = ["M" + "L".join(place(*point) for point in curve) if curve else "" for curve in curves]
    ends = [curve[-1][1] if curve else None for curve in curves]
    return {"term": term.upper(), "paths": paths, "ends": ends, "low": low, "high": high, "steps": int(last)}


def _cards(layouts: Sequence[RunLayout]) -> list[dict[str, Any]]:
    """Return the same images for all rounds, in the order of uids, with the caption of each round."""
    with connect(layouts[0]) as connection:
        uids = [row[0] for row in ask(connection, _CHOICE, {"n": CARDS}).rows]
        own = {row["uid"]: row for row in ask(connection, _OWN, {"uids": uids}).records()}
    captions = []
    for layout in layouts:
        with connect(layout) as connection:
            captions.append({row["uid"]: row for row in ask(connection, _CAPTIONS, {"uids": uids}).records()})
    pictures = thumbnails(layouts[0], uids)
    return [
        {"uid": uid, "picture": pictures.get(uid), "own": own.get(uid), "captions": [one.get(uid) for one in captions]}
        for uid in uids
    ]
