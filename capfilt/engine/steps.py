"""A plan as the engine sees it: steps in order, and which shards each has to make."""

from dataclasses import dataclass, replace
from typing import Any

from capfilt.config.pipeline import Resources
from capfilt.stages.base import Stage, parts
from capfilt.stages.caption_score import CaptionScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.shards import manifest

MAKES = tuple(part.name for part in parts(CaptionScoreStage))
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
    """A layout and its steps."""

    layout: RunLayout
    steps: tuple[Step, ...]
    """A stage each."""

    @property
    def work(self) -> tuple[Step, ...]:
        """The steps as workers take them: captions and scores that nothing keeps apart are made together."""
        named = self.steps_by_name
        apart = set(MAKES) - named.keys() or not _one_kind(self.layout)
        both = () if apart else tuple(sorted({*named["caption"].todo} & {*named["score"].todo}))
        if not both:
            return self.steps
        rest = [
            replace(step, todo=tuple(i for i in step.todo if i not in both)) if step.name in MAKES else step
            for step in self.steps
        ]
        place = next(i for i, step in enumerate(rest) if step.name == "caption")
        rest.insert(place, Step(CaptionScoreStage, "", {}, both, ""))
        return tuple(rest)

    @property
    def steps_by_name(self) -> dict[str, Step]:
        """Stage -> its step."""
        return {step.name: step for step in self.steps}

    @property
    def done(self) -> bool:
        """Nothing is to be computed."""
        return not any(step.todo for step in self.steps)


def _one_kind(layout: RunLayout) -> bool:
    """Whether captioner and filter ask for the same of their workers, and see as many images at once."""
    caption, score = layout.pipeline.caption, layout.pipeline.score
    need = [layout.pipeline.resources.get(stage, Resources()) for stage in ("caption", "score")]
    if caption is None or score is None or need[0] != need[1]:
        return False
    return (caption.device, caption.batch_size) == (score.device, score.batch_size)


def rows(layout: RunLayout, index: int) -> int:
    """Rows of a pairs shard: as counted when it was written, else as its source stated."""
    path = layout.shard("ingest", index)
    return int(manifest(path)["rows"]) if path.is_file() else layout.shards[index].stop - layout.shards[index].start
