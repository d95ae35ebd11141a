"""Rows of sidecars written by hand, so that a ledger is tested without models."""

from dataclasses import replace
from typing import Any

from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, DEDUP, NEAR, arrow, score_columns
from capfilt.store.shards import ShardWriter

Record = dict[str, Any]
SCHEMAS = {"near": NEAR, "caption": CAPTIONS, "score": score_columns(4), "dedup": DEDUP}


def caption(i: int, *texts: str | None, **changes: Any) -> Record:
    """A row of caption's sidecar."""
    captions = [{"text": text, "logprob": -1.0 - sample, "sample": sample} for sample, text in enumerate(texts)]
    return {"uid": f"{i:016x}", "captions": captions or None, "status": "ok" if texts else "skipped"} | changes


def score(i: int, web: float | None, *captions: float | None, **changes: Any) -> Record:
    """A row of score's sidecar; itc is half of itm."""
    halves = [value and value / 2 for value in captions]
    row: Record = {"uid": f"{i:016x}", "web_itm": web, "web_itc": web and web / 2, "status": "ok"}
    row |= {"caption_itm": list(captions) or None, "caption_itc": halves or None, "image_embedding": [0.5] * 4}
    return row | changes


def write(layout: RunLayout, **stages: list[Record]) -> RunLayout:
    """Sidecars of shard 0; a stage that is not given is left out of the run."""
    for stage, rows in stages.items():
        with ShardWriter(layout.shard(stage, 0), arrow(SCHEMAS[stage])) as writer:
            writer.write(rows)
    folders = {name: folder for name, folder in layout.folders.items() if name in {*stages, "ingest", "select"}}
    return replace(layout, folders=folders, digests={"caption": "c" * 16, "score": "d" * 16})
