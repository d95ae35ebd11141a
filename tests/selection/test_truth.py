from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import ConfigError, DataError
from capfilt.selection.truth import truth
from capfilt.store.layout import RunLayout
from tests.selection.counted_run import counted_layout


def labelled(tmp_path: Path, path: str = "truth.parquet", **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), tmp_path / path)
    return str(tmp_path / path)


def test_truth_counts_what_the_policy_judged(tmp_path: Path) -> None:
    keys = [f"key-{uid}" for uid in "abcdefghi"] + ["key-unknown", None]
    matches = [True, False, True, True, True, False, True, False, False, True, True]
    part = {"path": labelled(tmp_path, key=keys, matches=matches), "source": "crawl"}
    found = truth(counted_layout(tmp_path, truth=part))
    assert found is not None
    sentence = found.pop("sentence")
    assert found == {"source": "crawl", "wrong_in": 2, "wrong_rejected": 1, "right_in": 3, "right_kept": 2}
    assert "1 of 2 (50%) wrong ones were rejected and 2 of 3 (67%) right ones kept" in sentence


def test_truth_is_of_the_first_web_source_by_default(tmp_path: Path) -> None:
    part = {"path": labelled(tmp_path, key=["key-a"], matches=[True])}
    found = truth(counted_layout(tmp_path, truth=part))
    assert found is not None
    assert (found["source"], found["right_kept"]) == ("crawl", 1)
    assert "0 of 0 wrong ones" in found["sentence"]


def test_no_truth(tmp_path: Path) -> None:
    assert truth(counted_layout(tmp_path)) is None


def test_truth_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column matches"):
        truth(counted_layout(tmp_path, truth={"path": labelled(tmp_path, key=["a"])}))
    layout = counted_layout(tmp_path, truth={"path": labelled(tmp_path, key=["a"], matches=[True]), "source": "nobody"})
    with pytest.raises(ConfigError, match="'nobody'; there are crawl, b"):
        truth(layout)
    human = layout.pipeline.model_copy(update={"sources": layout.pipeline.sources[1:], "truth": replaced(layout)})
    with pytest.raises(ConfigError, match="no source is of role web"):
        truth(replace(layout, pipeline=human))


def replaced(layout: RunLayout) -> Any:
    assert layout.pipeline.truth is not None
    return layout.pipeline.truth.model_copy(update={"source": ""})
