from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random

import duckdb
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image

import capfilt.sinks.parquet as sink
from capfilt.sinks.base import Picture
from capfilt.sinks.parquet import COLUMNS, write_parquet

Pictures = Callable[..., Picture]


def rows(folder: Path) -> list[list[dict[str, object]]]:
    """Rows of each file."""
    return [pq.read_table(path).to_pylist() for path in sorted((folder / "data").iterdir())]


def test_a_row_a_pair(tmp_path: Path, kept_picture: Pictures) -> None:
    pictures = [kept_picture(1, {"web": "a cat", "synthetic": "a black cat"}), kept_picture(2, format="JPEG", url=None)]
    counts = write_parquet(pictures, tmp_path, 3, 10)
    (file,) = (tmp_path / "data").iterdir()
    assert file.name == "train-00000-of-00001.parquet"
    assert counts == {"files": 1, "rows": 3, "bytes": file.stat().st_size}
    (found,) = rows(tmp_path)
    picture = pictures[0]
    common = {"image": {"bytes": picture.data, "path": f"{1:016x}.png"}, "uid": f"{1:016x}", "key": "1", "round": 0}
    common |= {"url": "https://a.example/1", "width": 8, "height": 8, "sha256": picture.sha256, "itc": 0.25, "itm": 0.5}
    made = {"model": "tiny/captioner", "digest": "c" * 16, "decoding": '{"seed":0}', "sample": 0, "logprob": -1.5}
    assert found[0] == common | {"text": "a cat", "origin": "web"} | dict.fromkeys(made)
    assert found[1] == common | {"text": "a black cat", "origin": "synthetic"} | made
    assert (found[2]["url"], found[2]["image"]["path"]) == (None, f"{2:016x}.jpg")  # type: ignore[index]
    assert list(found[0]) == [column.name for column in COLUMNS]


@pytest.mark.parametrize(("number", "names"), [(0, [0]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_files_are_named_for_their_number(
    tmp_path: Path, kept_picture: Pictures, number: int, names: list[int]
) -> None:
    assert write_parquet(map(kept_picture, range(number)), tmp_path, number, 4)["files"] == len(names)
    assert [len(part) for part in rows(tmp_path)] == names
    last = f"train-{len(names) - 1:05d}-of-{len(names):05d}.parquet"
    assert (tmp_path / "data" / last).is_file()


def test_datasets_shows_the_images(tmp_path: Path, kept_picture: Pictures) -> None:
    pictures = [kept_picture(1, {"web": "a", "synthetic": "b"}, size=20), kept_picture(2, format="WEBP")]
    write_parquet(pictures, tmp_path, 3, 2)
    loaded = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 3
    assert isinstance(loaded.features["image"], ImageFeature)
    assert [loaded[i]["image"].size for i in range(3)] == [(20, 20), (20, 20), (8, 8)]
    assert loaded[1]["image"].tobytes() == Image.open(BytesIO(pictures[0].data)).tobytes()


def test_duckdb_reads_it(tmp_path: Path, kept_picture: Pictures) -> None:
    write_parquet(map(kept_picture, range(3)), tmp_path, 3, 2)
    query = f"SELECT uid, octet_length(image.bytes) > 50, itm FROM '{tmp_path}/data/*.parquet' ORDER BY uid"
    assert duckdb.sql(query).fetchall() == [(f"{i:016x}", True, 0.5) for i in range(3)]


def test_an_image_with_many_texts_is_stored_once(tmp_path: Path, kept_picture: Pictures) -> None:
    """zstd hides near copies on disk, so what a reader must decompress is looked at too.

    The writer looks at its dictionary's size every 1,024 rows; past Parquet's 1 MiB it would go on with plain values.
    """
    pictures = [kept_picture(i, data=Random(i).randbytes(4_000)) for i in range(1_000)]
    pictures = [replace(picture, texts=picture.texts * 3) for picture in pictures]
    write_parquet(pictures, tmp_path, 3_000, 10_000)
    (file,) = (tmp_path / "data").iterdir()
    footer = pq.ParquetFile(file).metadata
    whole = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    assert max(file.stat().st_size, whole) < 1.1 * 4_000 * 1_000
    (found,) = rows(tmp_path)
    assert [row["image"]["bytes"] for row in found[::3]] == [picture.data for picture in pictures]  # type: ignore[index]


def test_row_groups_are_closed_between_images(
    tmp_path: Path, kept_picture: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [kept_picture(i, {"web": "a", "synthetic": "b"}, data=b"%09d" % i) for i in range(6)]
    monkeypatch.setattr(sink, "GROUP_BYTES", 4 * 9)
    write_parquet(pictures, tmp_path, 12, 100)
    (file,) = (tmp_path / "data").iterdir()
    footer = pq.ParquetFile(file).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [4, 4, 4]


def test_a_picture_larger_than_a_row_group(
    tmp_path: Path, kept_picture: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "GROUP_BYTES", 1)
    write_parquet(map(kept_picture, range(3)), tmp_path, 3, 100)
    assert [row["key"] for row in rows(tmp_path)[0]] == ["0", "1", "2"]
