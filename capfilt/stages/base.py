"""What a stage is: a class that is built from a `Job` in any process and makes one shard's file from upstream's files.

Paths flow, never images: a worker reads its inputs from the run's folder, writes its output there and returns nothing.
The shard file is the checkpoint. A stage whose `scope` is "all" makes all of its shards in one call.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from capfilt.pipeline import Pipeline
from capfilt.shards import shard_name

NOTHING: frozenset[int] = frozenset()
KILLED = "killed its worker"
"""The error of a row that was left out because its worker died on it each time."""


@dataclass(frozen=True)
class Unit:
    """What one pairs shard is made of: rows [start, stop) of one file (or list) of one source."""

    source: str
    """Name of the source."""
    path: str
    """Relative to the source's path; "" where the path is the file."""
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """All that a stage needs to work on a run: small, picklable, the same in every worker."""

    pipeline: Pipeline
    run: Path
    units: tuple[Unit, ...]
    folders: dict[str, str] = field(default_factory=dict)
    """Stage -> its folder's name in the run: pairs, near-<fp>, caption-<fp>, ... A stage that is left out has none."""
    digests: dict[str, str] = field(default_factory=dict)
    """caption, score -> digest of the weights, 16 hex digits."""

    previous: str | None = None
    """The folder of the pairs that this run's pairs go on from, where rows were asked for again."""

    def before(self, index: int) -> Path | None:
        """A shard of those pairs."""
        return None if self.previous is None else self.run / self.previous / shard_name(index)

    def has(self, stage: str) -> bool:
        """Whether the pipeline has that stage."""
        return stage in self.folders

    def folder(self, stage: str) -> Path:
        """Where a stage's shards lie."""
        return self.run / self.folders[stage]

    def shard(self, stage: str, index: int) -> Path:
        """One shard of a stage."""
        return self.folder(stage) / shard_name(index)


class Stage(Protocol):
    """`name`: as in the pipeline file. `version`: raised when the same input would give other bytes.

    `inputs`: stages whose output it reads, where the pipeline has them (a "shard" stage reads the shard of the same
    index). `settings`: what of the pipeline determines its output: with version, weights and inputs' fingerprints it
    makes its own fingerprint.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    scope: ClassVar[Literal["shard", "all"]]
    inputs: ClassVar[tuple[str, ...]]

    def __init__(self, job: Job) -> None:
        """Cheap: no model is loaded, no file read."""
        ...

    @staticmethod
    def settings(pipeline: Pipeline) -> Any:
        """JSON-able; None where the pipeline leaves the stage out."""
        ...

    def setup(self) -> None:
        """Load models. Called once, before the first shard."""
        ...

    def process(self, shard: int, skip: frozenset[int] = NOTHING, only: range | None = None) -> None:
        """Make one shard.

        Args:
            shard: index; 0 for a stage of scope "all".
            skip: row positions that kill their worker: quarantined ("failed", error "killed its worker"), not touched.
            only: work on these row positions alone and write nothing: the engine looks for a row that kills.

        Raises:
            CapfiltError: what the user must mend (a source file that is gone); never because of one bad row.
        """
        ...


def parts(stage: type[Stage]) -> tuple[type[Stage], ...]:
    """The stages whose shards it writes: itself, unless it does the work of several (`parts`)."""
    found: tuple[type[Stage], ...] = getattr(stage, "parts", (stage,))
    return found
