"""The snapshot of a list: the rows that pass its filter and its sample, files by name, rows in file order.

A row's key is the list's own `uid` or `key`, else `<file>#<row in the file, from 0>`, so that it does not depend on the
filter or on other files. A row with several texts becomes one row per text, as in every other source.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from capfilt.config.source import Source, source_name
from capfilt.errors import DataError, RunError
from capfilt.sources.columns import ColumnRoles, key_of, take_hash
from capfilt.sources.url_list.files import find_files
from capfilt.sources.url_list.reading import Reading
from capfilt.sources.url_list.repair import MARK, Copies
from capfilt.sources.url_list.scan import ListRecord
from capfilt.sources.values import optional_text, plain, texts
from capfilt.store.fingerprint import fingerprint
from capfilt.store.shards import ShardWriter

LIST = pa.schema([(name, pa.string()) for name in ("key", "url", "text", "sha256", "md5", "meta")])
"""Columns of the snapshot. sha256 and md5: lower-case hex, as the list states them for the image. meta: JSON of all
other columns that are not null, by lower-case name; `text_mended`: bad UTF-8 of the text was replaced by U+FFFD."""
VERSION = 1
"""Increase when equal lists give another snapshot."""

SnapshotRow = dict[str, str | None]


class UrlList:
    """The list that a source names. Its files are listed but not read.

    Raises:
        ConfigError: there is no file, or the filesystem cannot be reached.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._files = find_files(source)

    def identity(self) -> list[list[str | int]]:
        """JSON-able facts that change when the list changes.

        Local files: as other containers. Remote files: name, size and etag, or the filesystem's equivalent.

        Raises:
            DataError: a file is missing.
        """
        return [file.identity() for file in self._files]

    def snapshot(self, folder: Path) -> Path:
        """Return `folder/<name>-<fingerprint>.parquet`, a shard of schema `LIST`; write it if it does not exist.

        Raises:
            ConfigError: the filter is not a condition over the list's columns.
            DataError: a file cannot be read or has no url column; no row is left; the list changed during reading.
            RunError: the folder cannot be written.
        """
        identity = self.identity()
        settings = self.source.model_dump(include={"columns", "filter", "rows", "seed"})
        content = fingerprint({"version": VERSION, "files": identity, "settings": settings})
        path = folder / f"{_safe(source_name(self.source))}-{content}.parquet"
        if not path.exists():
            self._write(path, identity)
        return path

    def _write(self, path: Path, identity: list[list[str | int]]) -> None:
        try:
            with Copies(path.parent, path.name) as copies, ShardWriter(path, LIST) as writer:
                records = Reading(self.source, self._files, copies).records()
                writer.write(row for record in records for row in list_rows(record))
                if self.identity() != identity:
                    raise DataError(f"{self.source.path}: the list changed while it was read; run again")
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error}); make room and run again") from error


def list_rows(record: ListRecord) -> Iterator[SnapshotRow]:
    """Snapshot rows of one row of the list: one per text."""
    columns, values = record.columns, record.values
    key = _without_mark(key_of(values, columns, record.default_key))
    url = _without_mark((optional_text(values.get(columns.url or "")) or "").strip()) or None
    meta = {alias: plain(values[name]) for alias, name in _others(tuple(values), columns) if values[name] is not None}
    hashes = {kind: take_hash(meta, kind) for kind in ("sha256", "md5")}
    for n, (text, repaired) in enumerate(texts(values.get(columns.text or ""))):
        repaired = repaired or MARK in (text or "")
        text_meta = json.dumps(meta | {"text_mended": True} if repaired else meta, sort_keys=True, ensure_ascii=False)
        yield {
            "key": f"{key}#{n}" if n else key,
            "url": url,
            "text": None if text is None else _without_mark(text),
            "meta": _without_mark(text_meta),
        } | hashes


@lru_cache(maxsize=1024)
def _others(names: tuple[str, ...], columns: ColumnRoles) -> tuple[tuple[str, str], ...]:
    """(name in meta, column) of the columns without a role. Of columns whose names differ only in case, one gets the
    lower-case name (the lower-case column, else the first) and the others keep their spelling."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name != name.lower()):
        if name not in (columns.url, columns.text, columns.key):
            found[name if name.lower() in found else name.lower()] = name
    return tuple(found.items())


def _without_mark(text: str) -> str:
    return text.replace(MARK, "\ufffd")


def _safe(name: str) -> str:
    """A name with letters, digits and -_. only, for a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64].strip("._") or "list"
