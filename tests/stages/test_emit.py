import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from capfilt.selection.accounting import account
from capfilt.sinks.parquet import COLUMNS
from capfilt.stages import emit
from capfilt.stages.base import Task
from capfilt.stages.emit import NAME, NEW, OLD, EmitStage, recover
from capfilt.stages.select import SelectStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import CAPTIONS, arrow, score_columns
from capfilt.store.shards import ShardWriter, shard_name

Record = dict[str, Any]
FORMATS: list[Record] = [
    {"format": "parquet", "rows_per_file": 4},
    {"format": "webdataset", "rows_per_file": 4},
    {"format": "blip_json"},
    {"format": "pairs"},
]


@pytest.fixture
def layout(make_layout: Callable[..., RunLayout], pairs_row: Callable[..., Record]) -> RunLayout:
    """Two shards, 6 rows: 0 keeps both texts, 1 its caption, 2 nothing, 3 is quarantined; 4 keeps web, 5 is human."""
    shards = [[pairs_row(i) for i in range(3)] + [pairs_row(3, status="quarantined", text=None)]]
    shards += [[pairs_row(4, data=jpeg(), format="JPEG"), pairs_row(5, role="human", url=None)]]
    made: RunLayout = make_layout(shards, emit=FORMATS, name="tiny")
    folders = {**made.folders, "emit": "dataset"}
    del folders["dedup"]
    made = replace(made, folders=folders, digests={"caption": "c" * 16, "score": "d" * 16})
    itm = [[(0.75, 0.5), (0.25, 0.75), (0.25, 0.25), (None, None)], [(0.5, 0.0), (0.0, None)]]
    for shard, scores in enumerate(itm):
        write_shard(made, shard, [row["uid"] for row in shards[shard]], scores)
        SelectStage(made).process(Task(shard))
    return made


def jpeg() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (48, 36), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(
    layout: RunLayout, shard: int, uids: list[str], scores: list[tuple[float | None, float | None]]
) -> None:
    with (
        ShardWriter(layout.shard("caption", shard), arrow(CAPTIONS)) as captions,
        ShardWriter(layout.shard("score", shard), arrow(score_columns(4))) as sidecar,
    ):
        for uid, (web, made) in zip(uids, scores, strict=True):
            texts = None if made is None else [{"text": f"caption of {uid[-1]}", "logprob": -1.5, "sample": 0}]
            captions.write([{"uid": uid, "captions": texts, "status": "ok" if texts else "skipped"}])
            row: Record = {"uid": uid, "web_itm": web, "status": "skipped" if web is None else "ok"}
            sidecar.write([row | ({"caption_itm": [made], "caption_itc": [None]} if texts else {})])


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_format_has_the_kept_pairs(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0))
    dataset = layout.run / NAME
    kept = [("0", "web"), ("0", "synthetic"), ("1", "synthetic"), ("4", "web"), ("5", "human")]
    for pattern in ("data/*.parquet", "pairs/*.parquet"):
        rows = [row for path in sorted(dataset.glob(pattern)) for row in pq.read_table(path).to_pylist()]
        assert [(row["uid"][-1], row["origin"]) for row in rows] == kept
    assert set(tree(dataset)) == {
        "README.md", "accounting.json", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
        "webdataset/00000.tar", "webdataset/00001.tar", "pairs/pairs.parquet", "blip_json/run_filtered.json",
        "blip_json/run_human.json", "blip_json/run_synthetic_filtered.json",
        *(f"blip_json/images/{i:016x}.{suffix}" for i, suffix in ((0, "png"), (1, "png"), (4, "jpg"), (5, "png"))),
    }  # fmt: skip
    assert [path.name for path in layout.run.glob(".*")] == []


def test_accounting_beside_the_data(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0))
    facts = json.loads((layout.run / NAME / "accounting.json").read_text())
    emitted = facts.pop("emitted")
    assert facts == account(layout).to_dict()
    assert facts["rows"] == {"in": 6, "kept": 4, "rejected": 1, "quarantined": 1}
    assert [(emitted[name]["files"], emitted[name]["rows"]) for name in ("parquet", "webdataset")] == [(2, 5)] * 2
    assert emitted["blip_json"] == {"web": 2, "synthetic": 2, "human": 1}
    assert emitted["pairs"] == {"rows": 5}


def test_the_folder_opens_in_datasets_with_its_card(layout: RunLayout, caplog: pytest.LogCaptureFixture) -> None:
    EmitStage(layout).process(Task(0))
    caplog.clear()
    loaded = load_dataset(str(layout.run / NAME), split="train", cache_dir=str(layout.run / "cache"))
    assert loaded.num_rows == 5
    assert list(loaded.features) == [column.name for column in COLUMNS]
    assert loaded[3]["image"].size == (48, 36)
    assert "Ignoring part of dataset_info" not in caplog.text


def front(layout: RunLayout) -> tuple[Record, str]:
    """The card's YAML and its text."""
    _, head, body = (layout.run / NAME / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_the_data_are(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0))
    head, body = front(layout)
    assert head["license"] == "other"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    size = sum(path.stat().st_size for path in (layout.run / NAME / "data").iterdir())
    assert head["dataset_info"]["splits"] == [{"name": "train", "num_bytes": size, "num_examples": 5}]
    for text in ("| rows in | 6 |", "| rows kept | 4 | 66.7% |", "`tiny/captioner`", "c" * 16, '"itm_threshold":0.5'):
        assert text in body
    assert all(f"| `{column.name}` | `{column.type}` |" in body for column in COLUMNS)
    assert str(layout.run) not in body


def test_the_query_of_the_card_counts_the_texts_of_each_origin(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0))
    (query,) = re.findall(r"```sql\n(.*?)\n```", front(layout)[1], re.DOTALL)
    found = duckdb.sql(query.replace("data/", f"{layout.run / NAME}/data/")).fetchall()
    emitted = pq.read_table(layout.run / NAME / "data", columns=["origin"])["origin"].to_pylist()
    assert {origin: n for origin, n, _ in found} == Counter(emitted)


def test_the_card_without_parquet(layout: RunLayout) -> None:
    for part, path in (({"format": "webdataset"}, "webdataset/*.tar"), ({"format": "pairs"}, "pairs/*.parquet")):
        EmitStage(again(layout, emit=[part])).process(Task(0))
        assert front(layout)[0]["configs"][0]["data_files"][0]["path"] == path
    EmitStage(again(layout, emit=[{"format": "blip_json"}])).process(Task(0))
    assert "configs" not in front(layout)[0]


def again(layout: RunLayout, **parts: Any) -> RunLayout:
    """The same run with other parts of the pipeline."""
    raw = layout.pipeline.model_dump(mode="json") | parts
    return replace(layout, pipeline=type(layout.pipeline).model_validate(raw))


def test_hostile_names_stay_data_in_the_card(layout: RunLayout) -> None:
    source = {"type": "parquet", "path": "a", "name": "a: {b}\n---\n| x <script>"}
    EmitStage(again(layout, sources=[source])).process(Task(0))
    head, body = front(layout)
    assert head["pretty_name"] == "run"
    assert "- Sources: a: {b} --- \\| x \\<script\\> (parquet, web)\n" in body


def test_two_runs_give_equal_bytes(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0))
    first = tree(layout.run / NAME)
    EmitStage(layout).process(Task(0))
    assert tree(layout.run / NAME) == first
    shutil.copytree(layout.run, layout.run.with_name("elsewhere"))
    EmitStage(replace(layout, run=layout.run.with_name("elsewhere"))).process(Task(0))
    assert tree(layout.run.with_name("elsewhere") / NAME) == first


def test_nothing_kept_is_a_data_set_too(layout: RunLayout) -> None:
    none = replace(again(layout, select={"itm_threshold": 1.0}), shards=layout.shards[:1])
    SelectStage(none).process(Task(0))
    EmitStage(none).process(Task(0))
    assert pq.read_schema(layout.run / NAME / "data" / "train-00000-of-00001.parquet").names == [
        c.name for c in COLUMNS
    ]
    assert "none kept" in front(layout)[1]


def test_only_writes_nothing(layout: RunLayout) -> None:
    EmitStage(layout).process(Task(0, RowFilter(only=range(0, 1))))
    assert not (layout.run / NAME).exists()


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_kill_while_swapping_leaves_a_complete_data_set(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The moments: before the old one moves away, before the new one moves in, before the old one is removed."""
    EmitStage(layout).process(Task(0))
    old = tree(layout.run / NAME)
    fewer = again(layout, emit=[{"format": "pairs"}])
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(emit.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            EmitStage(fewer).process(Task(0))
    left = tree(layout.run / NAME) if (layout.run / NAME).exists() else tree(layout.run / OLD)
    assert (left == old) == (moment < 3)
    recover(layout.run)
    assert tree(layout.run / NAME) == left
    assert not (layout.run / OLD).exists()
    assert not (layout.run / NEW).exists()
    EmitStage(fewer).process(Task(0))
    assert set(tree(layout.run / NAME)) == {"README.md", "accounting.json", "pairs/pairs.parquet"}


def test_a_kill_while_writing_leaves_the_old_one(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    EmitStage(layout).process(Task(0))
    old = tree(layout.run / NAME)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(emit, "write_pairs", die)
        with pytest.raises(Killed):
            EmitStage(layout).process(Task(0))
    assert tree(layout.run / NAME) == old
    EmitStage(layout).process(Task(0))
    assert tree(layout.run / NAME) == old
    assert not (layout.run / NEW).exists()


def test_a_kill_within_recovery_is_recovered(layout: RunLayout) -> None:
    (layout.run / OLD).mkdir()
    (layout.run / OLD / "half.txt").touch()
    (layout.run / NEW).mkdir()
    EmitStage(layout).process(Task(0))
    assert "half.txt" not in tree(layout.run / NAME)
    assert not (layout.run / OLD).exists()


def test_settings_hold_name_formats_and_models(layout: RunLayout) -> None:
    before = EmitStage.spec.settings(layout.pipeline)
    assert EmitStage.spec.settings(again(layout, name="other").pipeline) != before
    assert EmitStage.spec.settings(again(layout, emit=FORMATS[:1]).pipeline) != before
    assert EmitStage.spec.settings(again(layout, select={"itm_threshold": 0.9}).pipeline) == before
    assert shard_name(0) not in json.dumps(before)
