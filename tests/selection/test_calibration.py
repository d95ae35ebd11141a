"""The calibrated threshold: the least one, from the human part alone, and what is said where there is none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.config.load import validate
from capfilt.errors import ConfigError, DataError
from capfilt.selection.calibration import (
    LEAST,
    Calibration,
    choose,
    compute_calibration,
    read_calibration,
)
from capfilt.stages.base import Task
from capfilt.stages.calibrate import CalibrateStage
from capfilt.stages.select import SelectStage
from capfilt.store.layout import RunLayout
from capfilt.store.schema import arrow, score_columns
from capfilt.store.shards import ShardWriter, table

Record = dict[str, Any]
Make = Callable[..., Any]
SCORES = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=30)


def floats(values: list[float]) -> Any:
    return np.array(values, dtype=np.float32)


def precision(matched: Any, mismatched: Any, threshold: float, prior: float) -> float:
    right = (1 - prior) * float((matched >= threshold).mean())
    return right / (right + prior * float((mismatched >= threshold).mean()))


@given(SCORES, SCORES, st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([0.1, 0.5, 0.8]))
def test_it_is_the_least_score_that_reaches_the_target(
    right: list[float], wrong: list[float], target: float, prior: float
) -> None:
    matched, mismatched = floats(right), floats(wrong)
    scores = np.unique(np.concatenate([matched, mismatched]))
    reached = [float(t) for t in scores if precision(matched, mismatched, t, prior) >= target - 1e-12]
    try:
        found = choose(matched, mismatched, target, prior)
    except ConfigError:
        assert [t for t in reached if precision(matched, mismatched, t, prior) >= target + 1e-12] == []
        return
    assert found.threshold == reached[0]
    assert found.precision == pytest.approx(precision(matched, mismatched, found.threshold, prior))


def test_more_noise_asks_for_a_higher_threshold() -> None:
    matched, mismatched = floats([0.2, 0.4, 0.6, 0.8]), floats([0.1, 0.3, 0.5, 0.7])
    assert [choose(matched, mismatched, 0.6, prior).threshold for prior in (0.3, 0.5, 0.8)] == [
        pytest.approx(0.1),
        pytest.approx(0.4),
        pytest.approx(0.8),
    ]


def test_a_target_out_of_reach_is_told_with_the_best() -> None:
    with pytest.raises(ConfigError, match=r"target_precision: 0\.9 is reached at no threshold, at most 0\.500"):
        choose(floats([0.5]), floats([0.5]), 0.9, 0.5)


def layout_of(make_layout: Make, pairs_row: Make, human: int) -> RunLayout:
    """Two shards: human rows whose own text has 0.6 and up and the other's 0.4 and down; web rows at 0.5 and 0.7."""
    shards = [[pairs_row(2 * i + k, role="human") for i in range(human // 2)] for k in (0, 1)]
    shards[1] += [pairs_row(900), pairs_row(901)]
    layout: RunLayout = make_layout(shards)
    pipeline = layout.pipeline.model_dump(mode="json")
    pipeline["sources"] += [{"type": "parquet", "path": "h", "name": "h", "role": "human"}]
    pipeline["select"] |= {"policy": "calibrated"}
    folders = {name: folder for name, folder in layout.folders.items() if name in ("ingest", "score", "select")}
    folders |= {"calibrate": "calibrate-0"}
    layout = replace(
        layout, pipeline=validate(pipeline, "test"), folders=folders, digests={"caption": "c", "score": "d"}
    )
    for shard, rows in enumerate(shards):
        with ShardWriter(layout.shard("score", shard), arrow(score_columns(4))) as writer:
            writer.write([scored(row, i) for i, row in enumerate(rows)])
    return layout


def scored(row: Record, i: int) -> Record:
    own = {"900": 0.5, "901": 0.7}.get(row["key"], 0.6 + i / 100)
    wrong = 0.4 - i / 100 if row["role"] == "human" else None
    return {"uid": row["uid"], "web_itm": own, "mismatch_itm": wrong, "status": "ok", "image_embedding": [0.5] * 4}


def web_reasons(layout: RunLayout) -> dict[str, str | None]:
    """What select decides on shard 1 after calibrate, by uid."""
    CalibrateStage(layout).process(Task(0))
    stage = SelectStage(layout)
    stage.setup()
    stage.process(Task(1))
    texts = table(layout.shard("select", 1)).to_pylist()
    return {row["uid"]: row["reason"] for row in texts if row["origin"] == "web"}


def test_the_human_rows_of_all_shards_decide_over_the_web_rows(make_layout: Make, pairs_row: Make) -> None:
    layout = layout_of(make_layout, pairs_row, 2 * LEAST)
    found = compute_calibration(layout)
    assert isinstance(found, Calibration)
    assert (found.matched, found.mismatched) == (2 * LEAST, 2 * LEAST)
    assert found.threshold < 0.5
    assert found.precision >= 0.9
    assert web_reasons(layout) == {f"{900:016x}": None, f"{901:016x}": None}
    assert read_calibration(layout) == found
    strict = layout.pipeline.select.model_copy(update={"target_precision": 0.999})
    strict_job = replace(layout, pipeline=layout.pipeline.model_copy(update={"select": strict}))
    higher = compute_calibration(strict_job)
    assert higher.threshold == pytest.approx(0.6)
    assert web_reasons(strict_job) == {f"{900:016x}": "below_itm_threshold", f"{901:016x}": None}


def test_too_few_human_rows_are_told(make_layout: Make, pairs_row: Make) -> None:
    layout = layout_of(make_layout, pairs_row, LEAST - 2)
    with pytest.raises(ConfigError, match=rf"needs {LEAST} judged human texts .* found {LEAST - 2} and {LEAST - 2}"):
        compute_calibration(layout)


@given(SCORES, SCORES)
def test_it_is_read_back_equal_to_the_bit(tmp_path_factory: pytest.TempPathFactory, right: Any, wrong: Any) -> None:
    found = choose(floats(right), floats(wrong), 0.1, 0.5)
    path = tmp_path_factory.mktemp("calibrate") / "calibration.json"
    found.write(path)
    assert Calibration.read(path) == found


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for content in (None, '{"threshold": 0.', "[]", '{"threshold": 0.5}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(DataError, match=r"calibration\.json: cannot be read .* run again"):
            Calibration.read(path)


def test_without_a_human_source_the_pipeline_is_refused() -> None:
    source = {"type": "parquet", "path": "w", "role": "web"}
    raw = {"sources": [source], "score": {"model": "tiny/filter"}, "select": {"policy": "calibrated"}}
    with pytest.raises(ConfigError, match="calibrated takes its threshold from human pairs"):
        validate(raw, "test")
