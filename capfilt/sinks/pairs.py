"""`pairs/pairs.parquet`: the kept texts by uid, for users who have the images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.sinks.base import Counts
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CANDIDATES
from capfilt.store.shards import table

COLUMNS = tuple(column for column in CANDIDATES if column.name in ("uid", "text", "origin", "itc", "itm"))


def write_pairs(layout: RunLayout, folder: Path) -> Counts:
    """Write one row per kept text, in the order of the candidates; images are not read. Returns the number of rows."""
    (folder / "pairs").mkdir()
    schema = pa.schema([(column.name, column.type) for column in COLUMNS])
    rows = 0
    with pq.ParquetWriter(
        folder / "pairs" / "pairs.parquet", schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for shard in range(len(layout.shards)):
            ledger = table(layout.shard(CANDIDATES, shard), [*schema.names, "kept"])
            kept = ledger.filter(ledger["kept"]).select(schema.names)
            writer.write_table(kept)
            rows += kept.num_rows
    return {"rows": rows}
