"""The ledger of one shard: every text of every row, with its scores, its origin and the verdict.

Rows come in the order of the pairs. For each there is its own text first (even if it is null, so that every row is
found here), then its captions by sample. `select` writes the ledger as `candidates`.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.provenance import decoding_json, model_name
from capfilt.selection.texts import Texts
from capfilt.selection.verdicts import decide
from capfilt.store.arrays import Bools, Floats, Reasons, equal
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, PAIRS, SCORES
from capfilt.store.shards import table
from capfilt.store.sidecars import Captions, caption_scores, failed, floats, objects, refused_rows, sidecar

OWN_TEXT = -1
"""Sample number of a row's own text in arrays; null on disk."""


def candidates(layout: RunLayout, shard: int, select: SelectSettings) -> pa.Table:
    """Build the ledger of one shard, columns as in `CANDIDATES`.

    Args:
        layout: the run; stages that it leaves out count as null columns.
        shard: index of the shard.
        select: the settings to decide by, `itm_threshold` already calibrated if the policy asks for that.

    Raises:
        DataError: a sidecar is damaged or does not belong to its pairs shard.
    """
    rows = table(layout.shard(PAIRS, shard), ["uid", "role", "text", "status", "reason"])
    captions = Captions.of(sidecar(layout, CAPTIONS, shard, ["captions"], rows["uid"])["captions"])
    sample = np.concatenate([np.full(rows.num_rows, OWN_TEXT), captions.sample])
    image = np.concatenate([np.arange(rows.num_rows), captions.row])
    itc, itm = _scores(layout, shard, rows, captions)
    order = np.lexsort((sample, image))
    sample, image, itc, itm = sample[order], image[order], itc[order], itm[order]
    origin = np.where(sample == OWN_TEXT, objects(rows["role"])[image], "synthetic")
    text = pa.concat_arrays([rows["text"].combine_chunks(), captions.text]).take(order)
    logprob = pa.concat_arrays([pa.nulls(rows.num_rows, pa.float32()), captions.logprob]).take(order)
    refused = _refused(layout, shard, rows, image, text)
    unscored = failed(layout, SCORES, shard, rows["uid"])[image]
    reasons = decide(Texts(image, origin, sample, itc, itm, refused, unscored), select)
    return pa.table(
        {
            "uid": rows["uid"].take(image),
            "text": text,
            "origin": pa.array(origin, pa.string()),
            **_captioner_columns(layout, sample),
            "sample": pa.array(sample, pa.int32(), mask=sample == OWN_TEXT),
            "logprob": logprob,
            "round": pa.array(np.full(len(order), layout.pipeline.round), pa.int32()),
            "itc": pa.array(itc, pa.float32(), mask=np.isnan(itc)),
            "itm": pa.array(itm, pa.float32(), mask=np.isnan(itm)),
            "kept": pa.array(equal(reasons, None)),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def own_rows(origin: pa.ChunkedArray) -> tuple[Bools, NDArray[np.int64]]:
    """Find the pairs row of every text in a ledger.

    Args:
        origin: the ledger's column `origin`, n texts.

    Returns:
        True where the text is a row's own, (n,); position of the text's pairs row, (n,).
    """
    own = ~equal(objects(origin), "synthetic")
    return own, np.cumsum(own) - 1


def _scores(layout: RunLayout, shard: int, rows: pa.Table, captions: Captions) -> list[Floats]:
    """Scores itc and itm of the rows' own texts followed by the captions', NaN where null."""
    names = ["web_itc", "web_itm", "caption_itc", "caption_itm"]
    score = sidecar(layout, SCORES, shard, names, rows["uid"])
    path = layout.shard(SCORES, shard) if layout.has(SCORES) else ""
    return [
        np.concatenate([floats(score[f"web_{name}"]), caption_scores(score[f"caption_{name}"], captions, path)])
        for name in ("itc", "itm")
    ]


def _refused(layout: RunLayout, shard: int, rows: pa.Table, image: NDArray[np.int64], text: pa.Array) -> Reasons:
    """Reason that is known without a score, or None, (texts,)."""
    refused = refused_rows(layout, shard, rows)[image]
    blank: Bools = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True).to_numpy(zero_copy_only=False)
    empty = blank & equal(refused, None)
    refused[empty] = "no_text"
    refused[empty & failed(layout, CAPTIONS, shard, rows["uid"])[image]] = "caption_failed"
    return refused


def _captioner_columns(layout: RunLayout, sample: NDArray[np.int64]) -> dict[str, pa.Array]:
    """The columns model, digest and decoding; null except for synthetic texts."""
    use = layout.pipeline.caption
    if use is None:
        return {name: pa.nulls(len(sample), pa.string()) for name in ("model", "digest", "decoding")}
    decodings = [decoding_json(use.decoding, use.seed, i) for i in range(int(sample.max(initial=OWN_TEXT)) + 1)]
    columns = {
        "model": [model_name(use.model)] * len(decodings),
        "digest": [layout.digests[CAPTIONS.stage]] * len(decodings),
        "decoding": decodings,
    }
    place = pa.array(sample, mask=sample == OWN_TEXT)
    return {name: pa.array(values, pa.string()).take(place) for name, values in columns.items()}
