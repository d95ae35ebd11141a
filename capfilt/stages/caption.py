"""Synthetic captions: every web image is captioned, `samples` times, by the captioner (paper section 3.3).

Asked are web rows that ingest let pass and that are not marked as near-duplicates (`dedup.skip_models`); the others get
null and status "skipped". Nothing else decides: what a caption is worth is judged by score, and dropped by select.
A caption is drawn with noise keyed on (seed, uid, sample, position), so it does not depend on the rows beside it: not a
bit of it in fp32 and int8 on a CPU, up to rounding elsewhere.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from torch import Tensor

from capfilt.config.pipeline import CaptionSettings, Pipeline
from capfilt.inference.batching import AdaptiveBatcher, batch_size, lanes_of
from capfilt.inference.rows import Record, Row, how, load_model, model_batches, pixels_of, read_rows
from capfilt.models.blip.adapter import Blip
from capfilt.stages.base import StageSpec, Task
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import CAPTIONS, NEAR, PAIRS, arrow


def settings(pipeline: Pipeline) -> Any:
    """Return how captions are drawn, and for which rows; None without captioner. The weights count by their digest."""
    use = pipeline.caption
    if use is None:
        return None
    drawn = {"decoding": use.decoding.model_dump(), "samples": use.samples, "seed": use.seed}
    return {**drawn, **how(use), "skip_models": pipeline.dedup.skip_models}


SPEC = StageSpec(output=CAPTIONS, version=4, settings=settings, inputs=(PAIRS, NEAR), model=lambda p: p.caption)


class CaptionStage:
    """pairs -> `captions`, one list a row, sample by sample."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        assert layout.pipeline.caption is not None
        self.layout = layout
        self.use: CaptionSettings = layout.pipeline.caption

    def setup(self) -> None:
        """Load the model. Raises as `load_model`."""
        self.load()
        lanes = lanes_of(self.layout.pipeline, "caption", self.blip)
        self.size = batch_size(self.use, [self.blip], self.answer, lanes)
        self._batcher = AdaptiveBatcher(self.answer, lanes)

    def load(self) -> None:
        """The captioner. Raises as `load_model`."""
        self.blip: Blip = load_model(self.use, "captioner")
        self.blip.decoding = self.use.decoding.model_copy(update={"seed": self.use.seed})

    def process(self, task: Task) -> None:
        """Caption one shard's images; see `Stage.process`. Raises DataError for damaged inputs."""
        rows = read_rows(self.layout, task.index, SPEC.inputs, ("web",), task.rows)
        max_pixels = self.layout.pipeline.ingest.max_pixels
        batches = model_batches(rows, self.size, [self.blip], max_pixels)
        with open_output(self.layout.shard(CAPTIONS, task.index), arrow(CAPTIONS), task.rows) as output:
            output.write(self._records(batches))

    def _records(self, batches: Iterable[list[Row]]) -> Iterator[Record]:
        for batch in batches:
            found = self._batcher(batch)
            for row in batch:
                yield record(row, found.get(row.position, {}))

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Position -> `captions`, of rows with pixels."""
        return self.captions(rows, self.blip.encode_images(pixels_of(rows)))

    def captions(self, rows: list[Row], states: Tensor) -> dict[int, Record]:
        """Position -> `captions`; states (B, P + 1, D) of the rows' images."""
        drawn = self.blip.captions(states, [row.uid for row in rows], range(self.use.samples))
        lists = [[{"text": c.text, "logprob": c.logprob, "sample": i} for i, c in enumerate(some)] for some in drawn]
        return {row.position: {"captions": captions} for row, captions in zip(rows, lists, strict=True)}


def record(row: Row, captions: Record) -> Record:
    """The row's columns of `captions`."""
    return {"uid": row.uid, "status": row.status, "error": row.error, **captions}
