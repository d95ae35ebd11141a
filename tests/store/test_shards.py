"""Shards: whole or not there, the same bytes however their rows came, damage found, written off the beaten types."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.errors import DataError
from capfilt.store import shards
from capfilt.store.schema import CAPTIONS, IMAGE, arrow, score_columns
from capfilt.store.shards import (
    ShardWriter,
    batches,
    file_sha256,
    manifest,
    remove_temp_files,
    shard_name,
    table,
    write_atomic,
)

Record = dict[str, Any]
SCHEMA = pa.schema([("uid", pa.string()), ("text", pa.string()), ("image", IMAGE), ("status", pa.string())])


def write(path: Path, pieces: Sequence[Sequence[Record]], schema: pa.Schema = SCHEMA) -> None:
    with ShardWriter(path, schema) as writer:
        for piece in pieces:
            writer.write(piece)


def record(i: int, size: int = 10) -> Record:
    image = {"bytes": np.random.default_rng(i).bytes(size), "path": f"{i}.png"}
    return {"uid": f"{i:016x}", "text": f"text {i}", "image": image, "status": ("ok", "rejected")[i % 3 == 0]}


def test_round_trip_and_manifest(tmp_path: Path) -> None:
    path, rows = tmp_path / "pairs" / shard_name(7), [record(i) for i in range(10)]
    write(path, [rows])
    assert path.name == "00007.parquet"
    assert table(path).to_pylist() == rows
    assert [row for part in batches(path, ["uid"], 3) for row in part] == [{"uid": row["uid"]} for row in rows]
    assert manifest(path) == {"rows": 10, "sha256": file_sha256(path), "status": {"ok": 6, "rejected": 4}}
    assert sorted(file.name for file in path.parent.iterdir()) == ["00007.json", "00007.parquet"]


def test_a_missing_key_is_null(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", [[{"uid": "a"}]])
    assert table(tmp_path / "s.parquet").to_pylist() == [{"uid": "a", "text": None, "image": None, "status": None}]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.lists(st.integers(1, 8)))
def test_bytes_do_not_depend_on_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    rows = [record(i, size) for i, size in enumerate(sizes)]
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(rows[start : start + cut])
        start += cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "GROUP_BYTES", 100)
        patch.setattr(shards, "GROUP_ROWS", 7)
        write(folder / "one.parquet", [rows])
        write(folder / "many.parquet", [*pieces, rows[start:]])
    assert (folder / "one.parquet").read_bytes() == (folder / "many.parquet").read_bytes()
    with pq.ParquetFile(folder / "one.parquet") as file:
        groups = [file.read_row_group(group, ["uid"]).num_rows for group in range(file.num_row_groups)]
    assert sum(groups) == len(rows)
    assert max(groups, default=0) <= 7


def test_row_groups_are_closed_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 1000)
    write(tmp_path / "s.parquet", [[record(i, 400) for i in range(7)]])
    with pq.ParquetFile(tmp_path / "s.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 3, 1]


def test_a_table_is_written_in_the_row_groups_and_counts_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "GROUP_ROWS", 3)
    rows = [record(i) for i in range(7)]
    write(tmp_path / "rows.parquet", [rows])
    with ShardWriter(tmp_path / "table.parquet", SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=pa.schema(reversed(list(SCHEMA)))))
    assert (tmp_path / "table.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()
    assert manifest(tmp_path / "table.parquet") == manifest(tmp_path / "rows.parquet")


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    """While it is written, and after an error: of the caller, whose exception is the one that is seen."""
    path = tmp_path / "s.parquet"

    def fail() -> None:
        with ShardWriter(path, SCHEMA) as writer:
            writer.write([record(i) for i in range(5000)])
            assert not path.exists()
            assert not path.with_suffix(".json").exists()
            raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_old_shard_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write(path, [[record(1)]])
    before = path.read_bytes(), manifest(path)
    with pytest.raises(DataError):
        write(path, [[record(2), {"uid": "b", "status": 5}]])
    assert (path.read_bytes(), manifest(path)) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("value", [5, "\ud800", b"\xff", ["a"]])
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, value: object) -> None:
    path = tmp_path / "s.parquet"
    with pytest.raises(DataError, match=r"s\.parquet: row bad: "):
        write(path, [[record(1), {"uid": "bad", "status": value}, record(2)]])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "s.parquet", [[record(1)]])
    assert list(tmp_path.iterdir()) == []


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    """In the pages: by their checksums. Anywhere: by the manifest."""
    path, rows = tmp_path / "s.parquet", [record(i, 300) for i in range(40)]
    write(path, [rows])
    whole, stated = path.read_bytes(), manifest(path)["sha256"]
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    rng, silent, found = np.random.default_rng(0), 0, 0
    for place in rng.integers(4, len(whole) - footer, 150).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert file_sha256(path) != stated
        try:
            silent += table(path).to_pylist() != rows
        except DataError as error:
            found += str(path) in str(error)
    assert silent == 0
    assert found > 130  # the rest are bits of page headers that change nothing


def test_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write(path, [[record(i, 300) for i in range(10)]])
    whole = path.read_bytes()
    for length in (0, 3, 12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"s\.parquet"):
            list(batches(path, ["uid"]))


def test_manifest_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    for content in (None, "", "[]", json.dumps({"rows": "many"}), json.dumps({"rows": 1, "sha256": "a"})):
        if content is not None:
            path.with_suffix(".json").write_text(content)
        with pytest.raises(DataError, match=r"s\.json: no manifest"):
            manifest(path)


def test_half_floats_and_nested_columns(tmp_path: Path) -> None:
    """score's embedding, given as numpy rows or null; captions as dictionaries."""
    rng = np.random.default_rng(0)
    vectors = [None if i % 3 == 0 else rng.standard_normal(8).astype(np.float16) for i in range(20)]
    path = tmp_path / "score.parquet"
    write(path, [[{"uid": str(i), "image_embedding": v} for i, v in enumerate(vectors)]], arrow(score_columns(8)))
    found = table(path)["image_embedding"]
    assert found.type == pa.list_(pa.float16(), 8)
    for got, want in zip(found.to_pylist(), vectors, strict=True):
        assert got == (None if want is None else want.tolist())
    rows = [
        {"uid": "a", "captions": [{"text": "x", "logprob": -0.5, "sample": 0}], "status": "ok", "error": None},
        {"uid": "b", "captions": None, "status": "skipped", "error": None},
        {"uid": "c", "captions": [], "status": "ok", "error": None},
    ]
    write(tmp_path / "caption.parquet", [rows], arrow(CAPTIONS))
    assert table(tmp_path / "caption.parquet").to_pylist() == rows


def test_write_atomic_and_clean(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "run.json", "{}")
    write_atomic(tmp_path / "a" / "run.json", b"[]")
    orphan = tmp_path / "a" / ".00000.parquet.123"
    orphan.write_bytes(b"half")
    remove_temp_files(tmp_path / "a")
    assert [(file.name, file.read_text()) for file in (tmp_path / "a").iterdir()] == [("run.json", "[]")]
