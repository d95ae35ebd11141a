"""A plan as the engine sees it: steps in order, and which shards each has to make."""

from dataclasses import dataclass, replace
from typing import Any

from capfilt.pipeline import ModelUse, Resources
from capfilt.shards import manifest
from capfilt.stages.base import Job, Stage
from capfilt.stages.caption_score import CaptionScore

MAKES = ("caption", "score")


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
    makes: tuple[str, ...] = ()
    """Stages whose shards it writes, where they are not its own."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name


@dataclass(frozen=True)
class Plan:
    """A job and its steps."""

    job: Job
    steps: tuple[Step, ...]
    """A stage each."""

    @property
    def work(self) -> tuple[Step, ...]:
        """The steps as workers take them: captions and scores that nothing keeps apart are made together."""
        named, job = self.steps_by_name, self.job
        apart = {"caption", "score"} - named.keys() or not _one_kind(job)
        both = () if apart else tuple(sorted({*named["caption"].todo} & {*named["score"].todo}))
        if not both:
            return self.steps
        rest = [
            replace(step, todo=tuple(i for i in step.todo if i not in both)) if step.name in MAKES else step
            for step in self.steps
        ]
        place = next(i for i, step in enumerate(rest) if step.name == "caption")
        rest.insert(place, Step(CaptionScore, "", {}, both, "", MAKES))
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
    return need[0] == need[1] and caption is not None and score is not None and _how(caption) == _how(score)


def _how(use: ModelUse) -> tuple[str, int]:
    return use.device, use.batch_size


def rows(job: Job, index: int) -> int:
    """Rows of a pairs shard: as counted when it was written, else as its source stated."""
    path = job.shard("ingest", index)
    return int(manifest(path)["rows"]) if path.is_file() else job.units[index].stop - job.units[index].start
