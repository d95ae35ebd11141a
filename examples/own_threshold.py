"""Try thresholds on a finished run: scores are stored, so no model runs again.

    python examples/own_threshold.py [RUN]

Without RUN, 32 pairs of the bundled sample are run first. The script works on a copy, so RUN is not changed.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import pyarrow.parquet as pq

from capfilt import Pipeline, run, select

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"


def small_run(folder: str) -> Path:
    """Run 32 pairs through the tiny judge, without captions."""
    pq.write_table(pq.read_table(SAMPLE).slice(0, 32), f"{folder}/pairs.parquet")
    pipeline = Pipeline.model_validate(
        {
            "sources": [{"type": "parquet", "path": f"{folder}/pairs.parquet"}],
            "score": {"model": "tiny/filter"},
            "dedup": {"semantic": {"min_similarity": 0.99}},
        }
    )
    return run(pipeline, out=f"{folder}/finished", local=True).layout.run


with TemporaryDirectory() as folder:
    finished = Path(sys.argv[1]) if len(sys.argv) > 1 else small_run(folder)
    copy = shutil.copytree(finished, f"{folder}/copy")
    for threshold in (0.3, 0.5, 0.7, 0.9):
        started = monotonic()
        counts = select(copy, ["select.policy=itm_threshold", f"select.itm_threshold={threshold}"]).accounting
        kept = sum(texts.kept for texts in counts.texts.values())
        print(f"itm >= {threshold}: {kept} texts of {counts.rows_in} rows kept ({monotonic() - started:.1f} s)")
