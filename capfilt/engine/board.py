"""The scheduler's state: which tasks may start and which are unfinished; constant work per finished task.

A task waits for products: (stage, index) pairs of its inputs that do not exist yet. The board counts them per task.
Finishing a product lowers the count of each task that waits for it, and a task whose count reaches zero becomes ready.
Nothing is searched, so the cost of scheduling is linear in the number of tasks, not quadratic.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capfilt.engine.steps import Plan, WorkGroup

TRIES = 3
"""Workers that may die on a task before its rows are suspected."""

Product = tuple[str, int]
"""(stage, index): what a finished task has written."""


@dataclass(frozen=True)
class Done:
    """One finished task."""

    stage: str
    """Name of its group: a stage, or fused stages."""
    shard: int
    seconds: float
    poison: tuple[int, ...] = ()
    """Positions of rows that killed their worker each time."""


Progress = Callable[[Done], None]
"""Called with every finished task."""


class TaskBoard:
    """What is left to do in a plan, and in which order it may be done."""

    def __init__(self, plan: Plan) -> None:
        self.groups = {group.name: group for group in plan.groups}
        self._todo = {step.name: step.todo for step in plan.steps}
        self._whole = {step.name for step in plan.steps if step.whole}
        self._missing = {(step.name, index) for step in plan.steps for index in step.todo}
        self._waiting: dict[Product, list[tuple[str, int]]] = defaultdict(list)
        self._counts: dict[tuple[str, int], int] = {}
        self._ready: dict[str, deque[int]] = {name: deque() for name in self.groups}
        self._open = dict.fromkeys(self.groups, 0)
        for group in self.groups.values():
            for index in group.todo:
                self._add(group, index)

    def ready(self, name: str) -> deque[int]:
        """Return the tasks of a group that nobody has taken and whose inputs exist, in the order to take them."""
        return self._ready[name]

    def left(self, name: str) -> bool:
        """Return whether a task of the group is not finished."""
        return self._open[name] > 0

    @property
    def finished(self) -> bool:
        """Whether every task is finished."""
        return not any(self._open.values())

    def take(self, name: str) -> int:
        """Take the next ready task of a group."""
        return self._ready[name].popleft()

    def put_back(self, name: str, index: int) -> None:
        """Make a taken task the next to be taken again."""
        self._ready[name].appendleft(index)

    def finish(self, name: str, index: int) -> None:
        """Note that a task's output exists."""
        self._open[name] -= 1
        for step in self.groups[name].steps:
            product = step.name, index
            self._missing.discard(product)
            for task in self._waiting.pop(product, ()):
                self._counts[task] -= 1
                if self._counts[task] == 0:
                    self._ready[task[0]].append(task[1])

    def split(self, name: str, index: int) -> None:
        """Replace a task of fused stages by one task of each of its stages."""
        self._open[name] -= 1
        for step in self.groups[name].steps:
            self._add(self.groups[step.name], index, first=True)

    def _add(self, group: WorkGroup, index: int, first: bool = False) -> None:
        self._open[group.name] += 1
        task, count = (group.name, index), 0
        for product in self._needs(group, index):
            if product in self._missing:
                self._waiting[product].append(task)
                count += 1
        self._counts[task] = count
        if not count:
            ready = self._ready[group.name]
            (ready.appendleft if first else ready.append)(index)

    def _needs(self, group: WorkGroup, index: int) -> Iterator[Product]:
        """Yield what a task reads, as far as this run makes it."""
        for name in group.inputs:
            if group.whole or name in self._whole:
                yield from ((name, i) for i in self._todo.get(name, ()))
            else:
                yield name, index


def explain(stage: str, shard: int, error: BaseException) -> str:
    """Return the message for an error of the machine, not of the data."""
    return (
        f"{stage}, shard {shard}: {type(error).__name__}: {error}; "
        "finished shards stay: repair it and give the same command again"
    )


def halve(rows: range) -> tuple[range, range]:
    """Return the two halves of a range of row positions."""
    middle = rows.start + len(rows) // 2
    return range(rows.start, middle), range(middle, rows.stop)
