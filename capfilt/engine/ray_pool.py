"""The engine's Ray half: a pool of actors a stage, and a `ray.wait` loop that hands out shards.

An actor loads its model once and has one shard in flight, which is the back-pressure. A stage starts actors while the
cluster has room for them, and at least `min_actors` whether or not it has: what waits for room is what makes Ray's
autoscaler add nodes. An idle actor goes when its stage is through or when another stage waits for its place.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from capfilt.config.pipeline import Resources
from capfilt.engine.board import TRIES, Board, Done, Progress, explain, halve
from capfilt.engine.steps import Plan, Step, rows
from capfilt.engine.worker import Worker
from capfilt.errors import CapfiltError, RunError
from capfilt.stages.base import NOTHING

SUSPECTS = 16
"""With more rows than this that kill, it is not the rows: the whole shard is quarantined."""

log = logging.getLogger(__name__)


@contextmanager
def cluster() -> Iterator[None]:
    """The Ray that runs already in this process, the one at RAY_ADDRESS, or a local one for the time of the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    # Nothing but paths goes through the object store: the least that Ray takes starts fastest.
    local = {} if address else {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **local)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(eq=False)
class Actor:
    """A worker somewhere in the cluster."""

    handle: Any
    stage: str
    need: Resources
    busy: bool = False


class Pool:
    """One run of a plan."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.board, self.progress = plan, Board(plan), progress
        self.actors: list[Actor] = []
        self.running: dict[Any, tuple[Actor, int, float]] = {}
        self.deaths: Counter[tuple[str, int]] = Counter()
        self.suspects: list[tuple[str, int]] = []

    def run(self) -> None:
        """Until everything is finished. Raises CapfiltError as a stage does; RunError for what the machine lacks."""
        try:
            while not self.board.finished:
                self._hand_out()
                self._make_room()
                if self.running:
                    self._wait()
                elif self.suspects:
                    self._hunt(*self.suspects.pop(0))
        finally:
            for actor in list(self.actors):
                self._dismiss(actor)

    def _hand_out(self) -> None:
        for step in self.board.steps.values():
            for shard in self.board.ready(step.name):
                actor = self._idle(step.name) or self._hire(step)
                if actor is None:
                    break
                self.board.take(step.name, shard)
                self._start(actor, shard)

    def _start(self, actor: Actor, shard: int) -> None:
        actor.busy = True
        self.running[actor.handle.process.remote(shard, NOTHING, None)] = actor, shard, monotonic()

    def _idle(self, stage: str) -> Actor | None:
        return next((a for a in self.actors if a.stage == stage and not a.busy), None)

    def _hire(self, step: Step) -> Actor | None:
        need = self._need(step.name)
        live = sum(actor.stage == step.name for actor in self.actors)
        full = need.max_actors is not None and live >= need.max_actors
        if full or (live >= need.min_actors and not self._fits(need)):
            return None
        return self._spawn(step)

    def _spawn(self, step: Step) -> Actor:
        need = self._need(step.name)
        remote = ray.remote(num_cpus=need.num_cpus, num_gpus=need.num_gpus, max_restarts=0)(Worker)
        actor = Actor(remote.remote(step.stage, self.plan.layout), step.name, need)
        self.actors.append(actor)
        return actor

    def _need(self, stage: str) -> Resources:
        stage, *_ = self.board.steps[stage].makes
        return self.plan.layout.pipeline.resources.get(stage, Resources())

    def _fits(self, need: Resources) -> bool:
        has = ray.cluster_resources()
        cpus = sum(actor.need.num_cpus for actor in self.actors) + need.num_cpus
        gpus = sum(actor.need.num_gpus for actor in self.actors) + need.num_gpus
        return bool(cpus <= has.get("CPU", 0) and gpus <= has.get("GPU", 0))

    def _make_room(self) -> None:
        waits = {name for name in self.board.steps if self.board.ready(name)}
        crowded = bool(waits) or not self._fits(Resources(num_cpus=0))
        for actor in [a for a in self.actors if not a.busy]:
            if not self.board.left(actor.stage) or (crowded and actor.stage not in waits):
                self._dismiss(actor)

    def _dismiss(self, actor: Actor) -> None:
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def _wait(self) -> None:
        for ref in ray.wait(list(self.running), num_returns=1, timeout=1.0)[0]:
            actor, shard, started = self.running.pop(ref)
            actor.busy = False
            if survived(ref, actor.stage, shard):
                self._finished(Done(actor.stage, shard, monotonic() - started))
            else:
                self._died(actor, shard)

    def _finished(self, done: Done) -> None:
        self.board.finish(done.stage, done.shard)
        self.progress(done)

    def _died(self, actor: Actor, shard: int) -> None:
        self._dismiss(actor)
        work = (actor.stage, shard)
        self.deaths[work] += 1
        log.warning("%s: the worker of shard %d died (%d of %d tries)", *work, self.deaths[work], TRIES)
        if self.deaths[work] < TRIES:
            self.board.put_back(*work)
        elif len(self.board.steps[actor.stage].makes) > 1:
            self.board.part(*work)
        else:
            self.suspects.append(work)

    def _hunt(self, stage: str, shard: int) -> None:
        """Find the rows that kill, leave them out; all of the shard's if no single row does."""
        step, started = self.board.steps[stage], monotonic()
        if step.stage.scope == "all":
            raise RunError(f"{stage}: its worker died {TRIES} times (out of memory?); finished shards stay")
        everything = range(rows(self.plan.layout, shard))
        poison = self._killers(step, shard, everything)
        if len(poison) > SUSPECTS or self._dies(step, shard, frozenset(poison), None):
            poison = list(everything)
            if self._dies(step, shard, frozenset(poison), None):
                raise RunError(f"{stage}: shard {shard} kills its worker even with every row left out; see Ray's logs")
        log.warning(
            "%s: shard %d: %d of %d rows kill their worker: quarantined", stage, shard, len(poison), len(everything)
        )
        self._finished(Done(stage, shard, monotonic() - started, tuple(poison)))

    def _killers(self, step: Step, shard: int, some: range) -> list[int]:
        if not some or not self._dies(step, shard, NOTHING, some):
            return []
        if len(some) == 1:
            return list(some)
        first, second = halve(some)
        found = self._killers(step, shard, first)
        return found if len(found) > SUSPECTS else found + self._killers(step, shard, second)

    def _dies(self, step: Step, shard: int, skip: frozenset[int], only: range | None) -> bool:
        actor = self._idle(step.name) or self._spawn(step)
        if survived(actor.handle.process.remote(shard, skip, only), step.name, shard):
            return False
        self._dismiss(actor)
        return True


def survived(ref: Any, stage: str, shard: int) -> bool:
    """Whether the worker lived. Raises what it raised, in the driver's terms."""
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
        raise RunError(f"{stage}, shard {shard}: not foreseen, please report it:\n{error}") from None
    except RayError as error:
        raise RunError(explain(stage, shard, error)) from error
    return True


def run_ray(plan: Plan, progress: Progress) -> None:
    """Run a plan on Ray."""
    with cluster():
        _enough(plan)
        Pool(plan, progress).run()


def _enough(plan: Plan) -> None:
    """Raises RunError where an actor asks for more than a cluster of fixed size has in all."""
    if os.environ.get("RAY_ADDRESS"):
        return
    has = ray.cluster_resources()
    for step in plan.steps:
        need = plan.layout.pipeline.resources.get(step.name, Resources())
        for name, wanted in (("CPU", need.num_cpus), ("GPU", need.num_gpus)):
            if step.todo and wanted > has.get(name, 0):
                raise RunError(
                    f"resources.{step.name}: an actor wants {wanted:g} {name}s, this machine has {has.get(name, 0):g}; "
                    "ask for less, or set RAY_ADDRESS to a cluster that has them"
                )
