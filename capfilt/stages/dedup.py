"""dedup: mark duplicates by the judge's image embedding, and rows that repeat an evaluation image.

Groups are connected components over the links of `near` and the semantic ones, so the row that is kept may differ from
the one that `near` kept. The best row is a human one, then the one with the higher `web_itm` (scored before not
scored), then the one with more pixels, then the one with the lower uid. `contaminates` names the nearest evaluation
image of a row with status ok, also of human rows and of duplicates.

The stage always runs, so that repeated keys are found and the column `contaminates` exists. Rows without an embedding
(not scored) are compared by near's links and their perceptual hash.

One worker processes all shards in memory: 100 bytes per row, 2 bytes per number of an embedding, and as much again for
the index (4 bytes per number for fewer than 50,000 embeddings). 200,000 rows with embeddings of 256 numbers take 18 s
on one core and 0.3 GB; a million takes 1.2 GB.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from capfilt.config.dedup import EvalSet
from capfilt.config.pipeline import Pipeline
from capfilt.config.source import source_name
from capfilt.dedup import cosine, evalset, hamming, rows
from capfilt.dedup.groups import DUPLICATE_KINDS, DuplicateGroups
from capfilt.dedup.links import Floats, Ints, Links
from capfilt.models.device import model_threads
from capfilt.models.protocols import EmbeddingJudge
from capfilt.models.registry import load_judge
from capfilt.stages.base import StageSpec, Task
from capfilt.store.layout import RunLayout
from capfilt.store.schema import DEDUP, NEAR, PAIRS, SCORES, ShardTable
from capfilt.store.shards import table
from capfilt.store.sidecars import floats, sidecar

_MARK = ("duplicate_of", "duplicate_kind", "similarity")


class _Embedded(NamedTuple):
    """The V rows with a usable embedding, in order of rank (0: the best row)."""

    at: Ints
    """Their ranks, (V,), ascending."""
    vectors: cosine.Vectors
    """Their embeddings, (V, D)."""


def settings(pipeline: Pipeline) -> Any:
    """Return the thresholds, and what identifies each evaluation set. Raises DataError for a missing one."""
    dedup = pipeline.dedup
    sets = [
        part.model_dump(mode="json", exclude={"path"}) | {"name": source_name(part), "files": evalset.identity(part)}
        for part in dedup.decontaminate
    ]
    return {"semantic": None if dedup.semantic is None else dedup.semantic.min_similarity, "decontaminate": sets}


SPEC = StageSpec(
    output=DEDUP,
    version=1,
    settings=settings,
    inputs=(PAIRS, NEAR, SCORES),
    tasks="one",
    seconds_per_row=2e-4,
)


class DedupStage:
    """Writes `dedup-<fp>`."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        self._layout, self._dedup = layout, layout.pipeline.dedup
        self._judge: EmbeddingJudge | None = None

    def setup(self) -> None:
        """Load the judge, if evaluation images are to be embedded with it. Raises as `registry.load_judge`."""
        use = self._layout.pipeline.score
        if use is not None and any(part.min_similarity is not None for part in self._dedup.decontaminate):
            self._judge = load_judge(use)

    def process(self, task: Task) -> None:
        """Write all shards. No image of the run is read.

        Raises:
            DataError: a shard is damaged or has other rows than its pairs, or an evaluation set cannot be read.
        """
        found = rows.read(self._layout)
        itm = self._web_itm(found)
        order = rows.ranked(found, itm)
        rank = np.full(len(found.uid), -1)
        rank[order] = np.arange(len(order))
        embedded = self._embedded(rank)
        groups = DuplicateGroups(len(order))
        for kind, links in self._links(found, order, rank, embedded):
            groups.add(links, kind)
        labels = self._contaminates(found, order, embedded)
        rows.write(self._layout, DEDUP, found, order, groups.marks(), labels)

    def _web_itm(self, found: rows.RunRows) -> Floats:
        """Return the ITM score of each row's own text, (N,); NaN where it was not scored."""
        if not self._layout.has(SCORES):
            return np.full(len(found.uid), np.nan, dtype=np.float32)
        return np.concatenate([floats(part["web_itm"]) for part in self._sidecars(SCORES, ("web_itm",))])

    def _embedded(self, rank: Ints) -> _Embedded | None:
        """Return the stored embeddings; None if there are none or no setting needs them."""
        needed = self._dedup.semantic is not None or self._judge is not None
        if not needed or not self._layout.has(SCORES):
            return None
        at, parts, start = [], [], 0
        for part in self._sidecars(SCORES, ("image_embedding",)):
            ranks, vectors = _vectors(part["image_embedding"], rank[start : start + part.num_rows])
            at.append(ranks)
            parts.append(vectors)
            start += part.num_rows
        ranks = np.concatenate(at)
        return _Embedded(np.sort(ranks), _in_order(ranks, parts)) if len(ranks) else None

    def _links(
        self, found: rows.RunRows, order: Ints, rank: Ints, embedded: _Embedded | None
    ) -> Iterator[tuple[str, Links]]:
        if self._layout.has(NEAR):
            yield from self._stored_links(found, order, rank)
        if self._dedup.semantic is not None and embedded is not None:
            for links in cosine.links(embedded.vectors, self._dedup.semantic.min_similarity):
                yield "semantic", links.at(embedded.at)

    def _stored_links(self, found: rows.RunRows, order: Ints, rank: Ints) -> Iterator[tuple[str, Links]]:
        """Yield a link from every row that near marked to the row that it kept, with the stored kind and similarity."""
        uids = found.uid[order]
        by_uid = np.argsort(uids)
        start = 0
        for part in self._sidecars(NEAR, _MARK):
            kinds = np.array(part["duplicate_kind"].to_pylist(), dtype=object)
            similarity = floats(part["similarity"])
            kept = np.array([uid or "" for uid in part["duplicate_of"].to_pylist()], dtype=np.bytes_)
            for kind in DUPLICATE_KINDS[1:]:
                row = np.flatnonzero(kinds == kind)
                keeper = by_uid[np.searchsorted(uids, kept[row], sorter=by_uid)]
                here = rank[start + row]
                yield kind, Links(np.minimum(here, keeper), np.maximum(here, keeper), similarity[row])
            start += part.num_rows

    def _contaminates(self, found: rows.RunRows, order: Ints, embedded: _Embedded | None) -> list[str | None]:
        nearest = evalset.Contamination(len(order))
        for part in self._dedup.decontaminate:
            nearest.add(*self._repeats(part, found.phash[order], embedded))
        return nearest.labels(order, len(found.uid))

    def _repeats(
        self, part: EvalSet, codes: hamming.Codes, embedded: _Embedded | None
    ) -> tuple[str, list[str], Iterator[Links]]:
        """Return the name and keys of an evaluation set, and the links of rows to its images."""
        use = self._layout.pipeline.score
        judge = None if part.min_similarity is None else self._judge
        size = 16 if use is None or use.batch_size == "auto" else use.batch_size
        with nullcontext() if judge is None else model_threads(judge.device):
            images = evalset.read(part, self._layout.pipeline.ingest.max_pixels, size, judge)
        return source_name(part), images.keys, _links_to_images(part, images, codes, embedded)

    def _sidecars(self, kind: ShardTable, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Yield columns of a sidecar per shard. Raises DataError if its rows are not those of the pairs."""
        for index in range(len(self._layout.shards)):
            uids = table(self._layout.shard(PAIRS, index), ("uid",))["uid"]
            yield sidecar(self._layout, kind, index, columns, uids)


def _links_to_images(
    part: EvalSet, images: evalset.Images, codes: hamming.Codes, embedded: _Embedded | None
) -> Iterator[Links]:
    if part.max_distance is not None:
        yield from hamming.matches(codes, images.codes, part.max_distance)
    if part.min_similarity is not None and images.vectors is not None and embedded is not None:
        for i, j, similarity in cosine.matches(embedded.vectors, images.vectors, part.min_similarity):
            yield Links(embedded.at[i], j, similarity)


def _vectors(column: pa.ChunkedArray, rank: Ints) -> tuple[Ints, cosine.Vectors]:
    """Return ranks and embeddings of a shard's rows that have a rank and a usable embedding, in input order."""
    stored = column.combine_chunks()
    stated = np.flatnonzero(stored.is_valid().to_numpy(zero_copy_only=False))
    vectors = stored.flatten().to_numpy(zero_copy_only=False).reshape(-1, stored.type.list_size)
    good = cosine.usable(vectors) & (rank[stated] >= 0)
    return rank[stated][good], vectors[good]


def _in_order(ranks: Ints, parts: list[cosine.Vectors]) -> cosine.Vectors:
    """Return the rows of all parts by rank. Each part is removed from the list once copied, to bound memory."""
    place = np.empty(len(ranks), dtype=np.int64)
    place[np.argsort(ranks)] = np.arange(len(ranks))
    out = np.empty((len(ranks), parts[0].shape[1]), dtype=np.float16)
    end = len(ranks)
    while parts:
        part = parts.pop()
        out[place[end - len(part) : end]] = part
        end -= len(part)
    return out
