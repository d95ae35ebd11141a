"""Read the rows of a shard with their sidecars, form batches, and decode and prepare images ahead of the model.

A batch ends after a fixed number of rows that the model is to run on, in row order, or at the end of the shard. Its
bounds depend on the data alone: neither on row groups, nor on rows that are left out because they kill a worker. On a
GPU the last bits of sums depend on the batch, so moving bounds would change them. Full-size images exist only in the
two decoding threads. Prepared images (BLIP: 1.8 MB each at 384 px) wait for the model, of three batches at most; for a
model on a GPU they wait there (`transfer`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from capfilt.errors import DataError
from capfilt.inference.transfer import Transfer, transfer_to
from capfilt.media.images import ImageError, decode_image
from capfilt.media.pillow import decoding
from capfilt.models.protocols import Prepared, System
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import CAPTIONS, NEAR, PAIRS, ShardTable, StageOutput
from capfilt.store.shards import batches
from capfilt.store.sidecars import KILLED

Record = dict[str, Any]

THREADS = 2
"""Threads that decode images for one model, with one torch thread each. With more torch threads OpenMP would have more
threads than cores, and the model's would sleep at each barrier (captioning took 1.5 times as long on two cores)."""
AHEAD = 2
"""Prepared batches that may wait for the model."""

_READ = 32
_COLUMNS = {PAIRS: ("role", "text", "image", "status"), NEAR: ("duplicate_of",), CAPTIONS: ("captions",)}


@dataclass
class Row:
    """A row on its way through a model stage."""

    position: int
    """Number of the row in its shard, from 0."""
    uid: str
    role: str
    """web | human."""
    text: str | None
    """The row's own text."""
    captions: list[Record] | None
    """Captions from the caption stage's sidecar; None if the pipeline does not have the stage."""
    asked: bool
    """Whether the model is to run on it, by its role, status and duplicate mark."""
    status: str
    """ok | skipped | failed: the value for the sidecar, as far as known."""
    error: str | None = None
    """Why the row failed."""
    image: bytes | None = None
    """The encoded image, until it is decoded."""
    prepared: list[Prepared] = field(default_factory=list)
    """The image as input of each system, on its device (`transfer`); empty before it is decoded and after its use."""


def aligned(
    layout: RunLayout, shard: int, columns: Mapping[ShardTable, Sequence[str]]
) -> Iterator[dict[ShardTable, Record]]:
    """Stream the rows of one shard of several tables side by side.

    Args:
        layout: the run.
        shard: index.
        columns: table -> the columns to read, besides uid. The first table must exist.

    Yields:
        Table -> record of the row; an empty record for a table that the pipeline does not have.

    Raises:
        DataError: a shard is damaged, or its uids differ from those of the first table.
    """
    paths = {kind: layout.shard(kind, shard) for kind in columns if layout.has(kind)}
    streams = [_records(path, ["uid", *columns[kind]]) for kind, path in paths.items()]
    for position, records in enumerate(zip_longest(*streams, fillvalue={})):
        _check_uids(position, records, list(paths.values()))
        yield {kind: {} for kind in columns} | dict(zip(paths, records, strict=True))


def _records(path: Path, columns: list[str]) -> Iterator[Record]:
    for part in batches(path, columns, _READ):
        yield from part


def _check_uids(position: int, records: tuple[Record, ...], paths: list[Path]) -> None:
    want = records[0].get("uid")
    for record, path in zip(records, paths, strict=True):
        if record.get("uid") != want:
            raise DataError(
                f"{path}: row {position} is {record.get('uid')}, in {paths[0]} it is {want}; "
                "a sidecar has its pairs' rows in their order: remove the folder that is wrong and run again"
            )


def read_rows(
    layout: RunLayout, shard: int, inputs: Sequence[StageOutput], roles: Sequence[str], rows: RowFilter
) -> Iterator[Row]:
    """Read the rows of a shard that the filter selects.

    The model is to run on rows with one of the roles that ingest accepted and that are not marked as duplicates
    (`dedup.skip_models`). The other rows have status skipped.

    Args:
        layout: the run.
        shard: index.
        inputs: tables to read, PAIRS first.
        roles: "web", "human" or both.
        rows: which positions to read, and which of them are quarantined: these have status failed, and no image.

    Raises:
        DataError: as `aligned`.
    """
    for position, records in rows.select(
        aligned(layout, shard, {kind: names for kind, names in _COLUMNS.items() if kind in inputs})
    ):
        asked = _asked(records, roles, layout.pipeline.dedup.skip_models)
        pairs, captions = records[PAIRS], records.get(CAPTIONS, {}).get("captions")
        status = "ok" if asked else "skipped"
        row = Row(position, pairs["uid"], pairs["role"], pairs["text"], captions, asked, status)
        if position in rows.quarantined:
            row.status, row.error = "failed", KILLED
        row.image = pairs["image"]["bytes"] if row.status == "ok" and pairs["image"] else None
        yield row


def _asked(records: Mapping[ShardTable, Record], roles: Sequence[str], skip_marked: bool) -> bool:
    pairs, mark = records[PAIRS], records[NEAR].get("duplicate_of")
    return pairs["role"] in roles and pairs["status"] == "ok" and not (skip_marked and mark is not None)


def model_batches(rows: Iterable[Row], size: int, systems: Sequence[System], max_pixels: int) -> Iterator[list[Row]]:
    """Divide rows into batches, and prepare the images of rows with status ok for each system.

    A row whose image cannot be decoded gets status failed and stays in its batch.

    Args:
        rows: of one shard.
        size: number of rows per batch that the model is to run on (`Row.asked`).
        systems: those that images are prepared for, in the order of `Row.prepared`.
        max_pixels: largest image that is decoded, in pixels.

    Yields:
        Batches that contain every row, in order.
    """
    transfers = [transfer_to(system.device) for system in systems]

    def load(row: Row) -> None:
        try:
            data = row.image or b""
            image = decode_image(data, max_pixels)
            row.prepared = [
                transfer.send(system.prepare(image, data)) for transfer, system in zip(transfers, systems, strict=True)
            ]
        except ImageError as error:
            row.status, row.error = "failed", str(error)
        row.image = None

    waiting: deque[tuple[list[Row], list[Future[None]]]] = deque()
    with decoding(), ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in _grouped(rows, size):
            waiting.append((batch, [pool.submit(load, row) for row in batch if row.status == "ok"]))
            if len(waiting) > AHEAD:
                yield _arrived(*waiting.popleft(), transfers)
        while waiting:
            yield _arrived(*waiting.popleft(), transfers)


def _grouped(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    asked = 0
    for row in rows:
        batch.append(row)
        asked += row.asked
        if asked == size:
            yield batch
            batch, asked = [], 0
    if batch:
        yield batch


def _arrived(batch: list[Row], decoding: list[Future[None]], transfers: Sequence[Transfer]) -> list[Row]:
    for future in decoding:
        future.result()
    for system, transfer in enumerate(transfers):
        transfer.arrive([row.prepared[system] for row in batch if row.prepared])
    return batch


def prepared_of(rows: Sequence[Row], system: int = 0) -> list[Prepared]:
    """Return the prepared images of rows with status ok, for system number `system` of `model_batches`."""
    return [row.prepared[system] for row in rows]


def sidecar_record(row: Row, columns: Record) -> Record:
    """Return a row of a model's sidecar: uid, status, error and `columns`. Columns that are missing are null."""
    return {"uid": row.uid, "status": row.status, "error": row.error, **columns}
