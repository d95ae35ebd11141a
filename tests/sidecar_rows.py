"""Rows and shards written by hand, so that a stage is tested without the ones before it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from capfilt.store.layout import RunLayout
from capfilt.store.schema import CANDIDATES, CAPTIONS, DEDUP, NEAR, PAIRS, Column, arrow, score_columns
from capfilt.store.shards import ShardWriter

Record = dict[str, Any]
SCHEMAS: dict[str, Iterable[Column]] = {
    "ingest": PAIRS, "near": NEAR, "caption": CAPTIONS, "score": score_columns(4), "dedup": DEDUP, "select": CANDIDATES,
}  # fmt: skip
"""Stage -> columns of its shards."""


def write_shard(layout: RunLayout, stage: str, shard: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one shard of a stage."""
    with ShardWriter(layout.shard(stage, shard), arrow(SCHEMAS[stage])) as writer:
        writer.write(rows)


def caption(i: int, *texts: str | None, **changes: Any) -> Record:
    """Return a row of the sidecar of caption."""
    captions = [{"text": text, "logprob": -1.0 - sample, "sample": sample} for sample, text in enumerate(texts)]
    return {"uid": f"{i:016x}", "captions": captions or None, "status": "ok" if texts else "skipped"} | changes


def score(i: int, web: float | None, *captions: float | None, **changes: Any) -> Record:
    """Return a row of the sidecar of score; itc is half of itm."""
    halves = [value and value / 2 for value in captions]
    row: Record = {"uid": f"{i:016x}", "web_itm": web, "web_itc": web and web / 2, "status": "ok"}
    row |= {"caption_itm": list(captions) or None, "caption_itc": halves or None, "image_embedding": [0.5] * 4}
    return row | changes


def write(layout: RunLayout, **stages: list[Record]) -> RunLayout:
    """Write sidecars of shard 0; a stage that is not given is left out of the run."""
    for stage, rows in stages.items():
        write_shard(layout, stage, 0, rows)
    folders = {name: folder for name, folder in layout.folders.items() if name in {*stages, "ingest", "select"}}
    return replace(layout, folders=folders, digests={"caption": "c" * 16, "score": "d" * 16})
