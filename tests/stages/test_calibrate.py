"""The stage: one small file for the whole run, left out under other policies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capfilt.analysis.verify import verify
from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.errors import DataError
from capfilt.selection.calibration import LEAST, Calibration, calibration_file, compute_calibration, read_calibration
from capfilt.stages.base import Task
from capfilt.stages.calibrate import SPEC, CalibrateStage
from capfilt.stages.select import SelectStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.run_folder import RunFolder
from tests.sidecar_rows import score, write

HUMAN = {"type": "parquet", "path": "h", "name": "h", "role": "human"}


def pipeline(**select: Any) -> Pipeline:
    raw = {"sources": [HUMAN, {"type": "parquet", "path": "w"}], "score": {"model": "tiny/filter"}, "select": select}
    return validate(raw, "test")


@pytest.fixture
def layout(make_layout: Any, pairs_row: Any) -> RunLayout:
    """Human rows whose own text has 0.6 and up, and another's text 0.4."""
    rows = range(LEAST)
    found = write(
        make_layout([[pairs_row(i, role="human") for i in rows]], caption=None),
        score=[score(i, 0.6 + i / 100, mismatch_itm=0.4) for i in rows],
    )
    folders = found.folders | {"calibrate": "calibrate-0"}
    return replace(found, pipeline=pipeline(policy="calibrated"), folders=folders)


def test_the_file_holds_what_is_computed(layout: RunLayout) -> None:
    assert not SPEC.finished(layout, "")
    CalibrateStage(layout).process(Task(0, RowFilter(only=range(3))))
    assert not calibration_file(layout).exists()
    CalibrateStage(layout).process(Task(0))
    assert SPEC.finished(layout, "")
    assert read_calibration(layout) == compute_calibration(layout)
    first = calibration_file(layout).read_bytes()
    CalibrateStage(layout).process(Task(0))
    assert calibration_file(layout).read_bytes() == first


def test_select_does_not_start_without_it(layout: RunLayout) -> None:
    with pytest.raises(DataError, match=r"calibrate-0/calibration\.json: cannot be read"):
        SelectStage(layout).setup()


def test_verify_compares_it_with_the_stored_scores(layout: RunLayout) -> None:
    units = [[spec.source, spec.path, spec.start, spec.stop] for spec in layout.shards]
    raw = layout.pipeline.model_dump(mode="json")
    RunFolder(layout.run).write_facts(
        {"pipeline": raw, "units": units, "folders": layout.folders, "digests": layout.digests}
    )
    CalibrateStage(layout).process(Task(0))
    file = calibration_file(layout)
    assert not [line for line in verify(layout.run) if "calibration" in line]
    Calibration(0.1, 1.0, 1.0, 0.0, LEAST, LEAST).write(file)
    assert [line for line in verify(layout.run) if str(file) in line and "give another threshold" in line]
    file.write_text("{")
    assert [line for line in verify(layout.run) if str(file) in line and "cannot be read" in line]


def test_settings_are_those_that_the_threshold_depends_on() -> None:
    assert SPEC.settings(pipeline()) is None
    assert SPEC.settings(pipeline(policy="both")) is None
    found = SPEC.settings(pipeline(policy="calibrated", target_precision=0.8))
    assert found == {"target_precision": 0.8, "noise_prior": 0.5}
    assert SPEC.settings(pipeline(policy="calibrated", target_precision=0.8, max_texts_per_image=1)) == found


def test_other_policies_read_no_file(layout: RunLayout, tmp_path: Path) -> None:
    folders = {name: folder for name, folder in layout.folders.items() if name != "calibrate"}
    assert read_calibration(replace(layout, pipeline=pipeline(), folders=folders)) is None
