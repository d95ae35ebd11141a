"""The parts of a training recipe; each key's meaning stands beside it."""

from typing import Literal

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel
from capfilt.training.sources import SourceConfig


class Shape(ConfigModel):
    """Size of a model that starts from scratch (`model.init` absent); ViT-B/16 and BERT-base by default."""

    vision_width: int = Field(default=768, ge=1)
    vision_layers: int = Field(default=12, ge=1)
    vision_heads: int = Field(default=12, ge=1)
    patch_size: int = Field(default=16, ge=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the vision tower; 0.1 for ViT-L."""
    text_width: int = Field(default=768, ge=1)
    text_layers: int = Field(default=12, ge=1)
    text_heads: int = Field(default=12, ge=1)
    text_mlp: int = Field(default=3072, ge=1)
    max_positions: int = Field(default=512, ge=4)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    embed_dim: int = Field(default=256, ge=1)


class ModelPart(ConfigModel):
    """Where the weights start."""

    init: str | None = None
    """A whole checkpoint: folder, `.pth` file, shipped name or hub id. Missing halves are made (decoder from encoder,
    and back)."""
    revision: str | None = None
    """Commit of `init` where it is a hub id."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """With `init`: dropout of the text side; default 0.1, the paper's, whatever the checkpoint's config says (those of
    the hub say 0, which is for inference)."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """With `init`: stochastic depth of the vision tower; default 0 (the paper's ViT-L: 0.1)."""
    shape: Shape | None = None
    vision_init: str | None = None
    """A folder with vision.safetensors (warm start), or a checkpoint whose vision tower is taken."""
    text_init: str | None = None
    """A folder with text.safetensors (warm start), or a checkpoint whose text side is taken."""
    tokenizer: str | None = None
    """A folder with tokenizer.json or vocab.txt, or a hub id; default: that of `init`, else of `text_init`."""

    @model_validator(mode="after")
    def _check(self) -> "ModelPart":
        if (self.init is None) == (self.shape is None):
            raise ValueError("name either init (a checkpoint) or shape (from scratch)")
        if self.shape is not None and not (self.tokenizer or self.text_init):
            raise ValueError("tokenizer: a model from scratch needs a folder with tokenizer.json or vocab.txt")
        if self.shape is not None and (self.dropout, self.drop_path) != (None, None):
            raise ValueError("dropout and drop_path go with init; a model from scratch has them in shape")
        return self


class DataPart(ConfigModel):
    """Which pairs, and how they are read. Which pairs a step sees depends on neither `workers` nor `run.ranks`."""

    sources: list[SourceConfig] = Field(min_length=1)
    max_words: int | None = Field(default=30, ge=1)
    max_tokens: int = Field(default=30, ge=4)
    """Length of a text in tokens, [CLS], [SEP] and prompt counted; longer texts are cut."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes a rank."""
    shuffle_row_groups: int = Field(default=64, ge=1)


class OptimPart(ConfigModel):
    """AdamW and its schedule."""

    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Rate of the first of `warmup_steps` steps."""
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "step"]
    decay_rate: float = Field(default=0.9, gt=0, le=1)
    """`step`: lr * rate^epoch."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices; norms, biases and tau have none."""
    vision_lr_scale: float = Field(default=1.0, ge=0)
    """Factor of the learning rate for the vision tower; 0 freezes it."""
    epochs: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    """Pairs an optimiser step, over all ranks and accumulation."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes an optimiser step; keys, hard negatives and means are those of one pass on one rank."""
    clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="after")
    def _check(self) -> "OptimPart":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}")
        if self.warmup_steps and self.warmup_lr > self.lr:
            raise ValueError(f"warmup_lr: {self.warmup_lr} is above lr {self.lr}")
        return self


class RunPart(ConfigModel):
    """How it runs. `seed`, `ranks` and `precision` touch the numbers, the rest only by rounding."""

    seed: int = Field(default=42, ge=0, lt=2**31)
    ranks: int = Field(default=1, ge=1)
    """Processes under Ray Train; 1 needs no Ray."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads a rank on CPU; default: torch's own choice, which under Ray is 1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights, optimiser state, similarities and losses stay fp32. A CPU without bf16 takes fp32."""
    checkpointing: bool = False
    """Activations of both towers are computed again in the backward pass instead of kept."""
    compile: bool = False
    """torch.compile of the towers' layers; needs a C++ compiler on CPU."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Optimiser steps between checkpoints; an epoch's end has one too."""
    log_every: int = Field(default=10, ge=1)


class Validation(ConfigModel):
    """Held-out pairs; the best model by `metric` is kept beside the last one (early stopping, nothing else)."""

    path: str
    text: str | list[str] = "text"
    metric: Literal["t2i_r1", "t2i_r1_itm", "itc_auc", "itm_auc", "cider"]
    every_epochs: int = Field(default=1, ge=1)
    train: str | None = None
    """`cider` only: Parquet for the baselines of the table; default: `path` itself."""
