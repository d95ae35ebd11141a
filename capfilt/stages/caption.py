"""Synthetic captions: every web image is captioned, `samples` times, by the captioner (paper section 3.3).

Asked are web rows that ingest let pass and that are not marked as near-duplicates (`dedup.skip_models`); the others get
null and status "skipped". Nothing else decides: what a caption is worth is judged by score, and dropped by select.
A caption is drawn with noise keyed on (seed, uid, sample, position), so it does not depend on the rows beside it: not a
bit of it in fp32 and int8 on a CPU, up to rounding elsewhere.
"""

from typing import Any, ClassVar

from capfilt.config.pipeline import CaptionSettings, Pipeline
from capfilt.inference.fingerprint import fingerprint_fields
from capfilt.inference.rows import Record, Row, prepared_of, read_rows, sidecar_record
from capfilt.inference.worker import SystemWorker
from capfilt.models.protocols import Captioner, States
from capfilt.models.registry import load_captioner
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
    return {**drawn, **fingerprint_fields(use), "skip_models": pipeline.dedup.skip_models}


SPEC = StageSpec(output=CAPTIONS, version=4, settings=settings, inputs=(PAIRS, NEAR), model=lambda p: p.caption)


class CaptionStage:
    """pairs -> `captions`, one list a row, sample by sample."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        assert layout.pipeline.caption is not None
        self.layout = layout
        self.use: CaptionSettings = layout.pipeline.caption

    def setup(self) -> None:
        """Load the model. Raises as `registry.load_captioner`."""
        self.load()
        self.worker = SystemWorker(self.layout.pipeline, SPEC.name, self.use, [self.captioner], self.answer)

    def load(self) -> None:
        """Load the captioner. Raises as `registry.load_captioner`."""
        self.captioner: Captioner = load_captioner(self.use)

    def process(self, task: Task) -> None:
        """Caption one shard's images; see `Stage.process`. Raises DataError for damaged inputs."""
        rows = read_rows(self.layout, task.index, SPEC.inputs, ("web",), task.rows)
        path = self.layout.shard(CAPTIONS, task.index)
        with self.worker.threads(), open_output(path, arrow(CAPTIONS), task.rows) as output:
            output.write(sidecar_record(row, found) for row, found in self.worker.answers(rows))

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Position -> `captions`, of rows with a prepared image."""
        return self.captions(rows, self.captioner.encode(prepared_of(rows)))

    def captions(self, rows: list[Row], states: States) -> dict[int, Record]:
        """Position -> `captions`; `states` of the rows' images."""
        drawn = self.captioner.captions(states, [row.uid for row in rows], range(self.use.samples))
        lists = [[{"text": c.text, "logprob": c.logprob, "sample": i} for i, c in enumerate(some)] for some in drawn]
        return {row.position: {"captions": captions} for row, captions in zip(rows, lists, strict=True)}
