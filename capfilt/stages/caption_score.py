"""Captions and scores of a shard in one go: each image read, decoded and resized once for both models.

Chosen by the planner (`capfilt.engine.plan`) where both stages run on the same kind of worker; the two sidecars are
those that `caption` and `score` write by themselves, to the byte on a CPU. Where captioner and filter have the same
vision tower (one checkpoint, or a frozen tower below both), it runs once an image for both. A row that kills this
worker is looked for by the two stages apart.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from capfilt.config.pipeline import Pipeline, Resources
from capfilt.inference.batching import AdaptiveBatcher, batch_size, lanes_of
from capfilt.inference.rows import Record, Row, model_batches, pixels_of, read_rows
from capfilt.models.blip.adapter import Blip
from capfilt.stages import caption, score
from capfilt.stages.base import Stage, Task
from capfilt.stages.caption import SPEC as CAPTION
from capfilt.stages.caption import CaptionStage
from capfilt.stages.score import ScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import CAPTIONS, SCORES, arrow, score_columns


class CaptionScoreStage:
    """See `Stage`. It has no folder and no fingerprint of its own: those of `caption` and `score` hold."""

    name: ClassVar[str] = "caption+score"
    parts: ClassVar[tuple[type[Stage], ...]] = (CaptionStage, ScoreStage)

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout
        self.caption, self.score = CaptionStage(layout), ScoreStage(layout)

    @staticmethod
    def applies(pipeline: Pipeline) -> bool:
        """Return whether captioner and judge ask for the same of their workers, and see as many images at once."""
        use, resources = (pipeline.caption, pipeline.score), pipeline.resources
        need = [resources.get(part.spec.name, Resources()) for part in (CaptionStage, ScoreStage)]
        if use[0] is None or use[1] is None or need[0] != need[1]:
            return False
        return (use[0].device, use[0].batch_size) == (use[1].device, use[1].batch_size)

    def setup(self) -> None:
        """Load both models; an equal vision tower once. Raises as `load_model`."""
        self.caption.load()
        self.score.load()
        captioner, matcher = self.caption.blip, self.score.blip
        alike = self.caption.use.precision == self.score.use.precision
        self.shared = alike and same_tower(captioner, matcher)
        if self.shared:
            matcher.med.vision = captioner.med.vision
        self._models = [captioner] if same_input(captioner, matcher) else [captioner, matcher]
        lanes = lanes_of(self.layout.pipeline, "caption", captioner)
        self.size = batch_size(self.score.use, self._models, self.answer, lanes)
        self._batcher = AdaptiveBatcher(self.answer, lanes)

    def process(self, task: Task) -> None:
        """Both sidecars of one shard; see `Stage.process`. Raises DataError for damaged inputs."""
        self.score.open(task.index)
        rows = read_rows(self.layout, task.index, CAPTION.inputs, ("web", "human"), task.rows)
        batches = model_batches(rows, self.size, self._models, self.layout.pipeline.ingest.max_pixels)
        columns = arrow(score_columns(self.score.blip.config.embed_dim))
        with (
            open_output(self.layout.shard(SCORES, task.index), columns, task.rows) as scores,
            open_output(self.layout.shard(CAPTIONS, task.index), arrow(CAPTIONS), task.rows) as captions,
        ):
            for captioned, scored in self._records(batches):
                captions.write([captioned])
                scores.write([scored])

    def _records(self, batches: Iterator[list[Row]]) -> Iterator[tuple[Record, Record]]:
        """A row of `captions` and one of `scores`, row by row."""
        for batch in batches:
            found = self._batcher(batch)
            for row in batch:
                yield self._captioned(row, found), score.record(row, found.get(row.position, {}).get("scores", {}))

    def _captioned(self, row: Row, found: dict[int, Record]) -> Record:
        """A human row was skipped by the captioner, whatever became of its scores."""
        told = caption.record(row, found.get(row.position, {}).get("captions", {}))
        return told if row.role == "web" else {**told, "status": "skipped", "error": None}

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Position -> {"captions": columns of the one sidecar, "scores": of the other}, of rows with pixels."""
        web = [i for i, row in enumerate(rows) if row.role == "web"]
        pixels = pixels_of(rows)
        states = self.score.blip.encode_images(pixels) if self.shared else None
        captions: dict[int, Record] = {}
        if web:
            seen = self.caption.blip.encode_images(pixels[web]) if states is None else states[web]
            captions = self.caption.captions([rows[i] for i in web], seen)
            del seen
        for row in rows:
            row.captions = captions.get(row.position, {}).get("captions")
        if states is None:
            states = self.score.blip.encode_images(pixels if len(self._models) == 1 else pixels_of(rows, 1))
        scores = self.score.scores(rows, states)
        return {
            row.position: {"captions": captions.get(row.position, {}), "scores": scores[row.position]} for row in rows
        }


def same_tower(one: Blip, other: Blip) -> bool:
    """Whether both would compute the same states of an image: equal vision towers, and equal pixels."""
    alike = same_input(one, other) and one.config.vision == other.config.vision
    return alike and _equal(one.med.vision, other.med.vision)


def same_input(one: Blip, other: Blip) -> bool:
    """Whether both are given the same pixels of an image."""
    return one.processor == other.processor


def _equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
