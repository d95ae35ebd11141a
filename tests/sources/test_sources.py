"""What holds for every format: the same rows, whatever the shards; identities; errors that name what is there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from capfilt.config.source import Source
from capfilt.errors import CapfiltError, ConfigError
from capfilt.sources import RawRow, open_source

Rows = Callable[..., list[RawRow]]
Six = list[tuple[str, bytes, str]]


def test_every_format_gives_the_same_rows(written: tuple[str, str, Path], all_rows: Rows, six: Six) -> None:
    name, kind, path = written
    rows = all_rows(kind, path)
    prefix = "val/" if name == "karpathy" else ""
    assert [row.key for row in rows] == [prefix + key for key, _, _ in six]
    assert [row.image for row in rows] == [image for _, image, _ in six]
    assert [row.text or "" for row in rows] == [text for _, _, text in six]
    assert all(row.reason is None and row.error is None for row in rows)
    assert all(row.path is None or "/" not in row.path for row in rows)


@pytest.mark.parametrize("rows_per_shard", [1, 2, 5, 6, 100])
def test_shards_do_not_change_rows(written: tuple[str, str, Path], all_rows: Rows, rows_per_shard: int) -> None:
    _, kind, path = written
    assert all_rows(kind, path, rows_per_shard) == all_rows(kind, path, 4)


def test_positions_pick_rows_of_a_shard(written: tuple[str, str, Path]) -> None:
    _, kind, path = written
    reader = open_source(Source(type=kind, path=str(path)))
    for spec in reader.shard_specs(4):
        rows = list(reader.rows(spec))
        for positions in ([], [0], [len(rows) - 1], range(1, len(rows)), [*range(0, len(rows), 2)]):
            assert list(reader.rows(spec, positions)) == [rows[position] for position in positions]


def test_identity_is_stable_and_free_of_the_place(written: tuple[str, str, Path], tmp_path: Path) -> None:
    _, kind, path = written
    identity = open_source(Source(type=kind, path=str(path))).identity()
    assert identity == open_source(Source(type=kind, path=str(path))).identity()
    assert str(tmp_path) not in json.dumps(identity)
    assert json.loads(json.dumps(identity)) == identity


def test_identity_changes_with_the_source(written: tuple[str, str, Path]) -> None:
    _, kind, path = written
    before = open_source(Source(type=kind, path=str(path))).identity()
    if path.is_dir():
        names = [n[0] for n in before]
        path = next(file for file in sorted(path.rglob("*")) if file.name in names)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1, 0]))
    again = {"datasets": written[2], "folder": written[2], "img2dataset": written[2]}.get(kind, path)
    assert open_source(Source(type=kind, path=str(again))).identity() != before


@pytest.mark.parametrize("kind", ["parquet", "folder", "webdataset", "img2dataset", "datasets", "blip_json"])
def test_a_path_that_is_not_there_or_empty_is_refused(kind: str, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CapfiltError, match=str(path)):
            open_source(Source(type=kind, path=str(path), name="mine")).shard_specs(10)


def test_a_glob_names_files_below_its_fixed_part(tmp_path: Path, make_tar: Callable[..., Path], all_rows: Rows) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make_tar([("x.jpg", b"1")], f"{folder}/00000.tar")
        make_tar([("x.jpg", b"1")], f"{folder}/_00001.tar")
    rows = all_rows("webdataset", tmp_path / "*" / "*.tar")
    assert [row.key for row in rows] == ["a/00000/x", "b/00000/x"]
    reader = open_source(Source(type="webdataset", path=str(tmp_path / "*" / "*.tar")))
    assert [unit.path for unit in reader.shard_specs(10)] == ["a/00000.tar", "b/00000.tar"]
    with pytest.raises(ConfigError, match=r"names no \.tar"):
        open_source(Source(type="webdataset", path=str(tmp_path / "c*" / "*.tar")))


def test_a_file_that_is_gone_after_planning_is_an_error_to_mend(make_tar: Callable[..., Path]) -> None:
    path = make_tar([("x.jpg", b"1")])
    reader = open_source(Source(type="webdataset", path=str(path.parent)))
    (unit,) = reader.shard_specs(10)
    path.unlink()
    with pytest.raises(CapfiltError, match=r"00000\.tar: cannot be read"):
        list(reader.rows(unit))
