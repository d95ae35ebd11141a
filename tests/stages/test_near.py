"""near against a search by hand: whatever the order and the shards, the same rows are marked."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.config.pipeline import Pipeline
from capfilt.stages.base import Task
from capfilt.stages.near import NearStage
from capfilt.store.layout import RunLayout
from capfilt.store.schema import NEAR, arrow
from capfilt.store.shards import table

Record = dict[str, Any]
Maker = Callable[..., Any]
BASE = 0x9247FA78544DD343
NUMBERS = count()
HASHES = [BASE, BASE ^ 0b111, BASE ^ 0b111111, BASE ^ (0b11111 << 20), ~BASE % 2**64, 1 << 63, 0]
ROW = st.fixed_dictionaries({
    "pixels_sha256": st.sampled_from(["p", "q", "r", *map(str, range(9))]),
    "url": st.sampled_from([None, "u", "v"]),
    "text": st.sampled_from([None, "t", "w", *map(str, range(5))]),
    "phash": st.sampled_from(HASHES),
    "role": st.sampled_from(["web", "web", "web", "human"]),
    "width": st.sampled_from([10, 20]),
    "status": st.sampled_from(["ok", "ok", "ok", "rejected"]),
})  # fmt: skip


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tiny shards are written: none waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def near(make_layout: Maker, pairs_row: Maker) -> Callable[..., tuple[RunLayout, list[Record]]]:
    """near(shards of changes of rows, **dedup): the stage run; the layout and near's rows in input order."""

    def run(shards: list[list[Record]], **dedup: Any) -> tuple[RunLayout, list[Record]]:
        rows = [[pairs_row(change.pop("n", 0), b"x", **change) for change in shard] for shard in map(_copied, shards)]
        layout = make_layout(rows, name=f"run{next(NUMBERS)}", dedup=dedup)
        layout = replace(layout, folders=layout.folders | {"near": "near-1"})
        stage = NearStage(layout)
        stage.setup()
        stage.process(Task(0))
        return layout, [row for i in range(len(shards)) for row in table(layout.shard("near", i)).to_pylist()]

    return run


def _copied(shard: list[Record]) -> list[Record]:
    return [dict(change) for change in shard]


def numbered(rows: list[Record]) -> list[Record]:
    return [{**row, "n": n, "uid": f"{n:016x}"} for n, row in enumerate(rows)]


def mark_of(row: Record) -> tuple[str | None, str | None, float | None]:
    return row["duplicate_of"], row["duplicate_kind"], row["similarity"]


def reason(a: Record, b: Record) -> tuple[int, float] | None:
    """Strength of the link between two rows: exact 3, url_text 2, perceptual 1."""
    if a["pixels_sha256"] == b["pixels_sha256"]:
        return 3, 1.0
    if a["url"] is not None and a["text"] is not None and (a["url"], a["text"]) == (b["url"], b["text"]):
        return 2, 1.0
    distance = (a["phash"] ^ b["phash"]).bit_count()
    if distance <= 4 and min(a["phash"].bit_count(), b["phash"].bit_count()) >= 16:
        return 1, 1 - distance / 64
    return None


def components(rows: list[Record]) -> list[list[Record]]:
    """Rows with status ok, best first in each."""
    ok = [row for row in rows if row["status"] == "ok"]
    groups: list[list[Record]] = []
    for row in ok:
        touched = [group for group in groups if any(reason(row, other) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append([row, *(other for group in touched for other in group)])
    return [sorted(group, key=lambda r: (r["role"] != "human", -r["width"], r["uid"])) for group in groups]


@given(st.lists(ROW, min_size=1, max_size=10))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marks_are_those_found_by_hand(near: Maker, drawn: list[Record]) -> None:
    rows = numbered(drawn)
    _, written = near([rows])
    found = {row["uid"]: row for row in written}
    for group in components(rows):
        for place, row in enumerate(group):
            mark = found.pop(row["uid"])
            if place == 0 or row["role"] == "human":
                assert mark_of(mark) == (None, None, None)
                continue
            assert mark["duplicate_of"] == group[0]["uid"]
            links = [link for other in group[:place] if (link := reason(row, other))]
            links = links or [link for other in group[place + 1 :] if (link := reason(row, other))]
            kind, similarity = max(links)
            assert mark["duplicate_kind"] == (None, "perceptual", "url_text", "exact")[kind]
            if kind > 1 or len(set(links)) == len(links):
                assert mark["similarity"] == similarity
    assert all(mark_of(mark) == (None, None, None) for mark in found.values())


@given(st.lists(ROW, min_size=2, max_size=10), st.randoms(), st.integers(0, 10))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_shards_change_no_mark(near: Maker, drawn: list[Record], random: Any, cut: int) -> None:
    rows = numbered(drawn)
    mixed = list(rows)
    random.shuffle(mixed)
    _, straight = near([rows])
    _, other = near([mixed[:cut], mixed[cut:]])
    assert [row["uid"] for row in other] == [row["uid"] for row in mixed]
    assert sorted(straight, key=lambda r: r["uid"]) == sorted(other, key=lambda r: r["uid"])
    marked = {row["uid"] for row in other if row["duplicate_of"] is not None}
    assert not marked & {row["duplicate_of"] for row in other}


def test_repeated_keys_take_part_in_nothing_else(near: Maker) -> None:
    same = {"n": 1, "pixels_sha256": "p"}
    other = {"n": 2, "pixels_sha256": "p", "width": 100}
    _, rows = near([[same], [{**same, "width": 1_000, "role": "human"}, other]])
    assert [mark_of(row) for row in rows] == [
        ("0000000000000002", "exact", 1.0),
        ("0000000000000001", "key", None),
        (None, None, None),
    ]


def test_what_is_switched_off_is_not_looked_for(near: Maker) -> None:
    pair = [{"n": n, "pixels_sha256": "p", "url": "u", "text": "t", "phash": BASE} for n in (1, 2)]

    def kind(**dedup: Any) -> str | None:
        _, rows = near([pair], **dedup)
        return str(rows[1]["duplicate_kind"])

    assert kind() == "exact"
    assert kind(exact=False) == "url_text"
    assert kind(exact=False, url_text=False) == "perceptual"
    assert kind(exact=False, url_text=False, perceptual=None) == "None"


def test_a_distance_of_the_pipeline(near: Maker) -> None:
    pair = [{"n": 1, "phash": BASE}, {"n": 2, "phash": BASE ^ 0b11111}]
    assert near([pair])[1][1]["duplicate_of"] is None
    assert mark_of(near([pair], perceptual={"max_distance": 5})[1][1]) == ("0000000000000001", "perceptual", 1 - 5 / 64)


def test_plain_pictures_are_alike_only_where_they_are_equal(near: Maker) -> None:
    plain = [{"n": n, "phash": 1 << 63, "pixels_sha256": "white" if n < 2 else "grey"} for n in range(4)]
    _, rows = near([plain])
    assert [row["duplicate_of"] for row in rows] == [None, f"{0:016x}", None, f"{2:016x}"]


def test_the_same_bytes_again_and_their_layout(near: Maker) -> None:
    shards = [[{"n": 1}, {"n": 2}], [], [{"n": 3, "pixels_sha256": f"{1:064x}"}]]
    first, _ = near(shards)
    second, _ = near(shards)
    for shard in range(3):
        path = first.shard("near", shard)
        assert path.read_bytes() == second.shard("near", shard).read_bytes()
        assert table(path).schema.equals(arrow(NEAR))
        assert json.loads(path.with_suffix(".json").read_text())["rows"] == len(shards[shard])


def test_left_out_where_nothing_is_asked_for() -> None:
    source = {"sources": [{"type": "parquet", "path": "x"}]}
    off = {"exact": False, "url_text": False, "perceptual": None}
    assert NearStage.spec.settings(Pipeline.model_validate(source | {"dedup": off | {"semantic": None}, "score": None}
                         | {"select": {"policy": "keep_all"}})) is None  # fmt: skip
    on = Pipeline.model_validate(source | {"dedup": {"semantic": None}, "select": {"policy": "keep_all"}})
    assert NearStage.spec.settings(on) == {"exact": True, "perceptual": {"max_distance": 4}, "url_text": True}
