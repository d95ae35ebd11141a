"""A run of two shards whose texts have every kind of verdict, written by hand: pairs, caption sidecar, ledger."""

from pathlib import Path
from typing import Any

from capfilt.config.load import validate
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.schema import CANDIDATES, CAPTIONS, PAIRS, arrow
from capfilt.store.shards import ShardWriter

Record = dict[str, Any]
Verdict = tuple[str, str | None]
"""origin, reason."""

SHARDS: list[dict[str, list[Verdict]]] = [
    {
        "a": [("web", None), ("synthetic", None)],
        "b": [("web", "below_itm_threshold"), ("synthetic", None), ("synthetic", "below_itm_threshold")],
        "c": [("web", "below_itm_threshold"), ("synthetic", "over_max_texts")],
        "d": [("web", "quarantined:bomb")],
    },
    {
        "e": [("web", "duplicate:exact"), ("synthetic", "duplicate:exact")],
        "f": [("web", "rejected:text_empty")],
        "g": [("human", None)],
        "h": [("web", "quarantined:killed_worker")],
        "i": [("web", None)],
    },
]


def make_layout(tmp_path: Path, shards: list[dict[str, list[Verdict]]] = SHARDS, **parts: Any) -> RunLayout:
    """A run of pairs, caption and ledger."""
    sources = [{"type": "parquet", "path": "a", "name": "crawl"}, {"type": "parquet", "path": "b", "role": "human"}]
    raw: Record = {"sources": sources, "score": {"model": "tiny/filter"}, **parts}
    folders = {"ingest": "pairs", "caption": "caption-0", "select": "candidates-0"}
    units = tuple(ShardSpec("crawl", "", 0, len(shard)) for shard in shards)
    layout = RunLayout(validate(raw, "test.yaml"), tmp_path, units, folders)
    for index, shard in enumerate(shards):
        write(layout, "ingest", index, [pairs_row(uid, texts[0][1]) for uid, texts in shard.items()])
        failed = [{"uid": uid, "status": "failed" if uid == "h" else "ok"} for uid in shard]
        write(layout, "caption", index, failed)
        write(layout, "select", index, [candidate(uid, *text) for uid, texts in shard.items() for text in texts])
    return layout


def write(layout: RunLayout, stage: str, shard: int, rows: list[Record]) -> None:
    columns = {"ingest": PAIRS, "caption": CAPTIONS, "select": CANDIDATES}[stage]
    with ShardWriter(layout.shard(stage, shard), arrow(columns)) as writer:
        writer.write(rows)


def pairs_row(uid: str, reason: str | None) -> Record:
    word = (reason or "").split(":")[0]
    status = "ok" if word not in ("rejected", "quarantined") or "killed" in str(reason) else word
    return {
        "uid": uid,
        "source": "crawl",
        "key": f"key-{uid}",
        "status": status,
        "format": "PNG" if uid < "c" else "GIF",
    }


def candidate(uid: str, origin: str, reason: str | None, **changes: Any) -> Record:
    text = None if str(reason).startswith("quarantined:bomb") else "a text"
    return {"uid": uid, "origin": origin, "text": text, "kept": reason is None, "reason": reason} | changes
