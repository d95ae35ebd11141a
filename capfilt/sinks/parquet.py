"""`data/train-00000-of-000NN.parquet`: one row per kept pair, in the layout of `datasets` and the Hugging Face Hub.

An image with several texts is stored once: `image.bytes` is dictionary-encoded with a dictionary large enough for a row
group's images. With Parquet's default limit of 1 MiB, 1,000 images of 4 kB with three texts each take 2.3 times their
bytes (zstd removes copies on disk, but only within its window), with this limit 1.006 times.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.sinks.base import CandidateRow, Counts, Picture
from capfilt.store.schema import CANDIDATES, PAIRS, Column, arrow

GROUP_BYTES = 48 * 2**20
"""A row group is closed before its images, counted once per text, exceed this."""
_DICTIONARY_BYTES = 2**30

_STORED = {column.name: column for column in (*PAIRS, *CANDIDATES)}
_TEXT = ("text", "uid", "origin", "itc", "itm", "model", "digest", "decoding", "sample", "logprob", "round")
_PICTURE = ("url", "width", "height", "sha256", "key")
COLUMNS: tuple[Column, ...] = (
    Column("image", _STORED["image"].type, "the file's bytes untouched; its path is uid and extension"),
    *(_STORED[name] for name in (*_TEXT, *_PICTURE)),
)
"""Columns of the emitted rows."""


def file_name(index: int, files: int) -> str:
    """Return the name of a file, such as train-00000-of-00001.parquet."""
    return f"train-{index:05d}-of-{files:05d}.parquet"


def write_parquet(pictures: Iterable[Picture], folder: Path, pairs: int, rows_per_file: int) -> Counts:
    """Write all pairs into files of `rows_per_file` rows.

    Args:
        pictures: the kept images, in row order.
        folder: the data set's folder; files are written to its `data`.
        pairs: number of texts of all images; the number of files, which is in their names, depends on it.
        rows_per_file: the last file may have fewer; without any pair one file without rows is written.

    Returns:
        files, rows, bytes (of all files).
    """
    (folder / "data").mkdir()
    files = max(1, -(-pairs // rows_per_file))
    rows = (row for picture in pictures for row in _rows(picture))
    schema = arrow(COLUMNS)
    for index in range(files):
        with _writer(folder / "data" / file_name(index, files), schema) as writer:
            for group in _groups(islice(rows, rows_per_file)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
    size = sum(path.stat().st_size for path in (folder / "data").iterdir())
    return {"files": files, "rows": pairs, "bytes": size}


def _rows(picture: Picture) -> Iterator[CandidateRow]:
    image = {"bytes": picture.data, "path": picture.file_name}
    for text in picture.texts:
        of_picture = {name: getattr(picture, name) for name in _PICTURE}
        yield {"image": image, **{name: text[name] for name in _TEXT}, **of_picture}


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=["image.bytes", "image.path", *strings],
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
    )


def _groups(rows: Iterable[CandidateRow]) -> Iterator[list[CandidateRow]]:
    """Row groups of up to GROUP_BYTES; the texts of an image stay together."""
    group: list[CandidateRow] = []
    size = 0
    for row in rows:
        again = bool(group) and row["uid"] == group[-1]["uid"]
        weight = len(row["image"]["bytes"])
        if group and not again and size + weight > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += weight
    if group:
        yield group
