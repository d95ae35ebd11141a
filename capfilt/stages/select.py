"""select: every text of every row with its verdict, decided from stored columns; no model, no image is read.

Its output is the ledger. For each pairs row, in row order: its own text (there even if it is null, so that every row
shows), then its captions by sample. 100,000 rows with a caption each (10 shards) take 1 s on one core.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capfilt.config.pipeline import Pipeline
from capfilt.config.pipeline import SelectSettings as Settings
from capfilt.selection.calibration import calibrate, effective
from capfilt.selection.provenance import decoding_json, model_name
from capfilt.selection.texts import Texts
from capfilt.selection.verdicts import decide
from capfilt.stages.base import NOTHING
from capfilt.store.arrays import Bools, Reasons, equal
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CANDIDATES, arrow
from capfilt.store.shards import ShardWriter, table
from capfilt.store.sidecars import Captions, caption_scores, failed, floats, objects, refused_rows, sidecar

OWN = -1
"""Stands for the sample of a row's own text."""


class SelectStage:
    """Writes `candidates-<fp>`."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 2
    scope: ClassVar[Literal["shard", "all"]] = "shard"
    inputs: ClassVar[tuple[str, ...]] = ("ingest", "near", "caption", "score", "dedup")

    def __init__(self, layout: RunLayout) -> None:
        self._layout, self._select = layout, layout.pipeline.select

    @staticmethod
    def settings(pipeline: Pipeline) -> Any:
        """The policy, and what of the captioner is written beside its texts."""
        use = pipeline.caption
        made = None if use is None else [model_name(use.model), decoding_json(use.decoding, use.seed, 0)]
        return {"select": pipeline.select.model_dump(mode="json"), "caption": made, "round": pipeline.round}

    def setup(self) -> None:
        """Find the threshold, if the human rows decide it. Raises as `calibrate`."""
        self._select = effective(self._layout, calibrate(self._layout))

    def process(self, shard: int, skip: frozenset[int] = NOTHING, only: range | None = None) -> None:
        """Decide one shard. No row can kill: `skip` is of no meaning, and with `only` there is nothing to do.

        Raises:
            DataError: a sidecar is damaged or does not belong to its pairs shard.
        """
        if only is None:
            with ShardWriter(self._layout.shard("select", shard), arrow(CANDIDATES)) as writer:
                writer.write_table(candidates(self._layout, shard, self._select))


def candidates(layout: RunLayout, shard: int, select: Settings | None = None) -> pa.Table:
    """The ledger of one shard, columns as in CANDIDATES, by `select` (default: the pipeline's).

    Raises DataError as `Select.process` does.
    """
    rows = table(layout.shard("ingest", shard), ["uid", "role", "text", "status", "reason"])
    captions = Captions.of(sidecar(layout, "caption", shard, ["captions"], rows["uid"])["captions"])
    sample = np.concatenate([np.full(rows.num_rows, OWN), captions.sample])
    image = np.concatenate([np.arange(rows.num_rows), captions.row])
    itc, itm = _scores(layout, shard, rows, captions)
    order = np.lexsort((sample, image))
    sample, image, itc, itm = sample[order], image[order], itc[order], itm[order]
    origin = np.where(sample == OWN, objects(rows["role"])[image], "synthetic")
    text = pa.concat_arrays([rows["text"].combine_chunks(), captions.text]).take(order)
    logprob = pa.concat_arrays([pa.nulls(rows.num_rows, pa.float32()), captions.logprob]).take(order)
    refused = _refused(layout, shard, rows, image, text)
    unscored = failed(layout, "score", shard, rows["uid"])[image]
    reasons = decide(Texts(image, origin, sample, itc, itm, refused, unscored), select or layout.pipeline.select)
    return pa.table(
        {
            "uid": rows["uid"].take(image),
            "text": text,
            "origin": pa.array(origin, pa.string()),
            **_made_by(layout, sample),
            "sample": pa.array(sample, pa.int32(), mask=sample == OWN),
            "logprob": logprob,
            "round": pa.array(np.full(len(order), layout.pipeline.round), pa.int32()),
            "itc": pa.array(itc, pa.float32(), mask=np.isnan(itc)),
            "itm": pa.array(itm, pa.float32(), mask=np.isnan(itm)),
            "kept": pa.array(equal(reasons, None)),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _scores(layout: RunLayout, shard: int, rows: pa.Table, captions: Captions) -> list[NDArray[np.float32]]:
    """itc and itm of the rows' own texts followed by the captions', NaN where null."""
    names = ["web_itc", "web_itm", "caption_itc", "caption_itm"]
    score = sidecar(layout, "score", shard, names, rows["uid"])
    path = layout.shard("score", shard) if layout.has("score") else ""
    return [
        np.concatenate([floats(score[f"web_{name}"]), caption_scores(score[f"caption_{name}"], captions, path)])
        for name in ("itc", "itm")
    ]


def _refused(layout: RunLayout, shard: int, rows: pa.Table, image: NDArray[np.int64], text: pa.Array) -> Reasons:
    """Why a text needs no look at its score, or None, (candidates,)."""
    refused = refused_rows(layout, shard, rows)[image]
    blank: Bools = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True).to_numpy(zero_copy_only=False)
    empty = blank & equal(refused, None)
    refused[empty] = "no_text"
    refused[empty & failed(layout, "caption", shard, rows["uid"])[image]] = "caption_failed"
    return refused


def _made_by(layout: RunLayout, sample: NDArray[np.int64]) -> dict[str, pa.Array]:
    """The columns model, digest and decoding: null but for synthetic texts."""
    use = layout.pipeline.caption
    if use is None:
        return {name: pa.nulls(len(sample), pa.string()) for name in ("model", "digest", "decoding")}
    told = [decoding_json(use.decoding, use.seed, i) for i in range(int(sample.max(initial=OWN)) + 1)]
    columns = {
        "model": [model_name(use.model)] * len(told),
        "digest": [layout.digests["caption"]] * len(told),
        "decoding": told,
    }
    return {
        name: pa.array(values, pa.string()).take(pa.array(sample, mask=sample == OWN))
        for name, values in columns.items()
    }
