"""Runs a plan in this process, one task after another."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from capfilt.engine.board import Done, Progress, explain
from capfilt.engine.steps import Plan
from capfilt.engine.worker import Worker
from capfilt.errors import RunError
from capfilt.stages.base import Task


def run_local(plan: Plan, progress: Progress) -> None:
    """Run every group in turn. A row that kills its worker kills this process: use Ray for such data.

    Raises:
        CapfiltError: as the stages do.
        RunError: the machine cannot continue (disk full, out of memory).
    """
    for group in plan.groups:
        worker = Worker(group.worker, tuple(step.stage for step in group.steps), plan.layout)
        for index in group.todo:
            started = monotonic()
            with machine_errors(group.name, index):
                worker.process(Task(index))
            progress(Done(group.name, index, monotonic() - started))


@contextmanager
def machine_errors(stage: str, shard: int) -> Iterator[None]:
    """Turn an error of the machine inside the block into a RunError that says where, and what to do."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise RunError(explain(stage, shard, error)) from error
