"""One worker of one group of tasks, in this process or in a Ray actor. It imports no torch: downloading needs none."""

from capfilt.engine.reuse import reuse
from capfilt.stages.base import FusedStage, Stage, Task
from capfilt.store.layout import RunLayout

Parts = tuple[type[Stage], ...]
"""The stages whose shards a task writes."""


class Worker:
    """Does the tasks of one group.

    The stage is created on the first task to compute: a model that cannot be loaded then raises its own error, and a
    worker whose shards can all be linked loads none.
    """

    def __init__(self, stage: type[Stage] | type[FusedStage], parts: Parts, layout: RunLayout) -> None:
        """Keep what is needed to create the stage.

        Args:
            stage: a stage, or fused stages.
            parts: that stage alone, or the stages that are fused.
            layout: the layout of the run.
        """
        self._stage, self._parts, self._layout = stage, parts, layout
        self._ready: Stage | FusedStage | None = None

    def process(self, task: Task) -> None:
        """Do a task as `Stage.process`, or link its shards from an earlier folder with identical inputs."""
        all_rows = not task.rows.quarantined and not task.rows.dry
        if all_rows and all(reuse(self._layout, part.spec, task.index) for part in self._parts):
            return
        if self._ready is None:
            stage = self._stage(self._layout)
            stage.setup()
            self._ready = stage
        self._ready.process(task)
