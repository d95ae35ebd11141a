"""score: measure how well each text fits its image, by ITC (raw cosine) and ITM (softmax P(match)).

The texts of a row are its own and its captions. Rows of every role with status ok are scored, unless they are marked as
near-duplicates and `dedup.skip_models` is set. An image is encoded once for all of its texts. The judge cleans each
text (BLIP: `pre_caption`); one that is empty after cleaning has null scores, never 0. `select` decides by the scores.

A human image is also scored with the text of another human row: a pair known to be wrong, for `calibrate`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.inference.fingerprint import fingerprint_fields
from capfilt.inference.rows import Record, Row, prepared_of, read_rows, sidecar_record
from capfilt.inference.worker import SystemWorker
from capfilt.models.protocols import EmbeddingJudge, Match, States
from capfilt.models.registry import load_judge
from capfilt.stages.base import StageSpec, Task
from capfilt.stages.mismatch import mismatched
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import CAPTIONS, NEAR, PAIRS, SCORES, arrow, score_columns


def settings(pipeline: Pipeline) -> Any:
    """Return how images are batched, and which rows are judged; None without judge. The planner adds the digest."""
    if pipeline.score is None:
        return None
    return {**fingerprint_fields(pipeline.score), "skip_models": pipeline.dedup.skip_models}


SPEC = StageSpec(output=SCORES, version=4, settings=settings, inputs=(PAIRS, NEAR, CAPTIONS), model=lambda p: p.score)


class ScoreStage:
    """Writes `score-<fp>`: scores of each row's texts, and its image's embedding, (E,) float16, L2-normalised."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        assert layout.pipeline.score is not None
        self.layout = layout
        self.use: ModelSettings = layout.pipeline.score
        self._wrong: dict[int, str] = {}

    def setup(self) -> None:
        """Load the model. Raises as `registry.load_judge`."""
        self.load()
        self.worker = SystemWorker(self.layout.pipeline, SPEC.name, self.use, [self.judge], self.answer)

    def load(self) -> None:
        """Load the judge. Raises as `registry.load_judge`."""
        self.judge: EmbeddingJudge = load_judge(self.use)

    @property
    def schema(self) -> pa.Schema:
        """The sidecar's columns, once the judge is loaded."""
        return arrow(score_columns(self.judge.embed_dim))

    def process(self, task: Task) -> None:
        """Score one shard's texts; see `Stage.process`. Raises DataError for damaged inputs."""
        self.choose_mismatched(task.index)
        rows = read_rows(self.layout, task.index, SPEC.inputs, ("web", "human"), task.rows)
        path = self.layout.shard(SCORES, task.index)
        with self.worker.threads(), open_output(path, self.schema, task.rows) as output:
            output.write(sidecar_record(row, found) for row, found in self.worker.answers(rows))

    def choose_mismatched(self, shard: int) -> None:
        """Choose a shard's mismatched texts, before its first row is scored. Raises DataError for damaged pairs."""
        self._wrong = mismatched(self.layout, shard, self.judge.clean)

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Score rows with a prepared image. Return as `scores`."""
        return self.scores(rows, self.judge.encode(prepared_of(rows)))

    def scores(self, rows: list[Row], states: States) -> dict[int, Record]:
        """Score rows whose images are encoded.

        Args:
            rows: B rows.
            states: the judge's states of their images, B.

        Returns:
            Position -> columns of the sidecar: ITC in [-1, 1], ITM in [0, 1], embedding (E,) float16.
        """
        texts = [[*self._texts(row), self._wrong.get(row.position, "")] for row in rows]
        judged = self.judge.match(states, [[text for text in some if text] for some in texts])
        embeddings = self.judge.embed(states).half().cpu().numpy()  # (B, D)
        return {
            row.position: {**_columns(row, some, matches), "image_embedding": embedding}
            for row, some, matches, embedding in zip(rows, texts, judged, embeddings, strict=True)
        }

    def _texts(self, row: Row) -> list[str]:
        """Return the row's own text and its captions, cleaned; "" where nothing is left."""
        texts = (row.text or "", *(caption["text"] for caption in row.captions or []))
        return [self.judge.clean(text) for text in texts]


def _columns(row: Row, texts: Sequence[str], matches: Sequence[Match]) -> Record:
    """Return a row's score columns.

    Args:
        row: the row.
        texts: its own text, its captions and the mismatched text, cleaned.
        matches: the scores of those that are not empty, in order.
    """
    found = iter(matches)
    web, *captions, wrong = [next(found) if text else Match() for text in texts]
    scores: Record = {"web_itc": web.itc, "web_itm": web.itm, "mismatch_itm": wrong.itm}
    if row.captions is not None:
        scores["caption_itc"] = [match.itc for match in captions]
        scores["caption_itm"] = [match.itm for match in captions]
    return scores
