"""Shard files: written atomically, read in batches that bound memory, their checksums verified.

A shard is `00000.parquet` with its manifest `00000.json`: rows, sha256 and counts. The manifest is written before the
Parquet file gets its final name, so a Parquet shard that exists is complete and has its manifest. Files whose names
start with a dot are unfinished; `remove_temp_files` removes those of writers that died.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DataError
from capfilt.store.parquet import open_parquet, parquet_errors

GROUP_BYTES = 32 * 2**20
"""A row group is written when its images and texts reach this many bytes ..."""
GROUP_ROWS = 2_000
"""... or when it has this many rows."""


def shard_name(index: int) -> str:
    """Return the file name of a shard, such as 00000.parquet."""
    return f"{index:05d}.parquet"


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: to a temporary file beside it, synced and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """Return a file's sha256, 64 hex digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Write one shard of a schema; use as a context manager. On an exception no file is left.

    Row groups do not depend on how many rows each call of `write` gets. The manifest counts the values of a column
    `status`, if there is one.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._pending: list[dict[str, Any]] = []
        self._bytes, self._rows = 0, 0
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> "ShardWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        dictionary = [f.name for f in self.schema if pa.types.is_string(f.type)]
        self._writer = pq.ParquetWriter(
            self._temporary, self.schema, compression=_compression(self.schema), write_page_checksum=True,
            use_dictionary=dictionary,
        )  # fmt: skip
        return self

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; a missing key is null. Raises DataError, with the uid, for a value of another type."""
        for row in rows:
            self._pending.append({name: row.get(name) for name in self.schema.names})
            self._bytes += _size(row)
            if len(self._pending) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
                self._flush()

    def write_table(self, rows: pa.Table) -> None:
        """Append a table of the schema's columns, in row groups of GROUP_ROWS; not for images."""
        self._flush()
        rows = rows.select(self.schema.names).cast(self.schema)
        self._writer.write_table(rows, row_group_size=GROUP_ROWS)
        self._rows += rows.num_rows
        if "status" in self.schema.names:
            self._counts.update(map(str, rows["status"].to_pylist()))

    def _flush(self) -> None:
        if not self._pending:
            return
        self._writer.write_table(self._table(self._pending))
        self._rows += len(self._pending)
        if "status" in self.schema.names:
            self._counts.update(str(row["status"]) for row in self._pending)
        self._pending, self._bytes = [], 0

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        try:
            return pa.Table.from_pylist(rows, schema=self.schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if len(rows) == 1:
                raise DataError(f"{self.path}: row {rows[0].get('uid')}: {error}; check the stage") from error
            for row in rows:
                self._table([row])
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with closing(self._writer):
                if kind is None:
                    self._flush()
            if kind is None:
                self._commit()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        facts = {
            "rows": self._rows,
            "sha256": file_sha256(self._temporary),
            "status": dict(sorted(self._counts.items())),
        }
        write_atomic(self.path.with_suffix(".json"), json.dumps(facts))
        self._temporary.replace(self.path)


def _compression(schema: pa.Schema) -> str | dict[str, str]:
    """Return zstd for all columns but image bytes, which are compressed already and would take as long as the rest."""
    if "image" not in schema.names:
        return "zstd"
    leaves = pq.ParquetFile(_empty(schema)).schema
    paths = (leaves.column(i).path for i in range(len(leaves)))
    return {path: "none" if path == "image.bytes" else "zstd" for path in paths}


def _empty(schema: pa.Schema) -> pa.BufferReader:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pa.BufferReader(sink.getvalue())


def _size(row: Mapping[str, Any]) -> int:
    """Return the bytes of a row's image plus the characters of its text, which make up most of a row group."""
    image = row.get("image")
    return (len(image.get("bytes") or b"") if isinstance(image, dict) else 0) + len(row.get("text") or "")


def batches(path: Path, columns: Sequence[str], size: int = 256) -> Iterator[list[dict[str, Any]]]:
    """Yield a shard's rows in order as dictionaries, `size` at a time. Raises DataError for a damaged file."""
    with open_parquet(path) as file:
        for batch in _checked(file.iter_batches(batch_size=size, columns=list(columns), use_threads=False), path):
            yield batch.to_pylist()


def table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a whole shard (default: all) into memory; not for images. Raises DataError for a damaged file."""
    with open_parquet(path) as file, parquet_errors(path, "data"):
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def _checked(parts: Iterator[pa.RecordBatch], path: Path) -> Iterator[pa.RecordBatch]:
    while True:
        with parquet_errors(path, "data"):
            try:
                batch = next(parts)
            except StopIteration:
                return
        yield batch


def manifest(path: Path) -> dict[str, Any]:
    """Read rows, sha256 and counts by status of a finished shard. Raises DataError if they are missing or damaged."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return {"rows": int(found["rows"]), "sha256": str(found["sha256"]), "status": dict(found["status"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.with_suffix('.json')}: no manifest of the shard beside it ({error}); run again"
        ) from error


def link_shard(shard: Path, path: Path) -> None:
    """Give a finished shard a second name: a hard link, or a copy where the disk has no hard links.

    Args:
        shard: the finished shard.
        path: the second name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old, new in ((shard.with_suffix(".json"), path.with_suffix(".json")), (shard, path)):
        temporary = new.with_name(f".{new.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            os.link(old, temporary)
        except OSError:
            shutil.copyfile(old, temporary)
        temporary.replace(new)


def remove_temp_files(folder: Path) -> None:
    """Remove the temporary files of writers that died. Call it only while no other process writes to the folder."""
    for orphan in folder.glob(".*"):
        if orphan.is_file():
            orphan.unlink()
