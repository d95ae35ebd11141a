"""Adding a stage touches its file, its columns and one list: plan, run, sql, verify and resume know the rest."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from capfilt import open_run, run
from capfilt.analysis.sql import query
from capfilt.analysis.verify import verify
from capfilt.cli import main
from capfilt.errors import ConfigError
from capfilt.stages.catalog import STAGES

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data/sample"

TOY: Any = runpy.run_path(str(ROOT / "docs/extending/code/stage.py"))
"""The stage of the page on adding a stage: counts the words of each row's text."""
WORDS = TOY["WORDS"]


@pytest.fixture
def toy() -> Iterator[None]:
    """The toy stage in the list, after ingest."""
    STAGES.insert(1, TOY["WordsStage"])
    yield
    STAGES.remove(TOY["WordsStage"])


@pytest.fixture
def pipeline_file(tmp_path: Path) -> Path:
    pq.write_table(pq.read_table(SAMPLE / "web" / "00000.parquet").slice(0, 12), tmp_path / "web.parquet")
    raw = {
        "sources": [{"type": "parquet", "path": "web.parquet"}],
        "ingest": {"rows_per_shard": 5},
        "dedup": {"semantic": None},
        "select": {"policy": "keep_all"},
        "resources": {"words": {"max_actors": 1}},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.usefixtures("toy")
def test_a_new_stage_is_planned_run_asked_verified_and_resumed(
    pipeline_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["plan", str(pipeline_file), "--out", str(out), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["stages"]
    assert [(stage["stage"], stage["shards_to_do"], stage["rows_to_do"]) for stage in planned][:2] == [
        ("ingest", 3, 12),
        ("words", 3, 12),
    ]
    assert main(["run", str(pipeline_file), "--local", "--out", str(out)]) == 0
    layout = open_run(out).layout
    assert layout.folders["words"] == f"words-{layout.fingerprints['words']}"
    asked = (
        "SELECT count(*) FROM words JOIN pairs USING (uid) WHERE words = len(string_split_regex(trim(text), '\\s+'))"
    )
    assert query(layout, asked).rows == query(layout, "SELECT count(*) FROM pairs WHERE trim(text) <> ''").rows
    assert verify(out) == []
    shard = layout.shard(WORDS, 1)
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + b"x")
    assert [line.split(": ")[0] for line in verify(out)] == [str(shard)]
    shard.unlink()
    capsys.readouterr()
    assert main(["plan", str(pipeline_file), "--out", str(out), "--json"]) == 0
    todo = {stage["stage"]: stage["shards_to_do"] for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert {name for name, shards in todo.items() if shards} == {"words"}
    assert main(["run", str(pipeline_file), "--local", "--out", str(out)]) == 0
    assert shard.read_bytes() == before


def test_resources_of_a_stage_that_does_not_exist_are_refused(pipeline_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resources\.words: no such stage; stages are ingest, near"):
        run(pipeline_file, out=tmp_path / "run", local=True)
    with pytest.raises(ConfigError, match=r"resources\.captoin: no such stage; did you mean 'caption'"):
        run(pipeline_file, out=tmp_path / "run", settings=["resources={captoin: {}}"], local=True)
