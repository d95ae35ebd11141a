"""Which rows a training run may draw: Parquet sources, and the index of their usable texts.

The index is built once from the light columns (texts, filter columns), never the images: 10 bytes a sample, so 14 M
pairs take 140 MB in each process. The images come later, a row group at a time (`Rows`).
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from capfilt.errors import DataError
from capfilt.media.text import cell_texts, text_slots
from capfilt.store.parquet import (
    RowGroupCache,
    column_bytes,
    is_binary,
    is_list,
    is_string,
    open_parquet,
    parquet_errors,
    parquet_files,
)

logger = logging.getLogger(__name__)

_Ints = NDArray[np.int32]

SAMPLE = -1
"""The slot of a sample whose text is drawn anew each time."""


class SourceConfig(BaseModel):
    """Parquet rows of one origin and how an epoch draws from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """File, directory or glob."""
    image: str = "image"
    """Column: encoded bytes, or a struct with `bytes` as `datasets` writes it. Paths and URLs are not followed."""
    text: str | list[str] = "text"
    """Columns of strings or lists of strings; each may be null in a row. A row with no text at all is left out."""
    image_id: str | None = None
    """Column of strings or integers; equal values are the same image in all sources. Default: uid or file and row."""
    uid: str | None = "uid"
    """Column; where it is missing or null, `<file name>:<row>`."""
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """How often an epoch sees each sample: 2 is twice, 0.5 a seeded half that changes by epoch."""
    text_mode: Literal["sample", "all"] = "sample"
    """`sample`: one of the row's texts is drawn each time. `all`: every text of the row is a sample of its own."""
    text_weights: list[float] | None = None
    """`sample` only: relative weight of each text column; default: every text of the row is as likely as another."""
    min: dict[str, float] = Field(default_factory=dict)
    """Keeps the rows whose column is >= the value; null and NaN are below everything."""
    limit: int | None = Field(default=None, ge=1)
    """The first N usable rows (after `min`, with a text), in file order."""

    @property
    def texts(self) -> list[str]:
        """The text columns."""
        return [self.text] if isinstance(self.text, str) else self.text

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if not self.texts:
            raise ValueError("text: name at least one column")
        weights = self.text_weights
        if weights is not None and (self.text_mode == "all" or len(weights) != len(self.texts) or min(weights) <= 0):
            raise ValueError("text_weights: one weight > 0 for each text column, with text_mode 'sample'")
        return self

    def columns(self, schema: pa.Schema) -> list[str]:
        """What a training step reads of a file with this schema."""
        names = [self.image, *self.texts, self.image_id, self.uid]
        return [name for name in dict.fromkeys(names) if name is not None and name in schema.names]


class Group(NamedTuple):
    """One row group of one file, as the feed reads it."""

    source: int
    path: str
    number: int
    first_row: int
    """The row group's first row, counted from the file's start."""
    columns: tuple[str, ...]
    cost: int
    """Bytes of those columns after decompression, by the footer."""


@dataclass(frozen=True)
class Index:
    """Every sample of every source: sample i is row `row[i]` of row group `groups[group[i]]`, text `slot[i]`."""

    sources: tuple[SourceConfig, ...]
    groups: tuple[Group, ...]
    group: NDArray[np.int32]
    row: NDArray[np.int32]
    slot: NDArray[np.int32]
    """Number of the text among all of the row's, empty ones counted; SAMPLE where it is drawn."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(sources + 1,) where each source's samples begin; the last entry is the number of samples."""
        origin = np.array([group.source for group in self.groups], dtype=np.int64)
        return np.searchsorted(origin[self.group], np.arange(len(self.sources) + 1))


def build_index(sources: list[SourceConfig]) -> Index:
    """Reads the sources' light columns. Raises DataError for a missing column or a source without a usable row."""
    groups: list[Group] = []
    parts: list[NDArray[np.int32]] = []
    for number, source in enumerate(sources):
        before = len(parts)
        parts += _index_source(number, source, groups)
        if not sum(part.shape[1] for part in parts[before:]):
            raise DataError(f"{source.path}: no row has a text in {source.texts} and passes min={source.min}")
    group, row, slot = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int32)
    return Index(tuple(sources), tuple(groups), group, row, slot)


def _index_source(number: int, source: SourceConfig, groups: list[Group]) -> list[NDArray[np.int32]]:
    parts, left, textless = [], source.limit, 0
    for group, table in _light_tables(number, source):
        rows, slots, empty = _samples(table, source, left)
        textless += empty
        left = None if left is None else left - len(np.unique(rows))
        parts.append(np.stack([np.full(len(rows), len(groups), np.int32), rows, slots]))
        groups.append(group)
        if left == 0:
            break
    if textless:
        logger.warning("%s: %d rows have no text in %s and are left out", source.path, textless, source.texts)
    return parts


def _light_tables(number: int, source: SourceConfig) -> Iterator[tuple[Group, pa.Table]]:
    for path in parquet_files(source.path):
        with open_parquet(path) as file:
            _check_columns(path, source, file.schema_arrow)
            columns, first = source.columns(file.schema_arrow), 0
            light = list(dict.fromkeys([*source.texts, *source.min]))
            for n in range(file.num_row_groups):
                with parquet_errors(path, f"row group {n}"):
                    table = file.read_row_group(n, columns=light, use_threads=False)
                cost = column_bytes(file.metadata.row_group(n), columns)
                yield Group(number, str(path), n, first, tuple(columns), cost), table
                first += table.num_rows


def _samples(table: pa.Table, source: SourceConfig, left: int | None) -> tuple[_Ints, _Ints, int]:
    """Rows and slots of a row group's samples, at most `left` rows of them, and how many rows were without a text.

    An empty list is no such row: it says by itself that there is none.
    """
    keep = np.ones(table.num_rows, dtype=bool)
    for name, least in source.min.items():
        keep &= pc.fill_null(pc.greater_equal(table[name], least), False).to_numpy()
    rows, slots = text_slots(table, source.texts)
    rows, slots = rows[keep[rows]], slots[keep[rows]]
    usable = np.unique(rows)
    end = table.num_rows
    if left is not None and len(usable) >= left:
        usable, end = usable[:left], int(usable[left - 1]) + 1
    textless = int((keep & ~_told_empty(table, source.texts))[:end].sum()) - len(usable)
    if source.text_mode == "sample":
        return usable.astype(np.int32), np.full(len(usable), SAMPLE, np.int32), textless
    return rows[rows < end], slots[rows < end], textless


def _told_empty(table: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    """(rows,) whether all of these columns hold an empty list."""
    found = np.full(table.num_rows, all(is_list(table[name].type) for name in names))
    for name in names if found.any() else []:
        found &= pc.fill_null(pc.list_value_length(table[name]), 1).to_numpy() == 0
    return found


def _check_columns(path: Path, source: SourceConfig, schema: pa.Schema) -> None:
    wanted = [source.image, *source.texts, *source.min, source.image_id]
    wanted += [source.uid] if "uid" in source.model_fields_set else []
    for name in wanted:
        if name is not None and name not in schema.names:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(schema.names)}")
    image = schema.field(source.image).type
    if not (is_binary(image) or (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0)):
        raise DataError(f"{path}: image column {source.image!r} is {image}; expected binary, or a struct with 'bytes'")
    for name in source.texts:
        kind = schema.field(name).type
        if not is_string(kind.value_type if is_list(kind) else kind):
            raise DataError(f"{path}: text column {name!r} is {kind}; expected string or list of strings")
    for name in source.min:
        if not (pa.types.is_integer(schema.field(name).type) or pa.types.is_floating(schema.field(name).type)):
            raise DataError(f"{path}: min: column {name!r} is {schema.field(name).type}; expected a number")


class BadRowError(Exception):
    """A row that cannot be a training sample."""

    def __init__(self, uid: str, reason: str) -> None:
        super().__init__(uid, reason)
        self.uid, self.reason = uid, reason


class Row(NamedTuple):
    """One row as read: `texts[c]` are the raw texts of text column c."""

    uid: str
    image_id: int
    image: bytes
    texts: list[list[str]]


class Rows:
    """Rows by sample number; holds the row groups last used, up to `budget` bytes or the largest one."""

    def __init__(self, index: Index, budget: int) -> None:
        self._index = index
        self._cache = RowGroupCache(max([budget, *(group.cost for group in index.groups)]))

    def read(self, sample: int) -> Row:
        """Raises BadRowError for a null image or invalid UTF-8, DataError for a page that cannot be read."""
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
        return Row(uid, image_key(image_name), image, texts)


def image_key(name: str) -> int:
    """The int64 image id of an image's name: the first 8 bytes of its sha256, big-endian, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _cell(table: pa.Table, name: str, row: int) -> Any:
    try:
        return table[name][row].as_py()
    except UnicodeDecodeError as error:
        return error


def _name(value: object) -> str:
    return "" if value is None or isinstance(value, UnicodeDecodeError) else str(value)
