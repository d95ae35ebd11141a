"""Redirects, time, size, encodings, broken answers, TLS: what a server does, and the reason that is told."""

import errno
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import capfilt
from capfilt.config.source import Download
from capfilt.download.opener import Opener
from capfilt.download.reasons import REASONS, FetchError, may_pass
from tests.download.conftest import BODY, CONTEXT, Names, fetch, reason
from tests.download.server import HostileServer

Ask = Callable[..., Opener]


def test_a_body_comes_as_it_was_sent(server: HostileServer, ask_server: Ask) -> None:
    opener = ask_server()
    for do in ("", "chunked", "close"):
        body, outcome = fetch(opener, server.url("/a.jpg", do=do))
        assert (body, outcome.url, outcome.x_robots_tag) == (BODY, server.url("/a.jpg", do=do), None)


def test_we_say_who_we_are_and_nothing_else(server: HostileServer, ask_server: Ask) -> None:
    headers = {"User-Agent": "Mozilla/5.0", "Cookie": "a=b", "Referer": "http://x/", "Authorization": "Basic eA=="}
    opener = ask_server(contact="https://example.org/capfilt")
    with opener.open(urllib.request.Request(server.url("/a.jpg", do="redirect"), headers=headers)) as response:
        assert (response.url, response.headers["Content-Length"]) == (server.url("/a.jpg"), str(len(BODY)))
    agent = f"capfilt/{capfilt.__version__} (+https://example.org/capfilt)"
    expected = {"host": f"127.0.0.1:{server.port}", "user-agent": agent, "accept-encoding": "identity"}
    assert [request.headers for request in server.requests] == [expected | {"connection": "close"}] * 2
    fetch(ask_server(), server.url("/b.jpg"))
    assert server.requests[-1].headers["user-agent"] == f"capfilt/{capfilt.__version__}"


def test_only_get_is_sent(server: HostileServer, ask_server: Ask) -> None:
    url = server.url("/a.jpg")
    for request in (urllib.request.Request(url, data=b"x"), urllib.request.Request(url, method="DELETE")):
        with pytest.raises(FetchError, match="only GET"):
            ask_server().open(request)
    assert server.connections == 0


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_up_to_the_limit(code: int, server: HostileServer, ask_server: Ask) -> None:
    opener = ask_server(max_redirects=2)
    body, outcome = fetch(opener, server.url("/a.jpg", do="redirect", n=2, code=code))
    assert (body, outcome.url) == (BODY, server.url("/a.jpg"))
    before = len(server.requests)
    assert reason(opener, server.url("/a.jpg", do="redirect", n=3, code=code)) == "redirects"
    assert len(server.requests) == before + 3
    assert reason(ask_server(max_redirects=0), server.url("/a.jpg", do="redirect", code=code)) == "redirects"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "redirects"),
        ("", "redirects"),
        ("/b.jpg", None),
        ("b.jpg#x", None),
        ("\u00fc.jpg", "http_404"),
        ("http://[", "url_refused"),
        ("//[::1]:22/", "url_refused"),
        ("/a b.jpg", "url_refused"),
        ("/\x0b.jpg", "url_refused"),
        ("\\\\127.0.0.1\\a", "url_refused"),
        ("http://user@127.0.0.1/", "url_refused"),
    ],
)
def test_any_location(url: str | None, expected: str | None, server: HostileServer, ask_server: Ask) -> None:
    options = {} if url is None else {"url": url}
    assert reason(ask_server(), server.url("/a.jpg", do="to", **options)) == expected


FAULTS = [
    ({"do": "status", "code": 404}, "http_404", "the server answered 404"),
    ({"do": "status", "code": 206}, "http_206", "the server answered 206"),
    ({"do": "status", "code": 304}, "http_304", "the server answered 304"),
    ({"do": "status", "code": 503}, "http_503", "the server answered 503"),
    ({"do": "loop"}, "redirects", "more than 3 redirects"),
    ({"do": "far"}, "url_refused", "a URL of 9001 characters; at most 8192"),
    ({"do": "longer"}, "incomplete", "the body ends before the 25610 bytes that were announced"),
    ({"do": "bad_chunk", "size": "-1"}, "incomplete", "the body ends too early"),
    ({"do": "bad_chunk", "size": "zz"}, "incomplete", "the body ends too early"),
    ({"do": "bad_chunk", "size": "f" * 20}, "too_many_bytes", "more than 1000000 bytes came"),
    ({"do": "huge"}, "too_many_bytes", "1000000000 bytes are announced; at most 1000000 are taken"),
    ({"do": "endless"}, "too_many_bytes", "more than 1000000 bytes came"),
    ({"do": "endless", "chunked": 1}, "too_many_bytes", "more than 1000000 bytes came"),
    ({"do": "gzip"}, "content_encoding", "Content-Encoding: 'gzip'"),
    ({"do": "encoding", "value": "identity"}, None, ""),
    ({"do": "transfer", "value": ["gzip, chunked"]}, "content_encoding", "Transfer-Encoding: 'gzip, chunked'"),
    ({"do": "transfer", "value": ["chunked "]}, "content_encoding", "Transfer-Encoding: 'chunked '"),
    ({"do": "transfer", "value": ["chunked", "gzip"]}, "content_encoding", "Transfer-Encoding: 'chunked, gzip'"),
    ({"do": "headers"}, "too_many_bytes", "headers of more than 100 lines or 65536 bytes"),
    ({"do": "long_header"}, "too_many_bytes", "headers of more than 100 lines or 65536 bytes"),
    ({"do": "fat_headers"}, "too_many_bytes", "headers of more than 100 lines or 65536 bytes"),
    ({"do": "garbage"}, "connection", "no answer in HTTP"),
    ({"do": "old"}, "connection", "no answer in HTTP"),
    ({"do": "reset"}, "connection", "the server closed the connection"),
    ({"do": "html"}, None, ""),
    ({"do": "truncated"}, None, ""),
]


@pytest.mark.parametrize(("deed", "expected", "told"), FAULTS, ids=[str(deed) for deed, _, _ in FAULTS])
def test_a_misdeed_has_its_reason(
    deed: dict[str, Any], expected: str | None, told: str, server: HostileServer, ask_server: Ask
) -> None:
    opener = ask_server(max_bytes=10**6)
    for _ in range(2):
        outcome = fetch(opener, server.url("/a.jpg", **deed))[1]
        assert (outcome.reason, outcome.message) == (expected, told)
        assert expected is None or expected in REASONS or expected.startswith("http_")


def test_many_small_chunks_are_no_headers(server: HostileServer, ask_server: Ask) -> None:
    assert fetch(ask_server(), server.url("/a.jpg", do="chunked", size=1))[0] == BODY


def test_every_socket_is_closed(server: HostileServer, ask_server: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda sock, where: (made.append(sock), connect(sock, where))[1])
    opener = ask_server(timeout=0.3)
    for do in ("", "redirect", "huge", "hang", "reset", "garbage", "gzip", "headers", "status"):
        fetch(opener, server.url("/a.jpg", do=do))
    fetch(ask_server(allow_hosts=["127.0.0.1"]), "http://127.0.0.1:1/")
    assert [sock.fileno() for sock in made] == [-1] * 11


def test_a_body_of_the_limit_comes(server: HostileServer, ask_server: Ask) -> None:
    for do in ("", "chunked", "close"):
        assert fetch(ask_server(max_bytes=len(BODY)), server.url("/a.jpg", do=do))[0] == BODY
        assert reason(ask_server(max_bytes=len(BODY) - 1), server.url("/a.jpg", do=do)) == "too_many_bytes"


@pytest.mark.parametrize("do", ["drip_header", "drip_body", "hang"])
def test_slow_servers_are_cut_at_the_deadline(do: str, server: HostileServer, ask_server: Ask) -> None:
    server.bodies["/a.jpg"] = b"x" * 200
    start = time.monotonic()
    outcome = fetch(ask_server(timeout=0.4), server.url("/a.jpg", do=do))[1]
    took = time.monotonic() - start
    assert (outcome.reason, outcome.message) == ("timeout", "not done after 0.4 s")
    assert 0.4 <= took < 2  # a byte each 0.05 s: by read, it would be 10 s


def test_redirects_share_one_deadline(server: HostileServer, ask_server: Ask) -> None:
    url = server.url("/a.jpg", do="redirect", n=6, after=0.1)
    assert reason(ask_server(timeout=0.4, max_redirects=20), url) == "timeout"
    assert reason(ask_server(timeout=5, max_redirects=20), url) is None


def test_a_slow_resolver_is_not_counted(server: HostileServer, ask_server: Ask) -> None:
    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(0.5)
        return Names({"slow.example": ["127.0.0.1"]})(*args, **more)

    opener = ask_server(resolve=slow, timeout=0.4, allow_hosts=["slow.example"])
    assert reason(opener, server.url("/a.jpg", host="slow.example")) is None


def test_nobody_there(ask_server: Ask) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    outcome = fetch(ask_server(allow_hosts=["127.0.0.1"]), f"http://127.0.0.1:{port}/")[1]
    assert (outcome.reason, outcome.message) == ("connection", "Connection refused")


@given(st.binary(max_size=300), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"CHUNKED"]))
def test_whatever_a_server_sends_only_a_fetch_error_leaves(raw: bytes, start: bytes) -> None:
    if start == b"CHUNKED":
        start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ours, theirs = socket.socketpair()
    theirs.sendall(start + raw)
    theirs.close()
    opener = Opener(Download(timeout=1, retries=0), context=CONTEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capfilt.download.connection._connect", lambda *_: ours)
        assert reason(opener, "http://93.184.216.34/") in {None, *REASONS, *(f"http_{n}" for n in range(100, 1000))}
    assert opener.last().local_error is None


def test_a_full_disk_is_no_reason(server: HostileServer, ask_server: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.bodies["/large"] = b"x" * (2**20 + 1)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", full)
    opener = ask_server(retries=3)
    with pytest.raises(OSError, match="No space") as caught:
        opener.open(urllib.request.Request(server.url("/large")))
    assert (opener.last().local_error, opener.last().reason) == (caught.value, None)
    assert (server.hits["/large"], reason(opener, server.url("/a.jpg"))) == (1, None)


def test_a_disk_that_fails_at_reading_is_no_reason(server: HostileServer, ask_server: Ask) -> None:
    server.bodies["/large"] = b"x" * (2**20 + 1)
    opener = ask_server()
    response = opener.open(urllib.request.Request(server.url("/large")))
    response._file._file.close()
    with pytest.raises(ValueError, match="closed"):
        response.read()
    assert isinstance(opener.last().local_error, ValueError)
    assert opener._budget._used == 0


def test_large_bodies_lie_in_the_folder(server: HostileServer, tmp_path: Path) -> None:
    server.bodies["/large"] = b"x" * (2**20 + 1)
    rules = Download(allow_hosts=["127.0.0.1"], retries=0)
    with pytest.raises(FileNotFoundError):
        Opener(rules, folder=tmp_path / "none", context=CONTEXT).open(urllib.request.Request(server.url("/large")))
    assert fetch(Opener(rules, folder=tmp_path, context=CONTEXT), server.url("/large"))[0] == server.bodies["/large"]
    assert list(tmp_path.iterdir()) == []


def test_out_of_descriptors_is_no_reason(ask_server: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "connect", none_left)
    opener = ask_server()
    with pytest.raises(OSError, match="Too many"):
        opener.open(urllib.request.Request("http://93.184.216.34/"))
    assert opener.last().local_error is not None


def test_each_thread_has_its_own_outcome(server: HostileServer, ask_server: Ask) -> None:
    opener = ask_server()
    assert reason(opener, server.url("/none")) == "http_404"
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend((opener.last(), fetch(opener, server.url("/a.jpg"))[1])))
    thread.start()
    thread.join()
    assert [(outcome.url, outcome.reason) for outcome in seen] == [("", None), (server.url("/a.jpg"), None)]
    assert opener.last().reason == "http_404"
    assert opener.last() is opener.last()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Self-signed, for good.test and 127.0.0.2."""
    folder = tmp_path_factory.mktemp("tls")
    line = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=good.test", "-addext", "subjectAltName=DNS:good.test,IP:127.0.0.2"]
    found = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run([*line, *names, "-out", found[0], "-keyout", found[1]], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate without openssl ({error})")
    return found


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[HostileServer]:
    with HostileServer({"/a.jpg": BODY}, tls=certificate) as running:
        yield running


def test_certificates_are_checked(secure: HostileServer, certificate: tuple[Path, Path]) -> None:
    names = Names({"good.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    rules = Download(timeout=2, retries=2, backoff=0, allow_hosts=["good.test", "other.test", "127.0.0.1"])
    trusting = Opener(rules, resolve=names, context=ssl.create_default_context(cafile=str(certificate[0])))
    assert fetch(trusting, secure.url("/a.jpg", host="good.test"))[0] == BODY
    assert reason(trusting, secure.url("/a.jpg", host="good.test", do="longer")) == "incomplete"
    for name in ("other.test", "127.0.0.1"):
        outcome = fetch(trusting, secure.url("/a.jpg", host=name))[1]
        assert outcome.reason == "tls"
        assert "certificate was refused: " in outcome.message
        assert "match" in outcome.message
    told = fetch(Opener(rules, resolve=names), secure.url("/a.jpg", host="good.test"))[1].message
    assert told == "the certificate was refused: self-signed certificate"
    assert not may_pass("tls")
    assert sum(secure.hits.values()) == 4  # the whole one, and three tries of the incomplete one


def test_a_deadline_holds_under_tls(secure: HostileServer, certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    rules = Download(timeout=0.4, retries=0, allow_hosts=["good.test"])
    opener = Opener(rules, resolve=Names({"good.test": ["127.0.0.1"]}), context=context)
    for do in ("drip_header", "drip_body"):
        assert reason(opener, secure.url("/a.jpg", host="good.test", do=do)) == "timeout"


def test_a_server_without_tls(server: HostileServer, ask_server: Ask) -> None:
    url = server.url("/a.jpg").replace("http:", "https:")
    assert reason(ask_server(timeout=0.3), url) == "timeout"  # it waits for the end of a request, as we for its hello
