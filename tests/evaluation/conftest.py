"""The fake system, counting what it is asked, and Parquet files of squares, one of each colour that it knows."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from capfilt.models.card import cards
from capfilt.models.fake import COLOURS, FakeSystem
from capfilt.models.protocols import Prepared, States


def square(colour: str, side: int = 12) -> bytes:
    """A PNG of one colour."""
    buffer = BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


class CountingFake(FakeSystem):
    """The fake system with the roles that it is given; counts the images and pairs that it is asked for."""

    def __init__(self, *roles: str) -> None:
        super().__init__(cards()["fake"].model_copy(update={"roles": roles or ("captioner", "judge", "embedder")}))
        self.encoded = 0
        self.judged = 0

    def encode(self, prepared: Sequence[Prepared]) -> Tensor:
        self.encoded += len(prepared)
        return super().encode(prepared)

    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        self.judged += len(texts)
        return super().itm_logits(states, texts, image_index)


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
def fake() -> type[CountingFake]:
    """The class; call it with the roles it should have."""
    return CountingFake


@pytest.fixture
def colours(write: Writer) -> Path:
    """Ten squares; the column `text` is right, `other` names the colour of another row."""
    names = list(COLOURS)
    texts = [f"A {name} square, hung on a wall." for name in names]
    return write(image=[square(name) for name in names], text=texts, other=texts[1:] + texts[:1])
