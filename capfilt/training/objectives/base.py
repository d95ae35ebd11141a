"""The interface between the training loop and a model with its losses.

The loop knows steps, ranks, checkpoints and files. It learns everything else from an `Objective`: settings, initial
weights, losses, parameter groups, extra log values, warnings, and how the model is evaluated and saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from capfilt.models.protocols import System
from capfilt.training.batch import TrainBatch
from capfilt.training.recipe_sections import KindDefaults, OptimSection, Recipe


@dataclass(frozen=True)
class HubCard:
    """The part of a trained model's card on the Hub that describes the kind of model."""

    about: str
    """One or two sentences."""
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    """The Hub's name of the task, such as image-to-text."""
    library_name: str | None = None
    """The library that opens the folder, such as transformers."""


class LossMonitor(Protocol):
    """Watches the losses of a training run and warns. Its state is part of every checkpoint."""

    def update(self, step: int, terms: Mapping[str, float]) -> None:
        """Take the mean terms of optimiser step `step` (from 1)."""
        ...

    def state(self) -> dict[str, Any]:
        """The state as plain numbers and strings, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        ...


class Objective(nn.Module, ABC):
    """A model in training and its losses. A checkpoint contains its parameters and buffers.

    Attributes:
        recipe_type: the recipe with this objective's own `model` and `objective` sections. It narrows `validation` to
            None if `system` is not implemented.
        kinds: kinds of recipe and their defaults, as `capfilt train` and a pipeline with rounds name them: pretrain,
            captioner, filter.
        model_paths: keys of the recipe's `model` section that hold a file, a folder or a model's name. A pipeline with
            rounds starts a fine-tuning, and a continued pre-training, by setting `model.init` to a saved model.
        kept_model_keys: keys of `model` that a continued pre-training keeps, such as a dropout rate.
        vision_prefix: start of the vision tower's parameter names, for `optim.vision_lr_scale`; None: the objective has
            no parameters of its own for images.
    """

    recipe_type: ClassVar[type[Recipe]]
    kinds: ClassVar[Mapping[str, KindDefaults]]
    model_paths: ClassVar[tuple[str, ...]] = ()
    kept_model_keys: ClassVar[tuple[str, ...]] = ()
    vision_prefix: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def create(cls, recipe: Recipe) -> Self:
        """Build the initial model, the same in every process.

        Args:
            recipe: an instance of `recipe_type`.

        Raises:
            ConfigError, CheckpointError: the initial weights are missing or do not fit the recipe.
        """

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms that `forward` returns, in its order."""

    @abstractmethod
    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The loss terms by name: scalars, each already multiplied by its weight. Their sum is minimised."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model as users load it."""

    def system(self) -> System:
        """The model in eval mode, as `capfilt.evaluation` measures it; the loop calls `train()` afterwards."""
        raise NotImplementedError(f"{type(self).__name__} has no system; its recipe_type must have no validation")

    def start_step(self, step: int, steps_per_epoch: int) -> None:
        """Prepare optimiser step `step` (from 0): schedules of the objective's own, momentum copies."""

    def metrics(self) -> dict[str, float]:
        """Further numbers to log after a step, such as a learnt temperature."""
        return {}

    def monitor(self, recipe: Recipe) -> LossMonitor | None:
        """The monitor that watches the losses of this run; None: no monitor."""
        return None

    @property
    def has_unused_parameters(self) -> bool:
        """Whether a pass may leave trainable parameters without a gradient, which DDP must know."""
        return False

    def compiled_modules(self) -> Iterable[nn.Module]:
        """The modules that `run.compile` compiles, one by one."""
        return self.children()

    def parameter_groups(self, optim: OptimSection) -> list[dict[str, Any]]:
        """AdamW's groups: `params`, `weight_decay`, and `scale`, the factor of the learning rate.

        Matrices decay, vectors and scalars do not. A vision tower with the factor 0 is frozen.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            vision = self.vision_prefix is not None and name.startswith(self.vision_prefix)
            scale = optim.vision_lr_scale if vision else 1.0
            if scale == 0:
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                decay = optim.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((scale, decay), []).append(parameter)
        return [{"params": p, "weight_decay": decay, "scale": scale} for (scale, decay), p in groups.items()]

    @classmethod
    def hub_card(cls, kind: str) -> HubCard:
        """The Hub card of a model from this kind of recipe."""
        return HubCard(f"A model that capfilt trained with the objective {cls.__name__} and a {kind} recipe.")
