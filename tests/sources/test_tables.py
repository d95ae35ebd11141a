"""Parquet, Arrow and img2dataset files: refusals, damage, lists of texts, bad UTF-8, memory."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config.source import Source
from capfilt.errors import CapfiltError, ConfigError, DataError
from capfilt.sources import RawRow, open_source
from capfilt.sources.parquet import ParquetReader
from capfilt.sources.tables import BATCH

Rows = Callable[..., list[RawRow]]


def texted(columns: dict[str, object]) -> pa.Table:
    """With a column of nulls for the text if it has none."""
    table = pa.table(columns)
    known = {"text", "caption", "alt_text"} & set(columns)
    return table if known else table.append_column("text", pa.nulls(len(table), pa.string()))


def write(path: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(texted(columns), path, **options)
    return path


def stream(path: Path, columns: dict[str, object], rows: int = 100) -> Path:
    """A folder as save_to_disk writes it, by hand."""
    table = texted(columns)
    path.mkdir(exist_ok=True)
    with pa.OSFile(str(path / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, rows)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return path


Writer = Callable[[Path, dict[str, object]], Path]
WRITERS = {
    "parquet": lambda folder, columns: write(folder / "a.parquet", columns, row_group_size=2),
    "datasets": lambda folder, columns: stream(folder / "saved", columns, rows=2),
}
both = pytest.mark.parametrize("kind", ["parquet", "datasets"])


class Stranger(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "stranger")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> "Stranger":
        return cls()


@both
@pytest.mark.parametrize("nested", [False, True])
def test_extension_types_are_refused(kind: str, nested: bool, tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(Stranger(), pa.array([b"x"]))
    odd = pa.StructArray.from_arrays([column], ["in"]) if nested else column
    path = WRITERS[kind](tmp_path, {"image": [b"1"], "odd": odd})
    with pytest.raises(DataError, match=r"'odd(\.in)?' is of the Arrow extension type 'stranger'"):
        open_source(Source(type=kind, path=str(path))).shard_specs(10)


@both
def test_lists_of_texts_are_spread_and_counted(kind: str, tmp_path: Path, all_rows: Rows) -> None:
    texts = [["a", "b"], [], None, ["c", None, "d"], ["e"]]
    path = WRITERS[kind](tmp_path, {"image": [b"%d" % i for i in range(5)], "caption": texts})
    rows = all_rows(kind, path, rows_per_shard=3)
    name = "a.parquet" if kind == "parquet" else "data.arrow"
    keys = ["0", "0#1", "1", "2", "3", "3#1", "3#2", "4"]
    assert [row.key for row in rows] == [f"{name}#{key}" for key in keys]
    assert [row.text for row in rows] == ["a", "b", None, None, "c", None, "d", "e"]
    assert [row.image for row in rows] == [b"0", b"0", b"1", b"2", b"3", b"3", b"3", b"4"]


def test_arrow_batches_are_read_in_slices(tmp_path: Path, all_rows: Rows) -> None:
    count = 3 * BATCH + 1
    texts = [["x"] * (i % 3) or [f"{i}"] for i in range(count)]
    path = stream(
        tmp_path / "saved", {"image": images(count, 9), "text": texts, "url": [f"u{i}" for i in range(count)]}
    )
    rows = all_rows("datasets", path, rows_per_shard=7)
    assert [row.text for row in rows] == [text for several in texts for text in several]
    assert [(row.image, row.url) for row in rows] == [
        (images(count, 9)[i], f"u{i}") for i, several in enumerate(texts) for _ in several
    ]


def test_texts_are_left_out_only_on_purpose(tmp_path: Path, all_rows: Rows) -> None:
    pq.write_table(pa.table({"image": [b"1"], "web_text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no text column; it has image, web_text"):
        all_rows("parquet", tmp_path)
    assert [row.text for row in all_rows("parquet", tmp_path, columns={"text": ""})] == [None]
    assert [row.text for row in all_rows("parquet", tmp_path, columns={"text": "web_text"})] == ["x"]


@both
def test_bad_utf8_is_mended(kind: str, tmp_path: Path, all_rows: Rows) -> None:
    bad = pa.array([b"caf\xe9", b"ok", None]).view(pa.string())
    paths = pa.StructArray.from_arrays([pa.array([b"1", b"2", None]), bad], ["bytes", "path"])
    coded = pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), bad[:2])
    texts = [bad, bad.cast(pa.large_string()), pa.ListArray.from_arrays([0, 1, 2, 3], bad)]
    for text in texts if kind == "parquet" else [*texts, coded]:
        rows = all_rows(
            kind, WRITERS[kind](tmp_path, {"image": paths, "text": text, "key": bad, "url": bad, "nsfw": bad})
        )
        assert {row.text for row in rows} == {"caf�", "ok", None}
        (repaired,) = [row for row in rows if row.meta.get("text_mended")]
        assert repaired.text == "caf�"
        assert [row.key for row in rows][:2] == ["caf\\xe9", "ok"]
        assert rows[0].path == rows[0].url == rows[0].meta["nsfw"] == "caf�"


@both
def test_columns_that_do_not_do(kind: str, tmp_path: Path) -> None:
    for columns, stated, told in [
        ({"url": ["x"], "text": ["y"]}, {}, r"no image column; it has url, text\. .*type: urls"),
        ({"image": ["x.jpg"]}, {}, "image column 'image' is string; expected binary"),
        ({"image": [b"1"], "alt_text": ["x"]}, {}, "no text column; it has image, alt_text"),
        ({"image": [b"1"], "text": [1]}, {}, "text column 'text' is int64"),
        ({"image": [b"1"], "capton": ["x"]}, {"text": "caption"}, "no column 'caption'.*did you mean 'capton'"),
        ({"image": pa.array([], pa.binary())}, {}, "has no row"),
    ]:
        path = WRITERS[kind](tmp_path, columns)
        with pytest.raises(DataError, match=told):
            open_source(Source(type=kind, path=str(path), columns=stated)).shard_specs(10)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"1"]), pa.array([b"2"])], ["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'image' exists 2 times"):
        open_source(Source(type="parquet", path=str(tmp_path))).shard_specs(10)


def test_keys_and_hashes_come_from_columns(tmp_path: Path, all_rows: Rows) -> None:
    table = {
        "image": [b"1", b"2", b"3"],
        "UID": [7, None, 9],
        "SHA256": ["ab" * 32, "?", None],
        "similarity": [0.5, None, 1],
    }
    rows = all_rows("parquet", write(tmp_path / "a.parquet", table))
    assert [row.key for row in rows] == ["7", "a.parquet#1", "9"]
    assert [row.sha256 for row in rows] == ["ab" * 32, None, None]
    assert [row.meta for row in rows] == [{"similarity": 0.5}, {"sha256": "?"}, {"similarity": 1.0}]


def test_images_above_the_cap_are_told(tmp_path: Path, all_rows: Rows) -> None:
    rows = all_rows("parquet", write(tmp_path / "a.parquet", {"image": [b"12345", b"123456"]}), max_bytes=5)
    assert [(row.image, row.reason) for row in rows] == [(b"12345", None), (None, "too_many_bytes")]


def images(count: int, size: int = 2000) -> list[bytes]:
    return [np.random.default_rng(i).bytes(size) for i in range(count)]


@pytest.mark.parametrize("keep", [0, 3, 1000, -9])
def test_a_cut_file_is_one_row_and_the_others_are_read(keep: int, tmp_path: Path, all_rows: Rows) -> None:
    data = write(tmp_path / "a.parquet", {"image": images(20)}).read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:keep])
    write(tmp_path / "b.parquet", {"image": images(2)})
    rows = all_rows("parquet", tmp_path)
    assert [row.reason for row in rows] == ["source_damaged", None, None]
    assert rows[0].error.startswith("a.parquet: from record 0 on")
    assert str(tmp_path) not in str(rows[0].error)


def test_a_damaged_page_costs_its_row_group(tmp_path: Path, all_rows: Rows) -> None:
    count = 6 * BATCH
    path = write(tmp_path / "a.parquet", {"image": images(count)}, row_group_size=2 * BATCH, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    rows = all_rows("parquet", path, rows_per_shard=count)
    (lost,) = [row for row in rows if row.reason is not None]
    assert (lost.reason, lost.key) == ("source_damaged", f"a.parquet#{2 * BATCH}-")
    assert [row.image for row in rows if row is not lost] == images(count)[: 2 * BATCH] + images(count)[4 * BATCH :]
    assert len({row.key for row in rows}) == len(rows)


def test_a_cut_arrow_file_keeps_its_first_batches(tmp_path: Path, all_rows: Rows) -> None:
    path = stream(tmp_path / "saved", {"image": images(20)}, rows=5)
    file = path / "data.arrow"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    rows = all_rows("datasets", path)
    assert [row.image for row in rows[:-1]] == images(20)[: len(rows) - 1]
    assert len(rows) - 1 in (5, 10)
    assert rows[-1].reason == "source_damaged"


def test_buffers_that_do_not_fit_are_damage(tmp_path: Path, all_rows: Rows) -> None:
    path = stream(tmp_path / "saved", {"image": [b"1", b"2"], "text": ["abc", "defg"]})
    data = (path / "data.arrow").read_bytes()
    good, bad = (np.array([0, middle, 7], dtype=np.int32).tobytes() for middle in (3, 2**20))
    assert data.count(good) == 1
    (path / "data.arrow").write_bytes(data.replace(good, bad))
    rows = all_rows("datasets", path)
    assert [row.reason for row in rows] == ["source_damaged"]


def test_a_large_row_group_is_read_a_few_records_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": images(400, 100_000)}, data_page_size=2**20, write_batch_size=4)
    pool = pa.default_memory_pool()
    reader = open_source(Source(type="parquet", path=str(path)))
    (unit,) = reader.shard_specs(1000)
    before, peak = pool.bytes_allocated(), 0
    for _ in reader.rows(unit):
        peak = max(peak, pool.bytes_allocated() - before)
    assert peak < 12 * 2**20


def test_splits_selections_and_foreign_folders_of_datasets(tmp_path: Path) -> None:
    folder = stream(tmp_path / "saved", {"image": [b"1"]})
    (folder / "dataset_dict.json").write_text('{"splits": ["validation", "test"]}')
    with pytest.raises(ConfigError, match="has the splits validation, test; give the folder of one"):
        open_source(Source(type="datasets", path=str(folder)))
    (folder / "dataset_dict.json").unlink()
    for state, told in [
        ('{"_data_files": [{"filename": "../data.arrow"}]}', "outside its folder"),
        ('{"_data_files": [], "_indices_data_files": [1]}', "flatten_indices"),
        ("{}", "lists no data files"),
        ("[", "no JSON"),
    ]:
        (folder / "state.json").write_text(state)
        with pytest.raises(CapfiltError, match=told):
            open_source(Source(type="datasets", path=str(folder)))


@pytest.mark.parametrize("tar", [True, False])
def test_failed_downloads_are_told(tar: bool, img2dataset: Callable[..., Path], all_rows: Rows) -> None:
    rows = all_rows("img2dataset", img2dataset(tar, [1, 4]), rows_per_shard=3)
    failed = [row for row in rows if row.reason is not None]
    assert [row.key for row in failed] == [f"{i:09d}.png" for i in (0, 2, 3, 5)]
    assert {(row.reason, row.error, row.image) for row in failed} == {
        ("download_failed", "HTTP Error 404: Not Found", None)
    }
    assert sorted(row.key for row in rows if row.reason is None) == [f"{i:09d}.png" for i in (1, 4)]
    assert all(row.sha256 is None and row.meta["sha256"] == "0" * 64 for row in rows)


def test_a_cut_tar_of_img2dataset_loses_no_row(img2dataset: Callable[..., Path], all_rows: Rows) -> None:
    folder = img2dataset(True, range(5))
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: 9 * 1024 + 700])
    rows = all_rows("img2dataset", folder)
    fates = {row.key: row.reason for row in rows}
    assert fates.pop("00000/(rest)") == "source_damaged"
    assert list(fates.values()) == [None, None, None, "source_damaged", "source_damaged", "download_failed"]


def test_a_list_of_images_without_tar_is_read_as_parquet(tmp_path: Path) -> None:
    assert isinstance(
        open_source(Source(type="img2dataset", path=str(write(tmp_path / "a.parquet", {})))), ParquetReader
    )
