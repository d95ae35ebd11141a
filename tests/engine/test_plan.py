"""Planning: what a run reads before it works, and what it says of a plan."""

import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capfilt import run
from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.engine.plan import make_plan
from capfilt.store.run_folder import RunFolder

SAMPLE = Path(__file__).parents[2] / "data/sample"

_OPENED: Counter[str] = Counter()
_WATCHED: list[Path] = []


def _count(event: str, args: tuple[object, ...]) -> None:
    """Count files below a watched folder that are opened for reading."""
    if event == "open" and _WATCHED and isinstance(args[0], str | Path) and str(args[1] or "r").startswith("r"):
        path = Path(str(args[0]))
        if _WATCHED[0] in path.parents:
            _OPENED[path.name] += 1


sys.addaudithook(_count)  # cannot be removed; does nothing while no folder is watched


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    pq.write_table(pq.read_table(SAMPLE / "web" / "00000.parquet").slice(0, 8), tmp_path / "web.parquet")
    raw = {
        "sources": [{"type": "parquet", "path": str(tmp_path / "web.parquet")}],
        "ingest": {"rows_per_shard": 4},
        "caption": {"model": "fake"},
        "score": {"model": "fake"},
    }
    return validate(raw, "test")


def test_run_json_is_read_once_in_a_run(pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(pipeline, out=out, local=True)
    _OPENED.clear()
    _WATCHED.append(out)
    try:
        run(pipeline, out=out, local=True)
    finally:
        _WATCHED.clear()
    assert _OPENED["run.json"] == 1


def test_a_plan_has_one_layout_whose_folders_are_those_of_its_steps(pipeline: Pipeline, tmp_path: Path) -> None:
    plan = make_plan(pipeline, RunFolder(tmp_path / "run"))
    assert plan.layout.folders["ingest"] == "pairs"
    for step in plan.steps:
        assert plan.layout.fingerprints[step.name] == step.fingerprint
        assert plan.layout.folders[step.name] == step.spec.output.folder_name(step.fingerprint)
    assert [group.name for group in plan.groups if group.todo] == [
        "ingest", "near", "caption+score", "dedup", "select", "emit",
    ]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_left_out_is_the_reason_to_run_those_that_read_it(pipeline: Pipeline, tmp_path: Path) -> None:
    run(pipeline, out=tmp_path / "run", local=True)
    plan = make_plan(pipeline.model_copy(update={"caption": None}), RunFolder(tmp_path / "run"))
    assert plan.steps_by_name["score"].why == "caption changed"
