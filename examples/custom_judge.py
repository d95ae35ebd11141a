"""Filter with a custom judge, registered by this script: a text that is a file name matches no image.

    python examples/custom_judge.py

A judge is any object with the methods of `capfilt.models.protocols.Judge` and `Embedder`; this one calls a shipped
filter and changes one score. `register` adds it to this process, so the run is local. For Ray, install
a package with an entry point: docs/extending/judge.md.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt import Pipeline, run
from capfilt.models.factory import LoadRequest
from capfilt.models.protocols import Match, States
from capfilt.models.registry import load_system, register

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"
FILE_NAME = re.compile(r"\b(img|dsc|image|screenshot)[ _-]?\d+\b|\b(jpe?g|png|gif|webp)\b")
CARD = "system: no_file_names\nroles: [judge, embedder]\nscores: [itc, itm]\nversion: '1'\n"


class NoFileNames:
    """The inner judge, except that a text with a file name in it has P(match) = 0."""

    def __init__(self, inner: Any, card: Any) -> None:
        self._inner = inner
        self.card = card

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """Return a `Match` for each text of each image. The texts are cleaned: lower case, without punctuation."""
        found = self._inner.match(states, texts)
        return [
            [
                Match(itc=match.itc, itm=0.0) if FILE_NAME.search(text) else match
                for text, match in zip(*row, strict=True)
            ]
            for row in zip(texts, found, strict=True)
        ]


class Factory:
    """Loads the judge of a card; this is what `register` takes."""

    model_types = ()
    scores = ("itc", "itm")
    prompt = None

    def load(self, request: LoadRequest) -> NoFileNames:
        """Return the judge around `tiny/filter`."""
        return NoFileNames(load_system("tiny/filter", device=request.device), request.card)


register("no_file_names", Factory())
with TemporaryDirectory() as folder:
    rows = pq.read_table(SAMPLE).slice(0, 12)
    texts = [text if i % 3 else f"IMG_{1000 + i}.JPG" for i, text in enumerate(rows["text"].to_pylist())]
    rows = rows.set_column(rows.schema.get_field_index("text"), "text", pa.array(texts))
    pq.write_table(rows, f"{folder}/pairs.parquet")
    (Path(folder) / "judge").mkdir()
    (Path(folder) / "judge/card.yaml").write_text(CARD)
    pipeline = Pipeline.model_validate(
        {
            "sources": [{"type": "parquet", "path": f"{folder}/pairs.parquet"}],
            "score": {"model": f"{folder}/judge"},
            "dedup": {"semantic": None},
        }
    )
    result = run(pipeline, out=f"{folder}/run", local=True)
    for file in sorted(result.layout.run.glob("candidates-*/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            itm = "     -" if row["itm"] is None else f"{row['itm']:6.2f}"
            print(f"{'kept' if row['kept'] else row['reason']:<26} {itm}  {row['text']}")
