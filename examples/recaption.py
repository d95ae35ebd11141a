"""Write new captions for images whose web texts are poor, and see which texts the judge prefers.

    python examples/recaption.py

Two captions are sampled per image with nucleus sampling. The seed and the row's uid decide them, not the batch, so a
rerun gives the same captions.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from capfilt import Pipeline, run

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"

with TemporaryDirectory() as folder:
    pq.write_table(pq.read_table(SAMPLE).slice(0, 16), f"{folder}/pairs.parquet")
    pipeline = Pipeline.model_validate(
        {
            "sources": [{"type": "parquet", "path": f"{folder}/pairs.parquet"}],
            "caption": {
                "model": "tiny/captioner",  # for real captions: Salesforce/blip-image-captioning-base
                "samples": 2,
                "decoding": {"method": "nucleus", "top_p": 0.9, "max_length": 20},
            },
            "score": {"model": "tiny/filter"},
            "dedup": {"semantic": None},
            "select": {"policy": "top_k", "top_k": 1, "rank_by": "itm"},  # the best text of each image
        }
    )
    result = run(pipeline, out=f"{folder}/run", local=True)
    data = pq.read_table(result.dataset / "data", columns=["key", "origin", "itm", "text"])
    for row in data.slice(0, 8).to_pylist():
        print(f"{row['key']:<14} {row['origin']:<10} itm {row['itm']:.2f}  {row['text']}")
    print(f"{data.num_rows} images; the caption won for {data['origin'].to_pylist().count('synthetic')} of them")
