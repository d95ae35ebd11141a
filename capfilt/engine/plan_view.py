"""A plan in words: what `capfilt plan` prints, and its JSON."""

import glob
from pathlib import Path
from typing import Any

from rich.table import Table

from capfilt.config.pipeline import ModelSettings
from capfilt.config.source import source_name
from capfilt.engine.steps import MAKES, Plan, Step, rows
from capfilt.models.hub import resolve, weight_files
from capfilt.stages.caption_score import CaptionScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import read_json

_SECONDS_A_ROW = {"ingest": 4e-3, "near": 1e-4, "dedup": 2e-4, "select": 5e-5, "emit": 1e-3}
"""On one core, where this run has measured nothing yet."""
_SECONDS_A_BYTE = 1.4e-9
"""A caption or a judgement by weights of that many bytes in float32, on one core: BLIP-base 1.3 s (spec/speed.md)."""


def describe(plan: Plan) -> dict[str, Any]:
    """JSON-able: run, sources with bytes, rows, and per stage its state, reason, rows to do and estimated seconds.

    `seconds` are of one worker: from this run's own rate where it has one, else a rule of thumb.
    """
    layout, seen = plan.layout, _rates(plan)
    stages = [_stage(layout, step, seen.get(step.name)) for step in plan.steps]
    return {
        "run": str(layout.run),
        "sources": [{"name": source_name(s), "role": s.role, "bytes": _bytes(s.path)} for s in layout.pipeline.sources],
        "shards": len(layout.shards),
        "rows": sum(rows(layout, index) for index in range(len(layout.shards))),
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
    }


def _stage(layout: RunLayout, step: Step, rate: float | None) -> dict[str, Any]:
    whole = step.stage.scope == "all"
    shards = range(len(layout.shards)) if whole and step.todo else step.todo
    todo = sum(rows(layout, index) for index in shards)
    seconds = todo * (_guess(layout, step.name) if rate is None else rate)
    return {
        "stage": step.name,
        "state": "done" if not step.todo else "to do",
        "why": step.why,
        "folder": layout.folders[step.name],
        "shards_to_do": len(step.todo),
        "rows_to_do": todo,
        "seconds": round(seconds, 1),
        "measured": rate is not None,
    }


def _rates(plan: Plan) -> dict[str, float]:
    """Seconds a row of the stages that this run has worked on, from run.json."""
    seconds = (read_json(plan.layout.run / "run.json") or {}).get("seconds", {})
    finished: dict[str, int] = {}
    for step in plan.steps:
        missing = range(len(plan.layout.shards)) if step.stage.scope == "all" and step.todo else step.todo
        there = set(range(len(plan.layout.shards))) - set(missing)
        finished[step.name] = sum(rows(plan.layout, index) for index in there)
    together = seconds.get(CaptionScoreStage.name, 0.0) / 2  # made in one go, which says nothing of how it is divided
    spent = {name: seconds.get(name, 0.0) + (together if name in MAKES else 0.0) for name in finished}
    return {name: spent[name] / n for name, n in finished.items() if n and spent[name]}


def _guess(layout: RunLayout, stage: str) -> float:
    use: ModelSettings | None = {"caption": layout.pipeline.caption, "score": layout.pipeline.score}.get(stage)
    if use is None:
        return _SECONDS_A_ROW[stage]
    path = resolve(use.model, use.revision)
    return sum(file.stat().st_size for file in weight_files(path)) * _SECONDS_A_BYTE


def _bytes(path: str) -> int:
    """Of a file, of everything in a folder, or of what a glob names."""
    given = Path(path)
    found = [given] if given.is_file() else given.rglob("*") if given.is_dir() else map(Path, glob.glob(path))
    return sum(file.stat().st_size for file in found if file.is_file())


def render(found: dict[str, Any]) -> Table:
    """For the terminal."""
    size = sum(source["bytes"] for source in found["sources"])
    title = f"{found['run']}: {found['rows']:,} rows in {found['shards']:,} shards, {size / 2**20:,.1f} MiB of input"
    shown = Table("stage", "state", "shards", "rows", "about", "why", title=title, title_justify="left")
    for stage in found["stages"]:
        told = [f"{stage['shards_to_do']:,}", f"{stage['rows_to_do']:,}", _time(stage["seconds"])]
        shown.add_row(stage["stage"], stage["state"], *(told if stage["rows_to_do"] else ["", "", ""]), stage["why"])
    shown.caption = f"about {_time(found['seconds'])} on one worker; less with more (resources)"
    return shown


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
