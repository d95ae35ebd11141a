"""What a run shows while it works: bars a stage on a terminal, a line a shard elsewhere. All of it on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from capfilt.engine.board import Done, Progress
from capfilt.engine.steps import Plan, rows


@contextmanager
def shown(plan: Plan, console: Console) -> Iterator[Progress]:
    """Gives the callback for the engine."""
    steps = {step.name: step for step in plan.work}
    tally = {name: [0, 0, 0.0] for name in steps}
    totals = {name: len(step.todo) for name, step in steps.items()}

    def count(done: Done) -> str:
        shards, images, seconds = tally[done.stage]
        many = range(len(plan.layout.shards)) if steps[done.stage].stage.scope == "all" else [done.shard]
        images += sum(rows(plan.layout, index) for index in many)
        tally[done.stage] = [shards + 1, images, seconds + done.seconds]
        return f"{images:,} rows  {images / max(tally[done.stage][2], 1e-9):,.1f} rows/s a worker"

    if not console.is_terminal:
        yield lambda done: console.print(_line(done, count(done), tally[done.stage][0], totals[done.stage]))
        return
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[told]}"), console=console) as bars:
        tasks = {name: bars.add_task(name, total=total, told="") for name, total in totals.items() if total}
        yield lambda done: bars.update(tasks[done.stage], advance=1, told=count(done))


def _line(done: Done, told: str, finished: float, total: int) -> str:
    return f"{done.stage:13} {finished:.0f}/{total}  {told}"
