"""Runs a plan on Ray: a pool of actors per group of tasks, and a `ray.wait` loop that hands out tasks.

An actor loads its model once and has one task in flight, which is the back-pressure. A group starts actors while the
cluster has room for them, and at least `min_actors` whether or not it has room: Ray's autoscaler adds nodes for actors
that wait. An idle actor is stopped when its group is finished or when another group waits for its place.

Reasons for a loop of its own (measured on ray 2.60): ActorPool loses the shard of a killed actor even with
max_restarts=-1; Ray Data and max_task_retries=-1 lose nothing, but try a shard that kills its worker without end. Here
three workers in all try such a shard; then the rows that kill are found by halving and quarantined by position. Only
paths and positions are sent to actors; the shard file is the checkpoint.
"""

import logging
from collections import Counter, deque
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from capfilt.config.pipeline import Resources
from capfilt.engine.board import TRIES, Done, Progress, TaskBoard, explain, halve
from capfilt.engine.ray_cluster import check_capacity, cluster
from capfilt.engine.steps import Plan, WorkGroup
from capfilt.engine.worker import Worker
from capfilt.errors import CapfiltError, RunError
from capfilt.stages.base import Task
from capfilt.store.row_filter import RowFilter

SUSPECTS = 16
"""If more rows than this kill their worker, rows are not the cause: the whole shard is quarantined."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Actor:
    """A worker somewhere in the cluster."""

    handle: Any
    """Ray's handle of a `Worker`."""
    group: str
    """Name of the group whose tasks it does."""
    need: Resources
    """What it occupies."""
    busy: bool = False
    """Whether it has a task."""


class Pool:
    """One run of a plan."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.board, self.progress = plan, TaskBoard(plan), progress
        self.actors: list[Actor] = []
        self.running: dict[Any, tuple[Actor, int, float]] = {}
        self.deaths: Counter[tuple[str, int]] = Counter()
        self.suspects: deque[tuple[str, int]] = deque()

    def run(self) -> None:
        """Work until everything is finished.

        Raises:
            CapfiltError: as a stage does.
            RunError: the machine cannot continue.
        """
        try:
            while not self.board.finished:
                self._hand_out()
                self._make_room()
                if self.running:
                    self._wait()
                elif self.suspects:
                    self._quarantine(*self.suspects.popleft())
        finally:
            for actor in list(self.actors):
                self._dismiss(actor)

    def _hand_out(self) -> None:
        for group in self.board.groups.values():
            while self.board.ready(group.name):
                actor = self._idle(group.name) or self._hire(group)
                if actor is None:
                    break
                self._start(actor, self.board.take(group.name))

    def _start(self, actor: Actor, index: int) -> None:
        actor.busy = True
        self.running[actor.handle.process.remote(Task(index))] = actor, index, monotonic()

    def _idle(self, group: str) -> Actor | None:
        return next((a for a in self.actors if a.group == group and not a.busy), None)

    def _hire(self, group: WorkGroup) -> Actor | None:
        """Start one more actor for a group. Return None if the settings or the cluster allow no more."""
        need = self.plan.resources(group)
        live = sum(actor.group == group.name for actor in self.actors)
        full = need.max_actors is not None and live >= need.max_actors
        if full or (live >= need.min_actors and not self._fits(need)):
            return None
        return self._spawn(group)

    def _spawn(self, group: WorkGroup) -> Actor:
        need = self.plan.resources(group)
        remote = ray.remote(num_cpus=need.num_cpus, num_gpus=need.num_gpus, max_restarts=0)(Worker)
        parts = tuple(step.stage for step in group.steps)
        actor = Actor(remote.remote(group.worker, parts, self.plan.layout), group.name, need)
        self.actors.append(actor)
        return actor

    def _fits(self, need: Resources) -> bool:
        """Return whether the cluster has room for one more actor next to those of this pool."""
        has = ray.cluster_resources()
        cpus = sum(actor.need.num_cpus for actor in self.actors) + need.num_cpus
        gpus = sum(actor.need.num_gpus for actor in self.actors) + need.num_gpus
        return bool(cpus <= has.get("CPU", 0) and gpus <= has.get("GPU", 0))

    def _make_room(self) -> None:
        """Stop idle actors of finished groups, and all other idle ones while a group waits or no room is left."""
        waiting = {name for name in self.board.groups if self.board.ready(name)}
        crowded = bool(waiting) or not self._fits(Resources(num_cpus=0))
        for actor in [a for a in self.actors if not a.busy]:
            if not self.board.left(actor.group) or (crowded and actor.group not in waiting):
                self._dismiss(actor)

    def _dismiss(self, actor: Actor) -> None:
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def _wait(self) -> None:
        for ref in ray.wait(list(self.running), num_returns=1, timeout=1.0)[0]:
            actor, index, started = self.running.pop(ref)
            actor.busy = False
            if survived(ref, actor.group, index):
                self._finished(Done(actor.group, index, monotonic() - started))
            else:
                self._died(actor, index)

    def _finished(self, done: Done) -> None:
        self.board.finish(done.stage, done.shard)
        self.progress(done)

    def _died(self, actor: Actor, index: int) -> None:
        self._dismiss(actor)
        task = (actor.group, index)
        self.deaths[task] += 1
        log.warning("%s: the worker of shard %d died (%d of %d tries)", *task, self.deaths[task], TRIES)
        if self.deaths[task] < TRIES:
            self.board.put_back(*task)
        elif self.board.groups[actor.group].fused:
            self.board.split(*task)
        else:
            self.suspects.append(task)

    def _quarantine(self, name: str, index: int) -> None:
        """Find the rows that kill their worker and write the shard without them; without any row if that fails."""
        group, started = self.board.groups[name], monotonic()
        if group.whole:
            raise RunError(f"{name}: its worker died {TRIES} times (out of memory?); finished shards stay")
        everything = range(self.plan.rows(index))
        poison = self._bisect(group, index, everything)
        if len(poison) > SUSPECTS or self._dies(group, Task(index, RowFilter(frozenset(poison)))):
            poison = list(everything)
            if self._dies(group, Task(index, RowFilter(frozenset(poison)))):
                raise RunError(f"{name}: shard {index} kills its worker even with every row left out; see Ray's logs")
        log.warning(
            "%s: shard %d: %d of %d rows kill their worker: quarantined", name, index, len(poison), len(everything)
        )
        self._finished(Done(name, index, monotonic() - started, tuple(poison)))

    def _bisect(self, group: WorkGroup, index: int, rows: range) -> list[int]:
        """Return the positions among `rows` that kill their worker, found by halving; too many end the search."""
        if not rows or not self._dies(group, Task(index, RowFilter(only=rows))):
            return []
        if len(rows) == 1:
            return list(rows)
        first, second = halve(rows)
        found = self._bisect(group, index, first)
        return found if len(found) > SUSPECTS else found + self._bisect(group, index, second)

    def _dies(self, group: WorkGroup, task: Task) -> bool:
        """Do a task at once. Return whether its worker died."""
        actor = self._idle(group.name) or self._spawn(group)
        if survived(actor.handle.process.remote(task), group.name, task.index):
            return False
        self._dismiss(actor)
        return True


def survived(ref: Any, stage: str, shard: int) -> bool:
    """Wait for a task. Return False if its actor died.

    Raises:
        CapfiltError: as the stage raised it.
        RunError: any other error, with the stage and the shard.
    """
    try:
        ray.get(ref)
    except (RayActorError, OutOfMemoryError):
        return False
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CapfiltError):
            raise cause from None
        if isinstance(cause, OSError | MemoryError):
            raise RunError(explain(stage, shard, cause)) from None
        raise RunError(f"{stage}, shard {shard}: unexpected error, please report it:\n{error}") from None
    except RayError as error:
        raise RunError(explain(stage, shard, error)) from error
    return True


def run_ray(plan: Plan, progress: Progress) -> None:
    """Run a plan on Ray. Raises as `Pool.run`; RunError where the machine has less than one worker asks for."""
    with cluster():
        check_capacity(plan)
        Pool(plan, progress).run()
