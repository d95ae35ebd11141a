"""Slices of the bundled sample as sources of a pipeline."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SAMPLE = Path(__file__).parents[1] / "data/sample"
SOURCES: list[dict[str, Any]] = [{"type": "parquet", "path": role, "role": role} for role in ("web", "human")]
"""The sources of a pipeline file in the folder that `write_slices` was given."""


def write_slices(folder: Path, **rows: int) -> None:
    """Write the first rows of each role, such as web=24, into folders of that name."""
    for role, count in rows.items():
        (folder / role).mkdir()
        pq.write_table(pq.read_table(SAMPLE / role / "00000.parquet").slice(0, count), folder / role / "00000.parquet")
