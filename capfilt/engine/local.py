"""Runs a plan in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from capfilt.engine.board import Done, Progress, explain
from capfilt.engine.steps import Plan
from capfilt.engine.worker import Worker
from capfilt.errors import RunError


def run_local(plan: Plan, progress: Progress) -> None:
    """Every stage in turn in this process. A row that kills its worker kills this process: use Ray for such data."""
    for step in plan.work:
        worker = Worker(step.stage, plan.layout)
        for shard in step.todo:
            started = monotonic()
            with told(step.name, shard):
                worker.process(shard)
            progress(Done(step.name, shard, monotonic() - started))


@contextmanager
def told(stage: str, shard: int) -> Iterator[None]:
    """Turns what the machine raises inside the block into a RunError that says where and what to do."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise RunError(explain(stage, shard, error)) from error
