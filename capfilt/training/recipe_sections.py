"""A training recipe and its sections. The text under each key says what it means.

Two sections belong to the objective, which narrows their types in a `Recipe` of its own: `objective` (losses and their
constants) and `model` (where the weights start).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel
from capfilt.training.augment import Augment
from capfilt.training.sources import SourceConfig

KindDefaults = Mapping[str, Mapping[str, object]]
"""Section -> key -> the value that a kind of recipe has where the file does not set it."""


class ObjectiveSettings(ConfigModel):
    """The `objective` section. An objective adds its own keys, and narrows `type` to its name."""

    type: str

    @property
    def caption_prompt(self) -> str:
        """Text that the trained captioner expects at the start of a caption; empty if there is none."""
        return ""


class DataSection(ConfigModel):
    """Which pairs are trained on, and how they are read. Neither `workers` nor `run.ranks` changes a step's pairs."""

    sources: list[SourceConfig] = Field(min_length=1)
    max_words: int | None = Field(default=30, ge=1)
    """Longest text in words; the rest is cut off. null: no limit."""
    max_tokens: int = Field(default=30, ge=4)
    """Longest text in tokens, [CLS], [SEP] and prompt included; the rest is cut off."""
    workers: int = Field(default=0, ge=0)
    """Processes per rank that decode images; 0: the training process itself."""
    shuffle_row_groups: int = Field(default=64, ge=1)
    """Parquet row groups whose rows are shuffled together."""


class OptimSection(ConfigModel):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Learning rate of the first of `warmup_steps` steps."""
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "step"]
    decay_rate: float = Field(default=0.9, gt=0, le=1)
    """`step`: lr * rate^epoch."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices. Norms, biases and scalars such as tau have none."""
    vision_lr_scale: float = Field(default=1.0, ge=0)
    """Factor of the learning rate for the vision tower; 0 freezes it."""
    epochs: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    """Pairs per optimiser step, over all ranks and accumulated passes."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes per optimiser step. Contrastive keys, hard negatives and means are those of one pass on one
    rank."""
    clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm; a longer gradient is scaled down to it. null: no limit."""

    @model_validator(mode="after")
    def _check_rates(self) -> "OptimSection":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}")
        if self.warmup_steps and self.warmup_lr > self.lr:
            raise ValueError(f"warmup_lr: {self.warmup_lr} is above lr {self.lr}")
        return self


class RunSection(ConfigModel):
    """How the training runs. `seed`, `ranks` and `precision` change the numbers, the other keys only by rounding."""

    seed: int = Field(default=42, ge=0, lt=2**31)
    ranks: int = Field(default=1, ge=1)
    """Processes under Ray Train; 1 needs no Ray."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads per rank on a CPU; null: torch's own choice, which is 1 under Ray."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights, optimiser state, similarities and losses stay fp32. A CPU without bf16 uses fp32."""
    checkpointing: bool = False
    """Recompute the activations in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """torch.compile of the model's layers; needs a C++ compiler on a CPU."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Optimiser steps between checkpoints; the end of each epoch also writes one."""
    log_every: int = Field(default=10, ge=1)
    """Optimiser steps between log lines."""


class Validation(ConfigModel):
    """Held-out pairs. The best model by `metric` is kept as well as the last one; training never stops early."""

    path: str
    text: str | list[str] = "text"
    metric: Literal["t2i_r1", "t2i_r1_itm", "itc_auc", "itm_auc", "cider"]
    every_epochs: int = Field(default=1, ge=1)
    train: str | None = None
    """`cider` only: Parquet file for the baselines of the table; null: `path` itself."""


class Recipe(ConfigModel):
    """The whole file. An objective narrows `recipe`, `model` and `objective`, and adds its own checks."""

    recipe: str
    """Kind of recipe, which chooses the defaults."""
    out: str
    """Folder of the training run: log, checkpoints, models."""
    model: ConfigModel
    data: DataSection
    augment: Augment
    objective: ObjectiveSettings
    optim: OptimSection
    run: RunSection = RunSection()
    validation: Validation | None = None

    @model_validator(mode="after")
    def _check_batch(self) -> "Recipe":
        passes, batch = self.run.ranks * self.optim.accumulate, self.optim.global_batch
        if batch % passes:
            raise ValueError(f"optim.global_batch: {batch} does not divide by ranks * accumulate = {passes}")
        return self

    @property
    def batch_size(self) -> int:
        """Pairs per forward pass on one rank."""
        return self.optim.global_batch // (self.run.ranks * self.optim.accumulate)
