"""A second objective, for tests: a linear layer guesses the length of a text from the image's mean colour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from capfilt.config.yaml_file import ConfigModel
from capfilt.models.fake import FakeSystem
from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.base import Objective
from capfilt.training.recipe_sections import ObjectiveSettings, Recipe


class ToySettings(ObjectiveSettings):
    type: Literal["toy"]
    dropout: float = 0.5


class ToyModel(ConfigModel):
    start: str | None = None


class ToyRecipe(Recipe):
    recipe: Literal["pretrain"]
    model: ToyModel
    objective: ToySettings


class StepCounter:
    """Counts the steps that it has seen."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def update(self, step: int, terms: Mapping[str, float]) -> None:
        assert {"miss", "loss", "bias"} <= terms.keys()
        self.steps.append(step)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.steps = list(state["steps"])


class ToyObjective(Objective):
    recipe_type = ToyRecipe
    kinds = {"pretrain": {"optim": {"schedule": "cosine"}, "model": {}}}  # noqa: RUF012
    model_paths = ("start",)
    vision_prefix = "scale."

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.scale, self.drop, self.head = nn.Linear(3, 3), nn.Dropout(dropout), nn.Linear(3, 1)

    @classmethod
    def create(cls, recipe: Recipe) -> "ToyObjective":
        assert isinstance(recipe, ToyRecipe)
        torch.manual_seed(recipe.run.seed)
        return cls(recipe.objective.dropout)

    @property
    def terms(self) -> tuple[str, ...]:
        return ("miss",)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        wanted = torch.tensor([len(text) / 40 for text in batch.texts], device=batch.pixels.device)
        guess = self.head(self.drop(self.scale(batch.pixels.mean((2, 3)))))[:, 0]
        return {"miss": (guess - wanted).square().mean()}

    def metrics(self) -> dict[str, float]:
        return {"bias": float(self.head.bias.detach())}

    def monitor(self, recipe: Recipe) -> StepCounter:
        return StepCounter()

    def system(self) -> FakeSystem:
        self.eval()
        return FakeSystem()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "toy.safetensors")
