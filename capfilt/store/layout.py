"""Where a run stores its files: the rows of every shard, and the folder of every stage."""

from dataclasses import dataclass, field
from pathlib import Path

from capfilt.config.pipeline import Pipeline
from capfilt.store.schema import StageOutput
from capfilt.store.shards import shard_name


@dataclass(frozen=True)
class ShardSpec:
    """The rows of one pairs shard: [start, stop) of one file (or list) of one source."""

    source: str
    """Name of the source."""
    path: str
    """File, relative to the path of the source; "" where that path is the file itself."""
    start: int
    stop: int


@dataclass(frozen=True)
class RunLayout:
    """All that a stage needs to know of a run: small, picklable, the same in every worker.

    Methods that take a stage accept its name, or the `StageOutput` that it writes.
    """

    pipeline: Pipeline
    run: Path
    """The run's folder."""
    shards: tuple[ShardSpec, ...]
    folders: dict[str, str] = field(default_factory=dict)
    """Stage -> name of its folder in the run: pairs, near-<fp>, caption-<fp>, ...; only stages of the pipeline."""
    digests: dict[str, str] = field(default_factory=dict)
    """Stage that uses a model -> digest of the weights, 16 hex digits."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Stage -> fingerprint of everything that determines its output, 12 hex digits."""
    previous: str | None = None
    """The folder of pairs that this run's pairs replace after `capfilt retry`."""

    def previous_shard(self, index: int) -> Path | None:
        """Return the file of a pairs shard before `capfilt retry`, or None if nothing was retried."""
        return None if self.previous is None else self.run / self.previous / shard_name(index)

    def has(self, stage: str | StageOutput) -> bool:
        """Return whether the pipeline has that stage."""
        return _name(stage) in self.folders

    def folder(self, stage: str | StageOutput) -> Path:
        """Return the folder with a stage's output."""
        return self.run / self.folders[_name(stage)]

    def shard(self, stage: str | StageOutput, index: int) -> Path:
        """Return the file of one shard of a stage."""
        return self.folder(stage) / shard_name(index)


def _name(stage: str | StageOutput) -> str:
    return stage if isinstance(stage, str) else stage.stage
