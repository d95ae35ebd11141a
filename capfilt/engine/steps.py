"""A plan as the engine sees it: the stages of a run, what each has left to do, and how the work is given to workers."""

from dataclasses import dataclass
from typing import Any

from capfilt.config.pipeline import Resources
from capfilt.stages.base import FusedStage, Stage, StageSpec
from capfilt.stages.catalog import FUSED
from capfilt.store.layout import RunLayout
from capfilt.store.schema import PAIRS
from capfilt.store.shards import manifest


@dataclass(frozen=True)
class Step:
    """One stage of one run."""

    stage: type[Stage]
    fingerprint: str
    fingerprint_inputs: dict[str, Any]
    todo: tuple[int, ...]
    """Indices of the tasks to do: shards that are missing, or (0,) for a stage with one task."""
    why: str
    """"done", "new", "3 of 10 shards are missing", or what changed since the last run."""

    @property
    def spec(self) -> StageSpec:
        """The stage's description."""
        return self.stage.spec

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.spec.name

    @property
    def whole(self) -> bool:
        """Whether one task makes everything."""
        return self.stage.spec.tasks == "one"


@dataclass(frozen=True)
class WorkGroup:
    """Tasks that the same workers do: those of one stage, or of several fused ones."""

    name: str
    worker: type[Stage] | type[FusedStage]
    steps: tuple[Step, ...]
    """The stages whose output a task writes."""
    todo: tuple[int, ...]
    """Indices of the tasks to do."""

    @property
    def fused(self) -> bool:
        """Whether one task writes the shards of several stages."""
        return len(self.steps) > 1

    @property
    def whole(self) -> bool:
        """Whether one task makes everything."""
        return self.steps[0].whole

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the stages whose output a task reads, those that it writes itself left out."""
        own = {step.name for step in self.steps}
        found = {one.stage: None for step in self.steps for one in step.spec.inputs if one.stage not in own}
        return tuple(found)


@dataclass(frozen=True)
class Plan:
    """A run's layout and its steps, one per stage in the order in which a row passes them."""

    layout: RunLayout
    steps: tuple[Step, ...]

    @property
    def groups(self) -> tuple[WorkGroup, ...]:
        """The work as workers take it. Stages that can be fused are fused for the shards that none of them has."""
        groups = [WorkGroup(step.name, step.stage, (step,), step.todo) for step in self.steps]
        for fused in FUSED:
            groups = _fuse(groups, fused, self.layout)
        return tuple(groups)

    @property
    def steps_by_name(self) -> dict[str, Step]:
        """Stage -> its step."""
        return {step.name: step for step in self.steps}

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return not any(step.todo for step in self.steps)

    def rows(self, index: int) -> int:
        """Return the rows of a pairs shard: as counted when it was written, else as its source stated."""
        path, spec = self.layout.shard(PAIRS, index), self.layout.shards[index]
        return int(manifest(path)["rows"]) if path.is_file() else spec.stop - spec.start

    def rows_of_task(self, step: Step, index: int) -> int:
        """Return the rows that a task works on."""
        return sum(map(self.rows, range(len(self.layout.shards)))) if step.whole else self.rows(index)

    def resources(self, group: WorkGroup) -> Resources:
        """Return what one worker of a group asks for."""
        return self.layout.pipeline.resources.get(group.steps[0].name, Resources())


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names of the stages that a group of that name writes."""
    fused = next((fused for fused in FUSED if fused.name == name), None)
    return (name,) if fused is None else tuple(part.spec.name for part in fused.parts)


def _fuse(groups: list[WorkGroup], fused: type[FusedStage], layout: RunLayout) -> list[WorkGroup]:
    """Put the tasks that all parts have left to do into one group, before the first part's."""
    by_stage = {group.worker: group for group in groups}
    parts = [by_stage.get(part) for part in fused.parts]
    if None in parts or not fused.applies(layout.pipeline):
        return groups
    found = [part for part in parts if part is not None]
    common = tuple(sorted(set[int].intersection(*(set(part.todo) for part in found))))
    if not common:
        return groups
    made = WorkGroup(fused.name, fused, tuple(part.steps[0] for part in found), common)
    rest = [_without(group, common) if group in found else group for group in groups]
    place = groups.index(found[0])
    return [*rest[:place], made, *rest[place:]]


def _without(group: WorkGroup, indices: tuple[int, ...]) -> WorkGroup:
    left = set(indices)
    return WorkGroup(group.name, group.worker, group.steps, tuple(i for i in group.todo if i not in left))
