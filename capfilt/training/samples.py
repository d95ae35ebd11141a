"""Read the rows of training samples, one Parquet row group at a time."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from capfilt.media.text import cell_texts
from capfilt.store.parquet import RowGroupCache, is_list
from capfilt.training.sources import SampleIndex


class BadRowError(Exception):
    """A row that cannot be used as a training sample."""

    def __init__(self, uid: str, reason: str) -> None:
        super().__init__(uid, reason)
        self.uid, self.reason = uid, reason


class SampleRow(NamedTuple):
    """One row as it is stored."""

    uid: str
    image_id: int
    """See `image_key`."""
    image: bytes
    """The encoded image."""
    texts: list[list[str]]
    """The raw texts of each text column."""


class SampleReader:
    """Reads rows by sample number. Keeps recently used row groups in memory, up to a budget."""

    def __init__(self, index: SampleIndex, budget: int) -> None:
        """Start with an empty cache of `budget` bytes, or of the largest row group's size if that is more."""
        self._index = index
        self._cache = RowGroupCache(max([budget, *(group.cost for group in index.groups)]))

    def read(self, sample: int) -> SampleRow:
        """Read the row of a sample.

        Raises:
            BadRowError: a null image, or a text that is not valid UTF-8.
            DataError: a page that cannot be read.
        """
        group, row = self._index.groups[self._index.group[sample]], int(self._index.row[sample])
        source = self._index.sources[group.source]
        table = self._cache.get(group.path, group.number, group.columns, group.cost)
        cell = {name: _cell(table, name, row) for name in group.columns}
        uid = _name(cell.get(source.uid or ""))
        place = f"{Path(group.path).name}:{group.first_row + row}"
        image_name = _name(cell.get(source.image_id or "")) or uid or str(Path(group.path).resolve().parent / place)
        uid = uid or place
        image = cell[source.image]
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise BadRowError(uid, "no image bytes in the row (paths and URLs are not followed)")
        if any(isinstance(cell[name], UnicodeDecodeError) for name in source.texts):
            raise BadRowError(uid, "text is not valid UTF-8")
        texts = [cell_texts(cell[name], is_list(table.schema.field(name).type)) for name in source.texts]
        return SampleRow(uid, image_key(image_name), image, texts)


def image_key(name: str) -> int:
    """Return the int64 image id of an image's name: the first 8 bytes of its sha256, big-endian, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _cell(table: pa.Table, name: str, row: int) -> Any:
    try:
        return table[name][row].as_py()
    except UnicodeDecodeError as error:
        return error


def _name(value: object) -> str:
    return "" if value is None or isinstance(value, UnicodeDecodeError) else str(value)
