"""A run's rows as arrays for the search of duplicates, and the resulting marks as sidecars.

Uid, role, size and hash of every row are in memory (35 bytes per row), and the embedding of scored rows; no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from capfilt.dedup.groups import DUPLICATE_KINDS, Marks
from capfilt.dedup.hamming import Codes
from capfilt.dedup.links import Ints, Mask
from capfilt.store.layout import RunLayout
from capfilt.store.schema import PAIRS, ShardTable, arrow
from capfilt.store.shards import ShardWriter, table

_KINDS = np.array([*DUPLICATE_KINDS, "key"])
_KEY = len(DUPLICATE_KINDS)
_COLUMNS = ("uid", "role", "status", "width", "height", "phash")


@dataclass(frozen=True)
class RunRows:
    """All N rows of a run in input order: by shard, then by position in it."""

    counts: tuple[int, ...]
    """Rows of each shard."""
    uid: NDArray[np.bytes_]
    human: Mask
    ok: Mask
    pixels: Ints
    """width * height."""
    phash: Codes
    """0 where null."""
    repeated: Mask
    """Rows whose uid an earlier row has (their source states a key twice). They are in no other search."""


def read(layout: RunLayout) -> RunRows:
    """Read the rows of every pairs shard. Raises DataError for a damaged shard."""
    parts = [_arrays(table(layout.shard(PAIRS, shard), _COLUMNS)) for shard in range(len(layout.shards))]
    uid, human, ok, pixels, phash = (np.concatenate(column) for column in zip(*parts, strict=True))
    repeated = np.ones(len(uid), dtype=bool)
    repeated[np.unique(uid, return_index=True)[1]] = False
    return RunRows(tuple(len(part[0]) for part in parts), uid, human, ok, pixels, phash, repeated)


def _arrays(found: pa.Table) -> tuple[NDArray[np.bytes_], Mask, Mask, Ints, Codes]:
    width, height, phash = (found[name].fill_null(0).to_numpy() for name in ("width", "height", "phash"))
    return (
        np.array(found["uid"].to_pylist(), dtype=np.bytes_),
        np.array([role == "human" for role in found["role"].to_pylist()], dtype=bool),
        np.array([status == "ok" for status in found["status"].to_pylist()], dtype=bool),
        np.asarray(width, dtype=np.int64) * np.asarray(height, dtype=np.int64),
        np.asarray(phash, dtype=np.uint64),
    )


def ranked(rows: RunRows, *merits: NDArray[np.float32]) -> Ints:
    """Return the rows that can be duplicates, in order of rank: the row to keep first.

    Human before web, then by each of `merits` (N,) from high to low, NaN last, then more pixels, then the lower uid.
    """
    taking_part = np.flatnonzero(rows.ok & ~rows.repeated)
    keys = [rows.uid, -rows.pixels, *(-merit for merit in reversed(merits)), ~rows.human]
    return taking_part[np.lexsort([key[taking_part] for key in keys])]


def write(
    layout: RunLayout,
    kind: ShardTable,
    rows: RunRows,
    order: Ints,
    marks: Marks,
    contaminates: Sequence[str | None] | None = None,
) -> None:
    """Write the marks as the stage's sidecars, one per shard. Human rows get no mark, except for a repeated key.

    Args:
        layout: of the run.
        kind: NEAR or DEDUP.
        rows: N rows.
        order: as `ranked` returned it, (R,).
        marks: of these R rows.
        contaminates: N labels of evaluation images, or None.
    """
    target, reason, similarity = _spread(rows, order, marks)
    start = 0
    for shard, count in enumerate(rows.counts):
        part = slice(start, start := start + count)
        table_ = _table(rows.uid[part], rows.uid[target[part]], reason[part], similarity[part])
        if contaminates is not None:
            table_ = table_.append_column("contaminates", pa.array(contaminates[part], pa.string()))
        with ShardWriter(layout.shard(kind, shard), arrow(kind)) as writer:
            writer.write_table(table_)


def _spread(rows: RunRows, order: Ints, marks: Marks) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Return the marks of all N rows in input order: the row that is kept, index in _KINDS, similarity."""
    target = np.arange(len(rows.uid))
    kind = np.where(rows.repeated, _KEY, 0)
    similarity = np.zeros(len(rows.uid), dtype=np.float32)
    marked = (marks.keeper != np.arange(len(order))) & ~rows.human[order]
    row = order[marked]
    target[row], kind[row], similarity[row] = order[marks.keeper[marked]], marks.kind[marked], marks.similarity[marked]
    return target, kind, similarity


def _table(
    uid: NDArray[np.bytes_], keeper: NDArray[np.bytes_], kind: Ints, similarity: NDArray[np.float32]
) -> pa.Table:
    columns = {
        "uid": pa.array(uid.astype(str)),
        "duplicate_of": pa.array(keeper.astype(str), mask=kind == 0),
        "duplicate_kind": pa.array(_KINDS[kind], mask=kind == 0),
        "similarity": pa.array(similarity, mask=(kind == 0) | (kind == _KEY)),
    }
    return pa.table(columns)
