"""Read untrusted Parquet files: no code in them is run, and page checksums are verified where they were written.

Two measurements are the reason. A process that has imported `ray.data` runs pickles out of a file whose columns are of
Ray's extension type, through plain `read_table(...).to_pylist()`. Extension types are therefore refused by schema,
before any data is read, even if this process does not know the type: the result must not depend on what was imported.
And 249 of 300 single-bit flips gave wrong data silently with pyarrow's defaults; none did with page checksums written
and verified.
"""

import glob
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DataError

READ_BYTES = 2**20
"""Bytes of a column chunk to read at a time. Whole chunks, pyarrow's default, took 545 MB for a 400 MB row group."""

_EXTENSION_KEY = b"ARROW:extension:name"


def parquet_files(path: str | Path) -> list[Path]:
    """Return the Parquet files that a path names, sorted.

    Args:
        path: a file, a directory (its `*.parquet`, not recursive) or a glob. Files of a directory or glob whose names
            start with `.` or `_` are hidden or temporary and left out.

    Raises:
        DataError: there is none.
    """
    given = Path(path)
    if given.is_file():
        return [given]
    found = given.glob("*.parquet") if given.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file() and file.name[0] not in "._")
    if not files:
        raise DataError(f"{path}: no Parquet file there; give a file, a directory with *.parquet files, or a glob")
    return files


def safe_schema(path: str | Path) -> pa.Schema:
    """Read a file's Arrow schema from its footer.

    Raises:
        DataError: as `open_parquet`.
    """
    with open_parquet(path) as file:
        return file.schema_arrow


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a file with page checksum verification, and refuse extension types.

    Read its pages inside `parquet_errors`, which turns errors of pyarrow into DataError.

    Raises:
        DataError: the file is missing, truncated or no Parquet file; or a column, which is named, is of an extension
            type or contains one.
    """
    with parquet_errors(path):
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BYTES)
    try:
        for field in file.schema_arrow:
            refuse_extension(path, field.name, field)
    except DataError:
        file.close()
        raise
    return file


def read_row_group(path: str | Path, group: int, columns: Sequence[str]) -> pa.Table:
    """Read some columns of one row group into memory; Parquet has no smaller unit that can be read at random.

    Args:
        path: the file.
        group: number of the row group, from 0.
        columns: names of the columns.

    Raises:
        DataError: as `open_parquet`, or the checksum of a page does not match.
    """
    with open_parquet(path) as file, parquet_errors(path, f"row group {group}"):
        return file.read_row_group(group, columns=list(columns), use_threads=False)


@contextmanager
def parquet_errors(path: str | Path, where: str = "footer") -> Iterator[None]:
    """Turn errors of pyarrow inside the block into a DataError that names the file and `where` in it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else str(error).strip()
        advice = "fetch or write the file again" if not isinstance(error, FileNotFoundError) else "check the path"
        raise DataError(f"{path}: {where} cannot be read as Parquet ({what}); {advice}") from error


class RowGroupCache:
    """Cache of row groups that drops the least recently used ones to stay within a number of bytes.

    Sizes are those in the footer, after decompression; a value that many rows repeat is stored once and counts once.
    One row group is always held, whatever its size.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._tables: OrderedDict[tuple[str, int, tuple[str, ...]], tuple[int, pa.Table]] = OrderedDict()

    def get(self, path: str, number: int, columns: Sequence[str], cost: int) -> pa.Table:
        """Return a row group of `cost` bytes, read if it is not held. Raises DataError as `read_row_group`."""
        key = (path, number, tuple(columns))
        if key not in self._tables:
            while self._tables and self._held + cost > self._budget:
                self._held -= self._tables.popitem(last=False)[1][0]
            self._tables[key] = cost, read_row_group(path, number, columns)
            self._held += cost
        self._tables.move_to_end(key)
        return self._tables[key][1]


def column_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """Return the bytes of these top-level columns after decompression, from a row group's metadata."""
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether values are bytes, with 32- or 64-bit offsets."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image(kind: pa.DataType) -> bool:
    """Return whether values can be images: bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_binary(kind.field(index).type)
    return is_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Return whether values are lists of variable length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_string(kind: pa.DataType) -> bool:
    """Return whether values are text: plain, dictionary-encoded or all null."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def refuse_extension(path: str | Path, name: str, field: pa.Field) -> None:
    """Raise DataError if the field is of an extension type or contains one."""
    kind = field.type
    label = (field.metadata or {}).get(_EXTENSION_KEY)
    if isinstance(kind, pa.BaseExtensionType) or label is not None:
        label = label.decode(errors="replace") if label else kind.extension_name
        raise DataError(
            f"{path}: column {name!r} is of the Arrow extension type {label!r}; extension types can run code "
            "when read and are refused: write the column as a plain type"
        )
    for child in _children(kind):
        refuse_extension(path, f"{name}.{child.name}", child)


def _children(kind: pa.DataType) -> list[pa.Field]:
    if pa.types.is_dictionary(kind):
        return [pa.field("dictionary", kind.value_type)]
    if pa.types.is_map(kind):
        return [kind.key_field, kind.item_field]
    return [kind.field(i) for i in range(kind.num_fields)]
