"""Write what a round's models are trained on: one row per image, with one list of kept texts per origin.

The texts are those of the human pairs, a share of whose images may be held out, and the web texts and captions that
`select` kept. Images are streamed; a training step reads row groups of a few MB.

The encoded images are copied into each round's training set. N rounds therefore store a kept image up to 1 + 2N times:
in `pairs/`, and per round in `dataset/` and in `training-<fp>/`. In return a training reads a single file, row group by
row group, and needs nothing else of the run.
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
from capfilt.store.schema import PAIRS
from capfilt.store.shards import ShardWriter, table, write_atomic

ORIGINS = ("human", "web", "synthetic")
"""Columns of texts, in the order of the file and of a recipe's sources."""
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((origin, pa.list_(pa.string())) for origin in ORIGINS),
    ]
)


@dataclass(frozen=True)
class TrainingSet:
    """A folder with the data of a round's trainings."""

    folder: Path
    texts: dict[str, int]
    """Origin -> number of texts to train on."""

    @property
    def pairs(self) -> Path:
        """The pairs to train on."""
        return self.folder / "pairs.parquet"

    @property
    def heldout(self) -> Path:
        """The held-out human pairs."""
        return self.folder / "heldout.parquet"


def write_training_set(layout: RunLayout, folder: Path, holdout: float | None) -> TrainingSet:
    """Write the training set of a run, unless the folder already has it.

    Args:
        layout: a run whose `select` is finished.
        folder: the folder to write; the fingerprint of its inputs is part of its name.
        holdout: share of the human images to hold out, in (0, 1), chosen by the hash of their file; None: none.

    Raises:
        ConfigError: no human pair is left to fine-tune on, or fewer than two images are held out.
        DataError: a damaged shard.
    """
    done = read_json(folder / "counts.json")
    if done is None:
        done = _write(layout, folder, holdout or 0.0)
        write_atomic(folder / "counts.json", canonical(done))
    if not done["texts"]["human"]:
        raise ConfigError("no human pair is left to fine-tune on; add a source with role: human, or lower holdout")
    if holdout and done["heldout"] < 2:
        raise ConfigError(f"evaluate.holdout: {holdout} of the human rows are {done['heldout']} images; raise it")
    return TrainingSet(folder, {origin: done["texts"][origin] for origin in ORIGINS})


def _write(layout: RunLayout, folder: Path, holdout: float) -> dict[str, Any]:
    counts, held = Counter(dict.fromkeys(ORIGINS, 0)), 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder / f"{name}.parquet", SCHEMA)) for name in ("pairs", "heldout")
        }
        held_out = _held_out_files(layout, holdout)
        for picture, texts in _rows(layout):
            is_held = picture.sha256 in held_out
            if is_held and not texts["human"]:
                continue
            image = {"bytes": picture.data, "path": picture.file_name}
            writers["heldout" if is_held else "pairs"].write([{"uid": picture.uid, "image": image, **texts}])
            held += is_held
            counts.update({} if is_held else {origin: len(some) for origin, some in texts.items()})
    return {"texts": dict(counts), "heldout": held}


def _rows(layout: RunLayout) -> Iterator[tuple[Picture, dict[str, list[str]]]]:
    for picture in pictures(layout):
        yield picture, {origin: [t["text"] for t in picture.texts if t["origin"] == origin] for origin in ORIGINS}


def _held_out_files(layout: RunLayout, share: float) -> frozenset[str]:
    """Return the sha256 of each held-out image file. No row with one of these files, human or web, is trained on."""
    found = set[str]()
    for shard in range(len(layout.shards)):
        rows = table(layout.shard(PAIRS, shard), ["role", "status", "sha256"])
        human = rows.filter(pc.and_(pc.equal(rows["role"], "human"), pc.equal(rows["status"], "ok")))
        found |= {digest for digest in human["sha256"].to_pylist() if is_held_out(digest, share)}
    return frozenset(found)


def is_held_out(digest: str, share: float) -> bool:
    """Decide by the sha256 of the image's file alone, so that every round and run holds out the same images.

    Args:
        digest: hex sha256.
        share: in [0, 1].
    """
    return int(digest[:16], 16) < share * float(16**16)
