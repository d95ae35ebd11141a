"""BLIP's own sections of a recipe, and the three kinds of recipe with the paper's values for ViT-B.

The values are those of section 4.1 and appendix A of the paper (Li et al. 2022).
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from capfilt.config.yaml_file import ConfigModel
from capfilt.training.recipe_sections import KindDefaults, ObjectiveSettings, Recipe

KINDS: dict[str, KindDefaults] = {
    "pretrain": {
        "objective": {"itc": 1.0, "itm": 1.0, "lm": 1.0},
        "optim": {
            "lr": 3e-4, "min_lr": 1e-6, "schedule": "step", "warmup_steps": 3000, "epochs": 20, "global_batch": 2880,
        },
        "data": {"max_words": 30, "max_tokens": 30},
        "augment": {"size": 224, "crop_scale": (0.2, 1.0)},
    },
    "captioner": {
        "objective": {"itc": 0.0, "itm": 0.0, "lm": 1.0, "prompt": "a picture of "},
        "optim": {"lr": 1e-5, "schedule": "cosine", "warmup_steps": 0, "epochs": 5, "global_batch": 256},
        "data": {"max_words": 30, "max_tokens": 40},
        "augment": {"size": 384, "crop_scale": (0.5, 1.0)},
    },
    "filter": {
        "objective": {"itc": 1.0, "itm": 1.0, "lm": 0.0, "positives": True},
        "optim": {"lr": 1e-5, "schedule": "cosine", "warmup_steps": 0, "epochs": 6, "global_batch": 256},
        "data": {"max_words": 30, "max_tokens": 35},
        "augment": {"size": 384, "crop_scale": (0.5, 1.0)},
    },
}  # fmt: skip
"""What each kind of recipe has where the file does not set it."""

MODEL_PATHS = ("init", "vision_init", "text_init", "tokenizer")
"""Keys of `model` that are paths or names."""


class ShapeSection(ConfigModel):
    """Size of a model that starts from scratch (without `model.init`). Defaults: ViT-B/16 and BERT-base."""

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
    """Width of the ITC embedding."""


class ModelSection(ConfigModel):
    """Where the weights start."""

    init: str | None = None
    """A whole checkpoint: folder, `.pth` file, shipped name or hub id. A missing half (encoder or decoder) is copied
    from the other one."""
    revision: str | None = None
    """Commit of `init` if it is a hub id."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """With `init`: dropout of the text side. Default: the paper's 0.1, whatever the checkpoint's config says (those on
    the Hub say 0, for inference)."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """With `init`: stochastic depth of the vision tower; default 0 (the paper's ViT-L: 0.1)."""
    shape: ShapeSection | None = None
    vision_init: str | None = None
    """A folder with vision.safetensors (warm start), or a checkpoint whose vision tower is used."""
    text_init: str | None = None
    """A folder with text.safetensors (warm start), or a checkpoint whose text side is used."""
    tokenizer: str | None = None
    """A folder with tokenizer.json or vocab.txt, or a hub id; default: that of `init`, else of `text_init`."""

    @model_validator(mode="after")
    def _check_start(self) -> "ModelSection":
        if (self.init is None) == (self.shape is None):
            raise ValueError("name either init (a checkpoint) or shape (from scratch)")
        if self.shape is not None and not (self.tokenizer or self.text_init):
            raise ValueError("tokenizer: a model from scratch needs a folder with tokenizer.json or vocab.txt")
        if self.shape is not None and (self.dropout, self.drop_path) != (None, None):
            raise ValueError("dropout and drop_path go with init; a model from scratch has them in shape")
        return self


class BlipSettings(ObjectiveSettings):
    """Which losses, and their constants. Defaults: the paper's."""

    type: Literal["blip"] = Field(default="blip", exclude=True)
    """Left out of `recipe.json`: a recipe without a type is BLIP's."""
    itc: float = Field(default=1.0, ge=0)
    """Weight of the image-text contrastive loss."""
    itm: float = Field(default=1.0, ge=0)
    """Weight of the image-text matching loss."""
    lm: float = Field(default=1.0, ge=0)
    """Weight of the language-modelling loss."""
    temperature: float = Field(default=0.07, gt=0)
    """tau at the first step; learnt, clamped to [0.001, 0.5]."""
    momentum: float = Field(default=0.995, ge=0, lt=1)
    """Rate of the moving average of the weights that computes the keys."""
    queue_size: int = Field(default=57600, ge=0)
    """Keys per modality; a multiple of `global_batch / accumulate`. 0: only the keys of the batch."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Largest weight of the soft targets."""
    alpha_epochs: float = Field(default=2.0, ge=0)
    """Epochs over which alpha grows from 0 (the official fine-tuning of the filter uses 1)."""
    hard_floor: float = Field(default=1e-4, gt=0, le=1)
    """Added to each hard-negative weight. 1 / batch makes half of the draws uniform, which ITM from scratch needs."""
    itm_alpha: float = Field(default=0.0, ge=0, le=1)
    """Largest weight of ITM's soft targets; it grows like alpha's. Not in the paper; see `match_probability`."""
    positives: bool = False
    """Every key with the row's image id is a target (fine-tuning of the filter), not only the row's own text."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    prompt: str = ""
    """Start of each text for LM, which is not predicted: "a picture of " in the captioner's fine-tuning."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if prompt and not prompt.endswith(" "):
            raise ValueError("end it with a space, or its last word and the text's first would be one word")
        return prompt

    @property
    def caption_prompt(self) -> str:
        """The prompt that captions start with."""
        return self.prompt

    @property
    def contrastive(self) -> bool:
        """Whether ITC's similarities are computed: for ITC itself, or for ITM's hard negatives."""
        return bool(self.itc or self.itm)


class BlipRecipe(Recipe):
    """A recipe for BLIP."""

    recipe: Literal["pretrain", "captioner", "filter"]
    model: ModelSection
    objective: BlipSettings

    @model_validator(mode="after")
    def _check_losses(self) -> "BlipRecipe":
        losses, micro = self.objective, self.optim.global_batch // self.optim.accumulate
        if not (losses.contrastive or losses.lm):
            raise ValueError("objective: itc, itm and lm are all 0: there is nothing to learn")
        if losses.contrastive and losses.queue_size % micro:
            near = max(1, round(losses.queue_size / micro)) * micro
            raise ValueError(
                f"objective.queue_size: {losses.queue_size} is not a multiple of {micro}, the pairs of one forward "
                f"pass on all ranks; take {near}"
            )
        return self

    @model_validator(mode="after")
    def _check_metric(self) -> "BlipRecipe":
        if self.validation is None:
            return self
        captions = self.validation.metric == "cider"
        if not (self.objective.lm if captions else self.objective.contrastive):
            needed = "objective.lm" if captions else "objective.itc or objective.itm"
            raise ValueError(
                f"validation.metric: {self.validation.metric} needs {needed}, which this recipe leaves out"
            )
        return self
