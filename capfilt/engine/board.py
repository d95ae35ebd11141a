"""Runs a plan: in this process, or on Ray by actors that are given shards whose inputs exist.

Why an own loop (measured on ray 2.60): ActorPool loses the shard of a killed actor even with max_restarts=-1; Ray Data
and max_task_retries=-1 lose nothing but try a shard that kills its worker for ever. Here a shard whose worker dies is
given to a fresh one, three times in all; then the rows that kill are found by halving and left out by position.
Only paths and positions travel; the shard file is the checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass

from capfilt.engine.steps import Plan, Step

TRIES = 3
"""Workers that may die on a shard before its rows are suspected."""


@dataclass(frozen=True)
class Done:
    """One finished piece of work."""

    stage: str
    shard: int
    seconds: float
    poison: tuple[int, ...] = ()
    """Positions of rows that killed their worker each time."""


Progress = Callable[[Done], None]


class Board:
    """What is to do, in which order it may be done, and what is finished."""

    def __init__(self, plan: Plan) -> None:
        self.steps = {step.name: step for step in plan.work}
        self.todo = {step.name: list(step.todo) for step in plan.work}
        self._open = {step.name: set(step.todo) for step in plan.work}

    def ready(self, stage: str) -> list[int]:
        """Shards of a stage that nobody has taken and whose inputs exist."""
        return [shard for shard in self.todo[stage] if self._fed(self.steps[stage], shard)]

    def _fed(self, step: Step, shard: int) -> bool:
        for name in step.stage.inputs:
            open_ = self._unmade(name)
            barrier = "all" in (step.stage.scope, self.steps[name].stage.scope if open_ else "")
            if open_ if barrier else shard in open_:
                return False
        return True

    def _unmade(self, stage: str) -> set[int]:
        """Shards of a stage that are not there yet, whoever makes them."""
        makers = (name for name, step in self.steps.items() if stage in step.makes)
        return set[int]().union(*(self._open[name] for name in makers))

    def part(self, stage: str, shard: int) -> None:
        """A shard that one step would make for two stages is left to them."""
        self._open[stage].discard(shard)
        for name in self.steps[stage].makes:
            self.todo[name].insert(0, shard)
            self._open[name].add(shard)

    def take(self, stage: str, shard: int) -> None:
        """Somebody works on it."""
        self.todo[stage].remove(shard)

    def put_back(self, stage: str, shard: int) -> None:
        """Nobody does any more."""
        self.todo[stage].insert(0, shard)

    def finish(self, stage: str, shard: int) -> None:
        """Its file is there."""
        self._open[stage].discard(shard)

    def left(self, stage: str) -> bool:
        """Something of the stage is not finished."""
        return bool(self._open[stage])

    @property
    def finished(self) -> bool:
        """Everything is."""
        return not any(self._open.values())


def explain(stage: str, shard: int, error: BaseException) -> str:
    """For an error of the machine, not of the data."""
    return (
        f"{stage}, shard {shard}: {type(error).__name__}: {error}; "
        "finished shards stay: mend it and give the same command again"
    )


def halve(rows: range) -> tuple[range, range]:
    """The two halves of a range of row positions."""
    middle = rows.start + len(rows) // 2
    return range(rows.start, middle), range(middle, rows.stop)
