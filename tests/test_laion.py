"""`laion_subset` by `--set` alone, through the real command line, on a loopback web that misbehaves; then `retry`."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capfilt import open_run
from capfilt.analysis.verify import verify
from capfilt.cli import main
from tests.command_line import content, finish
from tests.download.open_web import EVERY, HEALS, OpenWeb


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWeb]:
    with OpenWeb(tmp_path_factory.mktemp("web"), EVERY) as made:
        yield made


def settings(web: OpenWeb) -> list[str]:
    """Of a run with the fake system: what the download makes of the web does not depend on the models."""
    return web.settings("fake", "fake")


@pytest.fixture(scope="module")
def finished(web: OpenWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("laion") / "run"
    code, printed = finish("run", "laion_subset", "--local", "--out", out, *(f"--set={x}" for x in settings(web)))
    assert code == 0, printed
    return out


def reasons(run: Path, folder: str = "pairs") -> Counter[str | None]:
    tables = [pq.read_table(file, columns=["reason"]) for file in sorted((run / folder).glob("*.parquet"))]
    return Counter(reason for table in tables for reason in table["reason"].to_pylist())


def rows(run: Path, folder: str = "pairs") -> list[dict[str, object]]:
    return [row for file in sorted((run / folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_laion_subset_ends_with_exactly_so_many_of_each_and_nothing_lost(web: OpenWeb, finished: Path) -> None:
    assert reasons(finished) == web.reasons
    assert [row["key"] for row in rows(finished)] == [f"{i:032x}" for i in range(EVERY)]
    facts = open_run(finished).facts["accounting"]
    assert facts["rows"]["in"] == EVERY == sum(facts["rows"][name] for name in ("kept", "rejected", "quarantined"))
    failed = {reason: n for reason, n in web.reasons.items() if reason is not None}
    assert facts["quarantined"] == failed
    assert facts["captioned"]["rows"] > 0
    assert verify(finished) == []


def test_laion_rows_carry_the_list_and_what_the_site_said(web: OpenWeb, finished: Path) -> None:
    for i, row in enumerate(rows(finished)):
        meta = json.loads(str(row["meta"]))
        assert meta["language"] == "en"
        assert meta["similarity"] == pytest.approx(0.3 + i / 1e5)
        assert (row["image"] is None) == (row["reason"] is not None)
        assert row["reason"] is not None or row["text"] == web.rows[i]["text"]
    opt_outs = {json.loads(str(row["meta"])).get("fetch", {}).get("x_robots_tag") for row in rows(finished)}
    assert opt_outs == {None, "otherbot: noindex", "noai, noimageai"}
    (opted, *_) = [row for row in rows(finished) if row["reason"] == "opt_out"]
    assert "noai" in str(opted["error"])


def test_refusals_were_asked_once_and_passing_faults_as_often_as_the_rules_say(web: OpenWeb, finished: Path) -> None:
    asked = Counter(re.sub(r"^/\d+\.jpg", "", target) for target in web.server.hits.elements())
    assert asked["?do=status&code=404"] == 6
    assert asked["?do=status&code=403"] == 4
    assert asked["?do=flaky&code=503&times=2"] == 4 * 2
    assert asked["?do=flaky&code=429&times=9&retry_after=3600"] == 2
    assert asked["?do=tag&tag=noai%2C+noimageai"] == 3
    agents = {request.headers["user-agent"] for request in web.server.requests}
    assert len(agents) == 1
    assert agents.pop().startswith("capfilt/")


def test_laion_on_ray_gives_equal_bytes(
    web: OpenWeb, finished: Path, tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    web.server.hits.clear()
    code, printed = finish("run", "laion_subset", "--out", tmp_path / "run", *(f"--set={x}" for x in settings(web)))
    assert code == 0, printed
    assert content(tmp_path / "run") == content(finished)


def test_laion_retry_asks_again_only_for_what_may_pass(
    web: OpenWeb, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    web.server.hits.clear()
    for i in range(EVERY):
        web.server.hits[f"/{i}.jpg?do=flaky&code=503&times=2"] = 2
    before, asked = rows(run), len(web.server.requests)
    assert main(["retry", str(run), "--local"]) == 0
    may_pass = sum(web.reasons[reason] for reason in ("http_429", "http_503", "timeout", "incomplete", "connection"))
    assert len({request.target for request in web.server.requests[asked:]}) == may_pass
    after = rows(run, "pairs-retry1")
    assert [row["uid"] for row in after] == [row["uid"] for row in before]
    healed = [i for i, row in enumerate(before) if row["reason"] in HEALS]
    assert reasons(run, "pairs-retry1") == web.reasons - Counter(HEALS * len(healed)) + Counter({None: len(healed)})
    assert all(after[i]["status"] == "ok" and after[i]["image"] for i in healed)
    assert all(after[i] == row for i, row in enumerate(before) if row["reason"] is None)
    assert open_run(run).facts["accounting"]["rows"]["in"] == EVERY
    assert verify(run) == []
    assert "rows kept" in capsys.readouterr().out
    assert len(list(run.glob("caption-*"))) == 2
    one, two = (sorted(folder.glob("*.parquet")) for folder in sorted(run.glob("caption-*")))
    assert len(one) == len(two) == 3
