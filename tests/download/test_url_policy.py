"""Hostile URLs: every one is refused for its reason, and no connection is made to anything.

Every `connect` of the process is recorded and led to a real listening server: were one let through, both would tell.
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.config.source import Download
from capfilt.download.addresses import non_public_kind
from capfilt.download.blocklist import allow_list, read_hosts
from capfilt.download.opener import Opener
from capfilt.download.reasons import REASONS, FetchError, may_pass
from capfilt.download.url_policy import UrlPolicy
from capfilt.errors import ConfigError
from tests.download.conftest import Names, fetch, reason
from tests.download.server import HostileServer

PUBLIC = "93.184.216.34"
NAMES: dict[str, Any] = {
    "good.example": [PUBLIC],
    "localhost": ["127.0.0.1", "::1"],
    "localtest.example": ["127.0.0.1"],
    "intranet.example": ["10.1.2.3"],
    "metadata.google.internal": ["169.254.169.254"],
    "mixed.example": [PUBLIC, "192.168.0.7"],
    "mixed6.example": ["2606:2800:220:1:248:1893:25c8:1946", "fd00::1"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "6to4.example": ["2002:7f00:1::"],
    "scoped.example": ["fe80::1%2"],
    "sitelocal.example": ["fec0::1"],
    "zero.example": ["0.0.0.0"],
    "nothing.example": [],
    "bad.blocked.example": [PUBLIC],
    "blocked.example": [PUBLIC],
    "xn--bcher-kva.example": [PUBLIC],
}
REFUSED = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "data:image/png;base64,AAAA",
    "ftp://good.example/a.jpg",
    "gopher://good.example:70/1",
    "javascript:alert(1)",
    "jar:http://good.example/a.jar!/b",
    "http:good.example/a.jpg",
    "http:/good.example/a.jpg",
    "http:///a.jpg",
    "http://?a.jpg",
    "http://:80/a.jpg",
    "http://user@good.example/a.jpg",
    "http://user:password@good.example/a.jpg",
    "http://good.example@127.0.0.1/a.jpg",
    "http://good.example\\@127.0.0.1/",
    "http://127.0.0.1\\.good.example/",
    "http:\\\\127.0.0.1\\a.jpg",
    "http://good.example/a b.jpg",
    "http://good.example/a\r\nHost: intranet.example\r\n\r\n",
    "http://good.ex\tample/a.jpg",
    "http://good.example/a\x00.jpg",
    "http://good.example/a\x85b.jpg",
    "http://good.example/a\u2028b.jpg",
    "http://good.example/\ud800.jpg",
    "http://good.example:22/a.jpg",
    "http://good.example:6379/a.jpg",
    "http://good.example:8080/a.jpg",
    "http://good.example:0/a.jpg",
    "http://good.example:65616/a.jpg",  # 80 in 16 bits
    "http://good.example:80:80/a.jpg",
    "http://good.example:http/a.jpg",
    "http://good.example:\u0668\u0660/a.jpg",  # Arabic digits
    "http://2130706433/a.jpg",
    "http://0x7f000001/a.jpg",
    "http://0x7f.1/a.jpg",
    "http://017700000001/a.jpg",
    "http://0177.0.0.1/a.jpg",
    "http://127.1/a.jpg",
    "http://127.0.1/a.jpg",
    "http://0/a.jpg",
    "http://1572395042/a.jpg",  # a public address, but not written as one
    "http://93.184.216.034/a.jpg",
    "http://127.0.0.1./a.jpg",
    "http://93.184.216.34./a.jpg",
    "http://256.256.256.256/a.jpg",
    "http://1.2.3.4.5/a.jpg",
    "http://good.example.0x7f/a.jpg",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/a.jpg",  # circled digits: 127.0.0.1 after NFKC
    "http://\uff11\uff12\uff17.0.0.1/a.jpg",  # fullwidth digits
    "http://127\u30020\u30020\u30021/a.jpg",  # ideographic full stops
    "http://127%2e0.0.1/a.jpg",
    "http://good.example%00.intranet.example/a.jpg",
    "http://good..example/a.jpg",
    "http://good.example../a.jpg",
    "http://./a.jpg",
    "http://" + "a" * 64 + ".example/a.jpg",
    "http://" + "a." * 130 + "example/a.jpg",
    "http://a\u0338\u200d.example/a.jpg",
    "http://[::1/a.jpg",
    "http://[::1]x/a.jpg",
    "http://::1/a.jpg",
    "http://[127.0.0.1]/a.jpg",
    "http://[fe80::1%25eth0]/a.jpg",
    "http://[fe80::1%eth0]/a.jpg",
    "http://[v1.fe80::1]/a.jpg",
    "http://good.example/" + "a" * 8192,
]
NOT_PUBLIC = [
    "http://127.0.0.1/a.jpg",
    "https://127.0.0.1/a.jpg",
    "http://127.0.0.1:443/a.jpg",
    "http://127.0.0.1#@good.example/",  # good.example to some parsers
    "http://127.8.8.8/a.jpg",
    "http://0.0.0.0/a.jpg",
    "http://10.0.0.1/a.jpg",
    "http://172.16.0.1/a.jpg",
    "http://192.168.1.1/a.jpg",
    "http://100.64.0.1/a.jpg",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://192.88.99.1/a.jpg",
    "http://198.18.0.1/a.jpg",
    "http://203.0.113.1/a.jpg",
    "http://224.0.0.1/a.jpg",
    "http://240.0.0.1/a.jpg",
    "http://255.255.255.255/a.jpg",
    "http://[::]/a.jpg",
    "http://[::1]/a.jpg",
    "http://[0:0:0:0:0:0:0:1]/a.jpg",
    "http://[::ffff:127.0.0.1]/a.jpg",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data/",
    "http://[::127.0.0.1]/a.jpg",
    "http://[64:ff9b::127.0.0.1]/a.jpg",
    "http://[64:ff9b:1::7f00:1]/a.jpg",
    "http://[2002:a9fe:a9fe::1]/a.jpg",
    "http://[2001:0:7f00:1::1]/a.jpg",
    "http://[fe80::1]/a.jpg",
    "http://[fec0::1]/a.jpg",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]/a.jpg",
    "http://[2001:db8::1]/a.jpg",
    "http://[3fff::1]/a.jpg",
    "http://localhost/a.jpg",
    "http://LOCALHOST./a.jpg",
    "http://localtest.example/a.jpg",
    "http://intranet.example/a.jpg",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://mixed.example/a.jpg",
    "http://mixed6.example/a.jpg",
    "http://mapped.example/a.jpg",
    "http://nat64.example/a.jpg",
    "http://6to4.example/a.jpg",
    "http://scoped.example/a.jpg",
    "http://sitelocal.example/a.jpg",
    "http://zero.example/a.jpg",
]
OTHER = [
    ("http://unknown.example/a.jpg", "dns"),
    ("http://nothing.example/a.jpg", "dns"),
    ("http://blocked.example/a.jpg", "blocked_host"),
    ("https://bad.BLOCKED.example./a.jpg", "blocked_host"),
]
HOSTILE = [(url, "url_refused") for url in REFUSED] + [(url, "address_refused") for url in NOT_PUBLIC] + OTHER
_RELATIVE = ("http:good", "http:/good", "http:///", "http://?")
REDIRECTED = [
    (url, reason)
    for url, reason in HOSTILE
    if len(url) < 8000 and url.isprintable() and not url.startswith(_RELATIVE)  # relative to a host that may be asked
]
IDS = [ascii(url)[1:60] for url, _ in HOSTILE]


class Trap:
    """Where every connection of this process ends, but those to `server`; `tried` are the addresses meant."""

    def __init__(self, trap: HostileServer, server: HostileServer) -> None:
        self.trap, self.server = trap, server
        self.before, self.requests = trap.connections, len(trap.requests)
        self.tried: list[tuple[str, int]] = []
        self.connect = socket.socket.connect

    def lead(self, sock: socket.socket, address: Any) -> None:
        if address[1] == self.server.port:
            return self.connect(sock, address)
        self.tried.append(address[:2])
        host = "::ffff:127.0.0.1" if sock.family == socket.AF_INET6 else "127.0.0.1"
        return self.connect(sock, (host, self.trap.port))

    @property
    def sprung(self) -> tuple[list[tuple[str, int]], int]:
        return self.tried, self.trap.connections - self.before


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer({"/a.jpg": b"a"}) as running:
        yield running


@pytest.fixture(scope="module")
def listening() -> Iterator[HostileServer]:
    with HostileServer({"/a.jpg": b"caught"}) as running:
        yield running


@pytest.fixture
def trap(listening: HostileServer, server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> Trap:
    found = Trap(listening, server)
    monkeypatch.setattr(socket.socket, "connect", lambda sock, address: found.lead(sock, address))
    return found


@pytest.fixture(scope="module")
def guarded(server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """May ask the server, by one name only; knows NAMES."""
    block = tmp_path_factory.mktemp("block") / "hosts.txt"
    block.write_text("# ours\nBlocked.Example  # and below\n\n")
    rules = Download(timeout=1, retries=0, allow_hosts=[f"127.0.0.1:{server.port}"], block_hosts=str(block))
    return Opener(rules, resolve=Names(NAMES))


def test_the_corpus_is_large() -> None:
    assert len({url for url, _ in HOSTILE}) == len(HOSTILE) >= 40


@pytest.mark.parametrize(("url", "expected"), HOSTILE, ids=IDS)
def test_a_hostile_url_is_refused_and_nothing_is_asked(url: str, expected: str, guarded: Opener, trap: Trap) -> None:
    request = type("Request", (), {"full_url": url, "data": None, "get_method": lambda self: "GET"})()
    with pytest.raises(FetchError) as caught:
        guarded.open(request)
    assert caught.value.reason == guarded.last().reason == expected in REASONS
    assert not may_pass(expected)
    assert trap.sprung == ([], 0)


@pytest.mark.parametrize(("url", "expected"), REDIRECTED)
def test_a_redirect_is_guarded_as_the_first_url(
    url: str, expected: str, server: HostileServer, guarded: Opener, trap: Trap
) -> None:
    start = server.url("/a.jpg", do="to", url=url)
    body, outcome = fetch(guarded, start)
    assert (body, outcome.reason, outcome.url) == (None, expected, start)
    assert "redirected to" in outcome.message or expected == "url_refused"
    assert trap.sprung == ([], 0)


def test_the_trap_would_see_a_connection(guarded: Opener, trap: Trap) -> None:
    assert fetch(guarded, "http://good.example/a.jpg")[0] == b"caught"
    assert fetch(guarded, f"http://{PUBLIC}/a.jpg")[0] == b"caught"
    assert reason(guarded, "http://good.example:443/a.jpg") is None
    hasty = Opener(Download(timeout=0.2, retries=0), resolve=Names(NAMES))
    assert reason(hasty, "https://good.example/a.jpg") == "timeout"  # no TLS there
    ports = (80, 80, 443, 443)
    assert trap.sprung == ([(PUBLIC, port) for port in ports], 4)


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("HTTP://Good.Example:80/a.jpg", "good.example", "/a.jpg"),
        ("http://good.example./a.jpg", "good.example", "/a.jpg"),
        ("http://good.example", "good.example", "/"),
        ("http://good.example?q=1#part", "good.example", "/?q=1"),
        ("http://b\u00fccher.example/\u00fc%20.jpg?x=\u4e2d", "xn--bcher-kva.example", "/%C3%BC%20.jpg?x=%E4%B8%AD"),
        ("http://[2606:4700:0:0::1111]/a.jpg", "[2606:4700::1111]", "/a.jpg"),
        ("http://[::ffff:93.184.216.34]:443/a.jpg", "[::ffff:5db8:d822]:443", "/a.jpg"),
    ],
)  # fmt: skip
def test_what_is_asked_for_a_good_url(url: str, host: str, target: str, guarded: Opener, trap: Trap) -> None:
    fetch(guarded, url)
    request = trap.trap.requests[trap.requests]
    assert (request.headers["host"], request.target) == (host, target)


def test_a_name_is_resolved_once_and_connected_to_what_was_checked(trap: Trap) -> None:
    names = Names({"flip.example": [[PUBLIC], ["127.0.0.1"]]})
    opener = Opener(Download(timeout=1, retries=0), resolve=names)
    assert fetch(opener, "http://flip.example/a.jpg")[0] == b"caught"
    assert (names.asked, trap.tried) == (["flip.example"], [(PUBLIC, 80)])
    assert reason(opener, "http://flip.example/a.jpg") == "address_refused"
    assert trap.sprung == ([(PUBLIC, 80)], 1)


def test_a_flip_between_redirect_or_retry_is_seen(trap: Trap) -> None:
    for do in ("loop", "status&code=503"):
        names = Names({"flip.example": [[PUBLIC], ["127.0.0.1"]]})
        opener = Opener(Download(timeout=1, retries=1, backoff=0), resolve=names)
        assert reason(opener, f"http://flip.example/a.jpg?do={do}") == "address_refused"
        assert names.asked == ["flip.example"] * 2
    assert trap.sprung == ([(PUBLIC, 80)] * 2, 2)


def test_the_next_address_is_tried(server: HostileServer, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def broken(sock: socket.socket, address: Any) -> None:
        given.append(sock.gettimeout())
        if address[0] == "93.184.216.35":
            raise ConnectionRefusedError(111, "Connection refused")
        trap.lead(sock, address)

    monkeypatch.setattr(socket.socket, "connect", broken)
    opener = Opener(Download(timeout=10, retries=0), resolve=Names({"two.example": ["93.184.216.35", PUBLIC]}))
    assert fetch(opener, "http://two.example/a.jpg")[0] == b"caught"
    assert given == [pytest.approx(5, abs=1), pytest.approx(10, abs=1)]  # each an equal share of what is left
    alone = Opener(Download(timeout=1, retries=0), resolve=Names({"two.example": ["93.184.216.35"]}))
    assert fetch(alone, "http://two.example/a.jpg")[1].message == "Connection refused"


def test_what_is_allowed_is_allowed_by_hop_and_as_written(server: HostileServer, trap: Trap) -> None:
    names = Names({"inside.example": ["127.0.0.1"], "localhost": ["127.0.0.1"]})
    allowed = Opener(Download(timeout=1, retries=0, allow_hosts=["Inside.example"]), resolve=names)
    there = server.url("/a.jpg", host="INSIDE.example")
    assert reason(allowed, there) is None
    assert reason(allowed, server.url("/a.jpg", host="localhost")) == "url_refused"  # the port
    assert reason(allowed, "http://localhost/a.jpg") == "address_refused"
    assert reason(allowed, server.url("/a.jpg", host="inside.example.")) == "url_refused"
    for target in ("http://localhost/", "http://127.0.0.1/", server.url("/a.jpg")):
        assert reason(allowed, f"{there}?do=to&url={quote(target)}") in ("address_refused", "url_refused")
    assert reason(Opener(Download(retries=0, allow_hosts=["inside.example:81"]), resolve=names), there) == "url_refused"
    assert trap.sprung == ([], 0)


def test_block_list_beats_allow_list(tmp_path: Path, server: HostileServer) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1\n")
    before = server.connections
    opener = Opener(Download(retries=0, allow_hosts=["127.0.0.1"], block_hosts=str(tmp_path / "hosts")))
    assert (reason(opener, server.url("/a.jpg")), server.connections) == ("blocked_host", before)


def test_an_ipv6_host_may_be_allowed() -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 here")
    with HostileServer({"/a.jpg": b"six"}, address="::1") as server:
        for allow, expected in (["[::1]"], b"six"), ([f"[::1]:{server.port}"], b"six"), (["[::1]:1"], None), ([], None):
            opener = Opener(Download(retries=0, allow_hosts=allow))
            assert fetch(opener, server.url("/a.jpg"))[0] == expected


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_no_proxy_from_the_environment(
    server: HostileServer, ask_server: Callable[..., Opener], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert reason(ask_server(), server.url("/a.jpg")) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [("EAI_AGAIN", "dns_temporary"), ("EAI_NONAME", "dns"), ("EAI_FAIL", "dns"), (None, "dns_temporary")],
)
def test_faults_of_the_resolver(code: str | None, expected: str) -> None:
    def resolve(*_: object, **__: object) -> Any:
        raise socket.gaierror(getattr(socket, code), "x") if code else OSError("odd")

    guard = UrlPolicy(frozenset(), frozenset(), resolve)
    with pytest.raises(FetchError) as caught:
        guard.addresses(guard.check("http://good.example/"))
    assert caught.value.reason == expected
    assert may_pass(expected) == (expected == "dns_temporary")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses(address: str) -> None:
    assert non_public_kind(address) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_in_ipv6_clothes(address: Any) -> None:
    clothes = (f"::ffff:{address}", f"64:ff9b::{address}", f"2002:{int(address) >> 16:x}:{int(address) & 65535:x}::")
    assert {non_public_kind(worn) for worn in clothes} == {non_public_kind(str(address))}
    assert (non_public_kind(str(address)) is None) <= (address.is_global and not address.is_multicast)


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "http://[", "http://good.example/", "//"]))
def test_any_text_is_a_target_or_refused(text: str, start: str) -> None:
    try:
        target = UrlPolicy(frozenset(), frozenset()).check(start + text)
    except FetchError:
        return
    line = f"GET {target.path} HTTP/1.1 {target.authority}"
    assert line.isascii()
    assert line.isprintable()
    assert line.count(" ") == 3
    assert UrlPolicy(frozenset(), frozenset()).check(target.url) == target


def test_allow_hosts_must_be_hosts() -> None:
    assert allow_list(["A.example", "[::1]:80", "127.0.0.1:8080"]) == {"a.example", "[::1]:80", "127.0.0.1:8080"}
    for wrong in ("http://a.example", "a.example/x", "::1", "a.example:99999", "a.example:0", "", "a b", "u@a.example"):
        with pytest.raises(ConfigError, match="allow_hosts"):
            allow_list([wrong])


def test_a_block_list_says_which_line_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("\ufeffgood.example\n\n# http://x\nB\u00fccher.example # note\n1.2.3.4\n[::1]\n", encoding="utf-8")
    assert read_hosts(path) == {"good.example", "xn--bcher-kva.example", "1.2.3.4", "[::1]"}
    for wrong in ("http://a.example", "a.example/x", "a.example:80", "0.0.0.0 a.example", "127.1"):
        path.write_text(f"good.example\n{wrong}\n")
        with pytest.raises(ConfigError, match=r"hosts\.txt line 2"):
            read_hosts(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hosts(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        Opener(Download(block_hosts=str(tmp_path / "none.txt")))
