"""Parquet sources of a training run, and the index of their usable rows and texts.

The index is built once from the light columns (texts, filter columns), never from the images. It takes 10 bytes per
sample, so 14 M pairs take 140 MB in each process. Images are read later, one row group at a time (`SampleReader`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from capfilt.errors import DataError
from capfilt.media.text import text_slots
from capfilt.store.parquet import (
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
"""The slot of a sample whose text is drawn each time that it is used."""


class SourceConfig(BaseModel):
    """The Parquet rows of one source, and how an epoch draws from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """File, directory or glob."""
    image: str = "image"
    """Column of encoded images, or of structs with `bytes` as `datasets` writes them. Paths and URLs are not read."""
    text: str | list[str] = "text"
    """Columns of strings or lists of strings; each may be null in a row. A row without any text is left out."""
    image_id: str | None = None
    """Column of strings or integers: equal values are the same image, in all sources. Default: uid, or file and row."""
    uid: str | None = "uid"
    """Column of row names. If it is missing or null, a row is named `<file name>:<row>`."""
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """How often an epoch uses each sample: 2 is twice, 0.5 a seeded half that changes from epoch to epoch."""
    text_mode: Literal["sample", "all"] = "sample"
    """`sample`: a row is one sample, one of its texts is drawn each time. `all`: every text of a row is a sample."""
    text_weights: list[float] | None = None
    """`sample` only: relative weight of each text column. Default: every text of the row is equally likely."""
    min: dict[str, float] = Field(default_factory=dict)
    """Column -> smallest value: other rows are left out, and so are those with null or NaN there."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N usable rows (after `min`, with a text), in file order."""

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
        """The columns that a training step reads from a file with this schema."""
        names = [self.image, *self.texts, self.image_id, self.uid]
        return [name for name in dict.fromkeys(names) if name is not None and name in schema.names]


class RowGroup(NamedTuple):
    """One row group of one Parquet file."""

    source: int
    path: str
    number: int
    first_row: int
    """The row group's first row, counted from the file's start."""
    columns: tuple[str, ...]
    cost: int
    """Bytes of those columns after decompression, by the footer."""


@dataclass(frozen=True)
class SampleIndex:
    """Every sample of every source: sample i is row `row[i]` of row group `groups[group[i]]`, text `slot[i]`."""

    sources: tuple[SourceConfig, ...]
    groups: tuple[RowGroup, ...]
    group: NDArray[np.int32]
    row: NDArray[np.int32]
    slot: NDArray[np.int32]
    """Number of the text among all texts of the row, empty ones included; SAMPLE if a text is drawn each time."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(sources + 1,) int64: the first sample of each source, then the number of samples."""
        origin = np.array([group.source for group in self.groups], dtype=np.int64)
        return np.searchsorted(origin[self.group], np.arange(len(self.sources) + 1))


def build_index(sources: list[SourceConfig]) -> SampleIndex:
    """Index every sample of the sources, from their light columns.

    Raises:
        DataError: a column is missing or has the wrong type, or a source has no usable row.
    """
    groups: list[RowGroup] = []
    parts: list[NDArray[np.int32]] = []
    for number, source in enumerate(sources):
        before = len(parts)
        parts += _index_source(number, source, groups)
        if not sum(part.shape[1] for part in parts[before:]):
            raise DataError(f"{source.path}: no row has a text in {source.texts} and passes min={source.min}")
    group, row, slot = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int32)
    return SampleIndex(tuple(sources), tuple(groups), group, row, slot)


def _index_source(number: int, source: SourceConfig, groups: list[RowGroup]) -> list[NDArray[np.int32]]:
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


def _light_tables(number: int, source: SourceConfig) -> Iterator[tuple[RowGroup, pa.Table]]:
    for path in parquet_files(source.path):
        with open_parquet(path) as file:
            _check_columns(path, source, file.schema_arrow)
            columns, first = source.columns(file.schema_arrow), 0
            light = list(dict.fromkeys([*source.texts, *source.min]))
            for n in range(file.num_row_groups):
                with parquet_errors(path, f"row group {n}"):
                    table = file.read_row_group(n, columns=light, use_threads=False)
                cost = column_bytes(file.metadata.row_group(n), columns)
                yield RowGroup(number, str(path), n, first, tuple(columns), cost), table
                first += table.num_rows


def _samples(table: pa.Table, source: SourceConfig, left: int | None) -> tuple[_Ints, _Ints, int]:
    """Find the samples of a row group.

    Args:
        table: the light columns of the row group.
        source: its settings.
        left: most rows to use; None: all.

    Returns:
        (N,) row numbers, (N,) slots, and the number of rows without a text. A row with an empty list is not counted,
        because the list itself says that there is no text.
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
    textless = int((keep & ~_has_only_empty_lists(table, source.texts))[:end].sum()) - len(usable)
    if source.text_mode == "sample":
        return usable.astype(np.int32), np.full(len(usable), SAMPLE, np.int32), textless
    return rows[rows < end], slots[rows < end], textless


def _has_only_empty_lists(table: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    """(rows,) bool: whether all of these columns hold an empty list."""
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
