"""URL lists of this machine: formats, columns, order, keys, filter, sample, snapshot."""

import csv
import gzip
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.config.source import Source
from capfilt.errors import ConfigError, DataError, RunError
from capfilt.sources.url_list import LIST, UrlList
from capfilt.store.shards import file_sha256, manifest

Row = dict[str, Any]
SHA, MD5 = "Ab" * 32, "0F" * 16
RECORDS: list[Row] = [
    {"URL": "http://a.example/1.jpg", "TEXT": "a cat, asleep", "similarity": 0.31, "hash": 2**62 + 1, "sha256": SHA},
    {"URL": "https://b.example/2", "TEXT": 'say "hi"\nto 猫', "similarity": 0.25, "hash": -5, "sha256": "short"},
    {"URL": None, "TEXT": None, "similarity": None, "hash": 7, "sha256": None},
]
EXPECTED = [
    ("http://a.example/1.jpg", "a cat, asleep", SHA.lower(), {"similarity": 0.31, "hash": 2**62 + 1}),
    ("https://b.example/2", 'say "hi"\nto 猫', None, {"similarity": 0.25, "hash": -5, "sha256": "short"}),
    (None, None, None, {"hash": 7}),
]


def read(path: Path | str, out: Path, **settings: Any) -> list[Row]:
    """The snapshot's rows, meta parsed; nothing else is left in its folder."""
    snapshot = UrlList(Source(type="urls", path=str(path), **settings)).snapshot(out)
    table = pq.read_table(snapshot)
    assert table.schema.equals(LIST)
    assert manifest(snapshot)["rows"] == table.num_rows
    assert not list(out.glob(".*"))
    return [row | {"meta": json.loads(row["meta"])} for row in table.to_pylist()]


def texts(path: Path | str, out: Path, **settings: Any) -> list[str | None]:
    return [row["text"] for row in read(path, out, **settings)]


def as_parquet(path: Path, records: list[Row], group: int = 2) -> None:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=group)


def as_csv(path: Path, records: list[Row], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)


def as_lines(path: Path, records: list[Row]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "a.parquet": as_parquet,
    "a.csv": as_csv,
    "a.tsv": lambda path, records: as_csv(path, records, "\t"),
    "a.Csv": lambda path, records: as_csv(path, records, "|"),
    "a.jsonl": as_lines,
    "A.NDJSON": as_lines,
    "a.json": lambda path, records: path.write_text(json.dumps(records, indent=1)),
    "b.json": lambda path, records: path.write_text(json.dumps(records)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, RECORDS)
    rows = read(tmp_path / name, tmp_path / "out")
    assert [(row["url"], row["text"], row["sha256"], row["meta"]) for row in rows] == EXPECTED
    assert [row["key"] for row in rows] == [f"{name}#{i}" for i in range(3)]
    assert {row["md5"] for row in rows} == {None}
    (passed,) = read(tmp_path / name, tmp_path / "out", filter="SIMILARITY > 0.28 and url like 'http://a%'")
    assert passed == rows[0]


@pytest.mark.parametrize("packed", [".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_packed_text_is_unpacked(name: str, packed: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "plain", RECORDS)
    data = (tmp_path / "plain").read_bytes()
    whole = pa.compress(data, "zstd", asbytes=True) if packed == ".zst" else gzip.compress(data)
    (tmp_path / f"{name}{packed}").write_bytes(whole)
    rows = read(tmp_path / f"{name}{packed}", tmp_path / "out")
    assert [(row["url"], row["text"], row["sha256"], row["meta"]) for row in rows] == EXPECTED


def test_a_folder_is_read_by_name_and_its_columns_united(tmp_path: Path) -> None:
    folder = tmp_path / "list"
    folder.mkdir()
    as_parquet(folder / "b.parquet", [{"URL": "http://b", "CAPTION": "b", "punsafe": 0.1}])
    as_csv(folder / "a.csv", [{"url": "http://a", "text": "a", "Punsafe": "0.9", "caption": "other"}])
    as_lines(folder / "c.jsonl", [{"Url": "http://c", "alt": "c", "extra": {"y": [1], "x": None}}])
    (folder / "_ignored.csv").write_text("nonsense")
    (folder / ".hidden.csv").write_text("nonsense")
    (folder / "notes.txt").write_text("nonsense")
    (folder / "d.json").write_text("[]")
    rows = read(folder, tmp_path / "out")
    assert [(row["key"], row["url"], row["text"]) for row in rows] == [
        (f"{name}#0", f"http://{name[0]}", name[0]) for name in ("a.csv", "b.parquet", "c.jsonl")
    ]
    assert [row["meta"] for row in rows] == [
        {"punsafe": 0.9, "caption": "other"},
        {"punsafe": 0.1},
        {"extra": {"x": None, "y": [1]}},
    ]
    assert texts(folder, tmp_path / "out", filter="PUNSAFE < 0.5") == ["b"]
    assert texts(folder, tmp_path / "out", filter="punsafe is null") == ["c"]
    assert texts(f"{folder}/[ab].*", tmp_path / "out") == ["a", "b"]


def test_columns_of_two_types_are_compared_as_one(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", [{"url": "http://a", "width": 5, "text": "a"}])
    as_parquet(tmp_path / "b.parquet", [{"url": "http://b", "width": 5.5, "text": "b"}])
    as_csv(tmp_path / "c.csv", [{"url": "http://c", "width": "", "text": "c"}])
    assert texts(tmp_path, tmp_path / "out", filter="width >= 5") == ["a", "b"]
    as_parquet(tmp_path / "d.parquet", [{"url": "http://d", "width": "wide", "text": "d"}])
    assert texts(tmp_path, tmp_path / "out", filter="try_cast(width AS DOUBLE) > 5") == ["b"]
    assert texts(tmp_path, tmp_path / "out", filter="width = 'wide'") == ["d"]


def test_own_keys_lists_of_texts_and_stated_columns(tmp_path: Path) -> None:
    records = [
        {"uid": "one", "key": 5, "link": " http://a ", "caps": ["x", "y", None], "MD5": MD5},
        {"uid": None, "key": 6, "link": " ", "caps": [], "MD5": "bad"},
        {"uid": "", "key": None, "link": "http://c", "caps": None, "MD5": None},
    ]
    for name, write in (("a.parquet", as_parquet), ("a.jsonl", as_lines)):
        write(tmp_path / name, records)
        rows = read(tmp_path / name, tmp_path / "out", columns={"url": "link", "text": "caps"})
        assert [row["key"] for row in rows] == ["one", "one#1", "one#2", f"{name}#1", f"{name}#2"]
        assert [row["text"] for row in rows] == ["x", "y", None, None, None]
        assert [row["url"] for row in rows] == ["http://a"] * 3 + [None, "http://c"]
        assert [row["md5"] for row in rows] == [MD5.lower()] * 3 + [None] * 2
        assert [row["meta"] for row in rows] == [{"key": 5}] * 3 + [{"key": 6, "md5": "bad"}, {}]
    with pytest.raises(DataError, match=r"no column 'lnk' \(columns.url\); it has .*did you mean 'link'"):
        read(tmp_path / "a.parquet", tmp_path / "out", columns={"url": "lnk"})


def test_meta_is_plain_json(tmp_path: Path) -> None:
    moment = pa.array([1_600_000_000_123_456_000], pa.timestamp("ns", "Europe/Berlin"))
    columns = {
        "url": ["http://a"],
        "nan": [float("nan")],
        "inf": pa.array([float("inf")], pa.float32()),
        "when": moment,
        "day": moment.cast(pa.date32()),
        "price": pa.array(["12345678901234567890.10"]).cast(pa.decimal128(30, 2)),
        "unsigned": pa.array([2**64 - 1], pa.uint64()),
        "raw": [b"caf\xe9"],
        "Nested": [{"b": [1.5, float("nan")], "a": None}],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "Coded": pa.array(["x"]).dictionary_encode(),
        "quo'te\"d": [1],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (row,) = read(tmp_path / "a.parquet", tmp_path / "out", filter='"quo\'te""d" = 1 and nested.b[1] > 1')
    assert row["text"] is None
    assert row["meta"] == {
        "nan": None,
        "inf": None,
        "when": "2020-09-13 12:26:40.123456+00",
        "day": "2020-09-13",
        "price": "12345678901234567890.10",
        "unsigned": 2**64 - 1,
        "raw": "caf�",
        "nested": {"a": None, "b": [1.5, None]},
        "map": {"k": 1},
        "coded": "x",
        "quo'te\"d": 1,
    }


def test_columns_that_differ_in_case_alone_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,Width,width,WIDTH,,\nhttp://a,1,2,3,4,5\n")
    (row,) = read(tmp_path / "a.csv", tmp_path / "out", filter="width_1 = 2")
    assert row["meta"] == {"width": 1, "width_1": 2, "width_2": 3, "column4": 4, "column5": 5}
    (tmp_path / "a.jsonl").write_text('{"url": "http://a", "Width": 1, "width": 2, "WIDTH": 3}\n')
    (row,) = read(tmp_path / "a.jsonl", tmp_path / "out")
    assert row["meta"] == {"width": 2, "Width": 1, "WIDTH": 3}
    (tmp_path / "b.csv").write_text("url,text,text\nhttp://a,1,2\n")
    with pytest.raises(DataError, match=r"b.csv: column 'text' exists 2 times"):
        read(tmp_path / "b.csv", tmp_path / "out")


def test_numbers_of_a_csv_are_numbers_unless_one_is_a_label(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "url,id,long,part,flag,mix,code\n"
        "http://a,1,12345678901234567890,1e-3,true,1,007\n"
        "http://b,-2,1,nan,FALSE,x,8\n"
        "http://c,,2,.5,,2,\n"
    )
    rows = read(path, tmp_path / "out", filter="id < 2 or flag is null")
    assert [row["meta"] for row in rows] == [
        {"id": 1, "long": 12345678901234567890, "part": 0.001, "flag": True, "mix": "1", "code": "007"},
        {"id": -2, "long": 1, "part": None, "flag": False, "mix": "x", "code": "8"},
        {"long": 2, "part": 0.5, "mix": "2"},
    ]
    assert [row["url"] for row in read(path, tmp_path / "out", filter="flag")] == ["http://a"]
    assert [row["url"] for row in read(path, tmp_path / "out", filter="long > 10 and code = '007'")] == ["http://a"]


MISTAKES = {
    "punsave < 0.5": 'Referenced column "punsave" not found',
    "punsafe <": "Parser Error",
    "punsafe < 0.5; SELECT 1": "one expression",
    "punsafe < 1) OR (punsafe > 2": "Parser Error",
    "true FROM x": "one expression",
    "true ORDER BY 1": "one expression",
    "true, true": "one expression",
    "punsafe < $1": "one expression",
    "columns(*) IS NULL": "name the columns one by one",
    "url IN (SELECT content FROM read_text('/etc/passwd'))": "a table of its own",
    "sum(punsafe) > 1": "aggregates",
    "row_number() OVER () < 3": "window",
    "random() < 0.5": "random: changes from call to call",
    "current_date > '2020-01-01'": "changes from call to call",
    "punsafe": "it is DOUBLE, expected a condition",
    "": "Parser Error",
    "CAST(TEXT AS INTEGER) > 1": "Could not convert string 'a' to INT32.* in a row of .*a.csv; .*try_cast",
    "TEXT->>'$.x' = 'y'": "Malformed JSON.*try",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_filter_is_told(mistake: str, tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv", [{"URL": "http://a", "TEXT": "a", "punsafe": 0.1}] * 2)
    with pytest.raises(ConfigError, match=rf"(?s)^sources\.a\.filter: .*{MISTAKES[mistake]}") as told:
        read(tmp_path / "a.csv", tmp_path / "out", filter=mistake)
    assert "\n" not in str(told.value)
    assert "the list has URL, TEXT, punsafe" in str(told.value) or "a.csv" in str(told.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_comment_or_a_column_named_like_a_function_is_no_mistake(tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv", [{"url": "http://a", "text": "a", "today": 1}])
    assert texts(tmp_path / "a.csv", tmp_path / "out", filter="today = 1 -- and nothing else") == ["a"]


def test_nothing_left_is_told_with_the_number_of_rows(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", [{"url": "u", "punsafe": None}, {"url": "v", "punsafe": 0.9}])
    with pytest.raises(DataError, match=r"sources\.a\.filter: none of the 2 rows passes"):
        read(tmp_path / "a.parquet", tmp_path / "out", filter="punsafe < 0.5")
    (tmp_path / "b.csv").write_text("url,text\n")
    with pytest.raises(DataError, match="the list has no row"):
        read(tmp_path / "b.csv", tmp_path / "out")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 files of 40 rows: n counts through them, and x is odd in an odd row."""
    folder = tmp_path_factory.mktemp("numbered")
    parts = [[{"url": f"http://{i}", "text": "t", "n": i, "x": i % 2} for i in range(k, k + 40)] for k in (0, 40, 80)]
    as_parquet(folder / "a.parquet", parts[0])
    as_csv(folder / "b.csv", parts[1])
    as_lines(folder / "c.jsonl", parts[2])
    return folder


def sampled(rows: int, seed: int, names: tuple[str, ...], odd: bool) -> list[str]:
    """What the rule says, by hand."""
    keys = [f"{name}#{i}" for name in names for i in range(40) if not odd or i % 2]
    kept = set(sorted(keys, key=lambda key: hashlib.md5(f"{seed}:{key}".encode()).hexdigest())[:rows])
    return [key for key in keys if key in kept]


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sampled_from([1, 2, 7, 39, 40, 59, 60, 61, 119, 120, 500]), seed=st.integers(-3, 9), odd=st.booleans())
def test_a_sample_is_the_smallest_hashes_in_list_order(
    numbered: Path, tmp_path: Path, rows: int, seed: int, odd: bool
) -> None:
    found = read(numbered, tmp_path / "out", rows=rows, seed=seed, filter="x = 1" if odd else None)
    keys = [row["key"] for row in found]
    assert keys == sampled(rows, seed, ("a.parquet", "b.csv", "c.jsonl"), odd)
    first = {"a.parquet": 0, "b.csv": 40, "c.jsonl": 80}
    for row in found:
        name, number = row["key"].split("#")
        assert row["meta"]["n"] == first[name] + int(number)


def test_keys_do_not_depend_on_other_files(numbered: Path, tmp_path: Path) -> None:
    alone = read(numbered / "b.csv", tmp_path / "out", filter="n >= 60")
    among = read(numbered, tmp_path / "out", filter="n >= 60")
    assert alone == [row for row in among if row["key"].startswith("b.csv#")]
    assert alone[0]["key"] == "b.csv#20"


def test_order_and_row_numbers_hold_over_row_groups_and_blocks(tmp_path: Path) -> None:
    count = 15_000
    records = [{"url": f"http://{i}", "n": i} for i in range(count)]
    grouped = partial(as_parquet, group=1000)
    for name, write in (("a.parquet", grouped), ("a.csv", as_csv), ("a.jsonl", as_lines)):
        write(tmp_path / name, records)
        found = read(tmp_path / name, tmp_path / "out", filter="n % 3 > 0")
        assert [row["meta"]["n"] for row in found] == [i for i in range(count) if i % 3]
        assert all(row["key"] == f"{name}#{row['meta']['n']}" for row in found)
        drawn = read(tmp_path / name, tmp_path / "out", rows=500, seed=1)
        by_hash = sorted(range(count), key=lambda i: hashlib.md5(f"1:{name}#{i}".encode()).hexdigest())
        assert [row["key"] for row in drawn] == [f"{name}#{i}" for i in sorted(by_hash[:500])]


def test_a_snapshot_is_written_once_and_named_by_what_made_it(numbered: Path, tmp_path: Path) -> None:
    settings: Row = {"path": str(numbered), "rows": 9, "seed": 1, "filter": "x = 1"}

    def path_of(out: str = "out", **changed: Any) -> Path:
        return UrlList(Source(type="urls", **settings | changed)).snapshot(tmp_path / out)

    path = path_of()
    assert path.parent == tmp_path / "out"
    assert path.name.startswith(f"{numbered.name}-")
    state = path.stat()
    assert path_of() == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (state.st_mtime_ns, state.st_ino)
    again = path_of("again")
    assert again.name == path.name
    assert file_sha256(again) == file_sha256(path)
    changes: list[Row] = [{"rows": 8}, {"seed": 2}, {"filter": "x = 0"}, {"columns": {"text": ""}}, {"rows": None}]
    assert len({path.name, *(path_of(**change).name for change in changes)}) == 6
    assert path_of(name="../Ünsafe name").name.startswith("nsafe_name-")


def test_a_changed_list_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = set()
    for content in ("url\nhttp://a\n", "url\nhttp://b\n", "url\nhttp://b\nhttp://c\n"):
        path.write_text(content)
        found = UrlList(Source(type="urls", path=str(path)))
        assert json.loads(json.dumps(found.identity())) == found.identity()
        names.add(found.snapshot(tmp_path / "out").name)
    assert len(names) == 3


def test_a_list_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("url\nhttp://a\n")
    found, asked = UrlList(Source(type="urls", path=str(tmp_path / "a.csv"))), []
    monkeypatch.setattr(UrlList, "identity", lambda self: asked.append(1) or [["a.csv", len(asked)]])
    with pytest.raises(DataError, match="changed while it was read"):
        found.snapshot(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url\nhttp://a\n")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        UrlList(Source(type="urls", path=str(tmp_path / "a.csv"))).snapshot(tmp_path / "out")


def test_no_list_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.csv", tmp_path / "*.csv"):
        with pytest.raises(ConfigError, match=r"sources\..*\.path: .*\.parquet or \.csv"):
            UrlList(Source(type="urls", path=str(path)))
    (tmp_path / "list.txt").write_text("http://a\n")
    with pytest.raises(ConfigError, match=r"list\.txt is not a list that capfilt reads"):
        UrlList(Source(type="urls", path=str(tmp_path / "list.txt")))


def test_names_that_are_patterns_or_have_quotes(tmp_path: Path) -> None:
    for name in ("a[1]*?.parquet", 'it\'s "b".csv'):
        WRITERS["a" + Path(name).suffix](tmp_path / name, RECORDS[:1])
        assert [row["key"] for row in read(tmp_path / name, tmp_path / "out", rows=1)] == [f"{name}#0"]
