"""`capfilt run`, `select`, `retry` and `report` as functions.

Each plans the work, does it, checks that no row was lost, and records the result in run.json. One process writes a
run's folder at a time. The same call continues a run that was stopped: shards that exist are complete, and only missing
ones are computed.
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
from capfilt.engine.board import Done, Progress
from capfilt.engine.local import run_local
from capfilt.engine.plan import make_plan, out_of
from capfilt.engine.progress import progress_display
from capfilt.engine.steps import Plan, parts_of
from capfilt.errors import ConfigError, DataError, RunError
from capfilt.selection.accounting import Accounting, account
from capfilt.selection.truth import truth
from capfilt.stages.retry import retryable_rows
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import RunFolder, open_run
from capfilt.store.schema import DATASET, PAIRS
from capfilt.store.shards import remove_temp_files, write_atomic
from capfilt.store.versions import versions
from capfilt.version import __version__

MIN_FREE_BYTES = 256 * 2**20
"""Free disk space, in bytes, below which a run does not start."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    layout: RunLayout
    """Where its files are."""
    accounting: Accounting
    """Where every row and text went."""
    truth: dict[str, Any] | None
    """How many right and wrong texts of a labelled sample were kept; None if the pipeline has no such sample."""
    seconds: float
    """Wall time of this call."""

    @property
    def dataset(self) -> Path:
        """The folder that `emit` wrote."""
        return self.layout.run / DATASET.folder

    @property
    def poisoned(self) -> bool:
        """Whether rows were quarantined because they killed their worker."""
        return "killed_worker" in self.accounting.quarantined


def run(
    pipeline: Pipeline | str | Path,
    *,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    local: bool = False,
    console: Console | None = None,
) -> Result:
    """Run a pipeline, or continue a run that was stopped.

    Args:
        pipeline: a Pipeline, a YAML file, or the name of a shipped one.
        out: the run's folder; by default the pipeline's `base`, or runs/<name>.
        settings: changes `a.b=c` to the keys of a YAML file or shipped pipeline; not used with a Pipeline.
        local: work in this process, not on Ray.
        console: shows the progress; by default it is not shown.

    Raises:
        ConfigError, DataError: something to repair in the pipeline or its sources.
        RunError: the machine cannot continue (disk full, a worker dies whatever its input); finished shards are kept.
    """
    if not isinstance(pipeline, Pipeline):
        pipeline = load_pipeline(pipeline, list(settings))
    if pipeline.trains:
        raise ConfigError(
            f"{pipeline.name}: this pipeline trains in rounds; in Python call capfilt.rounds.loop.run_rounds, or use "
            "`capfilt run`"
        )
    folder = RunFolder(out_of(pipeline, out))
    return _work(make_plan(pipeline, folder), folder, local, console)


def select(folder: str | Path, settings: Iterable[str] = (), *, console: Console | None = None) -> Result:
    """Apply new thresholds to the stored scores and write the data set again; no model runs.

    Args:
        folder: the folder of a finished run.
        settings: changes `a.b=c` to its pipeline.
        console: as in `run`.

    Raises:
        ConfigError: the change, or an unfinished run, needs a stage that runs a model or finds duplicates.
        DataError: the folder is no run.
    """
    last = open_run(folder)
    pipeline = with_settings(last.layout.pipeline, list(settings), "--set")
    plan = make_plan(pipeline, last.folder, last.layout)
    stale = [f"{step.name} ({step.why})" for step in plan.steps if step.todo and not step.spec.reruns_in_select]
    if stale:
        raise ConfigError(f"{folder}: select runs no model, and these are to do: {', '.join(stale)}; use `capfilt run`")
    return _work(plan, last.folder, True, console)


def retry(
    folder: str | Path, settings: Iterable[str] = (), *, local: bool = False, console: Console | None = None
) -> Result | None:
    """Download again the images that failed for a temporary reason, and run everything that depends on them.

    Args:
        folder: the folder of a finished run.
        settings: changes `a.b=c` to its pipeline.
        local, console: as in `run`.

    Returns:
        The result, or None if no image failed for a temporary reason.

    Raises:
        ConfigError: the run is not finished; or as `run`.
        DataError, RunError: as `run`.
    """
    last = open_run(folder)
    if last.facts.get("state") != "finished":
        raise ConfigError(f"{folder}: the run is not finished; `capfilt run` finishes it first")
    pipeline = with_settings(last.layout.pipeline, list(settings), "--set")
    if not any(retryable_rows(last.layout.shard(PAIRS, i)) for i in range(len(last.layout.shards))):
        return None
    with last.folder.locked():
        if last.folder.retries == last.facts["materials"][PAIRS.stage].get("retry", 0):  # else one failed to begin
            last.folder.add_retry()
    return run(pipeline, out=last.folder.path, local=local, console=console)


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the HTML report of a finished run, by default to report.html in its folder. Return its path.

    Raises:
        DataError: the folder is no run, or the run is not finished.
    """
    found = open_run(folder)
    if "accounting" not in found.facts:
        raise DataError(f"{folder}: the run is not finished; `capfilt run` finishes it")
    return _report(found.layout, found.facts, out)


def _report(layout: RunLayout, facts: dict[str, Any], out: str | Path | None = None) -> Path:
    return write_report(layout, facts, facts["accounting"], Path(out) if out else layout.run / "report.html")


def _work(plan: Plan, folder: RunFolder, local: bool, console: Console | None) -> Result:
    layout, started = plan.layout, monotonic()
    _check_free_space(layout)
    with folder.locked():
        _prepare(plan, folder)
        seconds: dict[str, float] = {}

        def note(done: Done) -> None:
            seconds[done.stage] = seconds.get(done.stage, 0.0) + done.seconds
            show(done)

        with progress_display(plan, console or Console(quiet=True)) as show:
            _compute(plan, local, note)
        result = Result(layout, account(layout), truth(layout), monotonic() - started)
        _finish(plan, folder, result, seconds)
        _report(layout, folder.facts)
    return result


def _compute(plan: Plan, local: bool, note: Progress) -> None:
    if plan.done:
        return
    if local:
        run_local(plan, note)
    else:
        from capfilt.engine.ray_pool import run_ray

        run_ray(plan, note)


def _prepare(plan: Plan, folder: RunFolder) -> None:
    """Remove temporary files of killed writers, and write the fingerprint inputs of each folder and run.json."""
    for step in plan.steps:
        if step.spec.table is None and step.spec.output.folder:
            continue  # a folder that its stage replaces as a whole
        stage_folder = plan.layout.folder(step.name)
        stage_folder.mkdir(parents=True, exist_ok=True)
        remove_temp_files(stage_folder)
        write_atomic(stage_folder / "fingerprint.json", canonical(step.fingerprint_inputs))
    folder.write_facts(_facts(plan, folder.facts, "running"))


def _finish(plan: Plan, folder: RunFolder, result: Result, seconds: dict[str, float]) -> None:
    before = folder.facts.get("seconds", {})
    spent = {**before, **{name: round(before.get(name, 0.0) + s, 3) for name, s in seconds.items()}}
    counts = {**result.accounting.to_dict(), "truth": result.truth}
    folder.write_facts({**_facts(plan, folder.facts, "finished"), "seconds": spent, "accounting": counts})


def _facts(plan: Plan, old: dict[str, Any], state: str) -> dict[str, Any]:
    layout = plan.layout
    return {
        "state": state,
        "name": layout.pipeline.name,
        "capfilt": __version__,
        "versions": versions(),
        "pipeline": layout.pipeline.model_dump(mode="json"),
        "fingerprints": layout.fingerprints,
        "materials": {step.name: step.fingerprint_inputs for step in plan.steps},
        "folders": layout.folders,
        "digests": layout.digests,
        "seconds": {name: s for name, s in old.get("seconds", {}).items() if _unchanged(old, plan, name)},
        "units": [[spec.source, spec.path, spec.start, spec.stop] for spec in layout.shards],
    }


def _unchanged(old: dict[str, Any], plan: Plan, name: str) -> bool:
    """Return whether the fingerprints of a group's stages are those of the last run."""
    fingerprints, steps = old.get("fingerprints", {}), plan.steps_by_name
    return all(part in steps and fingerprints.get(part) == steps[part].fingerprint for part in parts_of(name))


def _check_free_space(layout: RunLayout) -> None:
    """Raise RunError if less than MIN_FREE_BYTES of disk space are free."""
    folder = next(p for p in (layout.run, *layout.run.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise RunError(
            f"{layout.run}: {free / 2**20:.0f} MB are free; make room for two copies of all images, and more"
        )
