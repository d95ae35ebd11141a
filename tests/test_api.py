"""The functions of the Python API where they refuse or recover: retry after a failed retry, a pipeline of rounds."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from capfilt import open_run, retry, run
from capfilt.analysis.verify import verify
from capfilt.errors import CapfiltError, ConfigError
from capfilt.store.schema import PAIRS, arrow
from capfilt.store.shards import ShardWriter
from tests.sample import SAMPLE


@pytest.fixture
def with_time_out(tmp_path: Path) -> Path:
    """A finished run without models; its first row is as if its download had timed out."""
    pq.write_table(pq.read_table(SAMPLE / "web" / "00000.parquet").slice(0, 6), tmp_path / "web.parquet")
    raw = {
        "sources": [{"type": "parquet", "path": "web.parquet"}],
        "ingest": {"rows_per_shard": 3},
        "dedup": {"semantic": None},
        "select": {"policy": "keep_all"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw))
    run(tmp_path / "small.yaml", out=tmp_path / "run", local=True)
    shard = tmp_path / "run" / "pairs" / "00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    rows[0] |= {"status": "quarantined", "reason": "timeout", "error": "20 s", "image": None}
    with ShardWriter(shard, arrow(PAIRS)) as writer:
        writer.write(rows)
    return tmp_path / "run"


def test_a_retry_that_could_not_begin_is_repeated(with_time_out: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(CapfiltError, match=r"gone\.parquet"):
            retry(with_time_out, [f"sources.0.path={tmp_path / 'gone.parquet'}"], local=True)
    result = retry(with_time_out, local=True)
    assert result is not None
    assert open_run(with_time_out).layout.folders["ingest"] == "pairs-retry1"
    assert result.accounting.to_dict()["rows"]["in"] == 6
    assert set(pq.read_table(with_time_out / "pairs-retry1" / "00000.parquet")["status"].to_pylist()) == {"ok"}
    assert verify(with_time_out) == []
    assert retry(with_time_out, local=True) is None


def test_a_pipeline_of_rounds_is_not_run_as_an_ordinary_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bootstrap: this pipeline trains in rounds; .*run_rounds"):
        run("bootstrap", out=tmp_path / "run", local=True)
    assert not (tmp_path / "run").exists()
