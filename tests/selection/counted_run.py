"""A run of two shards whose texts have every kind of verdict, written by hand: pairs, caption sidecar, ledger."""

from pathlib import Path
from typing import Any

from capfilt.config.load import validate
from capfilt.store.layout import RunLayout, ShardSpec
from tests.sidecar_rows import Record, write_shard

Verdict = tuple[str, str | None]
"""Origin of a text, and why it is not kept (None: kept)."""

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


def counted_layout(tmp_path: Path, shards: list[dict[str, list[Verdict]]] = SHARDS, **parts: Any) -> RunLayout:
    """Write a run of pairs, captions and ledger."""
    sources = [{"type": "parquet", "path": "a", "name": "crawl"}, {"type": "parquet", "path": "b", "role": "human"}]
    raw: Record = {"sources": sources, "score": {"model": "tiny/filter"}, **parts}
    folders = {"ingest": "pairs", "caption": "caption-0", "select": "candidates-0"}
    units = tuple(ShardSpec("crawl", "", 0, len(shard)) for shard in shards)
    layout = RunLayout(validate(raw, "test.yaml"), tmp_path, units, folders)
    for index, shard in enumerate(shards):
        write_shard(layout, "ingest", index, [_pair(uid, texts[0][1]) for uid, texts in shard.items()])
        failed = [{"uid": uid, "status": "failed" if uid == "h" else "ok"} for uid in shard]
        write_shard(layout, "caption", index, failed)
        write_shard(layout, "select", index, [candidate(uid, *text) for uid, texts in shard.items() for text in texts])
    return layout


def _pair(uid: str, reason: str | None) -> Record:
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
