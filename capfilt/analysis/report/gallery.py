"""Examples of the report, chosen by score so that they show every kind of verdict, and their thumbnails.

For web and for synthetic texts each: two from every tenth of the score's range, and the three nearest to the threshold
on either side. Ties are broken by uid, which is a hash, so the choice is as good as random and always the same. Texts
of one image share a card. Rows that were quarantined or rejected are never read. A thumbnail is a JPEG of at most
160 pixels, about 5 kB; with 48 of them the page stays far below 3 MB.
"""

from base64 import b64encode
from collections.abc import Collection, Iterator, Sequence
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from capfilt.analysis.report.histogram import POOL, Counts
from capfilt.analysis.sql import ask
from capfilt.config.pipeline import SelectSettings
from capfilt.media.images import ImageError, decode_image
from capfilt.selection.policies import policy_of
from capfilt.selection.texts import Score
from capfilt.store.layout import RunLayout
from capfilt.store.parquet import open_parquet, read_row_group
from capfilt.store.schema import PAIRS
from capfilt.store.shards import table

CARDS = 36
"""Images in the gallery; about 48 together with those of the duplicate groups."""
SIDE = 160
"""Pixels of a thumbnail's longer side."""

_JUDGED = ("web", "synthetic")
_CHOICE = f"""
    WITH pool AS (
        SELECT uid, %(score)s AS score, %(score)s >= $threshold::FLOAT AS above FROM candidates
        WHERE {POOL} AND origin = $origin
          AND uid IN (SELECT uid FROM pairs WHERE status = 'ok')),
    bounds AS (SELECT min(score) AS low, max(score) AS high FROM pool),
    tenths AS (SELECT *, least(9, floor(10 * (score - low) / nullif(high - low, 0))) AS tenth FROM pool, bounds),
    ranked AS (
        SELECT uid, score, row_number() OVER (PARTITION BY tenth ORDER BY uid) AS place,
               row_number() OVER (PARTITION BY above ORDER BY abs(score - $threshold), uid) AS near
        FROM tenths)
    SELECT uid FROM ranked GROUP BY uid
    ORDER BY min(CASE WHEN near <= 3 AND score IS NOT NULL THEN 0 ELSE place END), uid LIMIT $n"""
_TEXTS = f"""
    SELECT uid, text, origin, itm, itc, kept, reason, {POOL} AND origin <> 'human' AS judged FROM candidates
    WHERE uid IN (SELECT unnest($uids)) AND text IS NOT NULL
    ORDER BY uid, list_position(['web', 'human', 'synthetic'], origin), sample"""


def deciding(select: SelectSettings) -> tuple[Score, float]:
    """Return the score over which the examples are spread, and the threshold around which they are dense.

    The score is the policy's most important one; ITM if the policy needs none. The threshold is that of the settings,
    even if the policy does not use it.
    """
    score: Score = next(iter(policy_of(select).needs(select)), "itm")
    return score, select.itm_threshold if score == "itm" else select.itc_threshold


def choose(connection: duckdb.DuckDBPyConnection, select: SelectSettings) -> list[str]:
    """Choose at most CARDS uids, in turns by their web text and by a synthetic text; sorted."""
    score, threshold = deciding(select)
    text, values = _CHOICE % {"score": score}, {"threshold": threshold, "n": CARDS}
    web, synthetic = ([row[0] for row in ask(connection, text, values | {"origin": origin}).rows] for origin in _JUDGED)
    turns = [uid for pair in zip_longest(web, synthetic) for uid in pair if uid is not None]
    return sorted(list(dict.fromkeys(turns))[:CARDS])


def texts(connection: duckdb.DuckDBPyConnection, uids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the texts per uid: own text, then captions; `judged` is true where a threshold decides on the text."""
    out: dict[str, list[dict[str, Any]]] = {uid: [] for uid in uids}
    for row in ask(connection, _TEXTS, {"uids": list(uids)}).records():
        out[row["uid"]].append(row)
    return out


def card(uid: str, picture: str | None, lines: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
    """Return one image with its texts, and with its own text's scores to sort by; null scores sort first."""
    texts = [line | {"i": counts.itm.bin(line["itm"]), "j": counts.itc.bin(line["itc"])} for line in lines]
    own = {score: -2.0 if lines[0][score] is None else lines[0][score] for score in ("itm", "itc")}
    verdicts = sorted({f"{line['origin']}-{'kept' if line['kept'] else 'rejected'}" for line in lines})
    return {"uid": uid, "picture": picture, "texts": texts, "verdicts": " ".join(verdicts), **own}


def thumbnails(layout: RunLayout, uids: Collection[str]) -> dict[str, str]:
    """Return uid -> data URI, without pictures that cannot be decoded. Only row groups with these rows are read."""
    out: dict[str, str] = {}
    for path in (layout.shard(PAIRS, index) for index in range(len(layout.shards))):
        for uid, data in _images(path, uids) if path.is_file() and uids else ():
            uri = thumbnail(data, layout.pipeline.ingest.max_pixels)
            if uri is not None:
                out.setdefault(uid, uri)
    return out


def _images(path: Path, uids: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (uid, image file) of the rows with these uids and status ok."""
    light = table(path, ["uid", "status"])
    found = pc.and_(pc.is_in(light["uid"], pa.array(sorted(uids))), pc.equal(light["status"], "ok"))
    wanted = np.flatnonzero(found.to_numpy())
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    stop = 0
    for group, size in enumerate(sizes):
        start, stop = stop, stop + size
        rows = [int(row) for row in wanted if start <= row < stop]
        images = read_row_group(path, group, ["image"])["image"] if rows else []
        for row in rows:
            data = images[row - start]["bytes"].as_py()
            if data is not None:
                yield light["uid"][row].as_py(), data


def thumbnail(data: bytes, max_pixels: int) -> str | None:
    """Convert an image file to the data URI of a JPEG within SIDE x SIDE pixels; None if it cannot be decoded."""
    try:
        image = decode_image(data, max_pixels, draft_side=SIDE)
    except ImageError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
