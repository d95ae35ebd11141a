"""Where everything of a run is stored: which rows make a shard, and the folder of every stage."""

from dataclasses import dataclass, field
from pathlib import Path

from capfilt.config.pipeline import Pipeline
from capfilt.store.shards import shard_name


@dataclass(frozen=True)
class ShardSpec:
    """What one pairs shard is made of: rows [start, stop) of one file (or list) of one source."""

    source: str
    """Name of the source."""
    path: str
    """Relative to the source's path; "" where the path is the file."""
    start: int
    stop: int


@dataclass(frozen=True)
class RunLayout:
    """All that a stage needs to work on a run: small, picklable, the same in every worker."""

    pipeline: Pipeline
    run: Path
    shards: tuple[ShardSpec, ...]
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
