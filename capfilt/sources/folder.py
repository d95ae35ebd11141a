"""A folder of image files and their texts: `a/b.txt` beside `a/b.jpg`, or metadata.jsonl or metadata.csv at the top.

Subfolders are searched, but not hidden ones and links to folders. A metadata file names each image in `file_name`, as
for the imagefolder of `datasets`; a .txt has precedence. Lines that cannot be parsed are ignored. Names are held in
memory (some 100 bytes per image); metadata are read again for each shard, and only its records are kept.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capfilt.config.source import Source, source_name
from capfilt.errors import ConfigError
from capfilt.sources.base import RawRow, at_positions, require_rows, split_into_shards
from capfilt.sources.columns import find_roles, one_row_per_text, row_without_image
from capfilt.sources.files import TEXT_BYTES, read_capped, reading, too_large
from capfilt.sources.values import key_text, repair_text, texts
from capfilt.store.layout import ShardSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
METADATA = ("metadata.jsonl", "metadata.csv")


class FolderReader:
    """See `Reader`."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.source, self._max_bytes, self._root = source, max_bytes, Path(source.path)
        self._stated = tuple(source.columns.items())
        if not self._root.is_dir():
            raise ConfigError(f"sources.{source_name(source)}.path: {self._root}: no such folder")

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        total = int(self._ends[-1]) if self._names else 0
        return require_rows(split_into_shards(self.source, "", total, rows_per_shard), self.source)

    def identity(self) -> list[list[str | int]]:
        found: list[list[str | int]] = []
        texts = [name for name in map(_text_name, self._names) if (self._root / name).is_file()]
        for name in self._names:
            with reading(self._root / name):
                found.append([key_text(name), (self._root / name).stat().st_size])
        for name in [*dict.fromkeys(texts), *METADATA]:
            if (self._root / name).is_file():
                facts = (self._root / name).stat()
                found.append([key_text(name), facts.st_size, facts.st_mtime_ns])
        return found

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        return at_positions(self._all_rows(spec), positions)

    def _all_rows(self, spec: ShardSpec) -> Iterator[RawRow]:
        first = int(np.searchsorted(self._ends, spec.start, side="right"))
        last = int(np.searchsorted(self._ends, spec.stop - 1, side="right"))
        names = self._names[first : last + 1]
        wanted = set(names)
        known = {name: record for name, record in self._metadata() if name in wanted}
        position = int(self._ends[first - 1]) if first else 0
        for name in names:
            for row in self._image_rows(name, known.get(name, {})):
                if spec.start <= position < spec.stop:
                    yield row
                position += 1

    @cached_property
    def _names(self) -> list[str]:
        """Relative posix paths of the images, sorted."""
        found = []
        for folder, inner, files in os.walk(self._root):
            inner[:] = [name for name in inner if not name.startswith(".")]
            images = (name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            found += [
                path.relative_to(self._root).as_posix() for path in map(Path(folder).joinpath, images) if path.is_file()
            ]
        return sorted(found)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """(images,) rows up to and including each image: one per image, except for lists of texts in the metadata."""
        several = {
            name: len(found) for name, record in self._metadata() if len(found := texts(self._text_of(record))) > 1
        }
        lists = {name for name in several if not (self._root / _text_name(name)).is_file()}
        return np.cumsum([several[name] if name in lists else 1 for name in self._names])

    def _metadata(self) -> Iterator[tuple[str, dict[str, object]]]:
        """(file_name, record) of each line."""
        for name, parse in zip(METADATA, (_json_lines, _csv_lines), strict=True):
            path = self._root / name
            if path.is_file():
                with reading(path):
                    yield from ((str(record.get("file_name")), record) for record in parse(path))

    def _text_of(self, record: dict[str, object]) -> object:
        columns = find_roles(tuple(record), self._stated)
        return record.get(columns.text) if columns.text else None

    def _image_rows(self, name: str, record: dict[str, object]) -> Iterator[RawRow]:
        row = row_without_image(key_text(name), record, find_roles(tuple(record), self._stated))
        row = replace(row, path=repair_text(Path(name).name)[0])
        path, beside = self._root / name, self._root / _text_name(name)
        with reading(path):
            data = read_capped(path, self._max_bytes)
        if data is None and row.reason is None:
            size = f"more than {self._max_bytes} bytes"
            row = replace(row, reason="too_many_bytes", error=too_large(size, self._max_bytes))
        text = self._text_of(record)
        if beside.is_file():
            with reading(beside):
                text = read_capped(beside, TEXT_BYTES)
            if text is None and row.reason is None:
                row = replace(row, reason="text_too_long", error=f"its .txt is above {TEXT_BYTES} bytes")
        yield from one_row_per_text(replace(row, image=data), text)


def _text_name(name: str) -> str:
    return name.rpartition(".")[0] + ".txt"


def _json_lines(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        while line := file.readline(TEXT_BYTES):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def _csv_lines(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.DictReader(line.replace("\0", "\ufffd") for line in file)
        while True:
            try:
                record = next(lines, None)
            except csv.Error:
                continue
            if record is None:
                return
            yield {name: value for name, value in record.items() if isinstance(name, str)}
