"""The interface of a stage: a class built from a `RunLayout`, which computes shards from the shards of other stages.

Stages exchange paths, never images: a worker reads its inputs from the run's folder, writes its output there and
returns nothing. The shard file is the checkpoint. All that other modules must know of a stage is in its `StageSpec`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import ShardTable, StageOutput


def no_model(pipeline: Pipeline) -> ModelSettings | None:
    """Return None: the stage loads no weights."""
    return None


def by_shards(layout: RunLayout, fingerprint: str) -> bool:
    """Return False: shard files alone say what is done."""
    return False


@dataclass(frozen=True)
class StageSpec:
    """All that plan, engine, SQL views, progress and documentation know of a stage."""

    output: StageOutput
    """What it writes: a `ShardTable`, or a folder of another kind; it gives the stage its name and its folder."""
    version: int
    """Part of the fingerprint. To be raised when the same input would give other bytes."""
    settings: Callable[[Pipeline], Any]
    """What of the pipeline determines the output, JSON-able; None where the pipeline leaves the stage out."""
    inputs: tuple[StageOutput, ...] = ()
    """What it reads, as far as the pipeline has it. The stage without inputs reads the sources."""
    tasks: Literal["per shard", "one"] = "per shard"
    """per shard: task i makes shard i from shard i of its inputs. one: a single task makes everything."""
    finished: Callable[[RunLayout, str], bool] = by_shards
    """For a stage without `table`: whether the output with that fingerprint is complete."""
    model: Callable[[Pipeline], ModelSettings | None] = no_model
    """The settings of the model that it loads; the digest of the weights becomes part of its fingerprint."""
    seconds_per_row: float = 1e-3
    """Cost on one core, for the estimate of `capfilt plan` before anything is measured. Unused with a model."""
    reruns_in_select: bool = False
    """Whether `capfilt select` may run it: it decides from stored columns in seconds."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.output.stage

    @property
    def table(self) -> ShardTable | None:
        """The shards that it writes; None for a folder of another kind."""
        return self.output if isinstance(self.output, ShardTable) else None


@dataclass(frozen=True)
class Task:
    """One piece of work of a stage."""

    index: int
    """Index of the shard; 0 for a stage with one task."""
    rows: RowFilter = field(default_factory=RowFilter)
    """Which rows may be touched. A stage with one task is never given a part of the rows."""


class Stage(Protocol):
    """A stage of the pipeline; `capfilt.stages.catalog` lists them."""

    spec: ClassVar[StageSpec]

    def __init__(self, layout: RunLayout) -> None:
        """Keep the layout. Cheap: no model is loaded, no file is read."""
        ...

    def setup(self) -> None:
        """Load models. Called once, before the first task."""
        ...

    def process(self, task: Task) -> None:
        """Do one task: write its shard (see `open_output`), or everything for a stage with one task.

        Rows in `task.rows.quarantined` are written with status "failed" (ingest: "quarantined") and not touched.

        Raises:
            CapfiltError: something the user must repair (a source file that is gone); never because of one bad row.
        """
        ...


class FusedStage(Protocol):
    """Does the work of several stages per shard in one pass; it has no folder and no fingerprint of its own."""

    name: ClassVar[str]
    """Name of its tasks in progress and run.json: `caption+score`."""
    parts: ClassVar[tuple[type[Stage], ...]]
    """The stages whose shards it writes, in their order."""

    def __init__(self, layout: RunLayout) -> None:
        """Keep the layout."""
        ...

    @staticmethod
    def applies(pipeline: Pipeline) -> bool:
        """Return whether the parts can share workers in this pipeline."""
        ...

    def setup(self) -> None:
        """Load models."""
        ...

    def process(self, task: Task) -> None:
        """Write one shard of every part. Raises as `Stage.process`."""
        ...
