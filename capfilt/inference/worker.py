"""The systems of one worker, and rows on their way through them: what all stages that ask a model have in common."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.inference.batching import AdaptiveBatcher, Answer, batch_size, lanes_of
from capfilt.inference.rows import Record, Row, model_batches
from capfilt.models.device import model_threads
from capfilt.models.protocols import System


class SystemWorker:
    """Decodes and prepares images ahead, asks in batches that fit, and returns the rows in their order."""

    def __init__(
        self,
        pipeline: Pipeline,
        stage: str,
        use: ModelSettings,
        systems: Sequence[System],
        answer: Answer,
    ) -> None:
        """Choose the batch size.

        Args:
            pipeline: with the resources of the stage's workers.
            stage: whose resources hold.
            use: with the batch size.
            systems: those that images are prepared for, in the order of `Row.prepared`.
            answer: asks them about rows.
        """
        self.systems, self._max_pixels = systems, pipeline.ingest.max_pixels
        lanes = lanes_of(pipeline, stage, systems[0])
        with self.threads():
            self.size = batch_size(use, systems, answer, lanes)
        self.batcher = AdaptiveBatcher(answer, lanes, systems)

    def threads(self) -> AbstractContextManager[None]:
        """The torch threads that the systems compute with, for the time of a block; `answers` is used inside one."""
        return model_threads(self.systems[0].device)

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record]]:
        """Every row, in order, with what the systems say of it; {} for a row that is not ok."""
        for batch in model_batches(rows, self.size, self.systems, self._max_pixels):
            found = self.batcher(batch)
            for row in batch:
                yield row, found.get(row.position, {})
