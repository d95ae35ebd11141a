"""Read images with their true texts from Parquet, for evaluation.

Retrieval needs every image once, with all of its texts. Rows of one image are therefore merged, by the image id column
or by the SHA-256 of the image bytes (files in the style of COCO repeat an image for each text). Images stay encoded
(368 photographs: 5 MB) and are decoded when they are needed. Rows that cannot be used are left out and counted; a file
that cannot be used is a DataError. Paths in the image struct are never followed.
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
    """A row that was left out with its texts, because its image cannot be used."""

    file: str
    row: int
    """Number of the row in its file, from 0."""
    reason: str
    """What is wrong with the image."""

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.reason}"


@dataclass(frozen=True)
class Pairs:
    """N images and their T texts. Every image can be decoded and has at least one text."""

    images: list[bytes]
    """N encoded images."""
    image_ids: list[str]
    """N different ids: the id column as text, or the SHA-256 of the bytes in hex."""
    texts: list[str]
    """T texts as written. `pre_caption` is not applied, but would leave none empty."""
    image_index: NDArray[np.int64]
    """(T,) index of each text's image, in 0..N-1, ascending."""
    empty_texts: int = 0
    """Number of texts that were left out because they were null, blank or punctuation only."""
    skipped: tuple[Skipped, ...] = ()
    """Rows that were left out because of their image."""

    def decode(self, image: int) -> Image.Image:
        """Decode the image at index `image` (0..N-1): RGB, upright."""
        return decode_image(self.images[image])

    @property
    def references(self) -> list[list[str]]:
        """Texts of each image, N lists."""
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
    """Read pairs, and decode every image once to check it.

    Args:
        path: a Parquet file, a directory of `*.parquet` or a glob; files are read in order of name.
        text: one or more columns of strings or lists of strings; all are true texts of the row's image.
        image: column of encoded bytes, or of structs with `bytes` as `datasets` writes them.
        image_id: column of strings or integers, equal for rows of one image; a null is replaced by the hash of the
            bytes. If rows with one id have different images, the first readable one is used.
        limit: maximum number of rows to read, >= 1; None: all.

    Raises:
        DataError: there is no such file, it is not Parquet, a schema has an Arrow extension type, a column is missing
            or has another type, or there is no usable pair.
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
    """Return why the image cannot be used; None if it can."""
    if data is None:
        return "no image bytes"
    try:
        decode_image(data)
    except DataError as error:
        return str(error)
    return None


@dataclass
class _Found:
    """Images and texts of the rows that have been read, by image id."""

    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str | None, str | None] = field(default_factory=dict)
    """SHA-256 of an image (None: no bytes) -> why it cannot be used; None if it can."""
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
