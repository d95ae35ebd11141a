"""The parts of a training run on one rank: objective, data, optimiser, DDP. Reads and writes their checkpoints."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from capfilt.errors import CheckpointError, DataError
from capfilt.models.device import pick_device
from capfilt.models.torch_compat import data_parallel
from capfilt.training import state
from capfilt.training.loader import BatchPlan, TrainLoader
from capfilt.training.log import Window
from capfilt.training.objectives.base import Objective
from capfilt.training.objectives.registry import find_objective
from capfilt.training.recipe_sections import Recipe
from capfilt.training.validate import HeldOut

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """This process among `world` processes."""

    number: int = 0
    world: int = 1
    device: str | None = None
    """The device that this rank was given, such as cuda:1; None: the recipe's."""

    @property
    def first(self) -> bool:
        """Whether this rank writes log, checkpoints and models. The others only compute."""
        return self.number == 0


class Trainer:
    """State of one training run on one rank."""

    def __init__(self, recipe: Recipe, rank: Rank) -> None:
        """Prepare everything up to the first step, which finds as many errors as possible.

        Raises:
            ConfigError: the device does not exist, or the recipe does not fit the objective.
            DataError: the pairs cannot be read, or are too few for one step.
            CheckpointError: the initial weights cannot be used.
        """
        self.recipe, self.rank, self.out = recipe, rank, Path(recipe.out)
        self.device = pick_device(rank.device or recipe.run.device)
        self.loader = _loader(recipe, rank)
        self.steps_per_epoch = self.loader.steps_per_epoch // recipe.optim.accumulate
        if not self.steps_per_epoch:
            raise DataError(
                f"an epoch has {self.loader.epoch_samples} samples, fewer than optim.global_batch "
                f"{recipe.optim.global_batch}: lower it, or raise the sources' weight"
            )
        held, prompt = recipe.validation, recipe.objective.caption_prompt
        self.held = HeldOut(held, prompt) if held and rank.first else None
        plug_in = find_objective(recipe.objective.type)
        self.objective: Objective = plug_in.create(recipe).to(self.device).train()
        groups = self.objective.parameter_groups(recipe.optim)  # freezes: DDP must see what is frozen
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.optim.lr)
        self.step_module = _wrap(self.objective, recipe, rank)
        self.position, self.window = state.Position(), Window()
        self.monitor = self.objective.monitor(recipe)

    @property
    def total(self) -> int:
        """Optimiser steps in the whole run."""
        return self.steps_per_epoch * self.recipe.optim.epochs

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one.

        With another number of ranks the same pairs follow in the same order, but each rank has other contrastive keys
        and other noise, and so the losses differ; a warning says so.

        Raises:
            CheckpointError: it belongs to another recipe, none can be read, or the ranks do not see the same one.
        """
        saved = state.read_last(self.out / "checkpoints", self.recipe)
        if saved is not None:
            self.objective.load_state_dict(saved["objective"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.position = state.Position(**saved["position"])
            self.window = Window(**saved["window"])
            if self.monitor is not None:
                self.monitor.restore(saved["alarm"])
        self._check_same_step()
        if saved is not None and self.rank.first:
            logger.info("resuming at step %d of %d", self.position.step, self.total)
            if saved["ranks"] != self.rank.world:
                message = "started with %d ranks, continuing with %d: the losses are not those of an unbroken run"
                logger.warning(message, saved["ranks"], self.rank.world)

    def _check_same_step(self) -> None:
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
        """Write a checkpoint on rank 0; the other ranks wait for it."""
        if self.rank.first:
            saved = {
                "recipe": state.fingerprint(self.recipe),
                "ranks": self.rank.world,
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "position": asdict(self.position),
                "window": asdict(self.window),
                "alarm": self.monitor.state() if self.monitor is not None else {},
            }
            state.write(self.out / "checkpoints", saved, self.position.step)
        if self.rank.world > 1:
            dist.barrier()


def _wrap(objective: Objective, recipe: Recipe, rank: Rank) -> Any:
    """Compile if the recipe says so, and wrap in DDP if there are several ranks."""
    if recipe.run.compile:
        for module in objective.compiled_modules():
            module.compile()
    if rank.world == 1:
        return objective
    # Buffers, such as a queue of keys, are the same on every rank already.
    return data_parallel(objective, find_unused_parameters=objective.has_unused_parameters)


def _loader(recipe: Recipe, rank: Rank) -> TrainLoader:
    data = recipe.data
    plan = BatchPlan(
        recipe.batch_size,
        recipe.run.seed,
        rank.number,
        rank.world,
        max_words=data.max_words,
        shuffle_row_groups=data.shuffle_row_groups,
    )
    return TrainLoader(data.sources, recipe.augment, plan, data.workers)
