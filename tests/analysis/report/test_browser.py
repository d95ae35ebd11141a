"""The report in a real browser: the sliders' counts are select's, and no hostile text runs."""

import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capfilt.analysis.report.build import write_report
from capfilt.store.layout import RunLayout

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OPTIONS += " --disable-component-update --disable-sync --disable-extensions --virtual-time-budget=2000 --dump-dom"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; install it to test the page's script")


@pytest.fixture
def dom(tmp_path: Path) -> Callable[..., str]:
    """dom(file, hash): the document after its scripts ran."""

    def dump(file: Path, fragment: str = "") -> str:
        profile = tmp_path / "profile"
        command = [str(CHROMIUM), *OPTIONS.split(), f"--user-data-dir={profile}", file.as_uri() + fragment]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return done.stdout.decode()

    return dump


def live(document: str) -> dict[str, int]:
    found = re.findall(r'id="live-(\w+)"[^>]*>([\d,]+)<', document)
    return {origin: int(n.replace(",", "")) for origin, n in found}


def expected(itm: float, itc: float | None, either: bool = False) -> dict[str, int]:
    """What select would keep, from the ledger's float32 scores."""
    out = {"web": 0, "synthetic": 0}
    for line in (line for i in range(64) for line in _RUN["candidates"](i)):
        if line["origin"] in out and (line["kept"] or line["reason"] == "below_itm_threshold"):
            first = np.float32(line["itm"]) >= np.float32(itm)
            second = itc is None or np.float32(line["itc"]) >= np.float32(itc)
            out[line["origin"]] += bool(first or second) if either else bool(first and second)
    return out


def test_slider_counts_are_those_of_the_ledger_needs_chromium(tmp_path: Path, dom: Callable[..., str]) -> None:
    page = write_report(build_run(tmp_path), {}, None, tmp_path / "r.html")
    untouched = dom(page)
    assert '<html lang="en" class="live">' in untouched
    assert live(untouched) == expected(0.5, None)
    document = dom(page, "#itm=0.8")
    assert live(document) == expected(0.8, None) != live(untouched)
    assert re.search(r'id="at-itm">0.80<.*id="at-itc">any<', document, re.DOTALL)
    document = dom(page, "#itm=0.3&itc=0.2")
    assert live(document) == expected(0.3, 0.2)
    changed = re.findall(r'data-run="(kept|rejected)"[^>]*data-judged="1"[^>]*>', document)
    classes = re.findall(r'<li class="text (?:kept|rejected)( changed)?"', document)
    assert len(changed) > 30
    assert any(classes)


def test_examples_follow_the_sliders_needs_chromium(tmp_path: Path, dom: Callable[..., str]) -> None:
    page = write_report(build_run(tmp_path, select={"policy": "either"}), {}, None, tmp_path / "r.html")
    document = dom(page, "#itm=0.9&itc=0.55")
    assert live(document) == expected(0.9, 0.55, either=True)
    scores = re.findall(
        r'<li class="text (kept|rejected)[^>]*data-judged="1".*?ITM ([\d.]+) · ITC ([-\d.]+)<', document, re.DOTALL
    )
    assert len(scores) > 30
    for verdict, itm, itc in scores:
        if min(abs(float(itm) - 0.9), abs(float(itc) - 0.55)) > 0.001:  # three decimals are shown
            assert (verdict == "kept") == (float(itm) >= 0.9 or float(itc) >= 0.55)


def test_hostile_texts_do_not_run_needs_chromium(tmp_path: Path, dom: Callable[..., str]) -> None:
    page = write_report(build_run(tmp_path), {}, None, tmp_path / "r.html")
    text = page.read_text("utf-8")
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # escaping alone must do
    control = bare.replace("<main>", f"<main>{_RUN['HOSTILE'][1]}")
    for name, content, title in (("r", text, "run"), ("bare", bare, "run"), ("control", control, "pwned")):
        (tmp_path / f"{name}.html").write_text(content, "utf-8")
        found = re.search(r"<title>([^<]*)</title>", dom(tmp_path / f"{name}.html", "#itm=0.8"))
        assert found is not None
        assert found[1].startswith(title), name
    blocked = text.replace("<main>", f"<main>{_RUN['HOSTILE'][1]}")  # and so must the policy alone
    (tmp_path / "blocked.html").write_text(blocked, "utf-8")
    assert "<title>run " in dom(tmp_path / "blocked.html")
