from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from capfilt.config.load import load_pipeline, validate, with_settings
from capfilt.config.pipeline import Pipeline
from capfilt.config.yaml_file import SHIPPED
from capfilt.errors import ConfigError

ROOT = Path(__file__).parents[2]

MINIMAL: dict[str, Any] = {"sources": [{"type": "parquet", "path": "web"}], "score": {"model": "tiny/filter"}}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate({**MINIMAL, **raw}, "mine.yaml")
    return str(caught.value)


def test_defaults_are_the_paper_s() -> None:
    pipeline = validate(MINIMAL, "mine.yaml")
    assert (pipeline.select.policy, pipeline.select.itm_threshold) == ("itm_threshold", 0.5)
    assert pipeline.caption is None
    assert [part.format for part in pipeline.emit] == ["parquet"]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"selekt": {}}, "mine.yaml: selekt: no such key; did you mean 'select'?"),
        ({"select": {"polcy": "both"}}, "mine.yaml: select.polcy: no such key; did you mean 'policy'?"),
        ({"select": {"policy": "itm"}}, "select.policy: Input should be 'itm_threshold'"),
        ({"select": {"itm_threshold": 7}}, "select.itm_threshold: Input should be less than or equal to 1 (found 7)"),
        ({"sources": []}, "sources: List should have at least 1 item"),
        ({"sources": [{"type": "parquett", "path": "x"}]}, "sources.0.type: Input should be 'parquet'"),
        ({"sources": [{"path": "x"}]}, "sources.0.type: is missing"),
        ({"sources": [{"type": "folder", "path": f"{x}/web"} for x in "ab"]}, "two are named 'web'"),
        ({"score": None}, "select.policy: itm_threshold needs scores; add `score`, or take keep_all"),
        ({"score": None, "select": {"policy": "keep_all"}}, "dedup.semantic: needs score's embedding"),
        (
            {"caption": {"model": "m", "samples": 2, "decoding": {"method": "beam"}}},
            "2 captions by beam would be equal",
        ),
        ({"caption": {"model": "m", "decoding": {"seed": 3}}}, "decoding.seed: give caption.seed instead"),
        ({"emit": [{"format": "pairs"}] * 2}, "each format once"),
        ({"name": "../x"}, "name: String should match pattern"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(raw: dict[str, Any], told: str) -> None:
    assert told in refusal(raw)


def test_per_source_is_read_as_per_origin() -> None:
    own = {"web": {"itm_threshold": 0.6}}
    for old in ({"per_source": own}, {"per_source": own, "per_origin": {}}, {"per_source": {}, "per_origin": own}):
        select = validate({**MINIMAL, "select": old}, "mine.yaml").select
        assert select.model_dump(mode="json")["per_origin"] == {"web": {"itm_threshold": 0.6, "itc_threshold": None}}
    assert "select: per_source was renamed to per_origin; give per_origin alone" in refusal(
        {"select": {"per_source": own, "per_origin": own}}
    )


def test_paths_are_relative_to_the_file_and_those_of_set_to_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = written(tmp_path, dedup={"decontaminate": [{"path": "eval.parquet"}]}, truth={"path": "t.parquet"})
    pipeline = load_pipeline(path, ["sources.0.path=mine", "select.itm_threshold=0.7"])
    assert pipeline.sources[0].path == str(tmp_path / "here/mine")
    assert pipeline.dedup.decontaminate[0].path == str(tmp_path / "eval.parquet")
    assert pipeline.truth
    assert pipeline.truth.path == str(tmp_path / "t.parquet")
    assert pipeline.score
    assert pipeline.score.model == "tiny/filter"
    assert pipeline.select.itm_threshold == 0.7


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"resources": {"caption": {"num_gpu": 1}}},
            "resources.caption.num_gpu: no such key; did you mean 'num_gpus'?",
        ),
        (
            {"emit": [{"format": "blip_json", "lnik": "url"}]},
            "emit.0.blip_json.lnik: no such key; did you mean 'link'?",
        ),
        (
            {"select": {"per_origin": {"web": {"itm": 1}}}},
            "web.itm: no such key; allowed: itc_threshold, itm_threshold",
        ),
    ],
)
def test_allowed_keys_are_named_below_mappings_and_tagged_lists(raw: dict[str, Any], message: str) -> None:
    assert message in refusal(raw)


def test_tokenizers_of_all_recipes_are_relative_to_the_file(tmp_path: Path) -> None:
    human = {"type": "parquet", "path": "human.parquet", "role": "human"}
    stages = ("pretrain", "finetune_captioner", "finetune_filter")
    recipes = {stage: {"recipe": {"model": {"tokenizer": "./words"}}} for stage in stages}
    pipeline = load_pipeline(written(tmp_path, sources=[human], caption={"model": "tiny/captioner"}, **recipes))
    for stage in stages:
        assert getattr(pipeline, stage).recipe["model"]["tokenizer"] == str(tmp_path / "words")


def test_settings_over_a_pipeline_come_back_equal_where_nothing_is_set() -> None:
    for root in SHIPPED[1:]:
        for name in ("demo", "coco_style"):
            pipeline = load_pipeline(root / f"{name}.yaml")
            assert with_settings(pipeline, [], "--set") == pipeline
            assert load_pipeline(name) == pipeline


def test_a_recipe_is_no_pipeline_and_a_misspelt_name_gets_a_guess(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training recipe; use `capfilt train"):
        load_pipeline(SHIPPED[1] / "tiny/filter.yaml")
    with pytest.raises(ConfigError, match="did you mean demo"):
        load_pipeline("dmo")


def test_base_is_a_run_s_pipeline_with_other_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base: no finished run there"):
        load_pipeline("rescore", [f"base={tmp_path}"])
    first = validate({**MINIMAL, "name": "first", "select": {"itm_threshold": 0.9}}, "x")
    (tmp_path / "run.json").write_text(yaml.safe_dump({"pipeline": first.model_dump(mode="json")}))
    second = load_pipeline("rescore", [f"base={tmp_path}", "score.model=tiny/filter"])
    assert (second.base, second.name, second.select.itm_threshold) == (str(tmp_path), tmp_path.name, 0.9)


@pytest.mark.parametrize("name", ["demo", "coco_style", "bootstrap", "laion_subset", "datacomp_small"])
def test_the_schema_accepts_the_shipped_pipelines(name: str) -> None:
    assert Draft202012Validator(Pipeline.model_json_schema()).is_valid(shipped(name))


@pytest.mark.parametrize("where", [(), ("caption", "decoding"), ("select",), ("sources", 0), ("ingest",), ("emit", 0)])
def test_the_schema_refuses_a_key_that_does_not_exist(where: tuple[str | int, ...]) -> None:
    raw = shipped("demo")
    part: Any = raw
    for key in where:
        part = part[key]
    part["no_such_key"] = 1
    assert not Draft202012Validator(Pipeline.model_json_schema()).is_valid(raw)


def shipped(name: str) -> dict[str, Any]:
    """Return the contents of a shipped pipeline file."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / f"pipelines/{name}.yaml").read_text(encoding="utf-8"))
    return raw
