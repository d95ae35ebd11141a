"""What caption and score share: a shard's rows beside their sidecars, in batches for a model, images decoded ahead.

A batch is so many rows, in row order, of which something is asked; it is formed inside one shard from the data alone.
Neither row groups nor rows that are left out because they kill a worker move its bounds, since off the CPU sums differ
in their last bits with the batch. Full-size pictures live only inside the two decoding threads; what waits for the
model are its inputs (1.8 MB an image at 384 pixels), of three batches at most; on a GPU if it has one (`feed`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from capfilt.config.pipeline import ModelSettings
from capfilt.errors import DataError
from capfilt.inference.transfer import Feed, together, transfer_to
from capfilt.media.images import ImageError, decode_image
from capfilt.media.pillow import decoding
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.precision import apply_precision
from capfilt.models.device import pick_device
from capfilt.store.layout import RunLayout
from capfilt.store.shards import ShardWriter, batches
from capfilt.store.sidecars import KILLED

Record = dict[str, Any]

THREADS = 2
"""Decode images for one model, with one torch thread each: were they to have teams of their own, OpenMP would find more
threads than cores, and let the model's wait asleep at each barrier (captioning took half as long again, two cores)."""
AHEAD = 2
"""Batches that may wait for it."""

_READ = 32
_COLUMNS = {"ingest": ("role", "text", "image", "status"), "near": ("duplicate_of",), "caption": ("captions",)}


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
    pixels: list[Tensor] = field(default_factory=list)
    """(3, S, S) float32 for each model, once decoded, until all have answered; where the model computes (`feed`)."""


def how(use: ModelSettings) -> dict[str, Any]:
    """What of it decides a model's numbers, JSON-able: for fingerprints."""
    return {"batch_size": use.batch_size, "precision": use.precision}


def load_model(use: ModelSettings, role: str) -> Blip:
    """The weights on their device, one torch thread on a CPU: bits must not depend on its cores.

    (One actor a core is the faster way to use them too: 0.434 against 0.384 images/s, measured.)
    Raises ConfigError: no such model or device, a model without that role, a precision that the device has not.
    CheckpointError: no BLIP.
    """
    device = pick_device(use.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    blip = Blip.load(use.model, revision=use.revision, device=str(device), tokenizer=use.tokenizer)
    blip.require(role)
    return apply_precision(blip, use.precision)


def aligned(layout: RunLayout, shard: int, columns: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Record]]:
    """Rows of one shard of several stages side by side, streamed: stage -> its columns and uid. The first stage leads.

    A stage that the pipeline has not gives an empty record.
    Raises DataError if a shard is damaged, or does not have the same uids in the same order.
    """
    paths = {stage: layout.shard(stage, shard) for stage in columns if layout.has(stage)}
    streams = [_records(path, ["uid", *columns[stage]]) for stage, path in paths.items()]
    for position, records in enumerate(zip_longest(*streams, fillvalue={})):
        _check_uids(position, records, list(paths.values()))
        yield {stage: {} for stage in columns} | dict(zip(paths, records, strict=True))


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
    layout: RunLayout, shard: int, inputs: Sequence[str], roles: Sequence[str], skip: frozenset[int], only: range | None
) -> Iterator[Row]:
    """Rows of a shard, those of `only` or all; asked are those of `roles` that are ok and not marked as duplicates.

    Args:
        layout: whose pairs and sidecars.
        shard: index.
        inputs: stages whose output is read.
        roles: of web and human.
        skip: positions of rows that kill their worker: failed, not touched.
        only: these positions alone.

    Raises:
        DataError: as `aligned`.
    """
    rows = enumerate(aligned(layout, shard, {stage: _COLUMNS[stage] for stage in inputs}))
    for position, records in islice(rows, only.start, only.stop) if only is not None else rows:
        asked = _asked(records, roles, layout.pipeline.dedup.skip_models)
        pairs, captions = records["ingest"], records.get("caption", {}).get("captions")
        status = "ok" if asked else "skipped"
        row = Row(position, pairs["uid"], pairs["role"], pairs["text"], captions, asked, status)
        if position in skip:
            row.status, row.error = "failed", KILLED
        row.image = pairs["image"]["bytes"] if row.status == "ok" and pairs["image"] else None
        yield row


def _asked(records: Mapping[str, Record], roles: Sequence[str], skip_marked: bool) -> bool:
    pairs, mark = records["ingest"], records["near"].get("duplicate_of")
    return pairs["role"] in roles and pairs["status"] == "ok" and not (skip_marked and mark is not None)


def model_batches(rows: Iterable[Row], size: int, models: Sequence[Blip], max_pixels: int) -> Iterator[list[Row]]:
    """Every row, in order, in pieces of which `size` are asked; those with status ok have their pixels for each model.

    A row whose image cannot be decoded has failed; it keeps its place in its batch.
    """
    feeds = [transfer_to(model.device) for model in models]

    def load(row: Row) -> None:
        try:
            image = decode_image(row.image or b"", max_pixels)
            row.pixels = [feed.send(model.preprocess([image])[0]) for feed, model in zip(feeds, models, strict=True)]
        except ImageError as error:
            row.status, row.error = "failed", str(error)
        row.image = None

    waiting: deque[tuple[list[Row], list[Future[None]]]] = deque()
    with decoding(), ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in _grouped(rows, size):
            waiting.append((batch, [pool.submit(load, row) for row in batch if row.status == "ok"]))
            if len(waiting) > AHEAD:
                yield _arrived(*waiting.popleft(), feeds)
        while waiting:
            yield _arrived(*waiting.popleft(), feeds)


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


def _arrived(batch: list[Row], decoding: list[Future[None]], feeds: Sequence[Feed]) -> list[Row]:
    for future in decoding:
        future.result()
    for model, feed in enumerate(feeds):
        feed.arrive([row.pixels[model] for row in batch if row.pixels])
    return batch


def pixels_of(rows: Sequence[Row], model: int = 0) -> Tensor:
    """(B, 3, S, S) float32 of rows with status ok, for a model of those that `model_batches` was given."""
    return together([row.pixels[model] for row in rows])


def write_rows(path: Path, schema: pa.Schema, records: Iterable[Record], only: range | None) -> None:
    """The shard, made as its records come; with `only` they are made and thrown away."""
    if only is not None:
        deque(records, maxlen=0)
        return
    with ShardWriter(path, schema) as writer:
        writer.write(records)
