"""Opt-out: X-Robots-Tag of the response, robots.txt of the host."""

import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from capfilt.download import robots
from capfilt.download.opener import Opener
from capfilt.download.optout import REFUSALS, refusal
from capfilt.download.reasons import FetchError, may_pass
from capfilt.download.url_policy import UrlPolicy
from tests.download.conftest import BODY, FakeTime, Names, fetch, reason
from tests.download.server import HostileServer

Ask = Callable[..., Opener]
TAGS: list[tuple[list[str], str | None]] = [
    ([], None),
    (["all"], None),
    (["nofollow, nosnippet"], None),
    (["noai"], "noai"),
    (["noai, noimageai"], "noai"),
    (["noimageai"], "noimageai"),
    (["noml"], "noml"),
    (["NoIndex"], "noindex"),
    (["none"], "none"),
    (["noindex, max-image-preview: large"], "noindex"),
    (["max-image-preview: large, noindex"], "noindex"),
    (["max-image-preview: none"], None),
    (["max-snippet: -1; noai"], "noai"),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
    (["nofollow", "noai"], "noai"),
    (["nofollow", "otherbot: noai"], None),
    (["otherbot: noindex, noai"], None),
    (["otherbot: noindex", "noai"], "noai"),
    (["otherbot: nofollow, capfilt: noai"], "noai"),
    (["capfilt: noai"], "noai"),
    (["CapFilt/0.1: nofollow, NOAI"], "noai"),
    (["*: noai"], "noai"),
    (["capfilt: nofollow, otherbot: noai"], None),
    (["noai, otherbot: nofollow"], "noai"),
    (["otherbot: max-snippet: 20, noai"], None),
    (["capfilt: max-snippet: 20, noai"], "noai"),
    (["something-new: 3, noai"], "noai"),  # no crawler's name: no known directive after it
    (["noindex nofollow"], "noindex"),
    (["noainoindex"], None),
    (["x-noai"], None),
    ([":", ",,;", "::noai"], None),
]


@pytest.mark.parametrize(("headers", "expected"), TAGS, ids=[str(headers) for headers, _ in TAGS])
def test_x_robots_tag(headers: list[str], expected: str | None) -> None:
    assert refusal(headers) == expected


@given(st.lists(st.sampled_from([*sorted(REFUSALS), "all", "nofollow", "max-snippet: 3"]), max_size=5))
def test_order_case_and_number_of_headers_do_not_matter(words: list[str]) -> None:
    for headers in (words, words[::-1], [word.title() for word in words], [", ".join(words)], [";".join(words)]):
        assert (refusal(headers) is not None) == bool(REFUSALS.intersection(words))


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_tag_is_read(headers: list[str]) -> None:
    assert refusal(headers) in {None, *REFUSALS}


def test_an_opt_out_is_seen_before_the_body_and_told(server: HostileServer, ask_server: Ask) -> None:
    server.bodies["/endless"] = b"x" * 10**7
    url = server.url("/endless", do="tag", tag=["otherbot: nofollow", "noai,\tnoimageai"])
    outcome = fetch(ask_server(retries=2), url)[1]
    assert (outcome.reason, outcome.x_robots_tag) == ("opt_out", "otherbot: nofollow | noai, noimageai")
    assert outcome.message == "X-Robots-Tag has noai: 'otherbot: nofollow | noai, noimageai'"
    assert (server.hits.total(), may_pass("opt_out")) == (1, False)
    body, outcome = fetch(ask_server(x_robots_tag=False), url)
    assert (len(body or b""), outcome.x_robots_tag) == (10**7, "otherbot: nofollow | noai, noimageai")


ROBOTS: list[tuple[bytes | int, str | None, str | None]] = [
    # robots.txt or its status, the row's reason, what is noted
    (404, None, "none"),
    (403, None, "none"),
    (500, "robots_txt", None),
    (b"", None, "allowed"),
    (b"User-agent: *\nDisallow: /", "robots_txt", None),
    (b"User-agent: *\nDisallow: /b", None, "allowed"),
    (b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /a.jpg\r\n", "robots_txt", None),
    (b"User-agent: CapFilt\nDisallow: /", "robots_txt", None),
    (b"User-agent: capfilt/1.0\nDisallow: /", "robots_txt", None),
    (b"User-agent: *\nDisallow: /\n\nUser-agent: capfilt\nAllow: /", None, "allowed"),
    (b"User-agent: capfilt\nUser-agent: otherbot\nDisallow: /", "robots_txt", None),
    (b"User-agent: otherbot\nUser-agent: capfilt\nDisallow: /", "robots_txt", None),
    (b"User-agent: otherbot\nDisallow: /", None, "allowed"),
    (b"User-agent: *\nUser-agent: otherbot\n\nSitemap: /s\nDisallow: /", "robots_txt", None),
    (b"User-agent: *\nAllow: /a\nUser-agent: otherbot\nDisallow: /", None, "allowed"),
    (b"User-agent: cap\nDisallow: /", None, "allowed"),
    (b"User-agent: *\nDisallow: /*.jpg$", "robots_txt", None),
    (b"User-agent: *\nDisallow: /\nAllow: /a.jpg", None, "allowed"),
    (b"\xff\xfe\0<html>\n\n: :\nDisallow: /", None, "allowed"),
    (b"User-agent: *\nDisallow: /" + b"\n# " + b"x" * robots.MAX_BYTES + b"\nAllow: /a.jpg", "robots_txt", None),
]


@pytest.mark.parametrize(("rules", "expected", "noted"), ROBOTS, ids=[str(rules)[:60] for rules, _, _ in ROBOTS])
def test_robots_txt(
    rules: bytes | int, expected: str | None, noted: str | None, server: HostileServer, ask_server: Ask
) -> None:
    server.robots = rules
    opener = ask_server(robots_txt=True, retries=1)
    for _ in range(2):
        outcome = fetch(opener, server.url("/a.jpg"))[1]
        assert (outcome.reason, outcome.robots_txt) == (expected, noted)
        assert (expected is None) or outcome.message.startswith(f"http://127.0.0.1:{server.port}/robots.txt ")
    assert server.hits["/robots.txt"] == (2 if rules == 500 else 1)
    assert server.hits["/a.jpg"] == (0 if expected else 2)


def test_robots_txt_is_not_asked_unless_it_is_wanted(server: HostileServer, ask_server: Ask) -> None:
    server.robots = b"User-agent: *\nDisallow: /"
    assert fetch(ask_server(), server.url("/a.jpg"))[1].robots_txt is None
    assert "/robots.txt" not in server.hits


def test_a_robots_txt_that_cannot_be_had_forbids(server: HostileServer, ask_server: Ask) -> None:
    server.robots = 302  # without a Location
    assert reason(ask_server(robots_txt=True), server.url("/a.jpg")) == "robots_txt"
    names = Names({"gone.test": [["127.0.0.1"], []]})
    opener = ask_server(resolve=names, robots_txt=True, allow_hosts=["gone.test"])
    outcome = fetch(opener, server.url("/a.jpg", host="gone.test"))[1]
    assert outcome.message == f"http://gone.test:{server.port}/robots.txt cannot be had: gone.test has no address"
    assert server.hits["/a.jpg"] == 0


def test_robots_txt_is_asked_once_however_many_wait(server: HostileServer, ask_server: Ask) -> None:
    server.robots = b"User-agent: *\nDisallow: /b"
    opener = ask_server(robots_txt=True, per_host=4)
    barrier = threading.Barrier(16)

    def one(i: int) -> str | None:
        barrier.wait()
        return reason(opener, server.url(f"/{'ab'[i % 2]}.jpg", i=i))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [None, "robots_txt"] * 8
    assert server.hits["/robots.txt"] == 1


def test_every_hop_asks_its_host(server: HostileServer, ask_server: Ask) -> None:
    with HostileServer({"/a.jpg": BODY}, robots=b"User-agent: *\nDisallow: /a") as other:
        allow = [f"127.0.0.1:{server.port}", f"localhost:{other.port}"]
        opener = ask_server(resolve=Names({"localhost": ["127.0.0.1"]}), robots_txt=True, allow_hosts=allow)
        there = other.url("/a.jpg", host="localhost")
        outcome = fetch(opener, server.url("/a.jpg", do="to", url=there))[1]
        assert (outcome.reason, outcome.message) == (
            "robots_txt",
            f"http://localhost:{other.port}/robots.txt forbids it",
        )
        assert dict(other.hits) == {"/robots.txt": 1}


def test_robots_txt_is_guarded_too(ask_server: Ask) -> None:
    names = Names({"flip.test": [["93.184.216.34"], ["127.0.0.1"]]})
    outcome = fetch(ask_server(resolve=names, robots_txt=True), "http://flip.test/a.jpg")[1]
    assert outcome.reason == "robots_txt"
    assert outcome.message.endswith("cannot be had: flip.test is at 127.0.0.1 (loopback)")


def test_a_stop_while_robots_txt_is_asked_is_not_kept(server: HostileServer, ask_server: Ask) -> None:
    class Once(FakeTime):
        def sleep(self, seconds: float) -> None:
            if not self.slept:
                super().sleep(seconds)
                raise InterruptedError("the run was stopped")

    server.robots = 503
    opener = ask_server(fake=Once(), robots_txt=True, retries=1)
    with pytest.raises(InterruptedError):
        opener.open(urllib.request.Request(server.url("/a.jpg")))
    server.robots = 404
    assert reason(opener, server.url("/a.jpg")) is None


def test_what_is_kept_of_robots_txt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(robots, "CACHED", 20_000)

    def text(url: str) -> bytes:
        asked.append(url)
        return b"User-agent: *\n" + b"Disallow: /xxxxxxxxxxxxxxxxxxx\n" * 100  # 3 kB

    known, guard = robots.Robots(text), UrlPolicy(frozenset(), frozenset())
    for i in (0, *range(1, 12), 11, 0):
        assert known.verdict(guard.check(f"http://h{i}.example/a")) == "allowed"
    assert len(asked) == len(set(asked)) + 1 == 13  # the first was forgotten
    assert sum(known._sizes.values()) == known._total <= robots.CACHED
    assert set(known._known) == set(known._sizes)


def test_many_names_above_many_rules_are_no_bomb() -> None:
    names = "".join(f"User-agent: bot{i}\n" for i in range(4000))
    rules = "".join(f"Disallow: /{i}\n" for i in range(4000))
    assert robots.own_rules(names + rules) == ""
    kept = robots.own_rules(names + "User-agent: *\n" + rules)
    assert len(Protego.parse(kept)._user_agents) == 1
    assert not Protego.parse(kept).can_fetch("http://a.example/3999", "capfilt")


@given(st.text(alphabet=st.sampled_from("uUser-agent: *capfilt/\nDisallow#$%\ud7ff\x85\0"), max_size=120))
def test_any_robots_txt_is_read(text: str) -> None:
    known = robots.Robots(lambda _: text.encode())
    try:
        assert known.verdict(UrlPolicy(frozenset(), frozenset()).check("http://a.example/a?b=%ff")) == "allowed"
    except FetchError as error:
        assert error.reason == "robots_txt"  # noqa: PT017
