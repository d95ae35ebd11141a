"""`capfilt plan`: a plan as a table and as JSON."""

import glob
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.table import Table

from capfilt.config.pipeline import Pipeline
from capfilt.config.source import source_name
from capfilt.engine.steps import Plan, Step, parts_of
from capfilt.models.hub import resolve, weight_files
from capfilt.store.run_folder import RunFolder

_SECONDS_PER_BYTE = 1.4e-9
"""Seconds per caption or judgement and byte of float32 weights, on one core: BLIP-base takes 1.3 s."""


def describe(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Return the plan, JSON-able: run, sources with bytes, rows; per stage its state, reason, rows and seconds to do.

    `seconds` are those of one worker: from this run's own rate where it has one, else a rule of thumb.
    """
    layout, rates = plan.layout, _rates(plan, folder.facts.get("seconds", {}))
    stages = [_stage(plan, step, rates.get(step.name)) for step in plan.steps]
    return {
        "run": str(layout.run),
        "sources": [{"name": source_name(s), "role": s.role, "bytes": _bytes(s.path)} for s in layout.pipeline.sources],
        "shards": len(layout.shards),
        "rows": sum(map(plan.rows, range(len(layout.shards)))),
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
    }


def _stage(plan: Plan, step: Step, rate: float | None) -> dict[str, Any]:
    todo = sum(plan.rows_of_task(step, index) for index in step.todo)
    seconds = todo * (_guess(plan.layout.pipeline, step) if rate is None else rate)
    return {
        "stage": step.name,
        "state": "done" if not step.todo else "to do",
        "why": step.why,
        "folder": plan.layout.folders[step.name],
        "shards_to_do": len(step.todo),
        "rows_to_do": todo,
        "seconds": round(seconds, 1),
        "measured": rate is not None,
    }


def _rates(plan: Plan, seconds: dict[str, float]) -> dict[str, float]:
    """Return seconds per row of the stages that this run has worked on; fused stages count half and half."""
    spent: dict[str, float] = defaultdict(float)
    for name, value in seconds.items():
        parts = parts_of(name)
        for part in parts:
            spent[part] += value / len(parts)
    found = {}
    for step in plan.steps:
        todo = range(len(plan.layout.shards)) if step.whole and step.todo else step.todo
        rows = sum(map(plan.rows, set(range(len(plan.layout.shards))) - set(todo)))
        if rows and spent[step.name]:
            found[step.name] = spent[step.name] / rows
    return found


def _guess(pipeline: Pipeline, step: Step) -> float:
    use = step.spec.model(pipeline)
    if use is None:
        return step.spec.seconds_per_row
    path = resolve(use.model, use.revision)
    return sum(file.stat().st_size for file in weight_files(path)) * _SECONDS_PER_BYTE


def _bytes(path: str) -> int:
    """Return the bytes of a file, of all files in a folder, or of the files that a glob matches."""
    given = Path(path)
    found = [given] if given.is_file() else given.rglob("*") if given.is_dir() else map(Path, glob.glob(path))
    return sum(file.stat().st_size for file in found if file.is_file())


def render(found: dict[str, Any]) -> Table:
    """Return the plan as a table for the terminal."""
    size = sum(source["bytes"] for source in found["sources"])
    title = f"{found['run']}: {found['rows']:,} rows in {found['shards']:,} shards, {size / 2**20:,.1f} MiB of input"
    shown = Table("stage", "state", "shards", "rows", "about", "why", title=title, title_justify="left")
    for stage in found["stages"]:
        numbers = [f"{stage['shards_to_do']:,}", f"{stage['rows_to_do']:,}", _time(stage["seconds"])]
        shown.add_row(stage["stage"], stage["state"], *(numbers if stage["rows_to_do"] else ["", "", ""]), stage["why"])
    shown.caption = f"about {_time(found['seconds'])} on one worker; less with more (resources)"
    return shown


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
