"""Asking again for what did not come for a passing reason: new shards of pairs beside the ones before.

`pairs-retry1/` has the rows of `pairs/` in the same order under the same uids; rows that were asked again are replaced
by what came this time, all others are as they were. A shard with nothing to ask is the same file (a hard link).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfilt.download.reasons import may_pass
from capfilt.store.schema import PAIRS
from capfilt.store.shards import batches, link_shard, table

Row = dict[str, Any]
_READ = 32


def positions(path: Path) -> list[int]:
    """Rows of a pairs shard that may come when they are asked again."""
    reasons = table(path, ["reason"])["reason"].to_pylist()
    return [position for position, reason in enumerate(reasons) if reason is not None and may_pass(reason)]


def keep(before: Path, path: Path) -> None:
    """The shard as it was."""
    link_shard(before, path)


def merged(before: Path, fresh: Iterator[tuple[int, Row]]) -> Iterator[Row]:
    """The rows of the shard before, those at the positions of `fresh` (ascending) replaced."""
    place, row = next(fresh, (-1, {}))
    position = 0
    for part in batches(before, [column.name for column in PAIRS], _READ):
        for old in part:
            if position == place:
                yield row
                place, row = next(fresh, (-1, {}))
            else:
                yield old
            position += 1
