"""Pairs of the bootstrap experiment: the human, web and test parts, and the exchanged texts.

With `--data FOLDER` the rows are those of `photos-train.parquet` and `photos-val.parquet`; a quarter of the former's
images with `human_text` are the human part, the rest with `web_text` the web part, and the latter's images with
`human_text` the test. Where `diagrams-train.parquet` is there, `DIAGRAMS` of its images with `web_text` join the web
part: what a crawl brings along besides photographs. Near-duplicates share a `cluster`, which no split cuts. Without a
folder the bundled sample serves: its web shards, and its human shard, half of it held out as the test.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capfilt.errors import DataError
from capfilt.media.text import pre_caption
from capfilt.store.parquet import open_parquet

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
MAX_WORDS = 30
DIAGRAMS = 3600
"""About as many as there are photographs."""
_COLUMNS = ("uid", "image", "web_text", "human_text", "cluster")


@dataclass(frozen=True)
class Row:
    """One image with its two texts, prepared by `pre_caption`; "" for a missing text."""

    uid: str
    image: bytes
    web: str
    human: str
    cluster: str
    part: str
    """train (to be split into human and web), human, web or test."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, and the web texts as the setting has them."""

    human: list[int]
    web: list[int]
    test: list[int]
    web_texts: list[str]
    """One text per row of `web`."""
    exchanged: list[bool] | None = None
    """Whether the text belongs to another image; None if unknown."""


def read_rows(folder: Path | None) -> list[Row]:
    """Read all rows, those of the training file first.

    Raises:
        DataError: a file or column is missing.
    """
    if folder is None:
        return _sample()
    rows = []
    for name, part in (("photos-train.parquet", "train"), ("photos-val.parquet", "test")):
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: not there; --data is a folder with photos-train.parquet and photos-val.parquet")
        rows += _read(file, part)
    diagrams = folder / "diagrams-train.parquet"
    return rows + (_diagrams(diagrams, {row.cluster for row in rows}) if diagrams.is_file() else [])


def _read(file: Path, part: str) -> list[Row]:
    table = open_parquet(file)
    missing = set(_COLUMNS) - set(table.schema_arrow.names)
    if missing:
        raise DataError(f"{file}: no column {', '.join(sorted(missing))}; needed are {', '.join(_COLUMNS)}")
    return [_row(row, part) for row in table.read(columns=list(_COLUMNS)).to_pylist()]


def _diagrams(file: Path, photographs: set[str]) -> list[Row]:
    """Read diagrams in the order of their cluster's hash, none in a cluster of the photographs, without human texts."""
    rows = [replace(row, human="") for row in _read(file, "web") if row.web and row.cluster not in photographs]
    return sorted(rows, key=lambda row: _hash("diagram", row.cluster, row.uid))[:DIAGRAMS]


def _row(row: dict[str, Any], part: str) -> Row:
    web, human = (pre_caption(row[name] or "", MAX_WORDS) for name in ("web_text", "human_text"))
    return Row(row["uid"], row["image"]["bytes"], web, human, str(row["cluster"]), part)


def _sample() -> list[Row]:
    kinds = {r["key"]: r["kind"] for r in open_parquet(SAMPLE / "truth.parquet").read().to_pylist()}
    rows = []
    for part in ("human", "web"):
        for file in sorted((SAMPLE / part).glob("*.parquet")):
            for row in open_parquet(file).read(columns=["key", "image", "text"]).to_pylist():
                key, text = row["key"], pre_caption(row["text"] or "", MAX_WORDS)
                if kinds.get(key, "plain") not in ("plain", "mismatched"):
                    continue
                where = "test" if part == "human" and _hash("test", key) < 0.5 else part
                human = text if part == "human" else ""
                rows.append(Row(key, row["image"]["bytes"], "" if human else text, human, key, where))
    return rows


def _hash(*parts: object) -> float:
    """Return a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") / 2**64


def split(rows: Sequence[Row], seed: int, fraction: float = 0.25, tune: bool = False) -> Split:
    """Split clusters in the order of their hash: to the human part until it has `fraction` of the images.

    Args:
        tune: the test is a tenth of the training clusters instead, taken out first: for choosing a recipe.
    """
    known = {row.cluster for row in rows if row.part == "test"}
    train = [i for i, row in enumerate(rows) if row.part == "train" and row.cluster not in known]
    test = [i for i, row in enumerate(rows) if row.part == "test" and row.human]
    if tune:
        test = [i for i in train if _hash("tune", rows[i].cluster) < 0.1 and rows[i].human]
        train = [i for i in train if _hash("tune", rows[i].cluster) >= 0.1]
    human = [i for i, row in enumerate(rows) if row.part == "human"]
    web = [i for i, row in enumerate(rows) if row.part == "web"]
    clusters: dict[str, list[int]] = {}
    for i in train:
        clusters.setdefault(rows[i].cluster, []).append(i)
    taken = 0
    for cluster in sorted(clusters, key=lambda c: _hash("human", seed, c)):
        (human if taken < fraction * len(train) else web).extend(clusters[cluster])
        taken += len(clusters[cluster])
    human = sorted(i for i in human if rows[i].human)
    web = sorted(i for i in web if rows[i].web)
    return Split(human, web, test, [rows[i].web for i in web])


def exchange(pairs: Split, rows: Sequence[Row], seed: int) -> Split:
    """Move half of the web texts to other images, never to one of the same cluster or with the same text."""
    rng = random.Random(f"exchange/{seed}")
    chosen = sorted(rng.sample(range(len(pairs.web)), len(pairs.web) // 2))
    givers = chosen.copy()
    rng.shuffle(givers)
    for place, taker in enumerate(chosen):
        for other in rng.sample(range(len(givers)), len(givers)):
            mine, theirs = givers[place], givers[other]
            if _strange(pairs, rows, taker, theirs) and _strange(pairs, rows, chosen[other], mine):
                givers[place], givers[other] = theirs, mine
                break
    texts, exchanged = list(pairs.web_texts), [False] * len(pairs.web)
    for taker, giver in zip(chosen, givers, strict=True):
        texts[taker], exchanged[taker] = pairs.web_texts[giver], _strange(pairs, rows, taker, giver)
    return replace(pairs, web_texts=texts, exchanged=exchanged)


def _strange(pairs: Split, rows: Sequence[Row], taker: int, giver: int) -> bool:
    a, b = rows[pairs.web[taker]], rows[pairs.web[giver]]
    return a.cluster != b.cluster and a.web != b.web


def settings_of(rows: Sequence[Row], setting: str, seed: int, tune: bool = False) -> Split:
    """Return the split of a setting, `as-is` or `exchanged`."""
    pairs = split(rows, seed, tune=tune)
    return exchange(pairs, rows, seed) if setting == "exchanged" else pairs
