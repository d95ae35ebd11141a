"""What caption and score share: a shard's rows beside their sidecars, in batches for a model, images decoded ahead.

A batch is so many rows, in row order, of which something is asked; it is formed inside one shard from the data alone.
Neither row groups nor rows that are left out because they kill a worker move its bounds, since off the CPU sums differ
in their last bits with the batch. Full-size pictures live only inside the two decoding threads; what waits for the
model are its inputs (BLIP: 1.8 MB per image at 384 pixels), of three batches at most; on a GPU if it computes there
(`transfer`).
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
"""Decode images for one model, with one torch thread each: were they to have teams of their own, OpenMP would find more
threads than cores, and let the model's wait asleep at each barrier (captioning took half as long again, two cores)."""
AHEAD = 2
"""Batches that may wait for it."""

_READ = 32
_COLUMNS = {PAIRS: ("role", "text", "image", "status"), NEAR: ("duplicate_of",), CAPTIONS: ("captions",)}


@dataclass
class Row:
    """A row on its way through a model stage."""

    position: int
    """In its shard, from 0."""
    uid: str
    role: str
    text: str | None
    captions: list[Record] | None
    """As the caption stage stored them; None without that stage."""
    asked: bool
    """Whether the data ask the model about it."""
    status: str
    """ok | skipped | failed: the sidecar's column so far."""
    error: str | None = None
    image: bytes | None = None
    """The file, until it is decoded."""
    prepared: list[Prepared] = field(default_factory=list)
    """The image for each system, once decoded, until all have answered; where the system computes (`transfer`)."""


def aligned(
    layout: RunLayout, shard: int, columns: Mapping[ShardTable, Sequence[str]]
) -> Iterator[dict[ShardTable, Record]]:
    """Stream the rows of one shard of several tables side by side: table -> its columns and uid. The first table leads.

    A table that the pipeline does not have gives an empty record.

    Raises:
        DataError: a shard is damaged, or does not have the same uids in the same order.
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
    """Read the rows of a shard that the filter selects. Rows of `roles` that are ok and no marked duplicates are asked.

    Args:
        layout: the run.
        shard: index.
        inputs: tables to read, PAIRS first.
        roles: of web and human.
        rows: which positions to read, and which to leave untouched as failed.

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
    """Every row, in order, in pieces of which `size` are asked; those with status ok are prepared for each system.

    A row whose image cannot be decoded has failed; it keeps its place in its batch.
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
    """The images of rows with status ok, for a system of those that `model_batches` was given."""
    return [row.prepared[system] for row in rows]


def sidecar_record(row: Row, columns: Record) -> Record:
    """A row of a model's sidecar; columns that are missing are null."""
    return {"uid": row.uid, "status": row.status, "error": row.error, **columns}
