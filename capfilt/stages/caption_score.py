"""caption+score: write captions and scores of a shard in one pass; each image is read, decoded and resized once.

The engine (`capfilt.engine.steps`) chooses it where both stages need the same kind of worker. The two sidecars equal
those that `caption` and `score` write separately, byte by byte on a CPU. If captioner and judge have the same encoder
(one checkpoint, or a frozen tower below both), it runs once per image for both. If a row kills this worker, the engine
searches for it in `caption` and `score` separately.
"""

from typing import ClassVar

from capfilt.config.pipeline import Pipeline, Resources
from capfilt.inference.rows import Record, Row, prepared_of, read_rows, sidecar_record
from capfilt.inference.worker import SystemWorker
from capfilt.models.protocols import System
from capfilt.stages.base import Stage, Task
from capfilt.stages.caption import SPEC as CAPTION
from capfilt.stages.caption import CaptionStage
from capfilt.stages.score import ScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import CAPTIONS, SCORES, arrow


class CaptionScoreStage:
    """Writes `caption-<fp>` and `score-<fp>`; see `FusedStage`."""

    name: ClassVar[str] = "caption+score"
    parts: ClassVar[tuple[type[Stage], ...]] = (CaptionStage, ScoreStage)

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout
        self.caption, self.score = CaptionStage(layout), ScoreStage(layout)

    @staticmethod
    def applies(pipeline: Pipeline) -> bool:
        """Return whether captioner and judge have the same resources, device and batch size."""
        use, resources = (pipeline.caption, pipeline.score), pipeline.resources
        need = [resources.get(part.spec.name, Resources()) for part in (CaptionStage, ScoreStage)]
        if use[0] is None or use[1] is None or need[0] != need[1]:
            return False
        return (use[0].device, use[0].batch_size) == (use[1].device, use[1].batch_size)

    def setup(self) -> None:
        """Load both models, and an encoder that both have only once. Raises as `load` of the two stages."""
        self.caption.load()
        self.score.load()
        captioner, judge = self.caption.captioner, self.score.judge
        same_input = captioner.input_key == judge.input_key
        self.shared = same_input and captioner.encoder_key == judge.encoder_key
        if self.shared:
            judge.share_encoder(captioner)
        systems: list[System] = [captioner] if same_input else [captioner, judge]
        self.worker = SystemWorker(self.layout.pipeline, CAPTION.name, self.score.use, systems, self.answer)

    def process(self, task: Task) -> None:
        """Write both sidecars of one shard; see `Stage.process`. Raises DataError for damaged inputs."""
        self.score.choose_mismatched(task.index)
        rows = read_rows(self.layout, task.index, CAPTION.inputs, ("web", "human"), task.rows)
        with (
            self.worker.threads(),
            open_output(self.layout.shard(SCORES, task.index), self.score.schema, task.rows) as scores,
            open_output(self.layout.shard(CAPTIONS, task.index), arrow(CAPTIONS), task.rows) as captions,
        ):
            for row, found in self.worker.answers(rows):
                captions.write([_captioned(row, found.get("captions", {}))])
                scores.write([sidecar_record(row, found.get("scores", {}))])

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Caption and score rows with a prepared image.

        Returns:
            Position -> {"captions": columns of the one sidecar, "scores": columns of the other}.
        """
        web = [i for i, row in enumerate(rows) if row.role == "web"]
        states = self.score.judge.encode(prepared_of(rows)) if self.shared else None
        captions: dict[int, Record] = {}
        if web:
            web_rows = [rows[i] for i in web]
            seen = self.caption.captioner.encode(prepared_of(web_rows)) if states is None else states[web]
            captions = self.caption.captions(web_rows, seen)
            del seen
        for row in rows:
            row.captions = captions.get(row.position, {}).get("captions")
        if states is None:
            states = self.score.judge.encode(prepared_of(rows, len(self.worker.systems) - 1))
        scores = self.score.scores(rows, states)
        return {
            row.position: {"captions": captions.get(row.position, {}), "scores": scores[row.position]} for row in rows
        }


def _captioned(row: Row, captions: Record) -> Record:
    """Return a row of the caption sidecar. The captioner skips human rows, whether or not their scoring failed."""
    found = sidecar_record(row, captions)
    return found if row.role == "web" else {**found, "status": "skipped", "error": None}
