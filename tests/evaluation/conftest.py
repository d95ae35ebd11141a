"""A fake BLIP that sees the colour of an image and reads the name of a colour, and Parquet files of squares."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from capfilt.models.protocols import Caption

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "lime": (128, 255, 0),
    "violet": (128, 0, 255),
    "rose": (255, 0, 128),
}


def square(colour: str, side: int = 12) -> bytes:
    """A PNG of one colour."""
    buffer = BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


class FakeBlip:
    """ITC and ITM are right wherever the text names a colour; counts what it is asked for."""

    image_size = 8

    def __init__(self, *roles: str) -> None:
        self.roles = frozenset(roles or ("captioner", "matcher", "embedder"))
        self.encoded = 0
        self.judged = 0

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        side = (self.image_size, self.image_size)
        arrays = [np.asarray(image.resize(side), dtype=np.float32) / 127.5 - 1 for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        patches = torch.nn.functional.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)

    def embed_images(self, image_states: Tensor) -> Tensor:
        return torch.nn.functional.normalize(image_states[:, 1:].mean(dim=1), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.stack([self._vector(text) for text in texts]), dim=-1)

    def itm_logits(self, image_states: Tensor, texts: Sequence[str], image_index: Tensor) -> Tensor:
        self.judged += len(texts)
        images = self.embed_images(image_states)[image_index]
        match = 10 * ((images * self.embed_texts(texts)).sum(dim=1) - 0.9)
        return torch.stack([-match, match], dim=1)

    def caption(self, images: Tensor, uids: Sequence[str], sample: int = 0) -> list[Caption]:
        assert len(images) == len(uids)
        seen = self.embed_images(self.encode_images(images))
        names = [list(COLOURS)[i] for i in (seen @ self.embed_texts(list(COLOURS)).T).argmax(dim=1).tolist()]
        return [Caption(f"a small {name} square on a wall", -0.5) for name in names]

    @staticmethod
    def _vector(text: str) -> Tensor:
        found = [name for name in COLOURS if name in text.split()]
        return torch.tensor(COLOURS[found[0]] if found else (128, 127, 128)) / 127.5 - 1


Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes named columns (images as `datasets` stores them) to a Parquet file and returns its path."""

    def write_file(name: str = "pairs.parquet", **columns: Any) -> Path:
        if "image" in columns and not isinstance(columns["image"], pa.Array):
            rows = [{"bytes": data, "path": None} for data in columns["image"]]
            columns["image"] = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        path = tmp_path / name
        pq.write_table(pa.table(columns), path, row_group_size=4)
        return path

    return write_file


@pytest.fixture
def png() -> Callable[[str], bytes]:
    """`square`, for tests that cannot import this file."""
    return square


@pytest.fixture
def fake() -> type[FakeBlip]:
    """The class; call it with the roles it should have."""
    return FakeBlip


@pytest.fixture
def colours(write: Writer) -> Path:
    """Ten squares; the column `text` is right, `other` names the colour of another row."""
    names = list(COLOURS)
    texts = [f"A {name} square, hung on a wall." for name in names]
    return write(image=[square(name) for name in names], text=texts, other=texts[1:] + texts[:1])
