import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from capfilt.config.yaml_file import SHIPPED, find_yaml
from capfilt.errors import ConfigError
from capfilt.training.objectives.blip.settings import KINDS
from capfilt.training.recipe import load_recipe, parse_recipe

Recipes = Callable[..., Path]


def refusal(path: Path | str, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, list(settings))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["pretrain", "captioner", "filter"])
def test_a_silent_recipe_is_the_papers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{{recipe: {kind}, out: o, model: {{init: x/y}}, data: {{sources: [{{path: a.parquet}}]}}}}")
    recipe = load_recipe(path)
    for part, defaults in KINDS[kind].items():
        for key, value in defaults.items():
            assert getattr(getattr(recipe, part), key) == value
    assert (recipe.optim.weight_decay, recipe.objective.momentum, recipe.objective.alpha) == (0.05, 0.995, 0.4)
    paper = {
        "pretrain": (1, 1, 1, False, "", 2880, 3e-4, 1e-6, 224),
        "captioner": (0, 0, 1, False, "a picture of ", 256, 1e-5, 0, 384),
        "filter": (1, 1, 0, True, "", 256, 1e-5, 0, 384),
    }[kind]
    losses, optim = recipe.objective, recipe.optim
    found = (losses.itc, losses.itm, losses.lm, losses.positives, losses.prompt)
    assert (*found, optim.global_batch, optim.lr, optim.min_lr, recipe.augment.size) == paper


def test_paths(tiny_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sources = [{"path": "data/*.parquet"}, {"path": "../other.parquet"}]
    path = tiny_recipe(
        out="runs/x",
        model={
            "shape": None,
            "tokenizer": None,
            "init": "tiny/x",
            "vision_init": "mine",
            "text_init": "./gone",
        },
        data={"sources": sources},
        validation={"path": "val.parquet", "metric": "itc_auc"},
    )
    recipe = load_recipe(path, ["data.sources.1.path=b.parquet"])
    assert recipe.out == str(tmp_path / "here/runs/x")
    assert [s.path for s in recipe.data.sources] == [str(tmp_path / "data/*.parquet"), str(tmp_path / "here/b.parquet")]
    assert recipe.validation is not None
    assert recipe.validation.path == str(tmp_path / "val.parquet")
    assert recipe.model.init == "tiny/x"
    assert recipe.model.vision_init == str(tmp_path / "mine")
    assert recipe.model.text_init == str(tmp_path / "gone")
    (tmp_path / "here/weights").mkdir()
    assert load_recipe(path, ["model.init=weights", "out=/o"]).model.init == str(tmp_path / "here/weights")
    assert load_recipe(os.path.relpath(path), ["out=~/o"]).out == str(Path.home() / "o")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lrr=1"], "optim.lrr: no such key; did you mean 'lr'?"),
        (["data.sources.0.txt=a"], "data.sources.0.txt: no such key; did you mean 'text'?"),
        (["optim.schedule=linear"], "optim.schedule: Input should be 'cosine' or 'step' (found 'linear')"),
        (["optim.lr=-1"], "optim.lr: Input should be greater than 0 (found -1)"),
        (["optim.lr=.inf"], "optim.lr: Input should be a finite number (found inf)"),
        (["optim.min_lr=1"], "optim: min_lr: 1.0 is above lr 0.001"),
        (["optim.warmup_lr=1"], "optim: warmup_lr: 1.0 is above lr 0.001"),
        (["recipe=[1]"], "recipe: must be one of pretrain, captioner, filter (found [1])"),
        (["recipe=pretain"], "recipe: must be one of pretrain, captioner, filter (found 'pretain')"),
        (["optim=3"], "optim: Input should be a valid dictionary or instance of OptimSection (found 3)"),
        (["data.sources=[]"], "data.sources: List should have at least 1 item"),
        (["model.init=x"], "model: name either init (a checkpoint) or shape (from scratch)"),
        (["model.tokenizer=null"], "model: tokenizer: a model from scratch needs a folder"),
        (["model.dropout=0.2"], "model: dropout and drop_path go with init"),
        (["run.ranks=3"], "optim.global_batch: 8 does not divide by ranks * accumulate = 3"),
        (["objective.queue_size=20"], "objective.queue_size: 20 is not a multiple of 8, the pairs of one forward pass"),
        (["objective.prompt=a"], "objective.prompt: end it with a space"),
        (["objective.itc=0", "objective.itm=0", "objective.lm=0"], "there is nothing to learn"),
        (["objective.lm=0", "validation={path: a, metric: cider}"], "validation.metric: cider needs objective.lm"),
        (["run.seed=4294967296"], "run.seed: Input should be less than 2147483648"),
    ],
)
def test_refusals_name_file_key_and_what_is_allowed(tiny_recipe: Recipes, settings: list[str], message: str) -> None:
    path = tiny_recipe()
    told = refusal(path, *settings)
    assert told.startswith(f"{path}: ")
    assert message in told


def test_a_recipe_without_a_type_is_blips_and_its_json_says_no_more(tiny_recipe: Recipes) -> None:
    path = tiny_recipe()
    recipe = load_recipe(path)
    assert load_recipe(path, ["objective.type=blip"]) == recipe
    assert parse_recipe(recipe.model_dump_json()) == recipe
    assert "type" not in recipe.model_dump(mode="json")["objective"]
    assert "objective.type: no objective has the name 'blib'; known: blip" in refusal(path, "objective.type=blib")


@pytest.mark.parametrize("text", ["", "- a", "recipe: [", "just words", "\x00"])
def test_what_is_no_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert refusal(path).startswith(f"{path}: ")


def test_accumulation_divides_the_batch_and_the_queue_follows(tiny_recipe: Recipes) -> None:
    recipe = load_recipe(tiny_recipe(objective={"queue_size": 4}), ["optim.accumulate=2", "run.ranks=2"])
    assert recipe.batch_size == 2


def test_shipped_recipes_go_by_name_and_an_unknown_one_gets_a_guess(tmp_path: Path) -> None:
    names = {p.relative_to(SHIPPED[1]).with_suffix("").as_posix() for p in SHIPPED[1].rglob("*.yaml")}
    assert names >= {"tiny/pretrain", "tiny/captioner", "tiny/filter"}
    for name in names & {"tiny/pretrain", "tiny/captioner", "tiny/filter"}:
        raw: Any = yaml.safe_load(find_yaml(name, ("recipe",), "recipe").read_text())
        assert raw["recipe"] == name.removeprefix("tiny/")
        assert load_recipe(name).recipe == raw["recipe"]
    assert "did you mean tiny/captioner?" in refusal("tiny/captionr")
    (tmp_path / "mine.yaml").write_text("")
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in refusal(tmp_path / "min.yaml")
    assert "Shipped: " in refusal("qqq")
