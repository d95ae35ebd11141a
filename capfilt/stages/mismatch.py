"""Mismatched pairs: each human row of a shard with the text of another row that has another image."""

from collections.abc import Callable

from capfilt.store.layout import RunLayout
from capfilt.store.schema import PAIRS
from capfilt.store.shards import table


def mismatched(layout: RunLayout, shard: int, clean: Callable[[str], str]) -> dict[int, str]:
    """Choose a wrong text for each human row of a shard.

    Rows are sorted by uid, which is a hash; each gets the text of the next row, the last one that of the first. This is
    a permutation of the shard's human texts without a fixed point, and the same in every run. Rows with the same image
    file or the same text are passed over.

    Args:
        layout: the layout of the run.
        shard: index of the shard.
        clean: cleans a text as the judge does.

    Returns:
        Position -> cleaned text of another row; rows for which there is none are left out.

    Raises:
        DataError: the pairs are damaged.
    """
    names = ("role", "status", "uid", "sha256", "text")
    columns = [column.to_pylist() for column in table(layout.shard(PAIRS, shard), names).select(names).columns]
    human = [
        (uid, position, digest, clean(text or ""))
        for position, (role, status, uid, digest, text) in enumerate(zip(*columns, strict=True))
        if role == "human" and status == "ok"
    ]
    human = sorted(row for row in human if row[3])
    found = {}
    for i, (_, position, digest, text) in enumerate(human):
        others = (human[(i + ahead) % len(human)] for ahead in range(1, len(human)))
        other = next((row[3] for row in others if row[2] != digest and row[3] != text), None)
        if other is not None:
            found[position] = other
    return found
