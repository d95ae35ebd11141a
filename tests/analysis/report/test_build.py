"""The report as a file: what is in it, that it asks for nothing, that hostile texts stay texts, equal bytes."""

import base64
import hashlib
import json
import re
import runpy
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from capfilt.analysis.report.build import write_report
from capfilt.analysis.sql import visible
from capfilt.errors import DataError
from capfilt.store.layout import RunLayout

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]
HOSTILE: list[str] = _RUN["HOSTILE"]
FACTS = {
    "capfilt": "9.9.9",
    "versions": {"python": "3.11.2", "torch": "<i>2</i>"},
    "fingerprints": {"score": "c0ffee"},
    "seconds": {"score": 12.34, "caption": 5},
}
TRUTH = {"source": "<b>photos</b>", "wrong_in": 40, "wrong_rejected": 30, "right_in": 0, "right_kept": 0}
ELEMENTS = """
    html head meta title style body header main section aside script h1 h2 h3 p b q i br dl dt dd div span table thead
    tbody tr th td code pre figure figcaption svg path rect line input output button fieldset legend label article ul li
    img details summary
"""
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Elements with attributes, text by element, scripts; checks that the nesting is right."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._open = "", [], list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(layout: RunLayout) -> Page:
    text = write_report(layout, FACTS, {"truth": TRUTH}, layout.run / "page.html").read_text("utf-8")
    return Page(text)


def test_equal_runs_give_equal_bytes_under_3_mb(layout: RunLayout, tmp_path: Path) -> None:
    again = build_run(tmp_path / "again", shards=4)
    first = write_report(layout, FACTS, None, tmp_path / "a.html").read_bytes()
    assert write_report(again, FACTS, None, tmp_path / "b.html").read_bytes() == first
    assert len(first) < 3 * 2**20
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_nothing_is_asked_from_outside(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "a", "audio", "video"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}:
                assert str(value).startswith("data:image/jpeg;base64,"), (tag, value)
            assert name != "style" or re.fullmatch(r"(width|left):-?[\d.]+%", str(value)), value
    style = page.text
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_one_script_by_its_hash(page: Page) -> None:
    policy = next(str(a["content"]) for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    code, kinds = page.scripts[-1], [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert kinds == ["application/json", None]


def test_hostile_texts_are_shown_as_text(page: Page) -> None:
    for payload in HOSTILE:
        assert visible(payload) in page.text, payload
    assert not set(page.text) & {"\u202e", "\u2028", "\x1b", "\x07"}
    assert {tag for tag, _ in page.elements} <= set(ELEMENTS.split())
    assert [tag for tag, _ in page.elements].count("style") == 1
    assert "{{ 7*7 }}" in page.text


def test_numbers_of_rows_and_texts(layout: RunLayout, page: Page, tmp_path: Path) -> None:
    lines = [line for i in range(72) for line in _RUN["candidates"](i)]
    pairs, kept = sum(line["kept"] for line in lines), len({line["uid"] for line in lines if line["kept"]})
    tiles = re.search(r"rows in72kept(\d+)rejected(\d+)quarantined4pairsout(\d+)", _squeezed(page))
    assert tiles is not None
    assert [int(n) for n in tiles.groups()] == [kept, 72 - 4 - kept, pairs]
    given = {"rows": {"in": 1_000, "kept": 2, "rejected": 3, "quarantined": 995}}
    text = _squeezed(Page(write_report(layout, {}, given, tmp_path / "c.html").read_text("utf-8")))
    assert "rows in1,000kept2rejected3quarantined995" in text


def _squeezed(page: Page) -> str:
    return re.sub(r"\s", "", page.text).replace("rowsin", "rows in")


def test_truth_and_facts_are_shown_where_they_are_there(page: Page, layout: RunLayout, tmp_path: Path) -> None:
    assert "wrong texts rejected75.0%30 of 40" in page.text.replace("\n", "")
    for part in (
        "9.9.9",
        "<i>2</i>",
        "c0ffee",
        "12.3",
        "0" * 16,
        "1" * 16,
        "tiny/filter",
        "image too small",
        "blocked",
    ):
        assert part in page.text, part
    assert "wrong texts rejected" not in write_report(layout, {}, None, tmp_path / "d.html").read_text("utf-8")


def test_cards_hold_pictures_texts_and_verdicts(page: Page) -> None:
    cards = [attributes for tag, attributes in page.elements if tag == "article"]
    assert len(cards) == 36
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert 36 < len(pictures) <= 48
    for _, attributes in page.elements:
        if "data-judged" in attributes:
            assert (attributes["data-run"] == "kept") == (int(str(attributes["data-i"])) >= 100)


def test_data_for_the_script_are_numbers(page: Page) -> None:
    data = json.loads(page.scripts[0])
    assert set(data) == {"itm", "itc", "either", "cells"}
    assert not set(page.scripts[0]) & set("<>&\u2028")
    assert all(isinstance(n, int) for cells in data["cells"].values() for n in cells)


@pytest.mark.parametrize("gone", [("dedup",), ("near", "dedup"), ("select",), ("caption", "score", "select", "dedup")])
def test_stages_that_have_not_written_are_left_out(tmp_path: Path, gone: tuple[str, ...]) -> None:
    layout = build_run(tmp_path, leave_out=gone)
    page = Page(write_report(layout, {}, None, tmp_path / "r.html").read_text("utf-8"))
    assert ("Scores and thresholds" in page.text) == ("select" not in gone)
    assert ("Some groups" in page.text) == ("near" not in gone)


def test_a_run_without_scores_has_examples_and_no_sliders(tmp_path: Path) -> None:
    layout = build_run(tmp_path, scored=False)
    page = Page(write_report(layout, {}, None, tmp_path / "r.html").read_text("utf-8"))
    assert "Examples" in page.text
    assert "input" not in {tag for tag, a in page.elements if a.get("type") == "range"}


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    layout.shard("select", 0).write_bytes(b"torn")
    with pytest.raises(DataError, match="candidates-e"):
        write_report(layout, {}, None, tmp_path / "r.html")
    empty = RunLayout(layout.pipeline, tmp_path / "none", layout.shards, layout.folders)
    with pytest.raises(DataError, match="nothing is ingested yet"):
        write_report(empty, {}, None, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
