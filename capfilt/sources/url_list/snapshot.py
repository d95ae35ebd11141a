"""The snapshot of a list: what passes its filter and its sample, files by name, rows as they lie.

A row's key is the list's own `uid` or `key`, else `<file>#<row in the file, from 0>`, so that it changes neither with
the filter nor with other files. A row of several texts becomes one row a text, as in every other source.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from capfilt.config.source import Source, source_name
from capfilt.errors import DataError, RunError
from capfilt.sources.columns import Columns, key_of, take_hash
from capfilt.sources.url_list.files import find_files
from capfilt.sources.url_list.reading import Reading
from capfilt.sources.url_list.repair import MARK, Copies
from capfilt.sources.url_list.scan import Record
from capfilt.sources.values import optional_text, plain, texts
from capfilt.store.fingerprint import fingerprint
from capfilt.store.shards import ShardWriter

LIST = pa.schema([(name, pa.string()) for name in ("key", "url", "text", "sha256", "md5", "meta")])
"""A row of the snapshot. sha256 and md5: lower-case hex, what the list states of the image. meta: JSON of all other
columns that are not null, under their names in lower case; `text_mended`: bad UTF-8 of the text became U+FFFD."""
VERSION = 1
"""Raised when equal lists would give another snapshot."""

Row = dict[str, str | None]


class UrlList:
    """The list that a source names. Its files are found, none is read.

    Raises ConfigError: there is none, or the filesystem cannot be reached; with what to do.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._files = find_files(source)

    def identity(self) -> list[list[str | int]]:
        """JSON-able facts that change when the list does: as of other containers for files of this machine; name, size
        and etag (or what the filesystem has of the kind) of remote ones. Raises DataError if a file is gone."""
        return [file.identity() for file in self._files]

    def snapshot(self, folder: Path) -> Path:
        """`folder/<name>-<fingerprint>.parquet` of schema `LIST`, in the shard format; written if it is not there.

        Raises:
            ConfigError: the filter is no condition over the list's columns.
            DataError: a file cannot be read or has no url column; no row is left; the list changed meanwhile.
            RunError: the folder cannot be written.
        """
        identity = self.identity()
        settings = self.source.model_dump(include={"columns", "filter", "rows", "seed"})
        made_of = fingerprint({"version": VERSION, "files": identity, "settings": settings})
        path = folder / f"{_safe(source_name(self.source))}-{made_of}.parquet"
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


def list_rows(record: Record) -> Iterator[Row]:
    """One row a text."""
    columns, values = record.columns, record.values
    key = _sound(key_of(values, columns, record.default_key))
    url = _sound((optional_text(values.get(columns.url or "")) or "").strip()) or None
    meta = {alias: plain(values[name]) for alias, name in _others(tuple(values), columns) if values[name] is not None}
    hashes = {kind: take_hash(meta, kind) for kind in ("sha256", "md5")}
    for n, (text, mended) in enumerate(texts(values.get(columns.text or ""))):
        mended = mended or MARK in (text or "")
        told = json.dumps(meta | {"text_mended": True} if mended else meta, sort_keys=True, ensure_ascii=False)
        yield {
            "key": f"{key}#{n}" if n else key,
            "url": url,
            "text": None if text is None else _sound(text),
            "meta": _sound(told),
        } | hashes


@lru_cache(maxsize=1024)
def _others(names: tuple[str, ...], columns: Columns) -> tuple[tuple[str, str], ...]:
    """(name in meta, column) of those that have no part of their own. Among columns that differ in case alone one is
    told in lower case (it if it is spelt so, else the first), the others as they are spelt."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name != name.lower()):
        if name not in (columns.url, columns.text, columns.key):
            found[name if name.lower() in found else name.lower()] = name
    return tuple(found.items())


def _sound(text: str) -> str:
    return text.replace(MARK, "\ufffd")


def _safe(name: str) -> str:
    """For a file name: letters, digits and -_. only."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64].strip("._") or "list"
