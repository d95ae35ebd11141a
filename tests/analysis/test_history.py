"""A row's history and samples by verdict."""

import json
import runpy
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from capfilt.analysis.history import history, render_history, samples
from capfilt.errors import InputError
from capfilt.store.layout import RunLayout

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "report" / "run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]


def uid(i: int) -> str:
    return str(_RUN["pair"](i)["uid"])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return build_run(tmp_path_factory.mktemp("inspect"))


def rendered(found: dict[str, Any]) -> str:
    console = Console(width=240, file=StringIO())
    console.print(render_history(found))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_history_of_a_row_that_is_kept(layout: RunLayout) -> None:
    found = history(layout, uid(30))
    assert json.loads(json.dumps(found)) == found
    (pair,) = found["pairs"]
    assert pair["image_path"] == "30.jpg"
    assert pair["image_bytes"] == len(_RUN["picture"](30))
    assert "image" not in pair
    assert pair["phash"] == f"{30:016x}"
    assert found["captions"][0]["captions"] == [{"text": "caption 30", "logprob": -1.5, "sample": 0}]
    assert found["scores"][0]["web_itm"] == pytest.approx(0.8)
    assert found["candidates"][0]["origin"] == "web"
    assert found["candidates"][0]["kept"] is True
    assert found["duplicates"][0]["duplicate_of"] is None
    assert found["kept_instead_of"] == found["dataset"] == []


def test_duplicates_both_ways_and_contamination(layout: RunLayout) -> None:
    keeper, member = history(layout, uid(10)), history(layout, uid(12))
    assert [(row["uid"], row["duplicate_kind"]) for row in keeper["kept_instead_of"]] == [
        (uid(11), "exact"), (uid(13), "semantic"), (uid(12), "perceptual"),
    ]  # fmt: skip
    assert member["duplicates"][0]["duplicate_of"] == uid(10)
    assert {line["reason"] for line in member["candidates"]} == {"duplicate:perceptual"}
    assert history(layout, uid(20))["duplicates"][0]["contaminates"] == "val:<i>7</i>"


def test_unknown_uid_names_those_that_begin_alike(layout: RunLayout) -> None:
    wrong = uid(5)[:15] + "z"
    with pytest.raises(InputError, match=rf"most similar are {uid(5)}"):
        history(layout, wrong)


def test_a_quarantined_row_has_only_what_there_is(tmp_path: Path) -> None:
    layout = build_run(tmp_path, leave_out=("caption", "score", "dedup", "near"))
    found = history(layout, uid(70))
    assert found["pairs"][0]["image_bytes"] is None
    assert [found[name] for name in ("captions", "scores", "duplicates", "kept_instead_of")] == [[], [], [], []]
    assert "quarantined:bomb" in rendered(found)


def test_render_shows_every_part_and_no_control_character(layout: RunLayout) -> None:
    text = rendered(history(layout, uid(10)))
    for part in ("pairs", "kept instead of", "captions", "candidates", "scores", "below_itm_threshold"):
        assert part in text, part
    assert "[bold red]markup[/] \ufffd[31mcolour" in rendered(history(layout, uid(7)))


def test_samples_have_every_verdict_and_are_always_the_same(layout: RunLayout) -> None:
    columns, rows = samples(layout, 2)
    assert columns == ["verdict", "origin", "uid", "text", "itc", "itm"]
    verdicts = [(row[0], row[1]) for row in rows]
    assert verdicts[:6] == [("kept", origin) for origin in ("web", "synthetic", "human") for _ in range(2)]
    assert {"below_itm_threshold", "duplicate:exact", "contaminated", "quarantined:bomb"} <= {v for v, _ in verdicts}
    assert max(map(verdicts.count, verdicts)) == 2
    assert samples(layout, 2).rows == rows
