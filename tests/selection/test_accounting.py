from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from capfilt.config.load import validate
from capfilt.errors import ConfigError, DataError
from capfilt.selection.accounting import account, funnel, truth
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


def test_every_row_and_text_is_counted_once(tmp_path: Path) -> None:
    found = account(make_layout(tmp_path))
    assert found.texts_kept == 5
    assert found.to_dict() == {
        "rows": {"in": 9, "kept": 4, "rejected": 3, "quarantined": 2},
        "rejected": {"below_itm_threshold": 1, "duplicate:exact": 1, "rejected:text_empty": 1},
        "quarantined": {"bomb": 1, "killed_worker": 1},
        "captioned": {"rows": 4, "captions": 5},
        "failed": {"caption": 1},
        "kept_images": {"GIF": 2, "PNG": 2},
        "texts": {
            "web": {
                "candidates": 7,
                "kept": 2,
                "rejected": {
                    "below_itm_threshold": 2,
                    "duplicate:exact": 1,
                    "quarantined:killed_worker": 1,
                    "rejected:text_empty": 1,
                },
            },
            "synthetic": {
                "candidates": 5,
                "kept": 2,
                "rejected": {"below_itm_threshold": 1, "duplicate:exact": 1, "over_max_texts": 1},
            },
            "human": {"candidates": 1, "kept": 1, "rejected": {}},
        },
    }


def test_a_run_without_rows(tmp_path: Path) -> None:
    assert account(make_layout(tmp_path, [{}])).to_dict()["rows"] == {
        "in": 0,
        "kept": 0,
        "rejected": 0,
        "quarantined": 0,
    }


def ledger(shard: dict[str, list[Verdict]]) -> list[Record]:
    return [candidate(uid, *text) for uid, texts in shard.items() for text in texts]


WRONG: Mapping[str, tuple[list[Record], str]] = {
    "a row is missing": (ledger(SHARDS[1])[:-1], "5 rows in, 4 in the ledger"),
    "a row too many": ([*ledger(SHARDS[1]), candidate("z", "web", None)], "5 rows in, 6 in the ledger"),
    "another row": ([*ledger(SHARDS[1])[:-1], candidate("z", "web", None)], "uids"),
    "rows in another order": ([*ledger(SHARDS[1])[-1:], *ledger(SHARDS[1])[:-1]], "uids"),
    "a caption of another row": ([*ledger(SHARDS[1]), candidate("a", "synthetic", None)], "uids"),
    "a caption before its row": ([candidate("e", "synthetic", None), *ledger(SHARDS[1])], "uids"),
    "kept with a reason": ([*ledger(SHARDS[1])[:-1], candidate("i", "web", "no_text", kept=True)], "both"),
    "rejected without one": ([*ledger(SHARDS[1])[:-1], candidate("i", "web", None, kept=False)], "or neither"),
    "kept though refused": (
        [*ledger(SHARDS[1])[:2], candidate("f", "web", None), *ledger(SHARDS[1])[3:]],
        "ingest rejected",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_sum_that_is_off_names_the_shard(tmp_path: Path, fault: str) -> None:
    layout = make_layout(tmp_path)
    rows, told = WRONG[fault]
    write(layout, "select", 1, rows)
    with pytest.raises(DataError, match=rf"candidates-0/00001\.parquet: the accounting is off: .*{told}"):
        account(layout)


def test_pairs_of_which_rows_were_lost(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    path = layout.shard("ingest", 0)
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with pytest.raises(DataError, match="accounting is off: 4 rows in"):
        account(layout)


def test_the_funnel_shows_rows_and_texts(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(funnel(account(make_layout(tmp_path))))
    shown = [line.strip("│ ").replace("│", " ").split() for line in console.export_text().splitlines()]
    for line in (["rows", "in", "9"], ["rows", "kept", "4", "44.4%"], ["bomb", "1", "11.1%"], ["captions", "5"]):
        assert line in shown
    assert ["web", "texts", "kept", "2", "28.6%"] in shown


def labelled(tmp_path: Path, path: str = "truth.parquet", **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), tmp_path / path)
    return str(tmp_path / path)


def test_truth_counts_what_the_policy_judged(tmp_path: Path) -> None:
    keys = [f"key-{uid}" for uid in "abcdefghi"] + ["key-unknown", None]
    matches = [True, False, True, True, True, False, True, False, False, True, True]
    part = {"path": labelled(tmp_path, key=keys, matches=matches), "source": "crawl"}
    found = truth(make_layout(tmp_path, truth=part))
    assert found is not None
    sentence = found.pop("sentence")
    assert found == {"source": "crawl", "wrong_in": 2, "wrong_rejected": 1, "right_in": 3, "right_kept": 2}
    assert "1 of 2 (50%) wrong ones were rejected and 2 of 3 (67%) right ones kept" in sentence


def test_truth_is_of_the_first_web_source_by_default(tmp_path: Path) -> None:
    part = {"path": labelled(tmp_path, key=["key-a"], matches=[True])}
    found = truth(make_layout(tmp_path, truth=part))
    assert found is not None
    assert (found["source"], found["right_kept"]) == ("crawl", 1)
    assert "0 of 0 wrong ones" in found["sentence"]


def test_no_truth(tmp_path: Path) -> None:
    assert truth(make_layout(tmp_path)) is None


def test_truth_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column matches"):
        truth(make_layout(tmp_path, truth={"path": labelled(tmp_path, key=["a"])}))
    layout = make_layout(tmp_path, truth={"path": labelled(tmp_path, key=["a"], matches=[True]), "source": "nobody"})
    with pytest.raises(ConfigError, match="'nobody'; there are crawl, b"):
        truth(layout)
    human = layout.pipeline.model_copy(update={"sources": layout.pipeline.sources[1:], "truth": replaced(layout)})
    with pytest.raises(ConfigError, match="no source is of role web"):
        truth(replace(layout, pipeline=human))


def replaced(layout: RunLayout) -> Any:
    assert layout.pipeline.truth is not None
    return layout.pipeline.truth.model_copy(update={"source": ""})
