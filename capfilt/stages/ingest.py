"""Ingest: a source's rows verified, hashed and written once into `pairs`. Nothing is dropped.

quarantined, image null: image_missing, too_many_bytes, bomb, image_unreadable, hash_mismatch, image_outside,
download_failed, tar_member, source_damaged, killed_worker.
rejected, image kept: image_too_small, aspect, text_empty, text_too_short, text_too_long; not kept nor decoded: blocked.
One row is held at a time beside the writer's row group.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from capfilt.errors import ConfigError
from capfilt.images import Facts, ImageError, examine
from capfilt.pipeline import Ingest as Rules
from capfilt.pipeline import Pipeline, source_name
from capfilt.schema import PAIRS, arrow
from capfilt.shards import ShardWriter
from capfilt.sources import RawRow, Reader, open_source
from capfilt.stages.base import NOTHING, Job, Unit

Row = dict[str, Any]
"""Columns of `pairs`; a missing one is null."""


class Ingest:
    """See `Stage`. Only the places in the source, its bytes and the rules decide what is written."""

    name: ClassVar[str] = "ingest"
    version: ClassVar[int] = 1
    scope: ClassVar[Literal["shard", "all"]] = "shard"
    inputs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, job: Job) -> None:
        self.job, self.rules = job, job.pipeline.ingest
        self._readers: dict[str, Reader] = {}
        self._blocked: frozenset[bytes] = frozenset()
        self._last: tuple[str, Facts | ImageError] | None = None

    @staticmethod
    def settings(pipeline: Pipeline) -> Any:
        """Sources and rules without where they lie; the block list by its content."""
        sources = [
            source.model_dump(exclude={"path", "image_root"}) | {"name": source_name(source)}
            for source in pipeline.sources
        ]
        blocked = hashlib.sha256(b"".join(sorted(block_list(pipeline.ingest)))).hexdigest()
        rules = pipeline.ingest.model_dump() | {"block_sha256": blocked}
        return {"sources": sources, "rules": rules}

    def setup(self) -> None:
        """Read the block list."""
        self._blocked = block_list(self.rules)

    def process(self, shard: int, skip: frozenset[int] = NOTHING, only: range | None = None) -> None:
        """See `Stage`. Raises DataError for a source file that is gone."""
        rows = self._rows(self.job.units[shard], skip, only)
        if only is not None:
            deque(rows, maxlen=0)
            return
        with ShardWriter(self.job.shard(self.name, shard), arrow(PAIRS)) as writer:
            writer.write(rows)

    def _rows(self, unit: Unit, skip: frozenset[int], only: range | None) -> Iterator[Row]:
        found = enumerate(self._reader(unit.source).rows(unit))
        for position, raw in found if only is None else islice(found, only.start, only.stop):
            row = self._known(unit.source, raw)
            if position in skip:
                yield row | _quarantined("killed_worker", "killed its worker")
            else:
                yield row | self._verdict(raw)

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            self._readers[name] = open_source(self.job.pipeline.source(name), self.rules.max_bytes)
        return self._readers[name]

    def _known(self, source: str, raw: RawRow) -> Row:
        """What the source says."""
        role = self.job.pipeline.source(source).role
        meta = json.dumps(raw.meta, sort_keys=True, ensure_ascii=False) if raw.meta else None
        told = {"uid": row_uid(source, raw.key), "source": source, "role": role, "key": raw.key, "url": raw.url}
        return told | {"text": raw.text, "meta": meta}

    def _verdict(self, raw: RawRow) -> Row:
        """What the bytes say."""
        if raw.reason is not None:
            return _quarantined(raw.reason, raw.error)
        if not raw.image:
            return _quarantined("image_missing", "no image bytes")
        if len(raw.image) > self.rules.max_bytes:
            told = f"image file of {len(raw.image)} bytes is above the cap of {self.rules.max_bytes} bytes"
            return _quarantined("too_many_bytes", told)
        sha256 = hashlib.sha256(raw.image).hexdigest()
        if bytes.fromhex(sha256) in self._blocked:
            error = "its sha256 is in ingest.block_sha256"
            return {"sha256": sha256, "status": "rejected", "reason": "blocked", "error": error}
        mismatch = _mismatch(raw, raw.image, sha256)
        if mismatch is not None:
            return {"sha256": sha256} | _quarantined("hash_mismatch", mismatch)
        facts = self._examine(raw.image, sha256)
        if isinstance(facts, ImageError):
            return {"sha256": sha256} | _quarantined(facts.reason, str(facts))
        image = {"bytes": raw.image, "path": PurePosixPath(raw.path.replace("\\", "/")).name if raw.path else None}
        return {"sha256": sha256, "image": image} | _columns(facts) | self._judged(facts, raw.text)

    def _examine(self, data: bytes, sha256: str) -> Facts | ImageError:
        """Facts of an image; a row whose file is that of the row before (its next text) is not decoded again."""
        if self._last is None or self._last[0] != sha256:
            try:
                self._last = sha256, examine(data, self.rules.max_pixels)
            except ImageError as error:
                self._last = sha256, error
        return self._last[1]

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


def row_uid(source: str, key: str) -> str:
    """First 16 hex digits of sha256 over the JSON list [source name, key]."""
    return hashlib.sha256(json.dumps([source, key]).encode()).hexdigest()[:16]


def block_list(rules: Rules) -> frozenset[bytes]:
    """Digests of 32 bytes; none without a list. Raises ConfigError for a file or line that cannot be used."""
    if rules.block_sha256 is None:
        return frozenset()
    try:
        lines = Path(rules.block_sha256).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ingest.block_sha256: {rules.block_sha256}: cannot be read ({error})") from error
    bad = next((line for line in lines if not re.fullmatch(r"[0-9a-fA-F]{64}", line)), None)
    if bad is not None:
        raise ConfigError(f"ingest.block_sha256: {rules.block_sha256}: {bad[:80]!r} is no sha256 of 64 hex digits")
    return frozenset(map(bytes.fromhex, lines))


def _quarantined(reason: str, error: str | None) -> Row:
    return {"status": "quarantined", "reason": reason, "error": error}


def _mismatch(raw: RawRow, data: bytes, sha256: str) -> str | None:
    """How the bytes are not those that the source states."""
    if raw.sha256 is not None and raw.sha256 != sha256:
        return f"its sha256 is {sha256}, the source states {raw.sha256}"
    if raw.md5 is not None:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return f"its md5 is {md5}, the source states {raw.md5}" if raw.md5 != md5 else None
    return None


def _columns(facts: Facts) -> Row:
    columns = {"width": facts.width, "height": facts.height, "format": facts.format}
    return columns | {"pixels_sha256": facts.pixels_sha256, "phash": facts.phash}
