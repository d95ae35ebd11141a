"""A plan as the engine sees it: steps in order, and which shards each has to make."""

from dataclasses import dataclass, replace
from typing import Any

from capfilt.pipeline import Resources
from capfilt.shards import manifest
from capfilt.stages.base import Job, Stage, parts
from capfilt.stages.caption_score import CaptionScore

MAKES = tuple(part.name for part in parts(CaptionScore))
"""caption, score."""


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

    @property
    def makes(self) -> tuple[str, ...]:
        """Names of the stages whose shards it writes."""
        return tuple(part.name for part in parts(self.stage))


@dataclass(frozen=True)
class Plan:
    """A job and its steps."""

    job: Job
    steps: tuple[Step, ...]
    """A stage each."""

    @property
    def work(self) -> tuple[Step, ...]:
        """The steps as workers take them: captions and scores that nothing keeps apart are made together."""
        named = self.steps_by_name
        apart = set(MAKES) - named.keys() or not _one_kind(self.job)
        both = () if apart else tuple(sorted({*named["caption"].todo} & {*named["score"].todo}))
        if not both:
            return self.steps
        rest = [
            replace(step, todo=tuple(i for i in step.todo if i not in both)) if step.name in MAKES else step
            for step in self.steps
        ]
        place = next(i for i, step in enumerate(rest) if step.name == "caption")
        rest.insert(place, Step(CaptionScore, "", {}, both, ""))
        return tuple(rest)

    @property
    def steps_by_name(self) -> dict[str, Step]:
        """Stage -> its step."""
        return {step.name: step for step in self.steps}

    @property
    def done(self) -> bool:
        """Nothing is to be computed."""
        return not any(step.todo for step in self.steps)


def _one_kind(job: Job) -> bool:
    """Whether captioner and filter ask for the same of their workers, and see as many images at once."""
    caption, score = job.pipeline.caption, job.pipeline.score
    need = [job.pipeline.resources.get(stage, Resources()) for stage in ("caption", "score")]
    if caption is None or score is None or need[0] != need[1]:
        return False
    return (caption.device, caption.batch_size) == (score.device, score.batch_size)


def rows(job: Job, index: int) -> int:
    """Rows of a pairs shard: as counted when it was written, else as its source stated."""
    path = job.shard("ingest", index)
    return int(manifest(path)["rows"]) if path.is_file() else job.units[index].stop - job.units[index].start
