"""ingest: check and hash the rows of the sources, and write them once into `pairs`. No row is dropped.

Reasons of status quarantined (image null): image_missing, too_many_bytes, bomb, image_unreadable, hash_mismatch,
image_outside, download_failed, tar_member, source_damaged, killed_worker; for URLs also those of
`capfilt.download.reasons`. Reasons of status rejected (image stored): image_too_small, aspect, text_empty,
text_too_short, text_too_long. Reason blocked is rejected, too, but the image is neither decoded nor stored.

Threads decode the images of the next rows while the rows before them are written.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import PurePosixPath
from threading import Lock
from typing import Any, ClassVar

from capfilt.config.pipeline import Pipeline
from capfilt.config.source import source_name
from capfilt.media.blocklist import BlockList, FileDigests
from capfilt.media.images import Facts, ImageError, examine, header_area
from capfilt.media.pillow import decoding
from capfilt.sources import RawRow, Reader, open_source
from capfilt.sources.hashes import hash_mismatch
from capfilt.stages import retry
from capfilt.stages.base import StageSpec, Task
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.row_filter import open_output
from capfilt.store.schema import PAIRS, arrow
from capfilt.store.shards import link_shard
from capfilt.store.sidecars import KILLED

Row = dict[str, Any]
"""Columns of `pairs`; a missing one is null."""
Decoding = Future[Facts | ImageError] | None
"""An image that is being decoded; None for a row whose image is not decoded."""
THREADS = 3
"""Threads per worker that decode and hash images: 1.7 ms for 0.2 megapixels, mostly without the interpreter's lock."""
LARGE = 2 * 10**6
"""Pixels; images with more are decoded one at a time."""
AHEAD = 256
"""Maximum number of rows that are decoded ahead."""
AHEAD_BYTES = 16 * 2**20
"""Maximum number of bytes of the image files that are decoded ahead."""


def settings(pipeline: Pipeline) -> Any:
    """Return the sources and the rules, without file paths; the block list is represented by a hash of its content."""
    sources = [source.fingerprint_fields() | {"name": source_name(source)} for source in pipeline.sources]
    blocked = BlockList(pipeline.ingest.block_hashes).content_digest()
    rules = pipeline.ingest.model_dump() | {"block_hashes": blocked}
    return {"sources": sources, "rules": rules}


SPEC = StageSpec(output=PAIRS, version=2, settings=settings, seconds_per_row=4e-3)


class IngestStage:
    """Writes `pairs`.

    The output depends only on the row's position in its source, the source's bytes and the ingest rules.
    """

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        self.layout, self.rules = layout, layout.pipeline.ingest
        self._readers: dict[str, Reader] = {}
        self._block_list = BlockList(None)
        self._last: tuple[str, Future[Facts | ImageError]] | None = None
        self._alone = Lock()

    def setup(self) -> None:
        """Read the block list."""
        self._block_list = BlockList(self.rules.block_hashes)

    def process(self, task: Task) -> None:
        """Write one shard; after `capfilt retry`, read only its failed rows. Raises DataError for a missing file."""
        path, before = self.layout.shard(PAIRS, task.index), self.layout.previous_shard(task.index)
        failed = None if before is None else retry.retryable_rows(before)
        if before is not None and not failed and not task.rows.dry:
            link_shard(before, path)
            return
        positions = _intersection(failed, task.rows.only)
        rows = self._rows(self.layout.shards[task.index], task.rows.quarantined, positions)
        shard = (row for _, row in rows) if before is None or task.rows.dry else retry.replace_rows(before, rows)
        with open_output(path, arrow(PAIRS), task.rows) as output:
            output.write(shard)

    def _rows(
        self, spec: ShardSpec, quarantined: frozenset[int], only: Sequence[int] | None
    ) -> Iterator[tuple[int, Row]]:
        """Yield (position, row) of a shard's rows, or of those in `only`; images are decoded some rows ahead."""
        waiting: deque[tuple[int, Row, RawRow, Decoding]] = deque()
        held = 0
        with decoding(), ThreadPoolExecutor(THREADS) as pool:
            for position, raw in self._raw(spec, only):
                row, image = self._start(spec, position, raw, quarantined, pool)
                waiting.append((position, row, raw, image))
                held += len(raw.image or b"")
                while len(waiting) > AHEAD or held > AHEAD_BYTES:
                    held -= len(waiting[0][2].image or b"")
                    yield self._complete(*waiting.popleft())
            while waiting:
                yield self._complete(*waiting.popleft())

    def _start(
        self, spec: ShardSpec, position: int, raw: RawRow, quarantined: frozenset[int], pool: ThreadPoolExecutor
    ) -> tuple[Row, Decoding]:
        """Return what is known before the image is decoded, and start the decoding unless the row is refused."""
        row = self._source_columns(spec.source, raw)
        if position in quarantined:
            return row | _quarantined("killed_worker", KILLED), None
        row |= self._check_bytes(raw)
        return row, None if "status" in row else self._decode(raw.image or b"", row["sha256"], pool)

    def _complete(self, position: int, row: Row, raw: RawRow, image: Decoding) -> tuple[int, Row]:
        return position, row if image is None else row | self._image_columns(raw, image)

    def _raw(self, spec: ShardSpec, only: Sequence[int] | None) -> Iterator[tuple[int, RawRow]]:
        rows = self._reader(spec.source).rows(spec, only)
        return enumerate(rows) if only is None else zip(only, rows, strict=False)

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            source = self.layout.pipeline.source(name)
            self._readers[name] = open_source(source, self.rules, self.layout.run, self._block_list)
        return self._readers[name]

    def _source_columns(self, source: str, raw: RawRow) -> Row:
        """Return the columns that the source states."""
        role = self.layout.pipeline.source(source).role
        meta = json.dumps(raw.meta, sort_keys=True, ensure_ascii=False) if raw.meta else None
        row = {"uid": row_uid(source, raw.key), "source": source, "role": role, "key": raw.key, "url": raw.url}
        return row | {"text": raw.text, "meta": meta}

    def _check_bytes(self, raw: RawRow) -> Row:
        """Return the image file's sha256 and, if the row is refused before decoding, its status, reason and error."""
        if raw.reason == "blocked":
            return _blocked(raw.error)
        if raw.reason is not None:
            return _quarantined(raw.reason, raw.error)
        if not raw.image:
            return _quarantined("image_missing", "no image bytes")
        if len(raw.image) > self.rules.max_bytes:
            message = f"image file of {len(raw.image)} bytes is above the cap of {self.rules.max_bytes} bytes"
            return _quarantined("too_many_bytes", message)
        digests = FileDigests(raw.image)
        found = {"sha256": digests.sha256}
        if self._block_list.blocks(digests):
            return found | _blocked("its hash is in ingest.block_hashes")
        wrong = hash_mismatch(raw, digests)
        return found if wrong is None else found | _quarantined("hash_mismatch", wrong)

    def _decode(self, data: bytes, sha256: str, pool: ThreadPoolExecutor) -> "Future[Facts | ImageError]":
        """Start decoding an image, unless the previous row has the same file (one image with several texts)."""
        if self._last is None or self._last[0] != sha256:
            self._last = sha256, pool.submit(self._examine, data)
        return self._last[1]

    def _examine(self, data: bytes) -> Facts | ImageError:
        """Decode an image. Return an error as a new object: its traceback would hold the bytes in memory."""
        try:
            with self._alone if header_area(data, self.rules.max_pixels) > LARGE else nullcontext():
                return examine(data, self.rules.max_pixels)
        except ImageError as error:
            return ImageError(error.reason, str(error))

    def _image_columns(self, raw: RawRow, decoded: "Future[Facts | ImageError]") -> Row:
        """Return the columns that depend on the decoded image."""
        facts = decoded.result()
        if isinstance(facts, ImageError):
            return _quarantined(facts.reason, str(facts))
        image = {"bytes": raw.image, "path": PurePosixPath(raw.path.replace("\\", "/")).name if raw.path else None}
        return {"image": image} | _columns(facts) | self._status(facts, raw.text)

    def _status(self, facts: Facts, text: str | None) -> Row:
        found = self._failed_rule(facts, (text or "").strip())
        return {"status": "ok"} if found is None else {"status": "rejected", "reason": found[0], "error": found[1]}

    def _failed_rule(self, facts: Facts, text: str) -> tuple[str, str] | None:
        """Return the name of the first rule that rejects the pair, and a message; None if none does."""
        rules, short, long = self.rules, min(facts.width, facts.height), max(facts.width, facts.height)
        size = f"{facts.width} x {facts.height} pixels"
        if short < rules.min_side:
            return "image_too_small", f"{size}; the shorter side must have at least {rules.min_side}"
        if long > rules.max_aspect * short:
            return "aspect", f"{size}; the longer side may be at most {rules.max_aspect:g} times the shorter"
        if not text and rules.min_chars > 0:
            return "text_empty", "no text"
        if len(text) < rules.min_chars:
            return "text_too_short", f"{len(text)} characters; at least {rules.min_chars}"
        if len(text) > rules.max_chars:
            return "text_too_long", f"{len(text)} characters; at most {rules.max_chars}"
        return None


def _intersection(failed: list[int] | None, only: range | None) -> Sequence[int] | None:
    """Return the positions that are in both; None means all positions."""
    if failed is None or only is None:
        return only if failed is None else failed
    return [position for position in failed if position in only]


def row_uid(source: str, key: str) -> str:
    """Return the first 16 hex digits of sha256 over the JSON list [source name, key]."""
    return hashlib.sha256(json.dumps([source, key]).encode()).hexdigest()[:16]


def _blocked(error: str | None) -> Row:
    return {"status": "rejected", "reason": "blocked", "error": error}


def _quarantined(reason: str, error: str | None) -> Row:
    return {"status": "quarantined", "reason": reason, "error": error}


def _columns(facts: Facts) -> Row:
    columns = {"width": facts.width, "height": facts.height, "format": facts.format}
    return columns | {"pixels_sha256": facts.pixels_sha256, "phash": facts.phash}
