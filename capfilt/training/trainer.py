"""What a training run is made of, on one rank: model, feed, optimiser, DDP; and its state, written and read."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from capfilt.errors import CheckpointError, DataError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.text import TextLayer
from capfilt.models.blip.vision import VisionBlock
from capfilt.models.device import pick_device
from capfilt.models.torch_compat import data_parallel
from capfilt.training import state
from capfilt.training.alarm import CollapseAlarm
from capfilt.training.initial_model import initial_model
from capfilt.training.loader import Feed
from capfilt.training.log import Window
from capfilt.training.objective import BlipObjective
from capfilt.training.recipe import Recipe
from capfilt.training.validate import HeldOut

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """This process among `world`."""

    number: int = 0
    world: int = 1
    device: str | None = None
    """Where it was put (cuda:1); None: as the recipe says."""

    @property
    def first(self) -> bool:
        """Rank 0 writes; the others only compute."""
        return self.number == 0


class Trainer:
    """State of one run on one rank."""

    def __init__(self, recipe: Recipe, rank: Rank) -> None:
        """Raises ConfigError, DataError or CheckpointError for what can be known before the first step."""
        run = recipe.run
        self.recipe, self.rank, self.out = recipe, rank, Path(recipe.out)
        if run.threads:
            torch.set_num_threads(run.threads)
        self.device = pick_device(rank.device or run.device)
        self.feed = _feed(recipe, rank)
        self.steps_per_epoch = self.feed.steps_per_epoch // recipe.optim.accumulate
        if not self.steps_per_epoch:
            raise DataError(
                f"an epoch has {self.feed.epoch_samples} samples, fewer than optim.global_batch "
                f"{recipe.optim.global_batch}: lower it, or raise the sources' weight"
            )
        held = recipe.validation
        self.held = HeldOut(held, recipe.objective.prompt) if held and rank.first else None
        med, self.tokenizer = initial_model(recipe)
        med.set_checkpointing(run.checkpointing)
        self.objective = BlipObjective(med, self.tokenizer, recipe.objective).to(self.device).train()
        self.optimizer = make_optimizer(self.objective, recipe)  # freezes: DDP must see what is frozen
        self.step_module = _wrap(self.objective, recipe, rank)
        self.position, self.window = state.Position(), Window()
        self.alarm = CollapseAlarm(recipe.objective.itm, recipe.optim.warmup_steps)

    @property
    def total(self) -> int:
        """Optimiser steps in the whole run."""
        return self.steps_per_epoch * self.recipe.optim.epochs

    def blip(self) -> Blip:
        """The model as users load it, in eval mode; `objective.train()` undoes that."""
        augment = self.recipe.augment
        processor = ImageProcessor(augment.size, augment.mean, augment.std)
        return Blip(self.objective.med, self.tokenizer, processor, str(self.device))

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        With another number of ranks the same pairs follow in the same order, but each rank's contrastive keys and noise
        are others, and so are the losses; a warning says so.

        Raises:
            CheckpointError: it is another recipe's, none can be read, or the ranks do not see the same one.
        """
        saved = state.read_last(self.out / "checkpoints", self.recipe)
        if saved is not None:
            self.objective.load_state_dict(saved["objective"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.position = state.Position(**saved["position"])
            self.window = Window(**saved["window"])
            self.alarm = CollapseAlarm(**saved["alarm"])
        self._agree()
        if saved is not None and self.rank.first:
            logger.info("resuming at step %d of %d", self.position.step, self.total)
            if saved["ranks"] != self.rank.world:
                told = "begun with %d ranks, going on with %d: the losses are not those of an unbroken run"
                logger.warning(told, saved["ranks"], self.rank.world)

    def _agree(self) -> None:
        if self.rank.world == 1:
            return
        steps: list[int] = [0] * self.rank.world
        dist.all_gather_object(steps, self.position.step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.out}: the ranks see checkpoints of different steps: {steps}; "
                "`out` must be a folder that every node sees, such as a network file system"
            )

    def checkpoint(self) -> None:
        """Rank 0 writes; all wait for it."""
        if self.rank.first:
            saved = {
                "recipe": state.fingerprint(self.recipe),
                "ranks": self.rank.world,
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "position": asdict(self.position),
                "window": asdict(self.window),
                "alarm": asdict(self.alarm),
            }
            state.write(self.out / "checkpoints", saved, self.position.step)
        if self.rank.world > 1:
            dist.barrier()


def make_optimizer(objective: BlipObjective, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; no decay on norms, biases and tau, a rate of its own for the vision tower (0 freezes it)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        scale = recipe.optim.vision_lr_scale if name.startswith("med.vision.") else 1.0
        if scale == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decay = recipe.optim.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": decay, "scale": scale} for (scale, decay), p in groups.items()],
        lr=recipe.optim.lr,
    )


def _wrap(objective: BlipObjective, recipe: Recipe, rank: Rank) -> Any:
    """DDP where there are several ranks; compilation is layer by layer, which leaves the tensors' names alone."""
    if recipe.run.compile:
        for module in objective.modules():
            if isinstance(module, VisionBlock | TextLayer):
                module.compile()
    if rank.world == 1:
        return objective
    unused = not (recipe.objective.itm or recipe.objective.lm)  # ITC alone leaves the cross-attention out
    return data_parallel(objective, find_unused_parameters=unused)  # the queue is the same on every rank already


def _feed(recipe: Recipe, rank: Rank) -> Feed:
    data = recipe.data
    return Feed(
        data.sources,
        recipe.augment,
        recipe.batch_size,
        recipe.run.seed,
        rank=rank.number,
        world=rank.world,
        workers=data.workers,
        max_words=data.max_words,
        shuffle_row_groups=data.shuffle_row_groups,
    )
