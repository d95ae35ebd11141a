"""Read a run with DuckDB, Polars and `datasets`: plain Parquet, no capfilt needed.

    python examples/read_the_results.py [RUN]

Without RUN, 24 pairs of the bundled sample are run first. The ledger (`candidates-*`) has one row per text,
kept and rejected; `dataset` has the kept pairs with their images.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow.parquet as pq
from datasets import load_dataset

from capfilt import Pipeline, run

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"


def small_run(folder: str) -> Path:
    """Run 24 pairs through the tiny models."""
    pq.write_table(pq.read_table(SAMPLE).slice(0, 24), f"{folder}/pairs.parquet")
    pipeline = Pipeline.model_validate(
        {
            "sources": [{"type": "parquet", "path": f"{folder}/pairs.parquet"}],
            "caption": {"model": "tiny/captioner"},
            "score": {"model": "tiny/filter"},
            "dedup": {"semantic": {"min_similarity": 0.99}},
        }
    )
    return run(pipeline, out=f"{folder}/run", local=True).layout.run


def with_duckdb(ledger: str) -> None:
    """Count the texts of each origin and verdict."""
    query = f"SELECT origin, kept, reason, count(*) AS texts FROM '{ledger}' GROUP BY ALL ORDER BY ALL"
    print("DuckDB", *duckdb.sql(query).fetchall(), sep="\n  ")


def with_polars(ledger: str) -> None:
    """Count the same with Polars, lazily: only three columns are read."""
    if find_spec("polars") is None:
        print("Polars\n  is not installed here: pip install polars")
        return
    import polars

    counted = polars.scan_parquet(ledger).group_by("origin", "kept", "reason").len().collect()
    print("Polars", *counted.sort("origin", "kept", "reason").rows(), sep="\n  ")


def with_datasets(dataset: Path, cache: str) -> None:
    """Open the kept pairs; an image is decoded when it is accessed."""
    pairs = load_dataset(str(dataset), split="train", cache_dir=cache)
    first = pairs[0]
    print("datasets", f"{len(pairs)} pairs; the first: {first['image'].size}, {first['text']!r}", sep="\n  ")


with TemporaryDirectory() as folder:
    finished = Path(sys.argv[1]) if len(sys.argv) > 1 else small_run(folder)
    ledger = str(finished / "candidates-*" / "*.parquet")
    with_duckdb(ledger)
    with_polars(ledger)
    with_datasets(finished / "dataset", f"{folder}/cache")
