"""A trained model's folder and card."""

from pathlib import Path

import pytest
import yaml

from capfilt.models.hub import resolve
from capfilt.rounds import export as module
from capfilt.rounds.export import export
from capfilt.rounds.trainings import Training
from capfilt.training.objectives.base import HubCard
from capfilt.training.recipe import make_recipe

STAGES = {"pretrain": "pretrain", "finetune_captioner": "captioner", "finetune_filter": "filter"}


def trained(stage: str, folder: Path) -> Training:
    """A finished training, whose model is a copy of shipped weights."""
    raw = {
        "recipe": STAGES[stage],
        "out": str(folder),
        "model": {"init": str(resolve("tiny/pretrained"))},
        "data": {"sources": [{"path": "/far/away/pairs.parquet"}]},
        "augment": {"size": 128},
        "optim": {"epochs": 1, "global_batch": 8},
        "objective": {"queue_size": 32},
    }
    (folder / "last").mkdir(parents=True)
    (folder / "last/model.safetensors").write_bytes(resolve("tiny/filter").joinpath("model.safetensors").read_bytes())
    return Training(stage, "abc", make_recipe(raw, "recipe"))


@pytest.mark.parametrize(
    ("stage", "name", "task"),
    [
        ("pretrain", "pretrained", "image-text-to-text"),
        ("finetune_captioner", "captioner", "image-to-text"),
        ("finetune_filter", "filter", "zero-shot-image-classification"),
    ],
)
def test_the_card_says_what_the_model_is(stage: str, name: str, task: str, tmp_path: Path) -> None:
    one = trained(stage, tmp_path / "run")
    metrics = {f"{name}_itc_auc": 0.75, f"{name}_itc_auc_ci": [0.7, 0.8], "other_itc_auc": 0.1}
    folder = export(one, tmp_path / "models", {"texts": "3 human"}, metrics)
    assert folder == tmp_path / "models" / name
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["blip", "capfilt", name],
        "pipeline_tag": task,
    }
    assert card.startswith(f"\n# {name}\n\n")
    assert "| texts | 3 human |" in card
    assert "| itc_auc | 0.750 | 0.700 - 0.800 |" in card
    assert "0.100" not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["model"]["init"] == "tiny/pretrained"
    assert recipe["data"]["sources"][0]["path"] == "pairs.parquet"
    assert str(tmp_path) not in card


def test_an_exported_model_is_copied_once(tmp_path: Path) -> None:
    one = trained("finetune_filter", tmp_path / "run")
    folder = export(one, tmp_path / "models", {}, {})
    before = (folder / "model.safetensors").stat().st_mtime_ns
    export(one, tmp_path / "models", {"texts": "4 human"}, {})
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "4 human" in (folder / "README.md").read_text()
    assert "None: the pipeline had no `evaluate`." in (folder / "README.md").read_text()


def test_an_objective_without_a_library_leaves_the_hubs_keys_out() -> None:
    assert module._front(HubCard("A model."), "filter") == {"tags": ["capfilt", "filter"]}
