"""caption: write `samples` synthetic captions for every web image (paper section 3.3).

Web rows with status ok are captioned, unless they are marked as near-duplicates and `dedup.skip_models` is set. All
other rows get null and status "skipped". No caption is dropped here: `score` judges them and `select` decides.

Random numbers are keyed on (seed, uid, sample, position), so a caption does not depend on the other rows of its batch:
it is equal bit by bit in fp32 and int8 on a CPU, and up to rounding elsewhere.
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
    """Return how captions are drawn, and for which rows; None without captioner. The planner adds the digest."""
    use = pipeline.caption
    if use is None:
        return None
    drawn = {"decoding": use.decoding.model_dump(), "samples": use.samples, "seed": use.seed}
    return {**drawn, **fingerprint_fields(use), "skip_models": pipeline.dedup.skip_models}


SPEC = StageSpec(output=CAPTIONS, version=4, settings=settings, inputs=(PAIRS, NEAR), model=lambda p: p.caption)


class CaptionStage:
    """Writes `caption-<fp>`: one list of captions per row, in the order of samples."""

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
        """Caption rows with a prepared image. Return position -> {"captions": list}."""
        return self.captions(rows, self.captioner.encode(prepared_of(rows)))

    def captions(self, rows: list[Row], states: States) -> dict[int, Record]:
        """Caption rows whose images are encoded.

        Args:
            rows: B rows.
            states: the captioner's states of their images, B.

        Returns:
            Position -> {"captions": list of `samples` structs}.
        """
        drawn = self.captioner.captions(states, [row.uid for row in rows], range(self.use.samples))
        lists = [[{"text": c.text, "logprob": c.logprob, "sample": i} for i, c in enumerate(some)] for some in drawn]
        return {row.position: {"captions": captions} for row, captions in zip(rows, lists, strict=True)}
