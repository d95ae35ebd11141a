"""What a round's models are trained on: one row an image, its kept texts in one list a source.

The human pairs, of which a share of the images may be held out, then what select kept of web texts and captions.
Images are streamed; a training step reads row groups of some MB.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import ConfigError
from capfilt.sinks.base import Picture, pictures
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import read_json
from capfilt.store.shards import ShardWriter, table, write_atomic

SOURCES = ("human", "web", "synthetic")
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((source, pa.list_(pa.string())) for source in SOURCES),
    ]
)


@dataclass(frozen=True)
class TrainingSet:
    """A written folder."""

    folder: Path
    texts: dict[str, int]
    """Source -> texts to train on."""

    @property
    def pairs(self) -> Path:
        """What is trained on."""
        return self.folder / "pairs.parquet"

    @property
    def heldout(self) -> Path:
        """Human pairs that are not."""
        return self.folder / "heldout.parquet"


def write_training_set(layout: RunLayout, folder: Path, holdout: float | None) -> TrainingSet:
    """Write it, unless it is there.

    Args:
        layout: a run whose `select` is done.
        folder: named by the fingerprint of what it is made from.
        holdout: share of the human images, by the hash of their file; None holds out none.

    Raises:
        ConfigError: no human pair is left to fine-tune on, or none is held out. DataError: a damaged shard.
    """
    done = read_json(folder / "counts.json")
    if done is None:
        done = _write(layout, folder, holdout or 0.0)
        write_atomic(folder / "counts.json", canonical(done))
    if not done["texts"]["human"]:
        raise ConfigError("no human pair is left to fine-tune on; add a source with role: human, or lower holdout")
    if holdout and done["heldout"] < 2:
        raise ConfigError(f"evaluate.holdout: {holdout} of the human rows are {done['heldout']} images; raise it")
    return TrainingSet(folder, {source: done["texts"][source] for source in SOURCES})


def _write(layout: RunLayout, folder: Path, holdout: float) -> dict[str, Any]:
    counts, held = Counter(dict.fromkeys(SOURCES, 0)), 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder / f"{name}.parquet", SCHEMA)) for name in ("pairs", "heldout")
        }
        away = _held_out(layout, holdout)
        for picture, texts in _rows(layout):
            out = picture.sha256 in away
            if out and not texts["human"]:
                continue
            image = {"bytes": picture.data, "path": picture.file_name}
            writers["heldout" if out else "pairs"].write([{"uid": picture.uid, "image": image, **texts}])
            held += out
            counts.update({} if out else {source: len(some) for source, some in texts.items()})
    return {"texts": dict(counts), "heldout": held}


def _rows(layout: RunLayout) -> Iterator[tuple[Picture, dict[str, list[str]]]]:
    for picture in pictures(layout):
        yield picture, {source: [t["text"] for t in picture.texts if t["origin"] == source] for source in SOURCES}


def _held_out(layout: RunLayout, share: float) -> frozenset[str]:
    """sha256 of the files that are held out, from the light columns: every row with one of them stays out."""
    found = set[str]()
    for shard in range(len(layout.shards)):
        rows = table(layout.shard("ingest", shard), ["role", "status", "sha256"])
        human = rows.filter(pc.and_(pc.equal(rows["role"], "human"), pc.equal(rows["status"], "ok")))
        found |= {digest for digest in human["sha256"].to_pylist() if is_held_out(digest, share)}
    return frozenset(found)


def is_held_out(digest: str, share: float) -> bool:
    """By the sha256 of the image's file alone: the same images in every round and run, with all of their texts."""
    return int(digest[:16], 16) < share * float(16**16)
