"""Make lists readable for DuckDB: fetch, unpack or repair a file into a copy beside the snapshot if necessary.

DuckDB refuses a whole text file because of one byte that is not UTF-8, and a JSON file because of one half of a
surrogate pair. Such a file is read from a copy that has `MARK` in place of U+FFFD, so that repaired rows can be
recognised. Parquet is copied only when DuckDB finds such a string. Remote text is fetched first, because it is read
more than once.
"""

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DataError
from capfilt.sources.tables import as_bytes
from capfilt.sources.url_list.files import ListFile, reading
from capfilt.store.parquet import is_list, is_string, refuse_extension

MARK = "\ufffe"
"""Not a character, so no valid text contains it; replaced by U+FFFD in the snapshot."""
CHUNK = 2**20
LONGEST = 32 * CHUNK
"""Most characters without a comma or line end that are processed together."""
_BATCH = 10_000
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(?P<half>u[dD][89a-fA-F][\da-fA-F]{2})|.)"
)
codecs.register_error("capfilt.mark", lambda error: (MARK, error.end))  # type: ignore[attr-defined]


class Copies:
    """Names for copies, `.<name>.<n>.<process>` in a folder. A context manager that removes the copies at the end.

    `shards.clean` removes the copies of a killed process.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder.absolute(), name
        self._given: list[Path] = []

    def new(self) -> Path:
        """Return an unused name."""
        self._given.append(self._folder / f".{self._name}.{len(self._given)}.{os.getpid()}")
        return self._given[-1]

    def __enter__(self) -> "Copies":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._given:
            if path.is_file():
                path.unlink()


def readable_copy(file: ListFile, copies: Copies) -> ListFile:
    """Return the file, or a copy that DuckDB can read.

    Raises:
        DataError: empty, UTF-16, with extension types, or cannot be fetched.
    """
    with reading(file):
        if file.kind == "parquet":
            return _parquet(file, copies)
        file = _fetched(file, copies) if file.fs is not None else file
        return file if _is_valid(file) else _repaired_copy(file, copies.new())


def _parquet(file: ListFile, copies: Copies) -> ListFile:
    """The file itself, or a copy if its server cannot send a part of a file."""
    try:
        open_parquet(file).close()
        if file.fs is not None:
            with file.open() as opened:
                opened.seek(1)
                opened.read(1)
    except ValueError as error:
        if file.fs is None or isinstance(error, pa.ArrowException):
            raise
        file = _fetched(file, copies)
        open_parquet(file).close()
    return file


def _fetched(file: ListFile, copies: Copies) -> ListFile:
    copy = str(copies.new())
    file.fs.get_file(file.path, copy)
    return replace(file, path=copy, fs=None)


def open_parquet(file: ListFile) -> pq.ParquetFile:
    """Like `capfilt.store.parquet.open_parquet`, on any filesystem.

    Raises DataError, and errors of pyarrow and the filesystem.
    """
    opened = pq.ParquetFile(file.open(), pre_buffer=False, buffer_size=CHUNK)
    try:
        for field in opened.schema_arrow:
            refuse_extension(file.label, field.name, field)
    except DataError:
        opened.close()
        raise
    return opened


def repaired_parquet(file: ListFile, copy: Path) -> ListFile:
    """Write a copy with `MARK` for bytes that are not UTF-8, in strings and lists of strings. Raises DataError."""
    with reading(file), open_parquet(file) as opened:
        schema = pa.schema([field.with_type(_decoded(field.type)) for field in opened.schema_arrow])
        with pq.ParquetWriter(copy, schema) as writer:
            for batch in opened.iter_batches(_BATCH, use_threads=False):
                writer.write_batch(pa.record_batch([_marked(column) for column in batch.columns], schema=schema))
    return replace(file, path=str(copy), fs=None)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _marked(column: pa.Array) -> pa.Array:
    kind = _decoded(column.type)
    if not is_string(kind.value_type if is_list(kind) else kind):
        return column
    return pa.array([_marked_cell(cell) for cell in as_bytes(column).to_pylist()], kind)


def _marked_cell(cell: bytes | list[bytes | None] | None) -> str | list[str | None] | None:
    if isinstance(cell, list):
        return [None if one is None else one.decode("utf-8", "capfilt.mark") for one in cell]
    return None if cell is None else cell.decode("utf-8", "capfilt.mark")


def stream(file: ListFile) -> pa.NativeFile:
    """The bytes of a local file, unpacked."""
    return pa.input_stream(file.path, compression=None if file.compression == "uncompressed" else file.compression)


def _is_valid(file: ListFile) -> bool:
    """Return True if DuckDB can read the text. Raises DataError for a file that cannot be repaired."""
    with stream(file) as opened:
        head = opened.read(3)
    if not head or head[:2] in _UTF16:
        what = "is UTF-16; write it as UTF-8" if head else "is empty; fetch it again, or remove it"
        raise DataError(f"{file.label}: the file {what}")
    try:
        whole = all(_repair(file, part) == part for part in _parts(file, "strict"))
    except UnicodeDecodeError:
        return False
    return whole and not (file.kind == "json" and head == codecs.BOM_UTF8)


def _repaired_copy(file: ListFile, copy: Path) -> ListFile:
    with copy.open("w", encoding="utf-8", newline="") as target:
        target.writelines(_repair(file, part) for part in _parts(file, "capfilt.mark"))
    return replace(file, path=str(copy), compression="uncompressed")


def _parts(file: ListFile, errors: str) -> Iterator[str]:
    """Yield the text without its byte order mark, split after commas and line ends so that no JSON escape is split."""
    decoder, rest = codecs.getincrementaldecoder("utf-8-sig")(errors), ""
    with stream(file) as opened:
        while chunk := opened.read(CHUNK):
            text = rest + decoder.decode(chunk)
            cut = max(text.rfind(","), text.rfind("\n")) + 1 or (len(text) if len(text) > LONGEST else 0)
            rest = text[cut:]
            yield text[:cut]
    yield rest + decoder.decode(b"", True)


def _repair(file: ListFile, text: str) -> str:
    """In JSON, replace every lone half of a surrogate pair by `MARK`."""
    if file.kind != "json" or ("\\ud" not in text and "\\uD" not in text):
        return text
    return _ESCAPE.sub(lambda found: MARK if found["half"] else found[0], text)
