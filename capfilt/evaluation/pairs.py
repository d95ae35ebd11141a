"""Images with their true texts, read from Parquet for evaluation.

Retrieval needs every image once, with all of its texts, so rows of one image are merged: by the image id column, else
by the SHA-256 of the image bytes (COCO-like files repeat an image for each text). Images stay encoded (368 photographs:
5 MB) and are decoded when asked for. Rows that cannot be used are left out and counted; what is wrong with the file as
a whole is a `DataError`. Paths in the image struct are never followed.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capfilt.errors import DataError, InputError
from capfilt.evaluation.columns import Columns, Row, read_rows
from capfilt.media.images import decode_image
from capfilt.media.text import pre_caption
from capfilt.store.parquet import open_parquet, parquet_files


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, with its texts: its file, its number there (from 0) and what is wrong with its image."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.reason}"


@dataclass(frozen=True)
class Pairs:
    """N images and their T texts. Every image can be decoded and has at least one text."""

    images: list[bytes]
    """N images as stored."""
    image_ids: list[str]
    """N different ids: the id column as text, else the SHA-256 of the bytes in hex."""
    texts: list[str]
    """T texts as written (`pre_caption` not applied), none empty after it."""
    image_index: NDArray[np.int64]
    """(T,) the image of each text, in 0..N-1, not decreasing."""
    empty_texts: int = 0
    """How many texts were null, blank or nothing but punctuation."""
    skipped: tuple[Skipped, ...] = ()
    """The rows left out for their image."""

    def decode(self, image: int) -> Image.Image:
        """Image number `image` (0..N-1) in RGB, upright."""
        return decode_image(self.images[image])

    @property
    def references(self) -> list[list[str]]:
        """The texts of each image: N lists."""
        grouped: list[list[str]] = [[] for _ in self.images]
        for text, image in zip(self.texts, self.image_index.tolist(), strict=True):
            grouped[image].append(text)
        return grouped


def load_pairs(
    path: str | Path,
    text: str | Sequence[str] = "text",
    *,
    image: str = "image",
    image_id: str | None = None,
    limit: int | None = None,
) -> Pairs:
    """Reads a Parquet file, a directory of `*.parquet` or a glob; every image is decoded once to see that it can be.

    Args:
        path: what to read; files in order of name.
        text: one or more columns of strings or lists of strings; each text is one true text of the row's image.
        image: column of encoded bytes, or a struct with `bytes` as `datasets` writes it.
        image_id: column of strings or integers, equal for rows of one image; null means the bytes' hash. Of rows with
            one id the first readable image counts.
        limit: read that many rows, >= 1.
    Raises:
        DataError: no such file, not Parquet, an Arrow extension type anywhere in a schema, a missing column or one of
            another type, or not one usable pair.
        InputError: limit < 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    columns = Columns(image, [text] if isinstance(text, str) else list(text), image_id)
    files = parquet_files(path)
    for file in files:
        with open_parquet(file) as opened:
            columns.check(file, opened.schema_arrow)
    found = _Found()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for rows in read_rows(files, columns, limit):
            digests = [None if row.image is None else hashlib.sha256(row.image).hexdigest() for row in rows]
            new = {digest: row.image for digest, row in zip(digests, rows, strict=True) if digest not in found.faults}
            found.faults |= dict(zip(new, pool.map(_fault, new.values()), strict=True))
            found.add(rows, digests)
    return found.pairs(str(path), columns.texts)


def _fault(data: bytes | None) -> str | None:
    """Why the image cannot be used, or None."""
    if data is None:
        return "no image bytes"
    try:
        decode_image(data)
    except DataError as error:
        return str(error)
    return None


@dataclass
class _Found:
    """What the rows so far hold, by image id."""

    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str | None, str | None] = field(default_factory=dict)
    """What is wrong with the bytes of a SHA-256."""
    empty: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, rows: Iterable[Row], digests: Iterable[str | None]) -> None:
        for row, digest in zip(rows, digests, strict=True):
            usable = [text for text in row.texts if text is not None and pre_caption(text)]
            self.empty += len(row.texts) - len(usable)
            reason = self.faults[digest]
            if row.image is None or digest is None or reason is not None:
                self.skipped.append(Skipped(row.file, row.number, reason or "no image bytes"))
            elif usable:
                key = digest if row.image_id is None else row.image_id
                self.images.setdefault(key, row.image)
                self.texts.setdefault(key, []).extend(usable)

    def pairs(self, path: str, columns: list[str]) -> Pairs:
        if not self.images:
            first = f"; first: {self.skipped[0]}" if self.skipped else ""
            raise DataError(
                f"{path}: no usable pair: {self.empty} texts of {columns} are empty, "
                f"{len(self.skipped)} images cannot be read{first}"
            )
        counts = [len(texts) for texts in self.texts.values()]
        return Pairs(
            images=list(self.images.values()),
            image_ids=list(self.images),
            texts=[text for texts in self.texts.values() for text in texts],
            image_index=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            empty_texts=self.empty,
            skipped=tuple(self.skipped),
        )
