"""Ingest: a source's rows verified, hashed and written once into `pairs`. Nothing is dropped.

quarantined, image null: image_missing, too_many_bytes, bomb, image_unreadable, hash_mismatch, image_outside,
download_failed, tar_member, source_damaged, killed_worker; of URLs, those of `capfilt.download.reasons`.
rejected, image kept: image_too_small, aspect, text_empty, text_too_short, text_too_long; not kept nor decoded: blocked.
A few rows are held beside the writer's row group, their images decoded ahead by threads.
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

Row = dict[str, Any]
"""Columns of `pairs`; a missing one is null."""
Looked = Future[Facts | ImageError] | None
"""An image that is being decoded."""
THREADS = 3
"""Decode and hash images of one worker (1.7 ms for 0.2 megapixels, mostly without the interpreter's lock)."""
LARGE = 2 * 10**6
"""Pixels; larger pictures are decoded one at a time."""
AHEAD = 256
"""Rows that wait for it ..."""
AHEAD_BYTES = 16 * 2**20
"""... and bytes of image files."""


def settings(pipeline: Pipeline) -> Any:
    """Return sources and rules without where the files are; the block list by its content."""
    sources = [source.fingerprint_fields() | {"name": source_name(source)} for source in pipeline.sources]
    blocked = BlockList(pipeline.ingest.block_hashes).content_digest()
    rules = pipeline.ingest.model_dump() | {"block_hashes": blocked}
    return {"sources": sources, "rules": rules}


SPEC = StageSpec(output=PAIRS, version=2, settings=settings, seconds_per_row=4e-3)


class IngestStage:
    """See `Stage`. Only the places in the source, its bytes and the rules decide what is written."""

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
        """See `Stage`. Raises DataError for a source file that is gone."""
        path, before = self.layout.shard(PAIRS, task.index), self.layout.previous_shard(task.index)
        again = None if before is None else retry.positions(before)
        if before is not None and not again and not task.rows.dry:
            retry.keep(before, path)
            return
        rows = self._rows(self.layout.shards[task.index], task.rows.quarantined, _both(again, task.rows.only))
        merged = (row for _, row in rows) if before is None or task.rows.dry else retry.merged(before, rows)
        with open_output(path, arrow(PAIRS), task.rows) as output:
            output.write(merged)

    def _rows(
        self, unit: ShardSpec, quarantined: frozenset[int], only: Sequence[int] | None
    ) -> Iterator[tuple[int, Row]]:
        """(position, row) of the unit's rows, or of those at some positions; images are decoded a few rows ahead."""
        waiting: deque[tuple[int, Row, RawRow, Looked]] = deque()
        held = 0
        with decoding(), ThreadPoolExecutor(THREADS) as pool:
            for position, raw in self._raw(unit, only):
                row, looked = self._begun(unit, position, raw, quarantined, pool)
                waiting.append((position, row, raw, looked))
                held += len(raw.image or b"")
                while len(waiting) > AHEAD or held > AHEAD_BYTES:
                    held -= len(waiting[0][2].image or b"")
                    yield self._ended(*waiting.popleft())
            while waiting:
                yield self._ended(*waiting.popleft())

    def _begun(
        self, unit: ShardSpec, position: int, raw: RawRow, quarantined: frozenset[int], pool: ThreadPoolExecutor
    ) -> tuple[Row, Looked]:
        """What is known before the image is decoded, and its decoding if that is to be."""
        row = self._known(unit.source, raw)
        if position in quarantined:
            return row | _quarantined("killed_worker", "killed its worker"), None
        row |= self._refused(raw)
        return row, None if "status" in row else self._look(raw.image or b"", row["sha256"], pool)

    def _ended(self, position: int, row: Row, raw: RawRow, looked: Looked) -> tuple[int, Row]:
        return position, row if looked is None else row | self._verdict(raw, looked)

    def _raw(self, unit: ShardSpec, only: Sequence[int] | None) -> Iterator[tuple[int, RawRow]]:
        rows = self._reader(unit.source).rows(unit, only)
        return enumerate(rows) if only is None else zip(only, rows, strict=False)

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            source = self.layout.pipeline.source(name)
            self._readers[name] = open_source(source, self.rules, self.layout.run, self._block_list)
        return self._readers[name]

    def _known(self, source: str, raw: RawRow) -> Row:
        """What the source says."""
        role = self.layout.pipeline.source(source).role
        meta = json.dumps(raw.meta, sort_keys=True, ensure_ascii=False) if raw.meta else None
        told = {"uid": row_uid(source, raw.key), "source": source, "role": role, "key": raw.key, "url": raw.url}
        return told | {"text": raw.text, "meta": meta}

    def _refused(self, raw: RawRow) -> Row:
        """What the bytes say before they are decoded: their sha256, and why the row is refused, if it is."""
        if raw.reason == "blocked":
            return _blocked(raw.error)
        if raw.reason is not None:
            return _quarantined(raw.reason, raw.error)
        if not raw.image:
            return _quarantined("image_missing", "no image bytes")
        if len(raw.image) > self.rules.max_bytes:
            told = f"image file of {len(raw.image)} bytes is above the cap of {self.rules.max_bytes} bytes"
            return _quarantined("too_many_bytes", told)
        digests = FileDigests(raw.image)
        found = {"sha256": digests.sha256}
        if self._block_list.blocks(digests):
            return found | _blocked("its hash is in ingest.block_hashes")
        wrong = hash_mismatch(raw, digests)
        return found if wrong is None else found | _quarantined("hash_mismatch", wrong)

    def _look(self, data: bytes, sha256: str, pool: ThreadPoolExecutor) -> "Future[Facts | ImageError]":
        """Facts of an image; a row whose file is that of the row before (its next text) is not decoded again."""
        if self._last is None or self._last[0] != sha256:
            self._last = sha256, pool.submit(self._examine, data)
        return self._last[1]

    def _examine(self, data: bytes) -> Facts | ImageError:
        """An error is given back bare: with its traceback it would hold the bytes until the next garbage collection."""
        try:
            with self._alone if header_area(data, self.rules.max_pixels) > LARGE else nullcontext():
                return examine(data, self.rules.max_pixels)
        except ImageError as error:
            return ImageError(error.reason, str(error))

    def _verdict(self, raw: RawRow, looked: "Future[Facts | ImageError]") -> Row:
        """What the pixels say."""
        facts = looked.result()
        if isinstance(facts, ImageError):
            return _quarantined(facts.reason, str(facts))
        image = {"bytes": raw.image, "path": PurePosixPath(raw.path.replace("\\", "/")).name if raw.path else None}
        return {"image": image} | _columns(facts) | self._judged(facts, raw.text)

    def _judged(self, facts: Facts, text: str | None) -> Row:
        found = self._fault(facts, (text or "").strip())
        return {"status": "ok"} if found is None else {"status": "rejected", "reason": found[0], "error": found[1]}

    def _fault(self, facts: Facts, text: str) -> tuple[str, str] | None:
        """The first rule that refuses the pair, and how it reads in full."""
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


def _both(some: list[int] | None, only: range | None) -> Sequence[int] | None:
    """Positions that both name; None names all."""
    if some is None or only is None:
        return only if some is None else some
    return [position for position in some if position in only]


def row_uid(source: str, key: str) -> str:
    """First 16 hex digits of sha256 over the JSON list [source name, key]."""
    return hashlib.sha256(json.dumps([source, key]).encode()).hexdigest()[:16]


def _blocked(error: str | None) -> Row:
    return {"status": "rejected", "reason": "blocked", "error": error}


def _quarantined(reason: str, error: str | None) -> Row:
    return {"status": "quarantined", "reason": reason, "error": error}


def _columns(facts: Facts) -> Row:
    columns = {"width": facts.width, "height": facts.height, "format": facts.format}
    return columns | {"pixels_sha256": facts.pixels_sha256, "phash": facts.phash}
