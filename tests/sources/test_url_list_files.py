"""URL lists that are remote, without a header, badly encoded or broken."""

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.config.source import Source
from capfilt.errors import CapfiltError, ConfigError, DataError
from capfilt.sources.url_list import UrlList
from capfilt.sources.url_list import repair as repair
from capfilt.sources.url_list.files import find_files
from capfilt.sources.url_list.reading import Reading
from capfilt.sources.url_list.repair import Copies

Row = dict[str, Any]


def read(path: Path | str, out: Path, **settings: Any) -> list[Row]:
    """The snapshot's rows, meta parsed; nothing else is left in its folder."""
    try:
        snapshot = UrlList(Source(type="urls", path=str(path), **settings)).snapshot(out)
    finally:
        assert not list(out.glob(".*"))
    return [row | {"meta": json.loads(row["meta"])} for row in pq.read_table(snapshot).to_pylist()]


def pairs(path: Path | str, out: Path, **settings: Any) -> list[tuple[str | None, str | None]]:
    return [(row["url"], row["text"]) for row in read(path, out, **settings)]


# Headers and dialects


def test_a_tsv_without_header_is_named_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text("a cat\thttp://a/1\nsays http://no\thttps://b/2\n\thttp://c\n")
    assert pairs(path, tmp_path / "out") == [
        ("http://a/1", "a cat"),
        ("https://b/2", "says http://no"),
        ("http://c", None),
    ]
    assert pairs(path, tmp_path / "out", filter="text is null and url like '%c'") == [("http://c", None)]
    path.write_text("http://a/1\ta cat\n")
    assert pairs(path, tmp_path / "out") == [("http://a/1", "a cat")]
    assert pairs(path, tmp_path / "out", columns={"text": ""}) == [("http://a/1", None)]


def test_what_a_list_without_header_holds_is_asked_where_it_is_not_clear(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a cat,http://a,http://page\n")
    with pytest.raises(
        DataError, match=r"no header.*column0 \('a cat'\), column1 \('http://a'\).*columns: \{url: column"
    ):
        read(path, tmp_path / "out")
    (row,) = read(path, tmp_path / "out", columns={"url": "column1", "text": "column0"})
    assert (row["url"], row["text"], row["meta"]) == ("http://a", "a cat", {"column2": "http://page"})
    path.write_text("picture , words\nhttp://a,b\n")
    with pytest.raises(DataError, match=r"a.csv: no url column among its columns \(picture, words\); .*columns.url"):
        read(path, tmp_path / "out")
    assert pairs(path, tmp_path / "out", columns={"url": "picture", "text": "words"}) == [("http://a", "b")]
    path.write_text("url,http://a\nhttp://b,x\n")
    assert pairs(path, tmp_path / "out") == [("http://b", None)]


TSVS = {
    "stray quotes": ('a "cat\thttp://a\n"b" c\thttp://b\n', [("http://a", 'a "cat'), ("http://b", '"b" c')]),
    "a stray quote first": ('"a cat\thttp://a\nb\thttp://b\n', [("http://a", '"a cat'), ("http://b", "b")]),
    "stray quotes that would join lines": (
        'url\ttext\nhttp://a\t"a\nhttp://b\tb"\n',
        [("http://a", '"a'), ("http://b", 'b"')],
    ),
    "quoted": ('url\ttext\nhttp://a\t"say ""hi"""\n', [("http://a", 'say "hi"')]),
    "quoted line end": (
        'text\turl\n"a\n\tb"\thttp://a\nc\thttp://c\n',
        [("http://a", "a\n\tb"), ("http://c", "c")],
    ),
}


@pytest.mark.parametrize("case", TSVS)
def test_quotes_of_a_tsv(case: str, tmp_path: Path) -> None:
    content, expected = TSVS[case]
    (tmp_path / "a.tsv").write_text(content)
    assert pairs(tmp_path / "a.tsv", tmp_path / "out") == expected


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_byte_order_marks_line_ends_and_huge_fields(start: str, end: str, tmp_path: Path) -> None:
    huge = "x" * 2_000_000
    lines = ["url,text", f'http://a,"{huge}{end}, ""q"""', "http://b,b"]
    (tmp_path / "a.csv").write_text(start + end.join(lines), newline="")
    expected = [("http://a", f'{huge}{end}, "q"'), ("http://b", "b")]
    assert pairs(tmp_path / "a.csv", tmp_path / "out") == expected
    records = [json.dumps({"url": url, "text": text}) for url, text in expected]
    (tmp_path / "a.jsonl").write_text(start + end.join(records), newline="")
    (tmp_path / "a.json").write_text(f"{start}[{', '.join(records)}]", newline="")
    assert pairs(tmp_path / "a.jsonl", tmp_path / "out") == pairs(tmp_path / "a.json", tmp_path / "out") == expected


# Bad encoding


def repaired(rows: list[Row]) -> list[bool]:
    return [row["meta"].pop("text_mended", False) for row in rows]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"url,text,by\nhttp://a,caf\xe9,x\nhttp://b,b,\xff\xfe\nhttp://c,\xef\xbf\xbd,y\n"),
        (
            "a.jsonl",
            b'{"url": "http://a", "text": "caf\xe9", "by": "x"}\n{"url": "http://b", "text": "b", "by": "\\ud83dx"}\n'
            b'{"url": "http://c", "text": "\\ufffd", "by": "\\ud83d\\ude00 \\\\ud83d"}\n',
        ),
    ],
    ids=["csv", "json"],
)
def test_bad_utf8_of_text_is_mended_and_told(name: str, content: bytes, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = read(path, tmp_path / "out")
    assert repaired(rows) == [True, False, False]
    assert [row["text"] for row in rows] == ["caf�", "b", "�"]
    by = ["x", "��", "y"] if name == "a.csv" else ["x", "�x", "😀 \\ud83d"]
    assert [row["meta"] for row in rows] == [{"by": each} for each in by]
    (row,) = read(path, tmp_path / "out", filter="url = 'http://b'")
    assert row["key"] == f"{path.name}#1"


@pytest.mark.parametrize("options", [{"use_dictionary": False}, {"row_group_size": 1000}])
def test_bad_utf8_of_parquet_is_mended_and_told(options: Row, tmp_path: Path) -> None:
    count = 5000
    texts = pa.array([b"caf\xe9" if i in (3, 4990) else b"%d" % i for i in range(count)]).view(pa.string())
    urls = [f"http://{i}" for i in range(count)]
    table = pa.table({"url": urls, "text": texts, "list": [[i] for i in range(count)]})
    pq.write_table(table, tmp_path / "a.parquet", **options)
    rows = read(tmp_path / "a.parquet", tmp_path / "out")
    assert [n for n, one in enumerate(repaired(rows)) if one] == [3, 4990]
    assert [row["url"] for row in rows] == urls
    assert rows[4990] == {
        "key": "a.parquet#4990", "url": "http://4990", "text": "caf�", "sha256": None, "md5": None,
        "meta": {"list": [4990]},
    }  # fmt: skip
    drawn = read(tmp_path / "a.parquet", tmp_path / "out", filter="text like 'caf%'", rows=1, seed=1)
    assert [row["text"] for row in drawn] == ["caf�"]
    assert set(repaired(drawn)) == {True}
    listed = pa.ListArray.from_arrays(range(0, 2 * count + 2, 2), pa.concat_arrays([texts, texts]))
    pq.write_table(pa.table({"url": urls, "text": listed}), tmp_path / "b.parquet", **options)
    assert sum(repaired(read(tmp_path / "b.parquet", tmp_path / "out"))) == 4


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["a", ",", '"', "\\", "\\u0041", "\\ud83d", "\\ude00", "\n", "é", "\ufffd"])),
    chunk=st.integers(1, 9),
    bad=st.binary(max_size=3),
)
def test_mending_does_not_depend_on_where_a_file_is_cut(
    parts: list[str], chunk: int, bad: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own decoder is the measure; a cut character or escape would be repaired by mistake."""
    path = tmp_path / "a.json"
    content = json.dumps("".join(parts), ensure_ascii=False).replace("\\\\u", "\\u").encode() + bad
    path.write_bytes(content)
    file = repair.ListFile("a.json", "a.json", "json", "uncompressed", str(path))
    with monkeypatch.context() as patch:
        patch.setattr(repair, "CHUNK", chunk)
        cut = [repair._repair(file, part) for part in repair._parts(file, "capfilt.mark")]
    whole = repair._repair(file, content.decode("utf-8", "capfilt.mark").removeprefix("\ufeff"))
    assert "".join(cut) == whole
    assert content.decode("utf-8", "replace").count("\ufffd") == content.decode("utf-8", "capfilt.mark").replace(
        repair.MARK, "\ufffd"
    ).count("\ufffd")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl.gz", "a.parquet"]),
    data=st.binary(max_size=60),
    header=st.booleans(),
)
def test_any_bytes_give_rows_or_an_error_to_act_on(name: str, data: bytes, header: bool, tmp_path: Path) -> None:
    start = {"a.csv": b"url,text\nhttp://a,", "a.tsv": b"x\thttp://a\n", "a.json": b'[{"url": "x"},'}.get(name, b"")
    (tmp_path / name).write_bytes(start * header + data)
    try:
        read(tmp_path / name, tmp_path / "out")
        told = name
    except CapfiltError as error:
        told = str(error)
    assert name in told


# Broken files, and strangers' ones


BROKEN = {
    "too many fields": (
        "a.csv",
        b"url,text\nhttp://a,b\nhttp://b,c,d\n",
        "line 3: Expected Number of Columns: 2 F",
    ),
    "an open quote": ("a.csv", b'url,text\nhttp://a,"b\n', "line 2: Value with unterminated quote"),
    "two line ends": ("a.csv", b"url,text\r\nhttp://a,b\nhttp://c,d\r\n", "line 2: it ends differently"),
    "a longer row": ("a.csv", b"url,text\nhttp://a," + b"x" * 9_000_000, "line 2: Maximum line size"),
    "an open object": ("a.jsonl", b'{"url": "a"}\n{"url": "b"\n{"url": "c"}\n', "line 2 is not a JSON object"),
    "a last comma": ("a.jsonl", b'{"url": "a"}\n{"url": "b", }\n', "is not JSON"),
    "an open list": ("a.json", b'[{"url": "a"}, {"url": ', "Malformed JSON"),
    "no objects": ("a.jsonl", b"1\n2\n", r"no url column among its columns \(json\)"),
    "nesting": ("a.jsonl", b'{"url": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not a JSON object"),
    "nothing": ("a.csv", b"", "the file is empty"),
    "UTF-16": ("a.csv", "url,text\n".encode("utf-16"), "UTF-16; write it as UTF-8"),
    "a cut gzip": ("a.csv.gz", gzip.compress(b"url\nhttp://a\n" * 9999)[:-30], "Truncated compressed stream"),
    "no gzip": ("a.csv.gz", b"url\nhttp://a\n" * 99, "incorrect header check"),
    "no Parquet": ("a.parquet", b"url\nhttp://a\n" * 99, "magic bytes not found"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_with_its_place(case: str, tmp_path: Path) -> None:
    name, content, told = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)^{tmp_path / name}: .*{told}") as raised:
        read(tmp_path / name, tmp_path / "out")
    assert len(str(raised.value)) < 600
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("condition", [None, "n >= 0"])
def test_damaged_parquet_is_not_the_filters_fault(condition: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"url": [f"http://{i}" for i in range(20_000)], "n": range(20_000)})
    pq.write_table(table, path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[1000:30_000] = bytes(29_000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: .*fetch or write it again"):
        read(path, tmp_path / "out", filter=condition)


class Stranger(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "stranger")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


def test_extension_types_are_refused(tmp_path: Path) -> None:
    odd = pa.ExtensionArray.from_storage(Stranger(), pa.array([b"x"]))
    pq.write_table(pa.table({"url": ["http://a"], "odd": odd}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'odd' is of the Arrow extension type 'stranger'"):
        read(tmp_path / "a.parquet", tmp_path / "out")
    with fsspec.open(f"memory://{tmp_path}/a.parquet", "wb") as file:
        file.write((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(DataError, match=r"^memory://.*'odd' is of the Arrow extension type 'stranger'"):
        read(f"memory://{tmp_path}/a.parquet", tmp_path / "out")


def test_duckdb_is_locked_to_the_lists_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url\nhttp://a\n")
    (tmp_path / "b.csv").write_text("url\nhttp://b\n")
    source = Source(type="urls", path=str(tmp_path / "a.csv"))
    with Copies(tmp_path / "out", "a") as copies:
        connection = Reading(source, find_files(source), copies)._connect()
        assert connection.execute(f"SELECT * FROM read_csv('{tmp_path}/a.csv')").fetchall() == [("http://a",)]
        for forbidden in (
            f"SELECT * FROM read_csv('{tmp_path}/b.csv')",
            "SELECT * FROM read_csv('https://a.example/a.csv')",
            f"COPY (SELECT 1) TO '{tmp_path}/c.csv'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
            "SET allowed_paths = ['/']",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(forbidden)
        connection.close()


# Remote files


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """a.parquet of 3000 rows, b.csv and c.jsonl.gz of one; and what is no list."""
    folder = tmp_path / "lists"
    folder.mkdir()
    table = pa.table({"url": [f"http://{i}" for i in range(3000)], "text": ["t"] * 3000, "n": range(3000)})
    pq.write_table(table, folder / "a.parquet", row_group_size=500)
    (folder / "b.csv").write_text("url,text,n\nhttp://b,b,-1\n")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"url": "http://c", "text": "caf\xe9", "n": -2}\n'))
    (folder / "_d.csv").write_text("no list")
    (folder / "e.html").write_text("no list")
    return folder


@pytest.fixture
def memory(lists: Path) -> Iterator[str]:
    """The same in memory://."""
    fs = fsspec.filesystem("memory")
    root = f"/lists-{lists.parent.name}"
    for path in lists.iterdir():
        fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    yield f"memory:/{root}"
    fs.rm(root, recursive=True)


class Handler(SimpleHTTPRequestHandler):
    """With ranges, if the server says so; remembers what was asked."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))  # type: ignore[attr-defined]
        if asked is None or not self.server.ranges:  # type: ignore[attr-defined]
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = asked.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(lists: Path) -> Iterator[Any]:
    """A web server on the folder; `asked`: (path, range) of each GET."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(lists))) as server:
        server.asked, server.ranges = [], True  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_remote_list_gives_what_a_local_one_does(lists: Path, memory: str, server: Any, tmp_path: Path) -> None:
    wanted: list[Row] = [{}, {"filter": "n % 7 = 0 or n < 0", "rows": 40, "seed": 3}]
    for number, asked in enumerate(wanted):
        expected = read(lists, tmp_path / f"local{number}", **asked)
        assert len(expected) == (40 if asked else 3002)
        for path in (memory, f"{memory}/*", f"{address(server)}/", f"{address(server)}/*.*"):
            assert read(path, tmp_path / f"remote{number}", **asked) == expected, path


@pytest.mark.parametrize("ranges", [True, False])
def test_single_files_by_http_with_and_without_ranges(ranges: bool, lists: Path, server: Any, tmp_path: Path) -> None:
    server.ranges = ranges
    for name in ("a.parquet", "b.csv", "c.jsonl.gz"):
        expected = read(lists / name, tmp_path / "local", filter="n < 2")
        assert read(f"{address(server)}/{name}?download=true&x=*", tmp_path / "remote", filter="n < 2") == expected
    parts = [asked for path, asked in server.asked if path.startswith("/a.parquet")]
    assert all(parts) if ranges else None in parts


def test_duckdb_reads_no_more_of_a_remote_parquet_file_than_it_needs(
    lists: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = pa.array([b"%032d" % (i * 7919**9 % 10**32) * 30 for i in range(3000)]).cast(pa.string())
    table = pq.read_table(lists / "a.parquet").append_column("noise", noise)
    pq.write_table(table, lists / "a.parquet", compression="none", use_dictionary=False)
    size = (lists / "a.parquet").stat().st_size
    with pytest.raises(DataError, match="none of the 3000 rows passes"):
        read(f"{address(server)}/a.parquet", tmp_path / "out", filter="n < 0", rows=5)
    ends = [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for _, asked in server.asked]
    assert sum(last - first + 1 for first, last in ends) < size / 4


def test_a_remote_list_is_known_by_its_state(lists: Path, memory: str, server: Any, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path, change in (
        (f"{memory}/b.csv", lambda: fs.pipe_file(f"{memory}/b.csv", b"url,text,n\nhttp://B,b,-1\n")),
        (f"{address(server)}/b.csv", lambda: (lists / "b.csv").write_text("url,text,n\nhttp://longer,b,-1\n")),
    ):
        found = UrlList(Source(type="urls", path=path))
        ((name, size, state),) = found.identity()
        assert (name, size, bool(state)) == ("b.csv", 25, True)
        assert UrlList(Source(type="urls", path=path)).identity() == found.identity()
        first = found.snapshot(tmp_path / "out")
        change()
        again = UrlList(Source(type="urls", path=path))
        assert again.identity() != found.identity()
        assert again.snapshot(tmp_path / "out") != first


def test_what_is_not_there_is_told(memory: str, server: Any, tmp_path: Path) -> None:
    for path in (f"{memory}/gone.csv", f"{address(server)}/gone.csv"):
        with pytest.raises(ConfigError, match=r"sources\.gone\.path: .*gone\.csv.* no such file"):
            UrlList(Source(type="urls", path=path))
    with pytest.raises(ConfigError, match=r"has no \.parquet, \.csv"):
        UrlList(Source(type="urls", path=f"{memory}/*.html"))
    with pytest.raises(ConfigError, match=r"e\.html is not a list that capfilt reads"):
        UrlList(Source(type="urls", path=f"{memory}/e.html"))
    with pytest.raises(ConfigError, match=r"Protocol not known.*give a path of this machine, or s3://"):
        UrlList(Source(type="urls", path="gopher://a/b.csv"))
    url = f"{address(server)}/b.csv"
    server.shutdown()
    server.server_close()
    with pytest.raises(ConfigError, match=r"no such file, or it cannot be reached \(.*127.0.0.1"):
        UrlList(Source(type="urls", path=url))


def test_a_server_that_fails_while_it_is_read_is_told(
    lists: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [UrlList(Source(type="urls", path=f"{address(server)}/{name}")) for name in ("a.parquet", "b.csv")]
    for path in lists.iterdir():
        path.unlink()
    for one, name in zip(found, ("a.parquet", "b.csv"), strict=True):
        with pytest.raises(DataError, match=rf"^http://127.0.0.1:\d+/{name}: cannot be read \(.*network"):
            one.snapshot(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("path", "package", "extra"),
    [
        ("s3://bucket/*.parquet", "s3fs", "s3"),
        ("gs://bucket/a.csv", "gcsfs", "gs"),
        ("https://a.example/a.csv", "aiohttp", "urls"),
    ],
)
def test_a_missing_package_is_named(path: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = path.split(":")[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=rf"{scheme}:// needs {package}: pip install 'capfilt\[{extra}\]'"):
        UrlList(Source(type="urls", path=path))
