"""A plan as the engine sees it: steps in order, and which shards each has to make."""

from dataclasses import dataclass
from typing import Any

from capfilt.shards import manifest
from capfilt.stages.base import Job, Stage


@dataclass(frozen=True)
class Step:
    """One stage of one run."""

    stage: type[Stage]
    fingerprint: str
    material: dict[str, Any]
    todo: tuple[int, ...]
    """Shards that are not there; (0,) or () for a stage of scope "all"."""
    why: str
    """"done", "new", "3 of 10 shards are missing", or what changed since the last run."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name


@dataclass(frozen=True)
class Plan:
    """A job and its steps."""

    job: Job
    steps: tuple[Step, ...]

    @property
    def steps_by_name(self) -> dict[str, Step]:
        """Stage -> its step."""
        return {step.name: step for step in self.steps}

    @property
    def done(self) -> bool:
        """Nothing is to be computed."""
        return not any(step.todo for step in self.steps)


def rows(job: Job, index: int) -> int:
    """Rows of a pairs shard: as counted when it was written, else as its source stated."""
    path = job.shard("ingest", index)
    return int(manifest(path)["rows"]) if path.is_file() else job.units[index].stop - job.units[index].start
