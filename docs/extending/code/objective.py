"""Example of an objective: CLIP's contrastive loss over a small convolution and a bag of hashed words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal
from zlib import crc32

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from capfilt.config.yaml_file import ConfigModel
from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.base import Objective
from capfilt.training.recipe_sections import ObjectiveSettings, Recipe

WORDS = 4096


class ContrastiveSettings(ObjectiveSettings):
    """The `objective` section of the recipe."""

    type: Literal["contrastive"]
    temperature: float = Field(default=0.07, gt=0)
    """Divides the similarities; fixed."""


class ContrastiveModel(ConfigModel):
    """The `model` section of the recipe."""

    width: int = Field(default=64, ge=1)


class ContrastiveRecipe(Recipe):
    """A recipe with these two sections. No validation: the objective implements no `system`."""

    recipe: Literal["pretrain"]
    model: ContrastiveModel = ContrastiveModel()
    objective: ContrastiveSettings
    validation: None = None


class ContrastiveObjective(Objective):
    """The model in training and its loss. Parameters and buffers are what a checkpoint keeps."""

    recipe_type = ContrastiveRecipe
    kinds: ClassVar[Mapping[str, Any]] = {"pretrain": {"optim": {"schedule": "cosine", "lr": 1e-3}, "model": {}}}
    vision_prefix = "vision."

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.vision = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.text = nn.EmbeddingBag(WORDS, width)

    @classmethod
    def create(cls, recipe: Recipe) -> "ContrastiveObjective":
        """Create the initial model. It must be the same in every process, so seed it."""
        assert isinstance(recipe, ContrastiveRecipe)
        torch.manual_seed(recipe.run.seed)
        return cls(recipe.model.width, recipe.objective.temperature)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses, for the log."""
        return ("itc",)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the losses of one forward pass. Texts of one image are never each other's negatives."""
        images = F.normalize(self.vision(batch.pixels), dim=-1)
        words = [torch.tensor([crc32(word.encode()) % WORDS for word in text.split()]) for text in batch.texts]
        offsets = torch.tensor([0, *(len(some) for some in words[:-1])]).cumsum(0)
        texts = F.normalize(self.text(torch.cat(words).to(images.device), offsets.to(images.device)), dim=-1)
        logits = images @ texts.T / self.temperature
        same = batch.image_ids[:, None] == batch.image_ids[None, :]
        logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return {"itc": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}

    def save(self, folder: Path) -> None:
        """Write the model as users load it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")
