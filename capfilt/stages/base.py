"""What a stage is: a class built from a `RunLayout` in any process, which makes one shard from upstream shards.

Paths flow, never images: a worker reads its inputs from the run's folder, writes its output there and returns nothing.
The shard file is the checkpoint. A stage whose `scope` is "all" makes all of its shards in one call.
"""

from typing import Any, ClassVar, Literal, Protocol

from capfilt.config.pipeline import Pipeline
from capfilt.store.layout import RunLayout

NOTHING: frozenset[int] = frozenset()


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

    def __init__(self, layout: RunLayout) -> None:
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
