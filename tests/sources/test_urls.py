"""The `urls` source on a real server: every row of the list is a row, in order, whatever its URL gives."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source
from capfilt.download import body_buffer as spool
from capfilt.errors import RunError
from capfilt.sources import RawRow, open_source
from capfilt.sources.urls import LISTS, UrlsReader
from tests.download.server import HostileServer
from tests.pictures import encode, photo

IMAGES = [encode(photo(seed=i)) for i in range(4)]
Read = Callable[..., list[RawRow]]


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer({f"/{i}.png": image for i, image in enumerate(IMAGES)}) as running:
        yield running


@pytest.fixture
def reader(tmp_path: Path) -> Callable[..., UrlsReader]:
    """reader(columns, rules={...}, name=..., ...): of a list with these columns; the rest are of `download`."""

    def make(columns: dict[str, list[Any]], rules: dict[str, Any] | None = None, **download: Any) -> UrlsReader:
        pq.write_table(pa.table(columns), tmp_path / "list.parquet")
        download = {"threads": 8, "retries": 0, "timeout": 2, "allow_hosts": ["127.0.0.1"], **download}
        source = Source.model_validate({"type": "urls", "path": str(tmp_path / "list.parquet"), "download": download})
        found = open_source(source, IngestSettings(**rules or {}), tmp_path / "run")
        assert isinstance(found, UrlsReader)
        return found

    return make


@pytest.fixture
def read(reader: Callable[..., UrlsReader]) -> Read:
    """All rows of such a list, unit by unit."""

    def all_rows(columns: dict[str, list[Any]], rows_per_shard: int = 100, **options: Any) -> list[RawRow]:
        found = reader(columns, **options)
        return [row for unit in found.shard_specs(rows_per_shard) for row in found.rows(unit)]

    return all_rows


def test_urls_give_a_row_each_in_the_lists_order(server: HostileServer, read: Read) -> None:
    urls = [server.url("/0.png", do="drip_header"), server.url("/1.png"), None, server.url("/gone.png")]
    found = read({"url": urls, "text": ["a", "b", "c", "d"]}, rows_per_shard=3, timeout=0.5)
    assert [row.reason for row in found] == ["timeout", None, "url_missing", "http_404"]
    assert [row.image for row in found] == [None, IMAGES[1], None, None]
    assert [row.text for row in found] == ["a", "b", "c", "d"]
    assert [row.key for row in found] == [f"list.parquet#{i}" for i in range(4)]


def test_urls_that_occur_often_are_asked_once_a_shard(server: HostileServer, read: Read) -> None:
    urls = [server.url(f"/{i % 2}.png") for i in range(10)]
    found = read({"url": urls, "text": list("abcdefghij")})
    assert [row.image for row in found] == [IMAGES[i % 2] for i in range(10)]
    assert sum(server.hits.values()) == 2
    captions = read({"url": urls[:1], "text": [["one", "two", "three"]]})
    assert [row.text for row in captions] == ["one", "two", "three"]
    assert sum(server.hits.values()) == 3


def test_urls_of_rows_that_must_not_be_asked_for_are_not(server: HostileServer, read: Read, tmp_path: Path) -> None:
    hashes = [hashlib.sha256(image).hexdigest() for image in IMAGES]
    (tmp_path / "bad").write_text(hashes[0])
    (tmp_path / "hosts").write_text("0.9.example\n")
    urls = [*(server.url(f"/{i}.png") for i in range(3)), "http://a.127.0.0.9.example/3.png"]
    columns = {"url": urls, "text": ["t"] * 4, "sha256": [hashes[0], hashes[1], None, hashes[3]]}
    found = read(
        columns, rules={"block_hashes": str(tmp_path / "bad")}, require_hash=True, block_hosts=str(tmp_path / "hosts")
    )
    assert [row.reason for row in found] == ["blocked", None, "hash_missing", "blocked_host"]
    assert list(server.hits) == ["/1.png"]
    assert found[1].sha256 == hashes[1]


def test_urls_at_some_positions_alone_are_asked_for(server: HostileServer, reader: Callable[..., UrlsReader]) -> None:
    made = reader({"url": [server.url(f"/{i}.png") for i in range(4)], "text": list("abcd")})
    (unit,) = made.shard_specs(10)
    assert [row.text for row in made.rows(unit, [1, 3])] == ["b", "d"]
    assert sorted(server.hits) == ["/1.png", "/3.png"]


def test_resized_urls_are_verified_as_they_came_and_kept_as_jpeg(server: HostileServer, read: Read) -> None:
    hashes = [hashlib.sha256(image).hexdigest() for image in IMAGES]
    urls = [server.url("/0.png"), server.url("/1.png"), server.url("/2.png", do="html")]
    columns = {"url": urls, "text": ["t"] * 3, "sha256": [hashes[0], "0" * 64, None]}
    good, other, page = read(columns, resize="keep_ratio", image_size=20)
    assert Image.open(BytesIO(good.image or b"")).size == (30, 20)
    assert (good.sha256, good.meta["fetch"]) == (None, {"sha256": hashes[0]})
    assert (other.image, other.reason) == (None, "hash_mismatch")
    assert (page.image, page.reason) == (None, "image_unreadable")


def test_where_redirects_ended_is_told(server: HostileServer, read: Read) -> None:
    (row,) = read({"url": [server.url("/0.png", do="redirect", n=2)], "text": ["t"]})
    assert row.meta == {"fetch": {"url": server.url("/0.png")}}
    assert row.url == server.url("/0.png", do="redirect", n=2)


@pytest.mark.parametrize(
    ("make_url", "advice"),
    [
        (lambda server, i: server.url(f"/{i}", do="status", code=403), "refuse this user agent; set download.contact"),
        (lambda server, i: f"not an url {i}", "is the right column taken for URLs"),
        (lambda server, i: server.url(f"/{i}", do="reset"), "is this machine on the network"),
        (lambda server, i: f"http://192.168.0.{i}/a.png", "the list names private addresses"),
        (lambda server, i: server.url(f"/{i}"), "look at the list's age"),
    ],
)
def test_urls_that_nearly_all_fail_stop_the_run_with_advice(
    server: HostileServer, read: Read, make_url: Callable[[HostileServer, int], str], advice: str
) -> None:
    urls = [make_url(server, i) for i in range(60)]
    with pytest.raises(RunError, match=advice):
        read({"url": urls, "text": ["t"] * 60})
    assert len(read({"url": urls, "text": ["t"] * 60}, max_error_rate=1)) == 60
    assert len(read({"url": urls[:40], "text": ["t"] * 40})) == 40


def test_urls_whose_owners_opt_out_are_no_sign_of_a_broken_machine(server: HostileServer, read: Read) -> None:
    urls = [server.url("/0.png", do="tag", tag="noai", i=i) for i in range(60)]
    assert {row.reason for row in read({"url": urls, "text": ["t"] * 60})} == {"opt_out"}


def test_no_room_for_bodies_is_the_machines_fault_not_the_rows(
    server: HostileServer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(spool.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        read({"url": [server.url("/0.png")], "text": ["t"]})


def test_a_reader_that_stops_early_leaves_no_thread_and_no_file(
    server: HostileServer, reader: Callable[..., UrlsReader], tmp_path: Path
) -> None:
    urls = [server.url("/0.png"), *(server.url(f"/{i}", do="status", code=503) for i in range(50))]
    made = reader({"url": urls, "text": ["t"] * 51}, backoff=60, retries=5)
    (unit,) = made.shard_specs(100)
    rows = made.rows(unit)
    assert next(rows).image == IMAGES[0]
    rows.close()  # type: ignore[attr-defined]
    assert sorted(p.suffix for p in (tmp_path / "run" / LISTS).iterdir()) == [".json", ".parquet"]
