"""Evaluation sets: hashes and embeddings of their images, and which rows repeat one of them.

An image that cannot be decoded is left out, because nothing can be evaluated on it. A plain image is found by its
embedding alone (`hamming`).
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from capfilt.config.dedup import EvalSet
from capfilt.dedup.cosine import Vectors
from capfilt.dedup.hamming import Codes
from capfilt.dedup.links import Ints, Links
from capfilt.errors import DataError
from capfilt.media.images import ImageError, decode_image, phash
from capfilt.models.protocols import Embedder, Prepared
from capfilt.sources.columns import find_roles
from capfilt.sources.files import Container
from capfilt.sources.values import key_text
from capfilt.store.parquet import is_image, open_parquet, parquet_errors, parquet_files, safe_schema

_READ = 32
"""Rows whose image files are held at once."""


class Images(NamedTuple):
    """E images of an evaluation set."""

    keys: list[str]
    codes: Codes
    """(E,) perceptual hashes."""
    vectors: Vectors | None
    """(E, D) float16, L2-normalised; None without an embedder."""


class _Image(NamedTuple):
    key: str
    code: int
    prepared: Prepared | None


def identity(part: EvalSet) -> list[list[str | int]]:
    """Return name, size and sha256 of both ends (64 KiB each) of every file. Raises DataError if there is none."""
    return [Container("", file.name, file).identity() for file in parquet_files(part.path)]


def read(part: EvalSet, max_pixels: int, batch_size: int, embedder: Embedder | None) -> Images:
    """Hash and embed every image of a set. One decoded image is in memory at a time.

    Args:
        part: the set, as in `dedup.decontaminate`.
        max_pixels: largest width * height; a larger image is left out.
        batch_size: images embedded at once.
        embedder: None computes no embeddings.

    Raises:
        DataError: no such file, no Parquet, no image column, or not one image that can be decoded.
    """
    keys: list[str] = []
    codes: list[int] = []
    vectors: list[Vectors] = []
    found = _images(part.path, max_pixels, embedder)
    while batch := list(islice(found, batch_size)):
        keys += [image.key for image in batch]
        codes += [image.code for image in batch]
        if embedder is not None:
            vectors.append(_embed(embedder, batch))
    if not keys:
        raise DataError(f"{part.path}: not one image of this evaluation set can be decoded; check its image column")
    return Images(keys, np.array(codes, dtype=np.uint64), np.concatenate(vectors) if vectors else None)


def _embed(embedder: Embedder, batch: list[_Image]) -> Vectors:
    states = embedder.encode([image.prepared for image in batch if image.prepared is not None])
    return np.asarray(embedder.embed(states).half().cpu().numpy(), dtype=np.float16)


def _images(path: str, max_pixels: int, embedder: Embedder | None) -> Iterator[_Image]:
    for key, data in _records(path):
        try:
            picture = decode_image(data, max_pixels)
        except ImageError:
            continue
        prepared = None if embedder is None else embedder.prepare(picture, data)
        yield _Image(key, phash(picture), prepared)


def _records(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield key (or number of the row, over all files) and image bytes of every row; b"" for a null image."""
    numbers = count()
    for file in parquet_files(path):
        image, key = _columns(file)
        for row in _rows(file, [image] if key is None else [image, key]):
            number, value, data = next(numbers), None if key is None else row[key], row[image]
            data = data.get("bytes") if isinstance(data, dict) else data
            yield str(number) if value is None else key_text(value), data or b""


def _rows(file: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    with open_parquet(file) as opened, parquet_errors(file, "a page"):
        for batch in opened.iter_batches(_READ, columns=names, use_threads=False):
            yield from batch.to_pylist()


def _columns(file: Path) -> tuple[str, str | None]:
    """Return the image column, by its usual names or else by its type, and the key column."""
    schema = safe_schema(file)
    chosen = find_roles(tuple(schema.names))
    usual = [] if chosen.image is None else [chosen.image]
    image = next((name for name in [*usual, *schema.names] if is_image(schema.field(name).type)), None)
    if image is None:
        raise DataError(
            f"{file}: no image column; an evaluation set has a column `image`, binary or a struct with `bytes`; "
            f"this one has {', '.join(schema.names)}"
        )
    return image, chosen.key


class Contamination:
    """Which evaluation image each of N rows repeats: the most similar one, and the first found among equal ones."""

    def __init__(self, rows: int) -> None:
        self._similarity = np.zeros(rows, dtype=np.float32)
        self._label = np.full(rows, -1)
        self._labels: list[str] = []

    def add(self, name: str, keys: list[str], found: Iterable[Links]) -> None:
        """Add links between rows (i) and images (j) of the set `name`, whose images have these keys."""
        offset = len(self._labels)
        self._labels += [f"{name}:{key}" for key in keys]
        for links in found:
            order = np.lexsort((links.j, -links.similarity, links.i))
            rows, first = np.unique(links.i[order], return_index=True)
            best = order[first]
            nearer = links.similarity[best] > self._similarity[rows]
            self._similarity[rows[nearer]] = links.similarity[best][nearer]
            self._label[rows[nearer]] = offset + links.j[best][nearer]

    def labels(self, order: Ints, rows: int) -> list[str | None]:
        """Return `set:key` or None for each row of a run.

        Args:
            order: row k of the links is row order[k] of the run.
            rows: number of rows of the run.
        """
        out: list[str | None] = [None] * rows
        for k in np.flatnonzero(self._label >= 0).tolist():
            out[order[k]] = self._labels[self._label[k]]
        return out
