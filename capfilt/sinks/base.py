"""The input of every output format: kept images, one at a time, each with its kept texts; memory does not grow.

A sink is a function that takes the images and a folder, writes its format there and returns counts.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from capfilt.selection.ledger import own_rows
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CANDIDATES, PAIRS
from capfilt.store.shards import batches, table

CandidateRow = dict[str, Any]
"""One row of the ledger: column of CANDIDATES -> value."""
Counts = dict[str, int]
"""What a sink wrote: name -> number."""

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
"""Image format -> extension of its files."""
_COLUMNS = ("uid", "key", "url", "width", "height", "format", "sha256", "image")
_BATCH = 64


@dataclass(frozen=True)
class Picture:
    """An image of which at least one text is kept."""

    uid: str
    key: str
    url: str | None
    width: int
    height: int
    format: str
    """JPEG | PNG | WEBP | GIF."""
    sha256: str
    data: bytes
    """The file, unchanged."""
    texts: tuple[CandidateRow, ...]
    """Rows of the ledger, columns as in CANDIDATES; the image's own text first, then by sample."""

    @property
    def file_name(self) -> str:
        """uid with the extension of the format."""
        return f"{self.uid}.{EXTENSIONS[self.format]}"


def kept_texts(layout: RunLayout, shard: int) -> dict[int, list[CandidateRow]]:
    """Return position of a row -> its kept texts (rows of CANDIDATES), in order. Rows without kept texts are absent."""
    ledger = table(layout.shard(CANDIDATES, shard))
    _, rows = own_rows(ledger["origin"])
    kept = ledger["kept"].to_numpy()
    found: dict[int, list[CandidateRow]] = defaultdict(list)
    for row, text in zip(rows[kept].tolist(), ledger.filter(ledger["kept"]).to_pylist(), strict=True):
        found[row].append(text)
    return found


def pictures(layout: RunLayout) -> Iterator[Picture]:
    """Yield every kept image of a run, in row order. Raises DataError for a damaged shard."""
    for shard in range(len(layout.shards)):
        texts = kept_texts(layout, shard)
        rows = (row for batch in batches(layout.shard(PAIRS, shard), _COLUMNS, _BATCH) for row in batch)
        for position, row in enumerate(rows if texts else ()):
            if position in texts:
                data = row.pop("image")["bytes"]
                yield Picture(**row, data=data, texts=tuple(texts[position]))
