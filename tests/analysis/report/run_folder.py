"""A finished run by hand: 60 web rows, 4 human ones, some refused, with scores, duplicates and hostile texts."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capfilt.config.load import validate
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.schema import CANDIDATES, CAPTIONS, DEDUP, NEAR, PAIRS, Column, arrow, score_columns
from capfilt.store.shards import ShardWriter

HOSTILE = [
    "<script>document.title='pwned';window.pwned=1</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script>",
    "\"><svg onload=document.title='pwned'>",
    "javascript:document.title='pwned'",
    "a\u2028b\u2029c {{ 7*7 }} {% raw %} \u202edesrever <!-- ]]> &lt;b&gt;",
    "<style>body{display:none}</style><base href='https://evil.example/'>",
    '[bold red]markup[/] \x1b[31mcolour\x07 =HYPERLINK("http://evil.example")',
]
FOLDERS = {"ingest": "pairs", "near": "near-a", "caption": "caption-b", "score": "score-c", "dedup": "dedup-d"}
FOLDERS |= {"select": "candidates-e"}
PIPELINE: dict[str, Any] = {
    "sources": [{"type": "parquet", "path": "photos.parquet", "name": "<b>photos</b>"}],
    "caption": {"model": "tiny/captioner"},
    "score": {"model": "tiny/filter"},
}
ROWS = 72


def picture(i: int) -> bytes:
    """A JPEG of 200 x 150, no two alike."""
    noise = np.random.default_rng(i).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).resize((200, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


def pair(i: int) -> dict[str, Any]:
    """Rows 0 .. 63 are ok (60 .. 63 human), 64 .. 67 rejected, 68 .. 71 quarantined; text i < 8 is hostile."""
    status = "ok" if i < 64 else "rejected" if i < 68 else "quarantined"
    hostile = HOSTILE[i % len(HOSTILE)]
    reason = {"ok": None, "rejected": "blocked" if i == 64 else "image_too_small", "quarantined": "bomb"}[status]
    image = None if status == "quarantined" or reason == "blocked" else {"bytes": picture(i), "path": f"{i}.jpg"}
    return {
        "uid": f"{i * 2654435761 % 2**64:016x}", "source": "<b>photos</b>", "role": "human" if 60 <= i < 64 else "web",
        "key": hostile if i >= 64 else str(i), "url": "javascript:document.title='pwned'",
        "text": hostile if i < 8 or i >= 64 else f"web text {i}", "image": image, "width": 200, "height": 150,
        "phash": i, "status": status, "reason": reason, "error": hostile if status == "quarantined" else None,
    }  # fmt: skip


def facts_of(i: int) -> dict[str, Any]:
    """Score, caption and mark of row i. Rows 10 .. 13 are duplicates, 20 contaminates, 40 has no caption."""
    rng = np.random.default_rng(1000 + i)
    itm, itc = rng.random(2).astype(np.float32), rng.uniform(-0.2, 0.6, 2).astype(np.float32)
    if i == 30:
        itm[0] = 0.8
    kind = {11: "exact", 12: "perceptual", 13: "semantic"}.get(i)
    return {
        "itm": itm.tolist(), "itc": itc.tolist(), "caption": HOSTILE[i % 8] if i < 16 else f"caption {i}",
        "duplicate_of": pair(10)["uid"] if kind else None, "duplicate_kind": kind,
        "similarity": {11: 1.0, 12: 0.953125, 13: 0.98}.get(i), "contaminates": "val:<i>7</i>" if i == 20 else None,
    }  # fmt: skip


def candidates(i: int, threshold: float = 0.5) -> list[dict[str, Any]]:
    """Row i's lines of the ledger."""
    row, facts, uid = pair(i), facts_of(i), pair(i)["uid"]
    own = "human" if row["role"] == "human" else "web"
    if row["status"] != "ok":
        return [{"uid": uid, "text": row["text"], "origin": own, "round": 0, "kept": False,
                 "reason": f"{row['status']}:{row['reason']}"}]  # fmt: skip
    texts = [(own, row["text"], None)] + ([("synthetic", facts["caption"], 0)] if own == "web" and i != 40 else [])
    mark = f"duplicate:{facts['duplicate_kind']}" if facts["duplicate_of"] else None
    mark = "contaminated" if facts["contaminates"] else mark
    lines = []
    for (origin, text, sample), itc, itm in zip(texts, facts["itc"], facts["itm"], strict=False):
        low = "below_itm_threshold" if itm < threshold and origin != "human" else None
        made = {"model": "tiny/captioner", "digest": "0" * 16, "decoding": json.dumps({"method": "beam"})}
        lines.append(
            {"uid": uid, "text": text, "origin": origin, "sample": sample, "round": 0, "itc": itc, "itm": itm,
             "kept": (mark or low) is None, "reason": mark or low} | (made if origin == "synthetic" else {})
        )  # fmt: skip
    return lines


def build_run(
    run: Path, shards: int = 2, leave_out: tuple[str, ...] = (), scored: bool = True, **pipeline: Any
) -> RunLayout:
    """The run's folder; `leave_out` names stages that it has not; without `scored` the ledger's scores are null."""
    folders = {stage: name for stage, name in FOLDERS.items() if stage not in leave_out}
    size = ROWS // shards
    units = tuple(ShardSpec("<b>photos</b>", "", s * size, (s + 1) * size) for s in range(shards))
    layout = RunLayout(
        validate(PIPELINE | pipeline, "test"), run, units, folders, {"caption": "0" * 16, "score": "1" * 16}
    )
    for s in range(shards):
        indices = range(s * size, (s + 1) * size)
        for stage in folders:
            schema, rows = _sidecar(stage, indices)
            rows = rows if scored or stage != "select" else [row | {"itm": None, "itc": None} for row in rows]
            with ShardWriter(layout.shard(stage, s), arrow(schema)) as writer:
                writer.write(rows)
    return layout


def _sidecar(stage: str, indices: range) -> tuple[tuple[Column, ...], list[dict[str, Any]]]:
    if stage == "ingest":
        return PAIRS, [pair(i) for i in indices]
    if stage == "select":
        return CANDIDATES, [line for i in indices for line in candidates(i)]
    rows = [{"uid": pair(i)["uid"]} | _columns(stage, i) for i in indices]
    return {"near": NEAR, "dedup": DEDUP, "caption": CAPTIONS, "score": score_columns(4)}[stage], rows


def _columns(stage: str, i: int) -> dict[str, Any]:
    facts, asked = facts_of(i), i < 64
    status = {"status": "ok" if asked else "skipped"}
    if stage in ("near", "dedup"):
        return facts
    if stage == "caption":
        failed = {"status": "failed", "error": HOSTILE[0]} if i == 40 else status
        made = [{"text": facts["caption"], "logprob": -1.5, "sample": 0}]
        return failed | {"captions": made if i < 60 and i != 40 else None}
    scores = {"web_itc": facts["itc"][0], "web_itm": facts["itm"][0], "image_embedding": [0.5] * 4}
    return status | (scores | {"caption_itc": facts["itc"][1:], "caption_itm": facts["itm"][1:]} if asked else {})
