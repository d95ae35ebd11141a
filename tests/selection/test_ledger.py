import json
from collections.abc import Callable

import pytest

from capfilt.errors import DataError
from capfilt.selection.ledger import candidates
from capfilt.selection.reasons import REASONS
from capfilt.store.layout import RunLayout
from tests.sidecar_rows import Record, caption, score, write

Rows = Callable[..., Record]
Jobs = Callable[..., RunLayout]


def decided(layout: RunLayout) -> list[Record]:
    rows: list[Record] = candidates(layout, 0, layout.pipeline.select).to_pylist()
    return rows


def verdicts(layout: RunLayout) -> list[tuple[str, str, str | None]]:
    """Last digit of the uid, origin, reason."""
    assert all(row["kept"] == (row["reason"] is None) for row in decided(layout))
    return [(row["uid"][-1], row["origin"], row["reason"]) for row in decided(layout)]


def test_own_text_first_then_captions_each_with_where_it_came_from(make_layout: Jobs, pairs_row: Rows) -> None:
    layout = make_layout(
        [[pairs_row(0), pairs_row(1)]], caption={"model": "/elsewhere/weights/mine", "samples": 2, "seed": 7}
    )
    captions = [caption(0, "one", "two"), caption(1, "three")]
    layout = write(layout, caption=captions, score=[score(0, 0.75, 0.5, 0.25), score(1, None, 1.0)])
    own, one, two, other, three = decided(layout)
    null = ("model", "digest", "decoding", "sample", "logprob", "reason")
    expected = {"uid": f"{0:016x}", "text": "a round thing number 0", "origin": "web", "round": 0, "kept": True}
    assert own == expected | {"itc": 0.375, "itm": 0.75} | dict.fromkeys(null)
    assert (one["text"], one["origin"], one["model"], one["digest"]) == ("one", "synthetic", "mine", "c" * 16)
    assert (one["sample"], one["logprob"], one["itc"], one["itm"], one["kept"]) == (0, -1.0, 0.25, 0.5, True)
    assert (two["sample"], two["logprob"], two["itm"], two["reason"]) == (1, -2.0, 0.25, "below_itm_threshold")
    assert [json.loads(row["decoding"])["sample"] for row in (one, two, three)] == [0, 1, 0]
    assert json.loads(two["decoding"])["seed"] == 7
    assert (other["itm"], other["reason"], three["itm"], three["kept"]) == (None, "no_score", 1.0, True)


def test_what_is_known_of_a_row_goes_before_its_scores(make_layout: Jobs, pairs_row: Rows) -> None:
    states: list[Record] = [
        {"status": "quarantined", "text": None},
        {"status": "rejected", "reason": "text_empty", "text": ""},
        {},
        {},
        {"text": None},
        {"text": " \n"},
    ]
    layout = make_layout([[pairs_row(i, **changes) for i, changes in enumerate(states)]])
    marks = [{"uid": f"{i:016x}"} for i in range(6)]
    marks[2] |= {"duplicate_of": f"{0:016x}", "duplicate_kind": "perceptual"}
    marks[3] |= {"contaminates": "coco:1"}
    captions = [*(caption(i) for i in range(4)), caption(4, "there"), caption(5, status="failed")]
    scores = [score(i, 0.9) for i in range(4)] + [score(4, None, 0.9), score(5, None)]
    expected = [
        ("0", "web", "quarantined:image_unreadable"),
        ("1", "web", "rejected:text_empty"),
        ("2", "web", "duplicate:perceptual"),
        ("3", "web", "contaminated"),
        ("4", "web", "no_text"),
        ("4", "synthetic", None),
        ("5", "web", "caption_failed"),
    ]
    assert verdicts(write(layout, caption=captions, score=scores, dedup=marks)) == expected
    assert {str(reason).split(":")[0] for *_, reason in expected if reason} <= {name.split(":")[0] for name in REASONS}


def test_marks_are_those_of_dedup_or_else_of_near(make_layout: Jobs, pairs_row: Rows) -> None:
    layout = make_layout([[pairs_row(0), pairs_row(1)]], near={}, caption=None)
    near = [{"uid": f"{0:016x}", "duplicate_kind": "exact"}, {"uid": f"{1:016x}"}]
    dedup = [{"uid": f"{0:016x}"}, {"uid": f"{1:016x}", "duplicate_kind": "semantic"}]
    scores = [score(0, 0.9), score(1, 0.9)]
    only_near = write(layout, near=near, score=scores)
    assert verdicts(only_near) == [("0", "web", "duplicate:exact"), ("1", "web", None)]
    both = write(layout, near=near, score=scores, dedup=dedup)
    assert verdicts(both) == [("0", "web", None), ("1", "web", "duplicate:semantic")]


def test_human_texts_yield_to_keys_contamination_and_quarantine_alone(make_layout: Jobs, pairs_row: Rows) -> None:
    rows = [pairs_row(i, role="human") for i in range(3)] + [pairs_row(3, role="human", status="rejected")]
    marks: list[Record] = [{"uid": f"{i:016x}"} for i in range(4)]
    for i, kind in ((0, "exact"), (1, "key")):
        marks[i] |= {"duplicate_of": f"{9:016x}", "duplicate_kind": kind}
    marks[2] |= {"contaminates": "coco:1"}
    layout = write(make_layout([rows], caption=None), dedup=marks, score=[score(i, 0.0) for i in range(4)])
    reasons = [reason for *_, reason in verdicts(layout)]
    assert reasons == [None, "duplicate:key", "contaminated", "rejected:image_unreadable"]


KILLED = {"status": "failed", "error": "killed its worker"}


@pytest.mark.parametrize(
    ("captioned", "scored", "reason"),
    [
        (KILLED, KILLED, "quarantined:killed_worker"),
        (KILLED, {}, None),
        ({"status": "ok"}, KILLED, "score_failed"),
        ({"status": "skipped"}, KILLED, "quarantined:killed_worker"),
        ({"status": "failed", "error": "no image"}, {"status": "failed", "error": "no image"}, "score_failed"),
    ],
)
def test_a_row_that_kills_every_worker_is_quarantined(
    make_layout: Jobs, pairs_row: Rows, captioned: Record, scored: Record, reason: str | None
) -> None:
    web = None if scored else 0.9
    layout = write(make_layout([[pairs_row(0)]]), caption=[caption(0, **captioned)], score=[score(0, web, **scored)])
    assert verdicts(layout) == [("0", "web", reason)]


def test_a_run_without_models_keeps_all(make_layout: Jobs, pairs_row: Rows) -> None:
    bare = {"policy": "keep_all"}
    dedup = {"semantic": None}
    layout = write(
        make_layout([[pairs_row(0), pairs_row(1, text=None)]], caption=None, score=None, select=bare, dedup=dedup)
    )
    assert verdicts(layout) == [("0", "web", None), ("1", "web", "no_text")]
    assert {decided(layout)[0][name] for name in ("model", "digest", "decoding", "sample", "itc", "itm")} == {None}


def test_nothing_was_captioned(make_layout: Jobs, pairs_row: Rows) -> None:
    layout = write(make_layout([[pairs_row(0)]]), caption=[caption(0)], score=[score(0, 0.9)])
    assert verdicts(layout) == [("0", "web", None)]


def test_an_empty_shard(make_layout: Jobs) -> None:
    layout = write(make_layout([[]]), caption=[], score=[], dedup=[])
    assert candidates(layout, 0, layout.pipeline.select).num_rows == 0


def test_sidecars_of_other_rows_are_refused(make_layout: Jobs, pairs_row: Rows) -> None:
    layout = make_layout([[pairs_row(0), pairs_row(1)]])
    swapped = write(layout, caption=[caption(1, "a"), caption(0, "b")], score=[score(0, 0.9), score(1, 0.9)])
    with pytest.raises(DataError, match=r"caption-0/00000\.parquet: its uids are not those of .*pairs"):
        candidates(swapped, 0, swapped.pipeline.select)
    short = write(
        layout, caption=[caption(0, "a"), caption(1, "b", "c")], score=[score(0, 0.9, 0.5), score(1, 0.9, 0.5)]
    )
    with pytest.raises(DataError, match="row 1 has 1 caption scores"):
        candidates(short, 0, short.pipeline.select)
