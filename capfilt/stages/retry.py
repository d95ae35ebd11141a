"""`capfilt retry`: write new shards of pairs, in which rows that failed for a temporary reason are read again.

`pairs-retry1/` has the rows of `pairs/` in the same order under the same uids. Rows that were read again are replaced;
all others stay as they were. A shard without such rows is a hard link to the earlier one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfilt.download.reasons import may_pass
from capfilt.store.schema import PAIRS
from capfilt.store.shards import batches, table

Row = dict[str, Any]
_READ = 32
"""Rows to hold at a time, with their images."""


def retryable_rows(path: Path) -> list[int]:
    """Return the positions of a pairs shard's rows that failed for a temporary reason."""
    reasons = table(path, ["reason"])["reason"].to_pylist()
    return [position for position, reason in enumerate(reasons) if reason is not None and may_pass(reason)]


def replace_rows(path: Path, fresh: Iterator[tuple[int, Row]]) -> Iterator[Row]:
    """Yield the rows of a shard, with some replaced.

    Args:
        path: the shard.
        fresh: (position, row) of the new rows, by ascending position.
    """
    next_position, row = next(fresh, (-1, {}))
    position = 0
    for part in batches(path, [column.name for column in PAIRS], _READ):
        for old in part:
            if position == next_position:
                yield row
                next_position, row = next(fresh, (-1, {}))
            else:
                yield old
            position += 1
