"""Filter a folder of images with a text file beside each: keep the texts that match.

    python examples/filter_my_folder.py [FOLDER]

Without a folder, 24 pairs of the bundled sample are written into one first: every fourth has another image's text.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from capfilt import Pipeline, run

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"


def write_sample(folder: Path) -> Path:
    """Write an image and a text file for each of the first rows of the bundled sample."""
    for row in pq.read_table(SAMPLE).slice(0, 24).to_pylist():
        if row["image"]:
            file = folder / row["image"]["path"]
            file.write_bytes(row["image"]["bytes"])
            file.with_suffix(".txt").write_text(row["text"], encoding="utf-8")
    return folder


with TemporaryDirectory() as made, TemporaryDirectory() as out:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else write_sample(Path(made))
    pipeline = Pipeline.model_validate(
        {
            "sources": [{"type": "folder", "path": str(folder), "name": "mine"}],
            "score": {"model": "tiny/filter"},  # for real filtering: Salesforce/blip-itm-base-coco
            "dedup": {"semantic": {"min_similarity": 0.99}},
            "select": {"policy": "itm_threshold", "itm_threshold": 0.5},
            "emit": [{"format": "pairs"}],
        }
    )
    result = run(pipeline, out=out, local=True)
    counts = result.accounting
    print(f"{counts.rows_in} images, {counts.rows_kept} kept; the others: {dict(counts.rejected + counts.quarantined)}")
    for row in pq.read_table(result.dataset / "pairs/pairs.parquet").slice(0, 5).to_pylist():
        print(f"  itm {row['itm']:.2f}  {row['text']}")
