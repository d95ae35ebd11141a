"""`capfilt run`, `select` and `retry` as functions: plan, work, check the sum, write down what was done.

A run's folder is written by one process at a time. Whatever stops it, the same call goes on: shards that are there are
complete, and only what is missing is made.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from capfilt.analysis.report.build import write_report
from capfilt.config.load import load_pipeline, with_settings
from capfilt.config.pipeline import Pipeline
from capfilt.engine.board import Done
from capfilt.engine.local import run_local
from capfilt.engine.plan import make_plan, out_of, retries
from capfilt.engine.progress import shown
from capfilt.engine.steps import MAKES, Plan
from capfilt.errors import ConfigError, DataError, RunError
from capfilt.selection.accounting import Accounting, account
from capfilt.selection.truth import truth
from capfilt.stages.caption_score import CaptionScoreStage
from capfilt.stages.retry import positions
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import locked, open_run, read_json, write_facts
from capfilt.store.shards import clean, file_sha256, write_atomic
from capfilt.store.versions import versions
from capfilt.version import __version__

LEAST_FREE = 256 * 2**20
"""Bytes below which a run does not begin."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    layout: RunLayout
    accounting: Accounting
    truth: dict[str, Any] | None
    """How the filter did on a labelled sample, where the pipeline has one."""
    seconds: float

    @property
    def dataset(self) -> Path:
        """What `emit` wrote."""
        return self.layout.run / "dataset"

    @property
    def poisoned(self) -> bool:
        """Rows were quarantined because they killed their worker."""
        return "killed_worker" in self.accounting.quarantined


def run(
    pipeline: Pipeline | str | Path,
    *,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    local: bool = False,
    console: Console | None = None,
) -> Result:
    """Run a pipeline, or go on with it.

    Args:
        pipeline: a Pipeline, a YAML file, or the name of a shipped one.
        out: the run's folder; by default that of `base`, or runs/<name>.
        settings: `a.b=c` each, laid over a file.
        local: in this process, without Ray.
        console: where progress goes; nowhere by default.

    Raises:
        ConfigError, DataError: something to mend in the pipeline or its sources.
        RunError: the machine cannot go on (disk full, a worker dies whatever its input); finished shards stay.
    """
    if not isinstance(pipeline, Pipeline):
        pipeline = load_pipeline(pipeline, list(settings))
    return _work(make_plan(pipeline, out_of(pipeline, out)), local, console)


def select(folder: str | Path, settings: Iterable[str] = (), *, console: Console | None = None) -> Result:
    """Decide again from stored scores and emit again; no model runs.

    Raises:
        ConfigError: a setting that would need a stage to run again. DataError: no run there, or an unfinished one.
    """
    last = open_run(folder)
    pipeline = with_settings(last.layout.pipeline, list(settings), "--set")
    plan = make_plan(pipeline, last.layout.run, last.layout)
    stale = [f"{step.name} ({step.why})" for step in plan.steps if step.todo and step.name not in ("select", "emit")]
    if stale:
        raise ConfigError(f"{folder}: select runs no model, and these are to do: {', '.join(stale)}; use `capfilt run`")
    return _work(plan, True, console)


def retry(
    folder: str | Path, settings: Iterable[str] = (), *, local: bool = False, console: Console | None = None
) -> Result | None:
    """Ask again for the images that did not come for a passing reason, and run everything that depends on them.

    Returns None where there is nothing to ask for. Raises as `run`; ConfigError for a run that is not finished.
    """
    last = open_run(folder)
    if last.facts.get("state") != "finished":
        raise ConfigError(f"{folder}: the run is not finished; `capfilt run` goes on with it first")
    pipeline = with_settings(last.layout.pipeline, list(settings), "--set")
    if not any(positions(last.layout.shard("ingest", i)) for i in range(len(last.layout.shards))):
        return None
    run_folder = last.layout.run
    with locked(run_folder):
        write_atomic(run_folder / "retry.json", canonical({"times": retries(run_folder) + 1}))
    return run(pipeline, out=run_folder, local=local, console=console)


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write a finished run's HTML page. Raises DataError where there is no finished run."""
    found = open_run(folder)
    if "accounting" not in found.facts:
        raise DataError(f"{folder}: the run is not finished; `capfilt run` goes on with it")
    page = Path(out) if out else found.layout.run / "report.html"
    return write_report(found.layout, found.facts, found.facts["accounting"], page)


def _work(plan: Plan, local: bool, console: Console | None) -> Result:
    layout, started = plan.layout, monotonic()
    _room(layout)
    with locked(layout.run):
        _prepare(plan)
        seconds: dict[str, float] = {}

        def note(done: Done) -> None:
            seconds[done.stage] = seconds.get(done.stage, 0.0) + done.seconds
            show(done)

        with shown(plan, console or Console(quiet=True)) as show:
            _compute(plan, local, note)
        if plan.steps_by_name["emit"].todo:
            _mark_dataset(plan)
        result = Result(layout, account(layout), truth(layout), monotonic() - started)
        _finish(plan, result, seconds)
        report(layout.run)
    return result


def _compute(plan: Plan, local: bool, note: Any) -> None:
    if plan.done:
        return
    if local:
        run_local(plan, note)
    else:
        from capfilt.engine.ray_pool import run_ray

        run_ray(plan, note)


def _prepare(plan: Plan) -> None:
    """Sweep up after writers that died, say in each folder what makes it, and write run.json for the first time."""
    for step in plan.steps:
        if step.name == "emit":
            if step.todo:
                (plan.layout.run / "dataset.json").unlink(missing_ok=True)
            continue
        folder = plan.layout.folder(step.name)
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        write_atomic(folder / "fingerprint.json", canonical(step.material))
    write_facts(plan.layout.run, _facts(plan, "running"))


def _mark_dataset(plan: Plan) -> None:
    """After `emit`: which fingerprint the dataset has, and the hashes by which `verify` knows its files."""
    root = plan.layout.folder("emit")
    files = {p.relative_to(root).as_posix(): file_sha256(p) for p in sorted(root.rglob("*")) if p.is_file()}
    facts = {"fingerprint": plan.steps_by_name["emit"].fingerprint, "files": files}
    write_atomic(plan.layout.run / "dataset.json", canonical(facts))


def _finish(plan: Plan, result: Result, seconds: dict[str, float]) -> None:
    before = (read_json(plan.layout.run / "run.json") or {}).get("seconds", {})
    spent = {**before, **{name: round(before.get(name, 0.0) + s, 3) for name, s in seconds.items()}}
    counts = {**result.accounting.to_dict(), "truth": result.truth}
    facts = {**_facts(plan, "finished"), "seconds": spent, "accounting": counts}
    write_facts(plan.layout.run, facts)


def _facts(plan: Plan, state: str) -> dict[str, Any]:
    layout, old = plan.layout, read_json(plan.layout.run / "run.json") or {}
    return {
        "state": state,
        "name": layout.pipeline.name,
        "capfilt": __version__,
        "versions": versions(),
        "pipeline": layout.pipeline.model_dump(mode="json"),
        "fingerprints": {step.name: step.fingerprint for step in plan.steps},
        "materials": {step.name: step.material for step in plan.steps},
        "folders": layout.folders,
        "digests": layout.digests,
        "seconds": {name: s for name, s in old.get("seconds", {}).items() if _same(old, plan, name)},
        "units": [[u.source, u.path, u.start, u.stop] for u in layout.shards],
    }


def _same(old: dict[str, Any], plan: Plan, name: str) -> bool:
    prints, steps = old.get("fingerprints", {}), plan.steps_by_name
    parts = MAKES if name == CaptionScoreStage.name else (name,)
    return all(part in steps and prints.get(part) == steps[part].fingerprint for part in parts)


def _room(layout: RunLayout) -> None:
    """Raises RunError where less is free than the pairs alone may take."""
    folder = next(p for p in (layout.run, *layout.run.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise RunError(
            f"{layout.run}: {free / 2**20:.0f} MB are free there; make room for the images twice over and more"
        )
