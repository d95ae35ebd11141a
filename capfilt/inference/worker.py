"""The part that all stages with a model share: run the systems of one worker on rows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.inference.batching import AdaptiveBatcher, Answer, batch_size, lanes_of
from capfilt.inference.rows import Record, Row, model_batches
from capfilt.models.device import model_threads
from capfilt.models.protocols import System


class SystemWorker:
    """Decodes and prepares images ahead, runs systems on batches that fit in memory, and returns the rows in order."""

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
            stage: name of the stage whose resources apply.
            use: settings with the batch size.
            systems: those that images are prepared for, in the order of `Row.prepared`.
            answer: runs them on rows.
        """
        self.systems, self._max_pixels = systems, pipeline.ingest.max_pixels
        lanes = lanes_of(pipeline, stage, systems[0])
        with self.threads():
            self.size = batch_size(use, systems, answer, lanes)
        self.batcher = AdaptiveBatcher(answer, lanes, systems)

    def threads(self) -> AbstractContextManager[None]:
        """Return a context in which torch has the systems' number of threads. Call `answers` inside it."""
        return model_threads(self.systems[0].device)

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record]]:
        """Yield every row, in order, with its record from the systems; {} for a row whose status is not ok."""
        for batch in model_batches(rows, self.size, self.systems, self._max_pixels):
            found = self.batcher(batch)
            for row in batch:
                yield row, found.get(row.position, {})
