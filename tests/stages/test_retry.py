"""Rows that are read again get their place in new shards; everything else stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from capfilt.engine.reuse import reuse
from capfilt.stages import retry
from capfilt.stages.caption import CaptionStage
from capfilt.store.fingerprint import canonical, fingerprint
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, arrow
from capfilt.store.shards import ShardWriter, link_shard, write_atomic

Make = Callable[..., Any]


def failed(pairs_row: Make, i: int, reason: str) -> dict[str, Any]:
    return pairs_row(i, status="quarantined", reason=reason)


def test_retryable_rows_failed_for_a_temporary_reason(make_layout: Make, pairs_row: Make) -> None:
    kinds = [None, "timeout", "http_404", "http_503", "image_unreadable", "http_429", "opt_out"]
    layout = make_layout([[failed(pairs_row, i, kind) if kind else pairs_row(i) for i, kind in enumerate(kinds)]])
    assert retry.retryable_rows(layout.shard("ingest", 0)) == [1, 3, 5]


def test_replaced_rows_keep_their_positions(make_layout: Make, pairs_row: Make) -> None:
    layout = make_layout([[failed(pairs_row, i, "timeout") if i % 3 else pairs_row(i) for i in range(100)]])
    path = layout.shard("ingest", 0)
    fresh = [(i, {**pairs_row(i), "text": "new"}) for i in retry.retryable_rows(path)]
    old = pq.read_table(path).to_pylist()
    found = list(retry.replace_rows(path, iter(fresh)))
    assert [row["uid"] for row in found] == [row["uid"] for row in old]
    assert [row["text"] == "new" for row in found] == [i % 3 > 0 for i in range(100)]
    assert all(found[i] == old[i] for i in range(0, 100, 3))


def pairs_again(
    layout: RunLayout, rows: list[list[dict[str, Any]]], write_sidecar: Make
) -> tuple[RunLayout, dict[str, Any]]:
    """The layout after a retry that left shard 0 as it was; both jobs' caption folders say what made them."""
    prints = {}
    for name, extra in (("pairs", {}), ("pairs-retry1", {"retry": 1})):
        material = {"version": 1, "sources": "x", **extra}
        prints[name] = fingerprint(material)
        write_atomic(layout.run / name / "fingerprint.json", canonical(material))
    again = replace(
        layout, folders={**layout.folders, "ingest": "pairs-retry1", "caption": "caption-1"}, digests={"caption": "d"}
    )
    link_shard(layout.shard("ingest", 0), again.shard("ingest", 0))
    write_sidecar(again, "ingest", 1, rows[1])
    made = {"version": 1, "settings": {"seed": 0}, "weights": "d"}
    for each, print_ in ((layout, prints["pairs"]), (again, prints["pairs-retry1"])):
        write_atomic(each.folder("caption") / "fingerprint.json", canonical({**made, "inputs": {"ingest": print_}}))
    return again, made


def test_captions_of_untouched_shards_are_taken_over(make_layout: Make, pairs_row: Make, write_sidecar: Make) -> None:
    first = [[pairs_row(i) for i in range(3)], [failed(pairs_row, 3, "timeout")]]
    layout = make_layout(first, score=None, select={"policy": "keep_all"}, dedup={"semantic": None})
    for shard, rows in enumerate(first):
        with ShardWriter(layout.shard("caption", shard), arrow(CAPTIONS)) as writer:
            writer.write({"uid": row["uid"], "status": "ok"} for row in rows)
    again, made = pairs_again(layout, [first[0], [pairs_row(3)]], write_sidecar)
    assert again.shard("ingest", 0).samefile(layout.shard("ingest", 0))
    assert reuse(again, CaptionStage.spec, 0)
    assert again.shard("caption", 0).samefile(layout.shard("caption", 0))
    assert not reuse(again, CaptionStage.spec, 1)
    assert not again.shard("caption", 1).exists()
    again.shard("caption", 0).unlink()
    other = {**made, "settings": {"seed": 1}, "inputs": {"ingest": "x"}}
    write_atomic(again.folder("caption") / "fingerprint.json", canonical(other))
    assert not reuse(again, CaptionStage.spec, 0)


def test_a_shard_has_a_second_name_where_there_are_no_links(
    make_layout: Make, pairs_row: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(1, "Operation not permitted")

    layout = make_layout([[pairs_row(0)]])
    monkeypatch.setattr("os.link", refuse)
    link_shard(layout.shard("ingest", 0), tmp_path / "b/00000.parquet")
    assert (tmp_path / "b/00000.parquet").read_bytes() == layout.shard("ingest", 0).read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["00000.json", "00000.parquet"]
