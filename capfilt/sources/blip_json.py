"""BLIP's caption lists: a list of {"image": path, "caption": text or texts}; COCO's captions; the Karpathy split.

Images are files below `image_root`. A path that leaves it is refused (`image_outside`), so that an untrusted list
cannot bring private images into a data set. Entries with only a url are `image_missing`.
A row's key is the image's path, with `#n` for the n-th further text of the same image, wherever in the list it is. To
number these without holding the list in memory, a pass over the list keeps 12 bytes per row.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from capfilt.config.source import Source, source_name
from capfilt.errors import ConfigError, DataError
from capfilt.sources.base import RawRow, SourceDamagedError, at_positions, damaged, require_rows, split_into_shards
from capfilt.sources.columns import find_roles, row_without_image
from capfilt.sources.files import Container, read_capped, reading, too_large
from capfilt.sources.json_list import JsonList
from capfilt.sources.values import key_text, repair_text, texts
from capfilt.store.layout import ShardSpec

EVERY = 1000
"""Rows between two positions at which reading can start."""


@dataclass(frozen=True)
class _Index:
    rows: int
    nth: NDArray[np.uint32]
    """(rows,) number of earlier rows with the same image."""
    places: list[tuple[int, int]]
    """(row, position in the list) of some entries, ascending."""
    error: str | None
    """Why the list ends here if it is damaged, else None."""


class BlipJsonReader:
    """See `Reader`."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        path, where = Path(source.path), f"sources.{source_name(source)}"
        self.source, self._max_bytes, self._stated = source, max_bytes, tuple(source.columns.items())
        self._root = Path(os.path.normpath(source.image_root or path.parent))
        if not path.is_file():
            raise ConfigError(f"{where}.path: {path}: no such file; give a JSON list of {{image, caption}}")
        if not self._root.is_dir():
            raise ConfigError(f"{where}.image_root: {self._root}: no such folder")
        self._file = Container("", key_text(path.name), path)

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        total = self._index.rows + (self._index.error is not None)
        return require_rows(split_into_shards(self.source, "", total, rows_per_shard), self.source)

    def identity(self) -> list[list[str | int]]:
        return [self._file.identity()]

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        return at_positions(self._all_rows(spec), positions)

    def _all_rows(self, spec: ShardSpec) -> Iterator[RawRow]:
        index = self._index
        for row, record, image, text in self._walk(spec.start):
            if row >= min(spec.stop, index.rows):
                break
            if row >= spec.start:
                yield self._row(row, record, image, text)
        if index.error is not None and spec.start <= index.rows < spec.stop:
            yield damaged(f"{self._file.name}#{index.rows}-", f"{self._file.name}: {index.error}")

    @cached_property
    def _list(self) -> JsonList:
        with reading(self._file.path):
            return JsonList(self._file.path)

    def _walk(self, start: int) -> Iterator[tuple[int, dict[str, object], str | None, object]]:
        """Yield (row, entry, path of its image, text) from an entry at or before the row `start`. Stops at damage."""
        row, place = max((known for known in self._index.places if known[0] <= start), default=(0, 0))
        try:
            for _, entry in self._list.entries(place):
                record, image, captions = self._split_entry(entry)
                for caption in captions:
                    yield row, record, image, caption
                    row += 1
        except SourceDamagedError:
            return

    def _split_entry(self, entry: object) -> tuple[dict[str, object], str | None, list[object]]:
        """Return an entry's record, image path and texts (at least one, which may be None)."""
        record = entry if isinstance(entry, dict) else {}
        columns = find_roles(tuple(record), self._stated)
        image = record.get(columns.image) if columns.image else None
        found = record.get(columns.text) if columns.text else None
        captions = found if isinstance(found, list) and found else [None if isinstance(found, list) else found]
        return record, image if isinstance(image, str) and image else None, captions

    @cached_property
    def _index(self) -> _Index:
        hashes, rows, error = bytearray(), 0, None
        places: list[tuple[int, int]] = []
        try:
            for place, entry in self._list.entries():
                _, image, captions = self._split_entry(entry)
                if not places or rows >= places[-1][0] + EVERY:
                    places.append((rows, place))
                name = (image or f"\0{rows}").encode("utf-8", "surrogatepass")
                hashes += hashlib.blake2b(name, digest_size=8).digest() * len(captions)
                rows += len(captions)
        except SourceDamagedError as damage:
            error = str(damage)
        return _Index(rows, _ranks(np.frombuffer(hashes, dtype=np.uint64)), places, error)

    def _row(self, number: int, record: dict[str, object], image: str | None, text: object) -> RawRow:
        nth = int(self._index.nth[number])
        key = f"{self._file.name}#{number}" if image is None else key_text(image) + (f"#{nth}" if nth else "")
        row = row_without_image(key, record, find_roles(tuple(record), self._stated))
        (one, repaired), *_ = texts(text)
        row = replace(row, text=one, meta=row.meta | {"text_mended": True} if repaired else row.meta)
        return self._with_image(row, image)

    def _with_image(self, row: RawRow, image: str | None) -> RawRow:
        if image is None or row.reason is not None:
            return row if row.reason else replace(row, reason="image_missing", error="the entry names no image")
        row, path = (
            replace(row, path=repair_text(PurePosixPath(image).name)[0]),
            Path(os.path.normpath(self._root / image)),
        )
        if not path.is_relative_to(self._root):
            return replace(row, reason="image_outside", error=f"{key_text(image)!r} is not below the image root")
        data = _read(path, self._max_bytes)
        if data is None:
            size = f"more than {self._max_bytes} bytes"
            return replace(row, reason="too_many_bytes", error=too_large(size, self._max_bytes))
        if not data:
            return replace(row, reason="image_missing", error=f"{key_text(image)!r} is not there, or empty")
        return replace(row, image=data)


def _read(path: Path, limit: int) -> bytes | None:
    """Return the file's bytes, b"" if there is no such file, None above the limit. Raises DataError: disk, rights."""
    try:
        with reading(path):
            return read_capped(path, limit) if path.is_file() else b""
    except ValueError:  # not a possible file name
        return b""
    except DataError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return b""
        raise


def _ranks(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """(n,) number of equal values before each value."""
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], np.arange(len(values))
    first = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]][: len(values)], places, 0))
    ranks = np.empty(len(values), dtype=np.uint32)
    ranks[order] = places - first
    return ranks
