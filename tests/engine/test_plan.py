"""The plan refuses a selection whose scores no judge writes, and has the calibration between dedup and select."""

from pathlib import Path
from typing import Any

import pytest

from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.engine.plan import make_plan
from capfilt.engine.steps import Plan
from capfilt.errors import ConfigError
from capfilt.store.run_folder import RunFolder

SAMPLE = Path(__file__).parents[2] / "data/sample"
SOURCES = [{"type": "parquet", "path": str(SAMPLE / role), "role": role} for role in ("web", "human")]


@pytest.fixture
def only_itc(tmp_path: Path) -> str:
    """A judge without files whose card says that it writes ITC alone."""
    folder = tmp_path / "judge"
    folder.mkdir()
    card = "system: fake\nroles: [judge, embedder]\nscores: [itc]\nversion: '1'\n"
    (folder / "card.yaml").write_text(card)
    return str(folder)


def pipeline(judge: str, **select: Any) -> Pipeline:
    return validate({"sources": SOURCES, "score": {"model": judge}, "select": select}, "test")


def planned(asked: Pipeline, folder: Path) -> Plan:
    return make_plan(asked, RunFolder(folder))


def test_a_policy_that_needs_a_score_which_the_judge_does_not_write_is_refused(only_itc: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"select\.policy: itm_threshold needs itm, but the judge of `score` writes"):
        planned(pipeline(only_itc), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    plan = planned(pipeline(only_itc, policy="itc_threshold"), tmp_path / "run")
    assert plan.steps_by_name["select"].todo


def test_the_judge_of_a_finished_run_may_be_gone(only_itc: str, tmp_path: Path) -> None:
    asked = pipeline(only_itc, policy="itc_threshold")
    last = planned(asked, tmp_path / "run").layout
    (last.run / "pairs").mkdir(parents=True)
    (last.run / "pairs" / "fingerprint.json").write_text("{}")
    (Path(only_itc) / "card.yaml").unlink()
    Path(only_itc).rmdir()
    assert make_plan(asked, RunFolder(last.run), last).layout.digests == last.digests
    with pytest.raises(ConfigError, match="judge"):
        planned(asked, tmp_path / "run")


def test_calibrate_is_one_task_between_dedup_and_select(tmp_path: Path) -> None:
    plan = planned(pipeline("tiny/filter", policy="calibrated"), tmp_path)
    names = [step.name for step in plan.steps]
    assert names[-4:] == ["dedup", "calibrate", "select", "emit"]
    assert plan.steps_by_name["calibrate"].todo == (0,)
    assert "calibrate" in plan.steps_by_name["select"].fingerprint_inputs["inputs"]
    other = planned(pipeline("tiny/filter"), tmp_path)
    assert "calibrate" not in other.steps_by_name
    assert "calibrate" not in other.steps_by_name["select"].fingerprint_inputs["inputs"]
