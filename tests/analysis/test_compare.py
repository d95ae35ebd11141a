"""Two runs beside each other: what differs, who keeps which text, in the terminal and as JSON."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfilt.analysis.compare import compare
from capfilt.cli import main
from capfilt.errors import DataError
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import RunFolder

_RUN: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "report/run_folder.py"))
build_run: Callable[..., RunLayout] = _RUN["build_run"]


def finished(folder: Path, **select: Any) -> Path:
    """The hand-made run, as `open_run` reads it."""
    folder.mkdir()
    layout = build_run(folder)
    pipeline = layout.pipeline.model_dump(mode="json")
    pipeline["select"] |= select
    units = [[unit.source, unit.path, unit.start, unit.stop] for unit in layout.shards]
    facts = {"pipeline": pipeline, "units": units, "folders": layout.folders, "digests": layout.digests}
    RunFolder(layout.run).write_facts(facts)
    return layout.run


def test_equal_runs_agree_on_every_text(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", itm_threshold=0.7)
    (two / "evaluate.json").write_text(json.dumps({"fingerprint": "x", "itc_auc": 0.5, "itc_auc_ci": [0.4, 0.6]}))
    found = compare(one, two)
    assert found["settings"] == {"select.itm_threshold": [0.5, 0.7]}
    assert found["metrics"] == {"itc_auc": [None, 0.5], "itc_auc_ci": [None, [0.4, 0.6]]}
    for kept in found["agreement"].values():
        assert kept["only the first"] == kept["only the second"] == 0
    assert found["texts"]["web"]["kept"][0] == found["texts"]["web"]["kept"][1] > 0
    assert all(first == second > 0 for first, second in found["reasons"].values())


def test_terminal_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", policy="both")
    assert main(["compare", str(one), str(two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(one, two)
    assert main(["compare", str(one), str(two)]) == 0
    out = capsys.readouterr().out
    assert "select.policy" in out
    assert "web texts kept" in out


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json there"):
        compare(tmp_path, tmp_path)
