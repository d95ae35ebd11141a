"""What is asked again, after how long, and manners towards a host: slots and Retry-After. Deadlocks would hang here."""

import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.download.hosts import Hosts
from capfilt.download.opener import Opener
from capfilt.download.reasons import may_pass
from capfilt.download.retry import retry_after
from tests.download.conftest import BODY, FakeTime, Names, fetch, reason
from tests.download.server import HostileServer

Ask = Callable[..., Opener]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_asked_again(code: int, server: HostileServer, ask_server: Ask) -> None:
    fake = FakeTime()
    url = server.url("/a.jpg", do="flaky", code=code, times=2)
    assert fetch(ask_server(fake=fake, retries=2, backoff=0.5), url)[0] == BODY
    assert (fake.slept, len(server.requests)) == ([0.5, 1.0], 3)
    assert may_pass(f"http_{code}")


def test_it_ends_after_the_last_try(server: HostileServer, ask_server: Ask) -> None:
    fake = FakeTime()
    outcome = fetch(ask_server(fake=fake, retries=3), server.url("/a.jpg", do="status", code=500))[1]
    assert (outcome.reason, fake.slept, len(server.requests)) == ("http_500", [1.0, 2.0, 4.0], 4)


REFUSALS = [
    *({"do": "status", "code": code} for code in (400, 401, 403, 404, 410, 418, 451)),
    {"do": "tag", "tag": "noai"},
    {"do": "gzip"},
    {"do": "huge"},
    {"do": "loop"},
    {"do": "headers"},
    {"do": "to", "url": "http://10.0.0.1/"},
]


@pytest.mark.parametrize("deed", REFUSALS, ids=str)
def test_a_refusal_is_not_asked_again(deed: dict[str, Any], server: HostileServer, ask_server: Ask) -> None:
    found = reason(ask_server(retries=3, max_redirects=2), server.url("/a.jpg", **deed))
    assert found is not None
    assert not may_pass(found)
    assert len(server.requests) == (3 if deed["do"] == "loop" else 1)


@pytest.mark.parametrize(("do", "expected"), [("reset", "connection"), ("hang", "timeout"), ("longer", "incomplete")])
def test_broken_answers_are_asked_again(do: str, expected: str, server: HostileServer, ask_server: Ask) -> None:
    assert reason(ask_server(retries=1, timeout=0.3), server.url("/a.jpg", do=do)) == expected
    assert (len(server.requests), may_pass(expected)) == (2, True)


def test_a_name_that_is_not_found_for_now_is_asked_again(ask_server: Ask) -> None:
    names = Names()

    def resolve(host: str, *args: Any, **more: Any) -> Any:
        names.asked.append(host)
        raise OSError("try again")

    assert reason(ask_server(resolve=resolve, retries=2), "http://a.example/") == "dns_temporary"
    assert len(names.asked) == 3


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("0", 0), ("soon", 1), ("-5", 1), ("1e9", 1), ("\u00b2", 1)])
def test_retry_after_counts_instead_of_the_back_off(
    value: str, seconds: float, server: HostileServer, ask_server: Ask
) -> None:
    fake = FakeTime()
    url = server.url("/a.jpg", do="flaky", code=429, retry_after=value)
    assert fetch(ask_server(fake=fake, retries=1, max_wait=10), url)[0] == BODY
    assert sum(fake.slept) == pytest.approx(seconds, abs=0.1)


def test_a_long_retry_after_ends_the_tries_for_this_row(server: HostileServer, ask_server: Ask) -> None:
    fake = FakeTime()
    opener = ask_server(fake=fake, retries=3, max_wait=10)
    for value in ("11", "9" * 5000, format_datetime(datetime.now(UTC) + timedelta(hours=1))):
        outcome = fetch(opener, server.url("/a.jpg", do="flaky", code=503, retry_after=value))[1]
        assert (outcome.reason, outcome.message) == ("http_503", "the server answered 503")
    assert (fake.slept, len(server.requests)) == ([], 3)
    assert reason(opener, server.url("/b.jpg")) is None


def test_retry_after_of_a_refusal_is_not_looked_at(server: HostileServer, ask_server: Ask) -> None:
    fake = FakeTime()
    opener = ask_server(fake=fake)
    assert reason(opener, server.url("/a.jpg", do="status", code=404, retry_after=5)) == "http_404"
    assert reason(opener, server.url("/a.jpg")) is None
    assert fake.slept == []


def test_retry_after_holds_back_other_threads(server: HostileServer, ask_server: Ask) -> None:
    opener = ask_server(retries=0)
    opener._redirects._hosts = Hosts(8)  # in real time
    assert reason(opener, server.url("/a.jpg", do="status", code=429, retry_after=1)) == "http_429"
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: reason(opener, server.url(path)), ["/a.jpg", "/b.jpg"] * 2))
    assert found == [None] * 4
    assert 0.9 < time.monotonic() - start < 3


def test_dates() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    assert retry_after("Wed, 01 Jan 2025 00:00:09 GMT", now.timestamp()) == 9
    assert retry_after("Wed, 01 Jan 2025 00:00:09 -0000", now.timestamp()) == 9
    assert retry_after("Tue, 31 Dec 2024 00:00:00 GMT", now.timestamp()) == 0
    assert retry_after(None, 0) is None


@given(st.one_of(st.text(max_size=40), st.from_regex(r"\w{3}, \d{1,9} \w{3} \d{1,30} \d+:\d+:\d+ [+-]\d{1,9}")))
def test_any_retry_after_is_seconds_or_nothing(text: str) -> None:
    found = retry_after(text, 0.0)
    assert found is None or found >= 0


def test_so_many_at_once(server: HostileServer, ask_server: Ask) -> None:
    server.bodies["/slow"], server.pause = b"1234", 0.02
    for limit in (1, 3):
        server.most_at_once = 0
        opener, urls = ask_server(per_host=limit), [server.url("/slow", do="drip_body", i=i) for i in range(9)]
        with ThreadPoolExecutor(9) as pool:
            assert set(pool.map(partial(reason, opener), urls)) == {None}
        assert server.most_at_once == limit


def test_waiting_for_a_slot_is_not_counted(server: HostileServer, ask_server: Ask) -> None:
    server.bodies["/slow"] = b"1234"  # 0.2 s
    opener = ask_server(per_host=1, timeout=1.0)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda i: reason(opener, server.url("/slow", do="drip_body", i=i)), range(6))) == {None}


def test_redirects_between_two_hosts_of_one_slot_do_not_lock(server: HostileServer, ask_server: Ask) -> None:
    hosts = {"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"]}
    opener = ask_server(resolve=Names(hosts), per_host=1, allow_hosts=list(hosts), timeout=5)

    def cross(i: int) -> str | None:
        here, there = ("one.test", "two.test") if i % 2 else ("two.test", "one.test")
        return reason(opener, server.url("/a.jpg", do="to", host=here, url=server.url("/b.jpg", host=there)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cross, range(24), timeout=20)) == [None] * 24


def test_a_slot_comes_back_whatever_happens(server: HostileServer, ask_server: Ask) -> None:
    opener = ask_server(per_host=1, timeout=0.3)
    for do in ("reset", "hang", "huge", "garbage", "gzip", "redirect", "headers"):
        fetch(opener, server.url("/a.jpg", do=do))
    assert reason(opener, server.url("/a.jpg")) is None
    assert opener._redirects._hosts._hosts == {}


def test_hosts_are_forgotten_but_not_while_they_are_held_back() -> None:
    fake = FakeTime()
    hosts = Hosts(2, fake.clock, fake.sleep)
    with hosts.slot("a"), hosts.slot("b"):
        hosts.hold("a", 5)
        hosts.hold("a", 3)  # the longer one counts
    assert list(hosts._hosts) == ["a"]
    with hosts.slot("a"):
        assert sum(fake.slept) == pytest.approx(5, abs=0.1)
    assert hosts._hosts == {}


def test_a_stopped_sleep_leaves_as_itself_and_gives_the_slot_back(server: HostileServer, ask_server: Ask) -> None:
    class Stopped(FakeTime):
        def sleep(self, seconds: float) -> None:
            raise InterruptedError("the run was stopped")

    opener = ask_server(fake=Stopped(), retries=1, per_host=1)
    for options in ({}, {"retry_after": 5}):
        url = server.url("/a.jpg", do="status", code=503, **options)
        with pytest.raises(InterruptedError):
            opener.open(urllib.request.Request(url))
        assert isinstance(opener.last().local_error, InterruptedError)
    assert all(host.users == host.busy == 0 for host in opener._redirects._hosts._hosts.values())
    assert threading.active_count() < 50
