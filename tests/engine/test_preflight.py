"""What is missing on a machine for a pipeline is reported before anything starts."""

import json
from pathlib import Path

import pytest

from capfilt.cli import main
from capfilt.config.load import load_pipeline
from capfilt.config.source import Source
from capfilt.engine import preflight
from capfilt.engine.preflight import missing_requirements


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no GPU, no cluster, nothing in the hub's cache."""
    monkeypatch.setattr(preflight, "resolves", lambda host: False)
    monkeypatch.setattr(preflight, "is_here", lambda model, revision: "/" in model and model.startswith("tiny"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("alone")
def test_laion_subset_on_a_machine_that_has_nothing() -> None:
    printed = "\n".join(missing_requirements(load_pipeline("laion_subset")))
    assert "network: huggingface.co of sources.laion.path" in printed
    assert "--set sources.0.path=FILE" in printed
    assert "hub: caption.model Salesforce/blip-image-captioning-large is not in the cache" in printed
    assert "hub: score.model Salesforce/blip-itm-large-coco" in printed
    assert "GPU: resources.caption asks for 0.6, this machine has 0" in printed
    assert "GPU: score.device is cuda" in printed


@pytest.mark.usefixtures("alone")
def test_the_advice_on_a_list_names_its_place_among_the_sources() -> None:
    pipeline = load_pipeline("laion_subset")
    second = pipeline.model_copy(update={"sources": [Source(type="parquet", path="mine"), *pipeline.sources]})
    assert any("--set sources.1.path=FILE" in line for line in missing_requirements(second))


@pytest.mark.usefixtures("alone")
def test_a_cluster_has_its_own_gpus_and_the_demo_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert not any(line.startswith("GPU") for line in missing_requirements(load_pipeline("laion_subset")))
    monkeypatch.delenv("RAY_ADDRESS")
    assert missing_requirements(load_pipeline("demo")) == []


@pytest.mark.usefixtures("alone")
def test_a_local_list_of_public_urls_needs_the_network_and_one_of_private_hosts_does_not() -> None:
    settings = [
        "sources.0.path=list.csv",
        "caption=null",
        "score.model=tiny/filter",
        "resources={}",
        "score.device=cpu",
    ]
    assert [line.split(":")[0] for line in missing_requirements(load_pipeline("laion_subset", settings))] == ["network"]
    assert (
        missing_requirements(load_pipeline("laion_subset", [*settings, "sources.0.download.allow_hosts=['10.0.0.1']"]))
        == []
    )


@pytest.mark.usefixtures("alone")
def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = missing_requirements(load_pipeline("laion_subset", ["sources.0.path=s3://bucket/list.parquet"]))
    assert any(line.startswith("img2dataset:") for line in found)
    assert any(line.startswith("s3fs: sources.laion.path") for line in found)


@pytest.mark.usefixtures("alone")
def test_plan_prints_it_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ["plan", "demo", "--out", str(tmp_path / "run")]
    assert main([*demo, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert main([*demo, "--set", "caption.device=cuda"]) == 2
    printed = capsys.readouterr().out
    assert "missing on this machine:" in printed
    assert "caption.device is cuda" in printed
    assert main(["plan", "laion_subset", "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert "huggingface.co" in printed
    assert "Traceback" not in printed
