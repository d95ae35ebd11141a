"""Example of a stage: count the words of each row's text, and the share of them that differ."""

from typing import Any, ClassVar

import pyarrow as pa

from capfilt.config.pipeline import Pipeline
from capfilt.stages.base import StageSpec, Task
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import open_output
from capfilt.store.schema import PAIRS, Column, ShardTable, arrow
from capfilt.store.shards import table

WORDS = ShardTable(
    "words",  # the stage's name, and the start of its folder's
    "words",  # the view of `capfilt sql`
    (
        Column("uid", pa.string(), "of the row"),
        Column("words", pa.int32(), "words of the row's text; null without one"),
        Column("distinct", pa.float32(), "share of them that differ, 0 .. 1; null without one"),
    ),
)


def settings(pipeline: Pipeline) -> Any:
    """Return the settings that decide the bytes; None would leave the stage out."""
    return {}


class WordsStage:
    """Writes one sidecar shard per shard of `pairs`."""

    spec: ClassVar[StageSpec] = StageSpec(output=WORDS, version=1, settings=settings, inputs=(PAIRS,))

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def setup(self) -> None:
        """Load models here; once per worker, before its first task."""

    def process(self, task: Task) -> None:
        """Write the shard: every row of the input, in its order."""
        rows = table(self._layout.shard(PAIRS, task.index), ["uid", "text"]).to_pylist()
        with open_output(self._layout.shard(WORDS, task.index), arrow(WORDS), task.rows) as output:
            output.write(
                {"uid": row["uid"]} | ({} if position in task.rows.quarantined else measure(row["text"]))
                for position, row in task.rows.select(rows)
            )


def measure(text: str | None) -> dict[str, Any]:
    """Return the columns of one row; a missing key is null."""
    words = (text or "").lower().split()
    return {"words": len(words), "distinct": len(set(words)) / len(words)} if words else {}
