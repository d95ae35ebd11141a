"""Pairs known to be wrong: for each human row of a shard the text of another one, whose image is another."""

from collections.abc import Callable

from capfilt.store.layout import RunLayout
from capfilt.store.schema import PAIRS
from capfilt.store.shards import table


def mismatched(layout: RunLayout, shard: int, clean: Callable[[str], str]) -> dict[int, str]:
    """Position -> another human row's text, cleaned by `clean`; rows for which there is none are left out.

    In the order of uids, which are hashes, it is the next row's, from the last the first's: a permutation of the
    shard's human texts without a fixed point, the same in every run. Rows of the same file or text are passed over.
    Raises DataError for damaged pairs.
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
