"""The stage: its shard has equal bytes each time, and its settings hold all that is written."""

import json
from collections.abc import Callable
from typing import Any

from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.stages.base import Task
from capfilt.stages.select import SelectStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.shards import table
from tests.sidecar_rows import Record, caption, score, write

Rows = Callable[..., Record]
Jobs = Callable[..., RunLayout]


def test_process_writes_the_shard_with_equal_bytes(make_layout: Jobs, pairs_row: Rows) -> None:
    layout = make_layout([[pairs_row(i) for i in range(3)]])
    layout = write(
        layout, caption=[caption(i, "a", "b") for i in range(3)], score=[score(i, 0.9, 0.1, 0.7) for i in range(3)]
    )
    path = layout.shard("select", 0)
    SelectStage(layout).process(Task(0, RowFilter(only=range(0, 1))))
    assert not path.exists()
    SelectStage(layout).process(Task(0))
    first = path.read_bytes()
    path.unlink()
    SelectStage(layout).process(Task(0))
    assert path.read_bytes() == first
    assert table(path).num_rows == 9


def pipeline(path: str = "tiny/captioner", **parts: Any) -> Pipeline:
    raw: Record = {"sources": [{"type": "parquet", "path": "a"}], "caption": {"model": path}, "score": {"model": "m"}}
    return validate(raw | parts, "test.yaml")


def test_settings_hold_the_policy_and_what_is_written_of_the_captioner() -> None:
    before = SelectStage.spec.settings(pipeline())
    assert SelectStage.spec.settings(pipeline(select={"itm_threshold": 0.6})) != before
    assert SelectStage.spec.settings(pipeline(caption={"model": "tiny/captioner", "seed": 1})) != before
    assert SelectStage.spec.settings(pipeline(dedup={"exact": False})) == before
    assert SelectStage.spec.settings(pipeline("/here/mine")) == SelectStage.spec.settings(pipeline("/there/mine"))
    json.dumps(before)
