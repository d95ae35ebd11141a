"""What `capfilt plan` shows of a pipeline with rounds, and the table at the end of its run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from capfilt.analysis.report.rounds import METRICS
from capfilt.config.pipeline import Pipeline
from capfilt.engine import plan_view
from capfilt.engine.plan import make_plan, out_of
from capfilt.rounds.loop import Round, round_folder, round_pipeline
from capfilt.rounds.measure import check_held_out
from capfilt.rounds.trainings import STAGES, check_trainings
from capfilt.store.run_folder import RunFolder, read_json


def describe(pipeline: Pipeline, out: str | Path | None) -> dict[str, Any]:
    """Describe a loop that is planned, running or finished.

    Returns:
        JSON values: `run`, its folder; `pairs`, the plan of the first round's run; `rounds`, the state of each round.

    Raises:
        ConfigError, CheckpointError, DataError: as `make_plan`, `check_trainings` and `check_held_out`.
    """
    check_trainings(pipeline)
    check_held_out(pipeline.evaluate)
    run = out_of(pipeline, out).resolve()
    folder = RunFolder(round_folder(run, 1))
    first = plan_view.describe(make_plan(round_pipeline(pipeline, 1, {}), folder), folder)
    rounds = [_round(round_folder(run, number), number) for number in range(1, pipeline.rounds + 1)]
    return {"run": str(run), "pairs": first, "rounds": rounds}


def _round(folder: Path, number: int) -> dict[str, Any]:
    """Return a round's state on disk. Whether finished parts are still valid is known once the round before has run."""
    run = (read_json(folder / "run.json") or {}).get("state", "to do")
    trained = {stage: "there" if any(folder.glob(f"{stage}-*/done.json")) else "to do" for stage in STAGES}
    return {"round": number, "run": run, **trained}


def trainings_table(found: dict[str, Any]) -> Table:
    """Return the state of each round's trainings as a table for the terminal."""
    names = [name for name in found["rounds"][0] if name != "round"]
    shown = Table("round", *(name.replace("_", " ") for name in names), title="rounds", title_justify="left")
    for one in found["rounds"]:
        shown.add_row(str(one["round"]), *(one[name] for name in names))
    return shown


def table(rounds: Sequence[Round]) -> Table:
    """Return a table of texts kept by origin, then metrics with their intervals; one column per round."""
    shown = Table("", *(f"round {one.number}" for one in rounds))
    for origin in ("web", "synthetic"):
        counts = [one.result.accounting.texts[origin] for one in rounds]
        shown.add_row(f"{origin} texts kept", *(f"{count.kept:,} of {count.candidates:,}" for count in counts))
    for key, title in METRICS:
        if all(key in one.metrics for one in rounds):
            shown.add_row(title, *(_value(one.metrics, key) for one in rounds))
    return shown


def _value(metrics: dict[str, Any], key: str) -> str:
    interval = metrics.get(f"{key}_ci")
    return f"{metrics[key]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
