"""A training recipe: one YAML file, three kinds of one loop. Defaults are the paper's (section 4.1 and appendix A).

Relative paths in the file are relative to it, but for `out`, which is relative to where the command runs, as are paths
given by `--set a.b=c` on the command line. A recipe that ships goes by its name, such as tiny/pretrain.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from capfilt.config.yaml_file import ConfigModel, anchor, describe, find_yaml, override, read_yaml
from capfilt.errors import ConfigError
from capfilt.training.augment import Augment
from capfilt.training.objective import ObjectiveConfig
from capfilt.training.recipe_sections import DataPart, ModelPart, OptimPart, RunPart, Validation

KINDS: dict[str, dict[str, dict[str, object]]] = {
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
"""What the three kinds put where a recipe is silent: the paper's values for ViT-B."""

_FILES = ("data.sources.*.path", "validation.path", "validation.train")
_FILES_OR_NAMES = ("model.init", "model.vision_init", "model.text_init", "model.tokenizer")


class Recipe(ConfigModel):
    """The whole file."""

    recipe: Literal["pretrain", "captioner", "filter"]
    out: str
    """Folder of the run: log, checkpoints, models."""
    model: ModelPart
    data: DataPart
    augment: Augment
    objective: ObjectiveConfig
    optim: OptimPart
    run: RunPart = RunPart()
    validation: Validation | None = None

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        parts, batch, losses = self.run.ranks * self.optim.accumulate, self.optim.global_batch, self.objective
        if not (losses.itc or losses.itm or losses.lm):
            raise ValueError("objective: itc, itm and lm are all 0: there is nothing to learn")
        if batch % parts:
            raise ValueError(f"optim.global_batch: {batch} does not divide by ranks * accumulate = {parts}")
        micro = batch // self.optim.accumulate
        if (losses.itc or losses.itm) and losses.queue_size % micro:
            near = max(1, round(losses.queue_size / micro)) * micro
            raise ValueError(
                f"objective.queue_size: {losses.queue_size} is not a multiple of {micro}, the pairs of one forward "
                f"pass on all ranks; take {near}"
            )
        self._check_validation()
        return self

    def _check_validation(self) -> None:
        if self.validation is None:
            return
        captions = self.validation.metric == "cider"
        if not (self.objective.lm if captions else self.objective.itc or self.objective.itm):
            needed = "objective.lm" if captions else "objective.itc or objective.itm"
            raise ValueError(
                f"validation.metric: {self.validation.metric} needs {needed}, which this recipe leaves out"
            )

    @property
    def batch_size(self) -> int:
        """Pairs a forward pass on one rank."""
        return self.optim.global_batch // (self.run.ranks * self.optim.accumulate)


def load_recipe(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Read, override, fill in the kind's defaults, make paths absolute, validate.

    Args:
        path: a file, or the name of a shipped recipe (tiny/pretrain).
        settings: `a.b=c` each, as `--set` takes them.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    path = find_yaml(path, ("recipe",), "recipe")
    raw = read_yaml(path)
    anchor(raw, path.resolve().parent, _FILES, _FILES_OR_NAMES)
    for setting in settings or []:
        override(raw, setting)
    anchor(raw, Path.cwd(), (*_FILES, "out"), _FILES_OR_NAMES)
    return make_recipe(raw, str(path))


def make_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """A parsed document as a Recipe, the kind's defaults filled in. Raises ConfigError, one line a mistake."""
    kind = raw.get("recipe")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{where}: recipe: must be one of {', '.join(KINDS)} (found {kind!r})")
    filled = dict(raw)
    for name, defaults in KINDS[kind].items():
        if isinstance(raw.get(name) or {}, dict):
            filled[name] = {**defaults, **(raw.get(name) or {})}
    try:
        return Recipe.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(describe(error, where, Recipe)) from error
