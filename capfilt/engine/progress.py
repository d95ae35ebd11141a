"""Progress of a run, on stderr: a bar per stage on a terminal, otherwise a line per shard."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from capfilt.engine.board import Done, Progress
from capfilt.engine.steps import Plan


@contextmanager
def progress_display(plan: Plan, console: Console) -> Iterator[Progress]:
    """Show the progress inside the block; yield the callback that counts a finished task."""
    groups = {group.name: group for group in plan.groups}
    tally = {name: [0, 0, 0.0] for name in groups}  # finished tasks, rows, seconds
    totals = {name: len(group.todo) for name, group in groups.items()}

    def count(done: Done) -> str:
        tasks, rows, seconds = tally[done.stage]
        rows += plan.rows_of_task(groups[done.stage].steps[0], done.shard)
        tally[done.stage] = [tasks + 1, rows, seconds + done.seconds]
        return f"{rows:,} rows  {rows / max(tally[done.stage][2], 1e-9):,.1f} rows/s per worker"

    if not console.is_terminal:
        yield lambda done: console.print(_line(done, count(done), tally[done.stage][0], totals[done.stage]))
        return
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[counted]}"), console=console) as bars:
        tasks = {name: bars.add_task(name, total=total, counted="") for name, total in totals.items() if total}
        yield lambda done: bars.update(tasks[done.stage], advance=1, counted=count(done))


def _line(done: Done, counted: str, finished: float, total: int) -> str:
    return f"{done.stage:13} {finished:.0f}/{total}  {counted}"
