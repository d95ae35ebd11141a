"""One worker of one stage, in this process or in an actor. Imports no model: a downloading worker needs no torch."""

from capfilt.engine.reuse import reuse
from capfilt.stages.base import NOTHING, Stage
from capfilt.store.layout import RunLayout


class Worker:
    """The stage is made at the first shard that it has to make: what is wrong with a model is told as such."""

    def __init__(self, stage: type[Stage], layout: RunLayout) -> None:
        self._made: Stage | None = None
        self._stage, self._layout = stage, layout

    def process(self, shard: int, skip: frozenset[int] = NOTHING, only: range | None = None) -> None:
        """As `Stage.process`, but for a shard that is there under another fingerprint."""
        if not skip and only is None and reuse(self._layout, self._stage, shard):
            return
        if self._made is None:
            stage = self._stage(self._layout)
            stage.setup()
            self._made = stage
        self._made.process(shard, skip, only)
