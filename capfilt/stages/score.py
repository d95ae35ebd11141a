"""How well each text fits its image: ITC (raw cosine) and ITM (softmax P(match)) of the row's own text and captions.

Asked are rows of every role that ingest let pass and that are not marked as near-duplicates (`dedup.skip_models`).
All texts of an image are judged with one pass of the vision tower, each cleaned as the filter's training texts were
(`pre_caption`); a text of which nothing is left has null scores, never 0. Scores are stored, select decides.
A human image is judged beside one other human row's text too: a pair known to be wrong, by which select may calibrate.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.inference.batching import AdaptiveBatcher, batch_size, lanes_of
from capfilt.inference.rows import Record, Row, how, load_model, model_batches, pixels_of, read_rows
from capfilt.media.text import pre_caption
from capfilt.models.blip.adapter import Blip
from capfilt.models.protocols import Match
from capfilt.stages.base import StageSpec, Task
from capfilt.stages.mismatch import mismatched
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import CAPTIONS, NEAR, PAIRS, SCORES, arrow, score_columns


def settings(pipeline: Pipeline) -> Any:
    """Return how images are batched, and which rows are judged; None without judge. Weights count by their digest."""
    if pipeline.score is None:
        return None
    return {**how(pipeline.score), "skip_models": pipeline.dedup.skip_models}


SPEC = StageSpec(output=SCORES, version=4, settings=settings, inputs=(PAIRS, NEAR, CAPTIONS), model=lambda p: p.score)


class ScoreStage:
    """pairs and captions -> scores, one or one list a row, and the image's embedding (E,) float16, L2-normalised."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        assert layout.pipeline.score is not None
        self.layout = layout
        self.use: ModelSettings = layout.pipeline.score
        self._wrong: dict[int, str] = {}

    def setup(self) -> None:
        """Load the model. Raises as `load_model`."""
        self.load()
        lanes = lanes_of(self.layout.pipeline, "score", self.blip)
        self.size = batch_size(self.use, [self.blip], self.answer, lanes)
        self._batcher = AdaptiveBatcher(self.answer, lanes)

    def load(self) -> None:
        """The filter. Raises as `load_model`."""
        self.blip: Blip = load_model(self.use, "judge")

    def process(self, task: Task) -> None:
        """Score one shard's texts; see `Stage.process`. Raises DataError for damaged inputs."""
        self.open(task.index)
        rows = read_rows(self.layout, task.index, SPEC.inputs, ("web", "human"), task.rows)
        max_pixels = self.layout.pipeline.ingest.max_pixels
        batches = model_batches(rows, self.size, [self.blip], max_pixels)
        schema = arrow(score_columns(self.blip.config.embed_dim))
        with open_output(self.layout.shard(SCORES, task.index), schema, task.rows) as output:
            output.write(self._records(batches))

    def open(self, shard: int) -> None:
        """Before a shard's first row. Raises DataError for damaged pairs."""
        self._wrong = mismatched(self.layout, shard)

    def _records(self, batches: Iterable[list[Row]]) -> Iterator[Record]:
        for batch in batches:
            found = self._batcher(batch)
            for row in batch:
                yield record(row, found.get(row.position, {}))

    def answer(self, rows: list[Row]) -> dict[int, Record]:
        """Position -> scores and embedding, of rows with pixels."""
        return self.scores(rows, self.blip.encode_images(pixels_of(rows)))

    def scores(self, rows: list[Row], states: Tensor) -> dict[int, Record]:
        """Position -> the row's scores and embedding; states (B, P + 1, D) of the rows' images."""
        texts = [[*_texts(row), self._wrong.get(row.position, "")] for row in rows]
        judged = self.blip.match(states, [[text for text in some if text] for some in texts])
        embeddings = self.blip.embed(states).half().cpu().numpy()  # (B, E)
        return {
            row.position: {**_columns(row, some, matches), "image_embedding": embedding}
            for row, some, matches, embedding in zip(rows, texts, judged, embeddings, strict=True)
        }


def record(row: Row, scores: Record) -> Record:
    """The row's columns of `scores`."""
    return {"uid": row.uid, "status": row.status, "error": row.error, **scores}


def _texts(row: Row) -> list[str]:
    """The row's own text, then its captions, cleaned; "" where nothing is left."""
    return [pre_caption(text) for text in (row.text or "", *(caption["text"] for caption in row.captions or []))]


def _columns(row: Row, texts: Sequence[str], matches: Sequence[Match]) -> Record:
    """`matches`: of the texts of which something is left."""
    found = iter(matches)
    web, *captions, wrong = [next(found) if text else Match(None, None) for text in texts]
    scores: Record = {"web_itc": web.itc, "web_itm": web.itm, "mismatch_itm": wrong.itm}
    if row.captions is not None:
        scores["caption_itc"] = [match.itc for match in captions]
        scores["caption_itm"] = [match.itm for match in captions]
    return scores
