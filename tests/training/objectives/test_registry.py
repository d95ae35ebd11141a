"""Another package's objective: found by its entry point, trained, validated, saved and resumed by the same loop."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from capfilt.errors import ConfigError
from capfilt.training.loop import train
from capfilt.training.objectives.blip.objective import BlipObjective
from capfilt.training.objectives.registry import find_objective
from capfilt.training.recipe import load_recipe, parse_recipe
from capfilt.training.trainer import Rank, Trainer
from tests.training.toy_objective import ToyObjective, ToyRecipe

Recipes = Callable[..., Path]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of a package that adds two objectives, the second of them wrong."""
    info = tmp_path / "site/toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    names = "toy = tests.training.toy_objective:ToyObjective\nwrong = tests.training.toy_objective:ToyModel\n"
    (info / "entry_points.txt").write_text(f"[capfilt.objectives]\n{names}gone = tests.training.nothing:It\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.fixture
def toy_recipe(tiny_recipe: Recipes, tiny_pairs: Path) -> Callable[[str], Path]:
    """toy_recipe(name): the tiny recipe with the toy objective, no `model` section, and held-out pairs."""

    def write(name: str) -> Path:
        path = tiny_recipe("pretrain", name, validation={"path": str(tiny_pairs), "metric": "itc_auc"})
        raw = yaml.safe_load(path.read_text())
        del raw["model"], raw["optim"]["schedule"]
        path.write_text(yaml.safe_dump(raw | {"objective": {"type": "toy"}}))
        return path

    return write


def log(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "pairs_s"} for line in lines]


def test_names() -> None:
    assert find_objective("blip") is BlipObjective
    assert find_objective("toy") is ToyObjective
    with pytest.raises(ConfigError, match=r"x.yaml: .*no objective has the name 'tay'; known: blip, gone"):
        find_objective("tay", "x.yaml")
    with pytest.raises(ConfigError, match=r"tests.training.toy_objective:ToyModel is not an Objective"):
        find_objective("wrong")
    with pytest.raises(ConfigError, match=r"tests.training.nothing:It cannot be imported: No module"):
        find_objective("gone")


def test_the_recipe_is_the_objectives(toy_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = toy_recipe("toy")
    recipe = load_recipe(path, ["model.start=./here"])
    assert isinstance(recipe, ToyRecipe)
    assert (recipe.model.start, recipe.optim.schedule) == (str(Path("here").resolve()), "cosine")
    assert parse_recipe(recipe.model_dump_json()) == recipe
    with pytest.raises(ConfigError, match=r"objective.itc: no such key; allowed: dropout, type"):
        load_recipe(path, ["objective.itc=1"])
    with pytest.raises(ConfigError, match=r"recipe: must be one of pretrain \(found 'filter'\)"):
        load_recipe(path, ["recipe=filter"])


def test_it_trains_and_resumes_to_the_same_bits(toy_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    def stop(line: dict[str, float]) -> None:
        if line["step"] == 9:
            raise KeyboardInterrupt

    whole, killed = (load_recipe(toy_recipe(name)) for name in ("whole", "killed"))
    assert train(whole) == tmp_path / "whole/best"
    with pytest.raises(KeyboardInterrupt):
        train(killed, watch=stop)
    train(killed)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    steps = [line for line in log(tmp_path / "whole") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(line["loss"] == line["miss"] and "bias" in line for line in steps)
    assert [line["step"] for line in log(tmp_path / "whole") if "val_itc_auc" in line] == [6, 12]
    for name in ("last", "best"):
        one, other = (load_file(tmp_path / f"{run}/{name}/toy.safetensors") for run in ("whole", "killed"))
        assert one.keys() == {"scale.weight", "scale.bias", "head.weight", "head.bias"}
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_the_monitor_and_the_vision_tower_are_its_own(toy_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = load_recipe(toy_recipe("toy"), ["optim.vision_lr_scale=0"])
    train(recipe)
    trainer = Trainer(recipe, Rank())
    before = {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}
    trainer.resume()
    moved = {n for n, tensor in trainer.objective.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == {"head.weight", "head.bias"}
    assert trainer.monitor is not None
    assert trainer.monitor.state() == {"steps": list(range(1, 13))}
