"""Read sidecars as flat arrays, for the selection of texts; nulls where the pipeline leaves a stage out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capfilt.errors import DataError
from capfilt.store.arrays import Bools, Floats, Reasons, equal
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, DEDUP, NEAR, SCORES, ShardTable
from capfilt.store.shards import table

KILLED = "killed its worker"
"""The `error` of a row that was left out because its worker died on it on every try."""


def sidecar(layout: RunLayout, kind: ShardTable, shard: int, columns: Sequence[str], uids: pa.ChunkedArray) -> pa.Table:
    """Read columns of a sidecar shard; nulls where the pipeline has no such stage.

    Args:
        layout: the layout of the run.
        kind: the sidecar.
        shard: index of the shard.
        columns: names of the columns to return.
        uids: the uids of the pairs rows of that shard, (n,).

    Raises:
        DataError: the file is damaged, or its rows are not those of the pairs.
    """
    if not layout.has(kind):
        types = {column.name: column.type for column in kind}
        return pa.table({name: pa.nulls(len(uids), types[name]) for name in columns})
    path = layout.shard(kind, shard)
    found = table(path, ["uid", *columns])
    if not found["uid"].equals(uids):
        raise DataError(f"{path}: its uids are not those of {layout.shard('ingest', shard)}; remove it and run again")
    return found.select(list(columns))


@dataclass(frozen=True)
class Captions:
    """The m captions of a shard, in one flat array per field."""

    row: NDArray[np.int64]
    """Position of the caption's pairs row, (m,), ascending."""
    place: NDArray[np.int64]
    """Index of the caption in its row's list, (m,)."""
    sample: NDArray[np.int64]
    """Number of the sample, (m,)."""
    text: pa.Array
    """String, (m,)."""
    logprob: pa.Array
    """Mean natural logarithm of the probability per token, (m,) float32."""

    @classmethod
    def of(cls, lists: pa.ChunkedArray) -> "Captions":
        """Flatten the column `captions` of the caption stage: one list per pairs row, null where not captioned."""
        sizes, flat = _sizes(lists), _flat(lists)
        row = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sample = pc.struct_field(flat, "sample").to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(row, place, sample, pc.struct_field(flat, "text"), pc.struct_field(flat, "logprob"))


def caption_scores(lists: pa.ChunkedArray, captions: Captions, where: object) -> Floats:
    """Flatten a list column of the score stage.

    Args:
        lists: the scores of each row.
        captions: the captions of the same rows.
        where: the file, for the error message.

    Returns:
        One score per caption, (m,) float32, NaN where null.

    Raises:
        DataError: a row has scores, but not as many as captions.
    """
    sizes, flat = _sizes(lists), floats(_flat(lists))
    scored = sizes[captions.row] > 0
    expected = np.bincount(captions.row[scored], minlength=len(sizes))
    if not np.array_equal(sizes, expected):
        row = int(np.flatnonzero(sizes != expected)[0])
        raise DataError(f"{where}: row {row} has {sizes[row]} caption scores; remove the file and run again")
    out = np.full(len(scored), np.nan, dtype=np.float32)
    out[scored] = flat[((np.cumsum(sizes) - sizes)[captions.row] + captions.place)[scored]]
    return out


def refused_rows(layout: RunLayout, shard: int, rows: pa.Table) -> Reasons:
    """Return why all texts of a row are refused whatever their scores, (n,); None where scores decide.

    Args:
        layout: the layout of the run.
        shard: index of the shard.
        rows: columns uid, role, status, reason of the n pairs rows.
    """
    marks = DEDUP if layout.has(DEDUP) else NEAR
    kind = objects(sidecar(layout, marks, shard, ["duplicate_kind"], rows["uid"])["duplicate_kind"])
    kind[equal(objects(rows["role"]), "human") & ~equal(kind, "key")] = None
    contaminates = objects(sidecar(layout, DEDUP, shard, ["contaminates"], rows["uid"])["contaminates"])
    out = np.full(rows.num_rows, None, dtype=object)
    out[~equal(contaminates, None)] = "contaminated"
    _name(out, "duplicate", kind, ~equal(kind, None))
    out[_killed(layout, shard, rows["uid"])] = "quarantined:killed_worker"
    status, reason = objects(rows["status"]), objects(rows["reason"])
    for word in ("rejected", "quarantined"):
        _name(out, word, reason, equal(status, word))
    return out


def failed(layout: RunLayout, kind: ShardTable, shard: int, uids: pa.ChunkedArray) -> Bools:
    """Return whether a stage failed on each row, (n,)."""
    return equal(objects(sidecar(layout, kind, shard, ["status"], uids)["status"]), "failed")


def _killed(layout: RunLayout, shard: int, uids: pa.ChunkedArray) -> Bools:
    """Return whether each row killed the worker of every model stage that processed it, (n,)."""
    processed, killed = np.zeros(len(uids), dtype=int), np.zeros(len(uids), dtype=int)
    for kind in (CAPTIONS, SCORES):
        found = sidecar(layout, kind, shard, ["status", "error"], uids)
        status, error = objects(found["status"]), objects(found["error"])
        processed += equal(status, "ok") | equal(status, "failed")
        killed += equal(status, "failed") & equal(error, KILLED)
    every: Bools = (killed > 0) & (killed == processed)
    return every


def _name(out: Reasons, word: str, detail: NDArray[np.object_], where: Bools) -> None:
    """Write `word:detail` into `out` where `where` is true."""
    for i in np.flatnonzero(where):
        out[i] = f"{word}:{detail[i]}"


def objects(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Return a column as a writable array of strings and None, (n,)."""
    return np.array(column.to_pylist(), dtype=object)


def floats(column: pa.Array | pa.ChunkedArray) -> Floats:
    """Return a column as a writable float32 array, (n,), NaN where null."""
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float32)


def _sizes(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the number of elements of each list, 0 for null."""
    return np.array(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), dtype=np.int64)


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    return pc.list_flatten(lists).combine_chunks()
