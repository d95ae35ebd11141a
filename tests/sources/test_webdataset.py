"""Tars that somebody else made: hostile, cut, odd. One file each; the run goes on in all of them."""

import gzip
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.config.source import Source
from capfilt.sources import RawRow, open_source

Rows = Callable[..., list[RawRow]]
Tar = Callable[..., Path]
GOOD = [("good.jpg", b"image"), ("good.txt", b"a text")]


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def told(rows: list[RawRow]) -> list[tuple[str, str | None]]:
    return [(row.key, row.reason) for row in rows]


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../evil.jpg", b"x"), "a name with '..'"),
        (("a/../../evil.jpg", b"x"), "a name with '..'"),
        (("..\\evil.jpg", b"x"), "a name with '..'"),
        (("/etc/evil.jpg", b"x"), "an absolute name"),
        (info("evil.jpg", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
        (info("evil.jpg", tarfile.LNKTYPE, "good.jpg"), "a hard link"),
        (info("evil.jpg", tarfile.CHRTYPE), "a device"),
        (info("evil.jpg", tarfile.FIFOTYPE), "a pipe"),
    ],
)
def test_members_that_are_no_plain_files_are_rows_with_a_fault(
    member: object, why: str, make_tar: Tar, all_rows: Rows
) -> None:
    rows = all_rows("webdataset", make_tar([GOOD[0], member, GOOD[1]]))
    assert [row.reason for row in rows] == ["tar_member", None]
    assert why in str(rows[0].error)
    assert rows[0].image is None
    assert (rows[1].image, rows[1].text) == (b"image", "a text")


def test_pickles_and_other_fields_are_not_read(make_tar: Tar, all_rows: Rows) -> None:
    rows = all_rows(
        "webdataset", make_tar([*GOOD, ("good.pkl", b"cos\nsystem\n"), ("good.cls", b"1"), ("._x.jpg", b"")])
    )
    assert told(rows) == [("00000/good", None)]
    assert b"system" not in repr(rows).encode()


def test_fields_that_are_there_twice(make_tar: Tar, all_rows: Rows) -> None:
    rows = all_rows("webdataset", make_tar([*GOOD, ("good.JPG", b"other"), ("next.jpg", b"1")]))
    assert told(rows) == [("00000/good", "tar_member"), ("00000/next", None)]
    assert "two members of the suffix 'jpg'" in str(rows[0].error)


def test_parts_that_lie_apart_are_rows_of_their_own(make_tar: Tar, all_rows: Rows) -> None:
    rows = all_rows("webdataset", make_tar([GOOD[0], ("b.jpg", b"1"), GOOD[1], ("b.txt", b"2")]))
    assert told(rows) == [
        ("00000/good", None),
        ("00000/b", None),
        ("00000/good#1", "tar_member"),
        ("00000/b#1", "tar_member"),
    ]


def test_members_that_are_too_large_are_not_read(make_tar: Tar, all_rows: Rows) -> None:
    path = make_tar([("a.jpg", bytes(5 * 2**20)), ("b.txt", bytes(3 * 2**20)), ("b.jpg", b"1"), *GOOD])
    open_source(Source(type="webdataset", path=str(path)))
    tracemalloc.start()
    rows = all_rows("webdataset", path, max_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told(rows) == [("00000/a", "too_many_bytes"), ("00000/b", "tar_member"), ("00000/good", None)]
    assert peak < 2 * 2**20


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_cut_tar_keeps_what_comes_before(mode: str, make_tar: Tar, all_rows: Rows) -> None:
    noise = [Random(i).randbytes(3000) for i in range(9)]
    path = make_tar([(f"{i}.{s}", noise[i]) for i in range(9) for s in ("jpg", "txt")], mode=mode)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    rows = all_rows("webdataset", path, max_bytes=10**6)
    assert rows[-1].reason == "source_damaged"
    assert rows[-1].key == "00000/(rest)"
    assert str(path.parent) not in str(rows[-1].error)
    assert [row.reason for row in rows[:-1]] == [None] * (len(rows) - 1)
    assert [row.image for row in rows[:-1]] == noise[: len(rows) - 1]
    assert len(rows) > 4 or mode in ("w:bz2", "w:xz")


def test_a_missing_end_mark_costs_no_sample(make_tar: Tar, all_rows: Rows) -> None:
    path = make_tar(GOOD)
    path.write_bytes(path.read_bytes()[: 4 * 512])
    rows = all_rows("webdataset", path)
    assert told(rows) == [("00000/good", None), ("00000/(rest)", "source_damaged")]


@pytest.mark.parametrize("stated", [b"-5", b"99999999999999999999", b"x"])
def test_sizes_that_cannot_be(stated: bytes, make_tar: Tar, all_rows: Rows) -> None:
    path = make_tar([*GOOD, ("b.jpg", b"1"), ("c.jpg", b"1")])
    data = bytearray(path.read_bytes())
    record = b"%d size=%b\n" % (len(stated) + 9, stated)
    header = info("pax", tarfile.XHDTYPE)
    header.size = len(record)
    data[4 * 512 : 4 * 512] = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    path.write_bytes(data)
    assert told(all_rows("webdataset", path))[-1] == ("00000/(rest)", "source_damaged")


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path, all_rows: Rows) -> None:
    header = info("pax", tarfile.GNUTYPE_LONGNAME)
    header.size = 2**30
    with gzip.open(tmp_path / "00000.tar.gz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    rows = all_rows("webdataset", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert told(rows) == [("00000/(rest)", "source_damaged")]
    assert "above the cap" in str(rows[0].error)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(form: int, tmp_path: Path, all_rows: Rows) -> None:
    name = "d" * 90 + "/" + "猫" * 90
    with tarfile.open(tmp_path / "00000.tar", "w", format=form) as tar:
        tar.addfile(info("./dir", tarfile.DIRTYPE))
        for suffix in ("left.jpg", "left.txt"):
            member = tarfile.TarInfo(f"./{name}.{suffix}")
            member.size = 3
            tar.addfile(member, BytesIO(b"abc"))
    (row,) = all_rows("webdataset", tmp_path, columns={"image": "left.jpg", "text": "left.txt"})
    assert (row.key, row.image, row.text) == (f"00000/{name}", b"abc", "abc")


def test_the_json_gives_url_meta_and_texts(make_tar: Tar, all_rows: Rows) -> None:
    record = {"caption": ["one", "two \ud800"], "url": "https://a.example", "similarity": 0.3, "nothing": 1}
    deep = b'{"a":' + b"[" * 100_000
    members = [("a.jpg", b"1"), ("a.json", json.dumps(record).encode()), ("b.json", deep), ("b.jpg", b"2")]
    rows = all_rows("webdataset", make_tar(members), rows_per_shard=1)
    assert [(row.key, row.text) for row in rows] == [("00000/a", "one"), ("00000/a#1", "two �"), ("00000/b", None)]
    assert rows[0].url == "https://a.example"
    assert rows[1].meta == {"similarity": 0.3, "text_mended": True}
    assert (rows[2].meta, rows[2].image) == ({"json_unreadable": True}, b"2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_tar_of_rows(data: st.DataObject, make_tar: Tar, all_rows: Rows) -> None:
    path = make_tar([*GOOD, ("b.json", b"{}"), ("b.jpg", b"1")], mode=data.draw(st.sampled_from(["w", "w:gz"])))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 4096) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    rows = all_rows("webdataset", path)
    assert rows == all_rows("webdataset", path, rows_per_shard=1)
    assert len({row.key for row in rows}) == len(rows)
