"""The pipeline whole, through the real command line, on 28 pairs of the bundled sample and the bundled weights."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from capfilt import load_pipeline, open_run, run, select
from capfilt.analysis.verify import verify
from capfilt.cli import main
from capfilt.errors import ConfigError, RunError
from capfilt.store.run_folder import RunFolder
from tests.command_line import content, finish, line, start, wait_for
from tests.sample import SAMPLE, SOURCES, write_slices

SHARDS, ROWS = 4, 28


@pytest.fixture(scope="module")
def pipeline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_slices(folder, web=24, human=4)
    raw = {
        "name": "small",
        "sources": SOURCES,
        "ingest": {"rows_per_shard": 8},
        "caption": {"model": "tiny/captioner", "decoding": {"max_length": 12, "min_length": 5}, "batch_size": 4},
        "score": {"model": "tiny/filter", "batch_size": 4},
        "emit": [{"format": name} for name in ("parquet", "blip_json", "webdataset", "pairs")],
        "truth": {"path": str(SAMPLE / "truth.parquet"), "source": "web"},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def finished(pipeline_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", str(pipeline_file), "--local", "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    subprocess.run(["cp", "-r", str(finished), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def test_every_row_is_accounted_for_and_the_folder_is_whole(finished: Path) -> None:
    facts = open_run(finished).facts
    rows = facts["accounting"]["rows"]
    assert facts["state"] == "finished"
    assert rows["in"] == ROWS == rows["kept"] + rows["rejected"] + rows["quarantined"]
    assert verify(finished) == []
    assert len(list((finished / "pairs").glob("*.parquet"))) == SHARDS
    assert (finished / "report.html").stat().st_size > 10_000
    assert facts["accounting"]["truth"]["wrong_in"] + facts["accounting"]["truth"]["right_in"] > 0


def test_the_same_call_again_does_nothing(copy: Path, pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.parquet")}
    assert main(["run", str(pipeline_file), "--local", "--out", str(copy)]) == 0
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*.parquet")} == before
    printed = capsys.readouterr().out
    for word in ("rows in", "captions", "dataset  ", "report   ", "wrong ones were", "capfilt select"):
        assert word in printed


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_bytes_on_ray(
    finished: Path,
    pipeline_file: Path,
    tmp_path: Path,
    workers: int,
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a running cluster; the killed run below starts a Ray of its own."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    most = [f"resources.{stage}.max_actors={workers}" for stage in ("ingest", "caption", "score", "select")]
    code, printed = finish("run", pipeline_file, "--out", tmp_path / "run", *(f"--set={x}" for x in most))
    assert code == 0, printed
    assert content(tmp_path / "run") == content(finished)


@pytest.mark.parametrize(
    ("point", "local"),
    [("pairs/00001.parquet", True), ("score-*/00002.parquet", True), ("caption-*/00001.parquet", False)],
)
def test_killed_and_resumed_is_as_if_never_killed(
    finished: Path, pipeline_file: Path, tmp_path: Path, point: str, local: bool
) -> None:
    out = tmp_path / "run"
    args = ("run", pipeline_file, "--out", out, *(["--local"] if local else []))
    started = start(*args)
    wait_for(lambda: any(out.glob(point)), started)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    code, printed = finish(*args)
    assert code == 0, printed
    assert content(out) == content(finished)
    assert not [p for p in out.rglob(".*.parquet.*")]


def test_terminated_it_ends_soon_and_says_how_to_continue(pipeline_file: Path, tmp_path: Path) -> None:
    started = start("run", pipeline_file, "--out", tmp_path / "run", "--local")
    wait_for(lambda: any((tmp_path / "run").glob("caption-*/00000.parquet")), started)
    started.send_signal(signal.SIGTERM)
    printed, _ = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "the same command continues" in printed
    assert "Traceback" not in printed


def test_another_threshold_runs_no_model(copy: Path) -> None:
    models = {
        p: p.stat().st_mtime_ns for stage in ("caption", "score", "dedup") for p in copy.glob(f"{stage}-*/*.parquet")
    }
    kept = select(copy, ["select.itm_threshold=0"]).accounting.texts_kept
    assert select(copy, ["select.itm_threshold=1"]).accounting.texts_kept < kept
    assert {p: p.stat().st_mtime_ns for p in models} == models
    assert len(list(copy.glob("candidates-*"))) == 3
    assert verify(copy) == []
    with pytest.raises(
        ConfigError, match=r"select runs no model, and these are to do: caption \(settings.seed: 0 -> 9"
    ):
        select(copy, ["caption.seed=9"])


def test_another_threshold_needs_no_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> str:
        raise ConfigError("no such model")

    monkeypatch.setattr("capfilt.engine.plan.weights_digest", gone)
    select(copy, ["select.itm_threshold=0.9"])
    assert verify(copy) == []
    with pytest.raises(ConfigError, match="no such model"):
        select(copy, ["score.model=tiny/pretrained"])


def test_a_changed_setting_makes_what_depends_on_it_anew_and_nothing_else(copy: Path, pipeline_file: Path) -> None:
    early = [p for stage in ("pairs", "near-*") for p in copy.glob(f"{stage}/*.parquet")]
    before = [p.stat().st_mtime_ns for p in early]
    run(pipeline_file, out=copy, local=True, settings=["caption.seed=9"])
    assert [p.stat().st_mtime_ns for p in early] == before
    folders = {
        stage: len(list(copy.glob(f"{stage}-*"))) for stage in ("near", "caption", "score", "dedup", "candidates")
    }
    assert folders == {"near": 1, "caption": 2, "score": 2, "dedup": 2, "candidates": 2}
    captions = [pq.read_table(p / "00000.parquet")["captions"] for p in copy.glob("caption-*")]
    assert captions[0] != captions[1]


def test_another_filter_over_a_finished_run_keeps_pairs_and_captions(copy: Path) -> None:
    captions = [p.stat().st_mtime_ns for p in copy.glob("caption-*/*.parquet")]
    assert main(["run", "rescore", "--local", "--set", f"base={copy}"]) == 0
    assert [p.stat().st_mtime_ns for p in copy.glob("caption-*/*.parquet")] == captions
    assert len(list(copy.glob("score-*"))) == 2
    assert open_run(copy).layout.pipeline.score.model == "tiny/pretrained"
    assert verify(copy) == []


def test_other_input_is_refused_not_mixed(copy: Path, pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(pipeline_file), "--local", "--out", str(copy), "--set", "ingest.min_side=64"]) == 2
    printed = capsys.readouterr().err
    assert "min_side: 16 -> 64" in printed
    assert "take another --out" in printed


def test_damage_is_found_and_repaired(copy: Path, pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(copy.glob("caption-*/00001.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (copy / "dataset/README.md").write_text("mine")
    assert main(["verify", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "caption" in printed
    assert "README.md: changed since it was written" in printed
    shard.unlink()
    assert main(["run", str(pipeline_file), "--local", "--out", str(copy)]) == 0
    (copy / "dataset.json").write_text("{}")
    assert main(["verify", str(copy)]) == 1
    assert "dataset: not finished; `capfilt run` writes it" in capsys.readouterr().out.replace("\n", " ")
    (copy / "dataset.json").unlink()
    assert main(["run", str(pipeline_file), "--local", "--out", str(copy)]) == 0
    assert main(["verify", str(copy)]) == 0


def test_no_room_for_a_file_stops_the_run_and_the_same_command_continues_it(
    finished: Path, pipeline_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    limit = (resource.RLIMIT_FSIZE, (30_000, 30_000))
    args = ["run", str(pipeline_file), "--out", str(out), "--local"]
    found = subprocess.run(line(*args), capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(*limit))
    assert found.returncode == 3, found.stderr
    assert "File too large" in found.stderr
    assert "the same command again" in found.stderr
    assert "Traceback" not in found.stderr
    assert main(args) == 0
    assert content(out) == content(finished)


def test_two_runs_at_once_in_one_folder_are_refused(copy: Path, pipeline_file: Path) -> None:
    with RunFolder(copy).locked(), pytest.raises(RunError, match="another process is working on this run"):
        run(pipeline_file, out=copy, local=True)


def test_plan_says_what_would_run_and_why(copy: Path, pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pipeline_file), "--out", str(copy), "--json", "--set", "score.batch_size=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    state = {stage["stage"]: stage["state"] for stage in found["stages"]}
    assert state == dict.fromkeys(("ingest", "near", "caption"), "done") | dict.fromkeys(
        ("score", "dedup", "select", "emit"), "to do"
    )
    assert "batch_size: 4 -> 2" in next(s["why"] for s in found["stages"] if s["stage"] == "score")
    assert next(s["why"] for s in found["stages"] if s["stage"] == "dedup") == "score changed"
    assert found["rows"] == ROWS
    assert found["seconds"] > 0
    assert main(["plan", str(pipeline_file), "--out", str(copy / "new")]) == 0
    assert "rows in 4 shards" in " ".join(capsys.readouterr().out.split())
    assert not (copy / "new").exists()


@pytest.mark.parametrize("args", [["inspect"], ["sql", "select origin, kept, count(*) from candidates group by all"]])
def test_looking_at_a_run(finished: Path, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([args[0], str(finished), *args[1:]]) == 0
    assert "web" in capsys.readouterr().out
    uid = pq.read_table(finished / "pairs/00000.parquet")["uid"][0].as_py()
    assert main(["inspect", str(finished), uid, "--json"]) == 0
    assert uid in capsys.readouterr().out


def test_no_run_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["verify"], ["select"], ["inspect"], ["report"], ["sql", "select 1"]):
        assert main([args[0], str(tmp_path), *args[1:]]) == 2
        assert "no run.json there" in capsys.readouterr().err


def test_run_in_python_writes_what_the_command_writes(finished: Path, pipeline_file: Path, tmp_path: Path) -> None:
    result = run(load_pipeline(pipeline_file), out=tmp_path / "run", local=True)
    assert content(tmp_path / "run") == content(finished)
    assert result.dataset == tmp_path / "run/dataset"
    command, python = open_run(finished), open_run(tmp_path / "run")
    assert python.layout.pipeline == command.layout.pipeline == result.layout.pipeline
    assert {**result.accounting.to_dict(), "truth": result.truth} == command.facts["accounting"]


def test_datasets_opens_the_result(finished: Path, tmp_path: Path) -> None:
    import datasets

    found = datasets.load_dataset(str(finished / "dataset"), split="train", cache_dir=str(tmp_path))
    assert {"image", "text", "uid", "origin", "itm"} <= set(found.column_names)
    assert found[0]["image"].mode in ("RGB", "RGBA", "P", "L")
