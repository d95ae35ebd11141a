"""Evaluation sets: found, identified, looked at, met."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.config.dedup import EvalSet
from capfilt.dedup import evalset
from capfilt.dedup.links import Links
from capfilt.errors import DataError
from capfilt.media.images import phash

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Writer = Callable[..., EvalSet]


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((60, 60))


def png(seed: int) -> bytes:
    buffer = BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write("a.parquet", column=pa.array, ...): a file as an evaluation set."""

    def make(name: str, **columns: pa.Array) -> EvalSet:
        pq.write_table(pa.table(columns), tmp_path / name)
        return EvalSet(path=str(tmp_path / name))

    return make


def look(part: EvalSet) -> evalset.Images:
    return evalset.read(part, 10_000, 4, None)


def test_image_structs_with_keys(write: Writer) -> None:
    rows = pa.array([{"bytes": png(i), "path": None} for i in range(3)], STRUCT)
    found = look(write("a.parquet", key=pa.array(["x", "y", None]), image=rows))
    assert found.keys == ["x", "y", "2"]
    assert found.codes.tolist() == [phash(picture(i)) for i in range(3)]
    assert found.vectors is None


def test_a_binary_column_of_another_name_and_no_key(write: Writer) -> None:
    found = look(write("a.parquet", title=pa.array(["t", "u"]), photo=pa.array([png(0), png(1)])))
    assert found.keys == ["0", "1"]


def test_rows_are_numbered_over_the_files_of_a_folder(write: Writer, tmp_path: Path) -> None:
    write("a.parquet", image=pa.array([png(0), png(1)]))
    write("b.parquet", image=pa.array([png(2)]))
    found = look(EvalSet(path=str(tmp_path)))
    assert found.keys == ["0", "1", "2"]
    assert found.codes[2] == phash(picture(2))


def test_images_that_cannot_be_decoded_are_left_out(write: Writer) -> None:
    large = BytesIO()
    Image.new("RGB", (200, 200)).save(large, "PNG")
    found = look(write("a.parquet", image=pa.array([b"no image", png(1), None, large.getvalue()])))
    assert found.keys == ["1"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [({"text": pa.array(["a"])}, "no image column.*this one has text"), ({"image": pa.array([b"x"])}, "not one image")],
)
def test_a_set_without_images_is_refused(write: Writer, columns: dict[str, pa.Array], told: str) -> None:
    with pytest.raises(DataError, match=told):
        look(write("a.parquet", **columns))


def test_identity_follows_the_content_not_the_place(write: Writer, tmp_path: Path) -> None:
    part = write("a.parquet", image=pa.array([png(0)]))
    first = evalset.identity(part)
    (tmp_path / "other").mkdir()
    moved = Path(part.path).rename(tmp_path / "other" / "a.parquet")
    assert evalset.identity(EvalSet(path=str(moved))) == first
    content = bytearray(moved.read_bytes())
    content[10] ^= 1
    moved.write_bytes(content)
    assert evalset.identity(EvalSet(path=str(moved))) != first
    with pytest.raises(DataError, match=r"a\.parquet"):
        evalset.identity(part)


def test_the_nearest_image_counts_and_of_equal_ones_the_first() -> None:
    nearest = evalset.Contamination(4)
    values = np.array([0.9, 0.95, 0.95, 0.9], dtype=np.float32)
    nearest.add("a", ["p", "q", "r"], [Links(np.array([0, 0, 0, 2]), np.array([0, 2, 1, 0]), values)])
    later = np.array([0.95, 0.91, 0.8], dtype=np.float32)
    nearest.add("b", ["s"], [Links(np.array([0, 2, 3]), np.array([0, 0, 0]), later)])
    assert nearest.labels(np.array([4, 3, 2, 0]), 5) == ["b:s", None, "b:s", None, "a:q"]
