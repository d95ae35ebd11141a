from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import DataError
from capfilt.store.parquet import RowGroupCache, open_parquet, parquet_files, read_row_group, safe_schema


class Pickled(pa.ExtensionType):
    """Stands for Ray's arrow_pickled_object."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "capfilt.test.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Pickled":
        return cls()


def table(rows: int = 400) -> pa.Table:
    rng = Random(0)
    return pa.table({"id": list(range(rows)), "blob": [rng.randbytes(50) for _ in range(rows)]})


def test_files_of_a_file_a_directory_and_a_glob(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "_part.parquet", ".a.parquet.tmp", "notes.txt"):
        (tmp_path / name).touch()
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert parquet_files(tmp_path) == both
    assert parquet_files(str(tmp_path / "*.parquet")) == both
    assert parquet_files(tmp_path / "b.parquet") == both[1:]
    for missing in ("none-*.parquet", "none", "c.parquet"):
        with pytest.raises(DataError, match="no Parquet file there"):
            parquet_files(tmp_path / missing)


def nested(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {
        "plain": kind,
        "struct": pa.struct([pa.field("x", pa.int8()), pa.field("bad", kind)]),
        "list": pa.list_(pa.struct([pa.field("bad", kind)])),
    }


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", ["plain", "struct", "list"])
def test_extension_types_are_refused_known_or_not(tmp_path: Path, shape: str, known: bool) -> None:
    path = tmp_path / "stranger.parquet"
    pa.register_extension_type(Pickled())
    try:
        schema = pa.schema([("id", pa.int64()), ("col", nested(Pickled())[shape])])
        pq.ParquetWriter(path, schema).close()
        if not known:
            pa.unregister_extension_type("capfilt.test.pickled")
        for read in (safe_schema, open_parquet):
            with pytest.raises(DataError, match=r"stranger\.parquet.*column 'col.*capfilt\.test\.pickled"):
                read(path)
    finally:
        if known:
            pa.unregister_extension_type("capfilt.test.pickled")


def test_plain_nested_types_pass(tmp_path: Path) -> None:
    kinds = [pa.struct([("bytes", pa.binary())]), pa.list_(pa.string()), pa.map_(pa.string(), pa.int8())]
    kinds += [pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float16(), 4)]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert safe_schema(tmp_path / "a.parquet").names == schema.names


def test_truncated_foreign_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1], b"", b"PAR1", b"not a Parquet file at all"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.parquet: footer cannot be read"):
            open_parquet(path)
    with pytest.raises(DataError, match="no such file"):
        safe_schema(tmp_path / "none.parquet")


def test_no_flipped_byte_is_silent_where_checksums_were_written(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.parquet", Random(1)
    pq.write_table(table(), path, write_page_checksum=True)
    whole, good, caught = path.read_bytes(), read_row_group(path, 0, ["id", "blob"]), 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(4, 20_000)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read_row_group(path, 0, ["id", "blob"]).equals(good)
        except DataError:
            caught += 1
    assert caught > 90


def test_cache_tells_columns_of_one_row_group_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(table(), path, row_group_size=100)
    cache = RowGroupCache(budget=1000)
    assert [cache.get(path, 0, [name], 10).column_names for name in ("id", "blob", "id")] == [["id"], ["blob"], ["id"]]


def test_cache_stays_within_its_budget_but_holds_one(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(table(), path, row_group_size=100)
    cache = RowGroupCache(budget=20)
    first = cache.get(path, 0, ["id"], 10)
    assert first["id"].to_pylist() == list(range(100))
    cache.get(path, 1, ["id"], 10)
    assert cache.get(path, 0, ["id"], 10) is first
    cache.get(path, 2, ["id"], 10)
    assert cache.get(path, 0, ["id"], 10) is first  # 1 was the least recently used
    cache.get(path, 3, ["id"], 99)
    assert cache.get(path, 0, ["id"], 10) is not first
