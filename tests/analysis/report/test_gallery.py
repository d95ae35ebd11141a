"""Which examples are chosen, and their thumbnails."""

import base64
import runpy
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capfilt.analysis.report.gallery import CARDS, SIDE, choose, texts, thumbnail, thumbnails
from capfilt.analysis.sql import connect
from capfilt.store.layout import RunLayout

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]


def uid(i: int) -> str:
    return str(_RUN["pair"](i)["uid"])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return build_run(tmp_path_factory.mktemp("gallery"), shards=3)


def opened(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def test_examples_are_spread_and_hold_those_next_to_the_threshold(layout: RunLayout) -> None:
    with connect(layout) as connection:
        chosen = choose(connection, layout.pipeline.select)
    assert len(chosen) == len(set(chosen)) == CARDS
    refused = {11, 12, 13, 20, 40}
    scores = {i: [line["itm"] for line in _RUN["candidates"](i)] for i in range(60) if i not in refused}
    for which in (0, 1):
        rows = sorted(scores, key=lambda i: scores[i][which])
        above = sum(scores[i][which] >= 0.5 for i in rows)
        assert {uid(i) for i in rows[-above - 3 : -above + 3]} <= set(chosen)
        low, high = scores[rows[0]][which], scores[rows[-1]][which]
        tenth = {i: min(9, int(10 * (scores[i][which] - low) / (high - low))) for i in rows}
        assert {tenth[i] for i in rows if uid(i) in chosen} == set(tenth.values())


def test_refused_rows_and_duplicates_are_no_examples(layout: RunLayout) -> None:
    with connect(layout) as connection:
        chosen = choose(connection, layout.pipeline.select)
    assert not {uid(i) for i in (11, 12, 13, 20, *range(60, 72))} & set(chosen)


def test_the_own_text_comes_first_and_every_text_is_there(layout: RunLayout) -> None:
    with connect(layout) as connection:
        found = texts(connection, [uid(30), uid(61)])
    assert [(line["origin"], line["judged"]) for line in found[uid(30)]] == [("web", True), ("synthetic", True)]
    assert [(line["origin"], line["judged"]) for line in found[uid(61)]] == [("human", False)]


def test_without_scores_the_choice_is_by_uid(tmp_path: Path) -> None:
    layout = build_run(tmp_path, scored=False)
    with connect(layout) as connection:
        chosen = choose(connection, layout.pipeline.select)
    assert len(chosen) == CARDS


def test_thumbnails_are_small_upright_jpegs_of_rows_that_are_ok(layout: RunLayout) -> None:
    found = thumbnails(layout, [uid(i) for i in (0, 30, 59, 64, 65, 70)])
    assert set(found) == {uid(0), uid(30), uid(59)}
    for i in (0, 30, 59):
        image = opened(found[uid(i)])
        assert image.size == (SIDE, 120)
        whole = Image.open(BytesIO(_RUN["picture"](i))).resize(image.size)
        difference = [abs(a - b) for a, b in zip(whole.tobytes(), image.convert("RGB").tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 6


def test_a_picture_that_cannot_be_decoded_or_is_too_large_is_left_out() -> None:
    data: bytes = _RUN["picture"](1)
    assert thumbnail(b"<svg onload=alert(1)>", 10**6) is None
    assert thumbnail(data[: len(data) // 2], 10**6) is None
    assert thumbnail(data, 200 * 150 - 1) is None
    assert thumbnail(data, 200 * 150) is not None
