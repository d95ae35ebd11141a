"""What decides a model's numbers is in the fingerprint, the device too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline, SelectSettings
from capfilt.inference.fingerprint import fingerprint_fields, resolve_models
from capfilt.stages.caption import settings as caption_settings
from capfilt.stages.score import settings as score_settings


def pipeline(device: str, **parts: Any) -> Pipeline:
    raw = {"sources": [{"type": "parquet", "path": "pairs.parquet"}]}
    models = {part: {"model": "fake", "device": device} for part in ("caption", "score")}
    return validate(raw | models | parts, "test.yaml")


def test_a_run_on_another_device_has_another_fingerprint() -> None:
    for settings in (caption_settings, score_settings):
        assert settings(pipeline("cpu")) != settings(pipeline("cuda"))


@pytest.mark.parametrize("part", ["batch_size", "precision", "device"])
def test_each_field_counts(part: str) -> None:
    use = pipeline("cpu").score
    assert use is not None
    other = use.model_copy(update={part: {"batch_size": 3, "precision": "int8", "device": "cuda"}[part]})
    assert fingerprint_fields(other) != fingerprint_fields(use)


@pytest.mark.parametrize(("here", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_resolved_before_it_counts(here: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    found = resolve_models(pipeline("auto"))
    assert found.caption is not None
    assert found.score is not None
    assert found.caption.device == found.score.device == device


def test_the_prompt_is_the_captioners_unless_it_is_named() -> None:
    for model, given, want in (
        ("tiny/captioner", None, "a picture of "),
        ("tiny/captioner", "a photo of ", "a photo of "),
        ("fake", None, None),
    ):
        asked = pipeline("cpu", caption={"model": model, "device": "cpu", "decoding": {"prompt": given}})
        found = resolve_models(asked)
        assert found.caption is not None
        assert found.caption.decoding.prompt == want
        assert resolve_models(found) == found


def test_a_card_without_a_prompt_leaves_it_to_the_system(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("system: blip\nroles: [captioner]\n")
    found = resolve_models(pipeline("cpu", caption={"model": str(tmp_path), "device": "cpu"}))
    assert found.caption is not None
    assert found.caption.decoding.prompt == "a picture of "


def test_workers_with_gpus_compute_on_them_whatever_the_driver_has() -> None:
    found = resolve_models(pipeline("auto", resources={"caption": {"num_gpus": 0.5}}))
    assert found.caption is not None
    assert found.score is not None
    assert (found.caption.device, found.score.device) == ("cuda", resolve_models(pipeline("auto")).score.device)


@pytest.mark.parametrize(
    ("select", "want"), [({}, (0.6, 0.3)), ({"itm_threshold": 0.5}, (0.5, 0.3)), ({"policy": "both"}, (0.6, 0.3))]
)
def test_a_threshold_that_is_left_out_is_the_judges_suggestion(
    select: dict[str, Any], want: tuple[float, float], tmp_path: Path
) -> None:
    card = {"system": "fake", "roles": ["judge", "embedder"], "scores": ["itc", "itm"], "licence": "none"}
    card |= {"thresholds": {"itm": 0.6, "itc": 0.3}, "deterministic": True}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    asked = pipeline("cpu", score={"model": str(tmp_path), "device": "cpu"}, select=select)
    found = resolve_models(asked)
    assert (found.select.itm_threshold, found.select.itc_threshold) == want
    again = validate(found.model_dump(mode="json"), "run.json")
    assert resolve_models(again).select == found.select


def test_without_a_suggestion_the_thresholds_stay() -> None:
    assert resolve_models(pipeline("cpu", score={"model": "tiny/filter", "device": "cpu"})).select == SelectSettings()
