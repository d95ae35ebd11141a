"""The page of a loop: hostile captions stay texts, nothing is asked for, rounds stand beside each other."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfilt.analysis.report.rounds import chart, write_loop_report
from capfilt.errors import DataError
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import RunFolder

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]
COUNTS = {
    "rows": {"in": 72},
    "texts": {
        "web": {"candidates": 40, "kept": 30, "rejected": {"below_itm_threshold": 10}},
        "synthetic": {"candidates": 0, "kept": 0, "rejected": {}},
    },
}


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """Two rounds by hand, their run folders with hostile texts."""
    rounds = []
    for number in (1, 2):
        folder = tmp_path / f"round-{number}"
        folder.mkdir()
        layout = build_run(folder)
        units = [[unit.source, unit.path, unit.start, unit.stop] for unit in layout.shards]
        pipeline = layout.pipeline.model_dump(mode="json")
        facts = {"pipeline": pipeline, "units": units, "folders": layout.folders, "digests": layout.digests}
        RunFolder(folder).write_facts(facts)
        if layout.run != folder:
            layout.run.rename(folder)
        (folder / "pretrain-a").mkdir()
        lines = [{"step": step, "lm": 9.0 - step - number, "loss": 9.0} for step in (1, 2, 3)]
        (folder / "pretrain-a/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        metrics = {"images": 368, "filter_itc_auc": 0.5 + number / 10, "filter_itc_auc_ci": [0.4, 0.9]}
        stages = {"pretrain": "pretrain-a"}
        rounds.append({"round": number, "folders": stages, "accounting": COUNTS, "metrics": metrics})
    (tmp_path / "loop.json").write_text(json.dumps({"pipeline": {"name": "<b>loop</b>"}, "rounds": rounds}))
    return tmp_path


def test_rounds_stand_beside_each_other(loop: Path) -> None:
    page = write_loop_report(loop).read_text()
    assert "25.0%" in page
    assert "0.600" in page
    assert "0.700" in page
    assert "368 held-out images" in page
    assert page == write_loop_report(loop).read_text()


def test_hostile_texts_stay_texts(loop: Path) -> None:
    page = write_loop_report(loop).read_text()
    for bad in ("<script", "<img src=x", "<svg onload", "<b>loop", "<base", "\u202e", "\x1b"):
        assert bad not in page
    assert "&lt;b&gt;loop" in page
    assert "default-src 'none'" in page


def test_a_chart_has_common_axes() -> None:
    found = chart("lm", [[{"step": 1, "lm": 4.0}, {"step": 2, "lm": 2.0}], [{"step": 1, "lm": 3.0}], []])
    assert found["paths"] == ["M150.0 0.0L300.0 90.0", "M150.0 45.0", ""]
    assert found["ends"] == [2.0, 3.0, None]


def test_without_a_loop_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no loop\.json there"):
        write_loop_report(tmp_path)
