"""Which rows of a shard a worker processes, and where its output goes: how the engine finds a row that kills workers.

A stage reads its rows through a `RowFilter` and writes them to what `open_output` opens. It does not know whether
it computes a whole shard, a shard without some rows, or a dry run over a part of the rows.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from capfilt.store.shards import ShardWriter

T = TypeVar("T")


@dataclass(frozen=True)
class RowFilter:
    """The rows of a shard to process, by position from 0."""

    quarantined: frozenset[int] = frozenset()
    """Rows that kill their worker: they are written as failed and not processed."""
    only: range | None = None
    """Rows of a dry run, which computes these alone and writes nothing. None: all rows."""

    @property
    def dry(self) -> bool:
        """Whether nothing is to be written."""
        return self.only is not None

    def select(self, rows: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Yield (position, row) of the rows to process; `rows` are all rows of the shard in order."""
        numbered = enumerate(rows)
        return numbered if self.only is None else islice(numbered, self.only.start, self.only.stop)


class RowSink(Protocol):
    """What a stage writes rows to; a context manager."""

    def __enter__(self) -> "RowSink": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; a missing key is null."""
        ...

    def write_table(self, rows: pa.Table) -> None:
        """Append a table."""
        ...


class DiscardWriter:
    """Discard the output of a dry run, which computes everything and writes nothing."""

    def __enter__(self) -> "DiscardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Compute the rows by iterating over them."""
        deque(rows, maxlen=0)

    def write_table(self, rows: pa.Table) -> None:
        """Take an already computed table."""


def open_output(path: Path, schema: pa.Schema, rows: RowFilter) -> RowSink:
    """Open the shard's file for writing, or a `DiscardWriter` for a dry run."""
    return DiscardWriter() if rows.dry else ShardWriter(path, schema)
