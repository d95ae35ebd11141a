"""A training recipe: one YAML file, three kinds of one loop. Defaults are the paper's (section 4.1 and appendix A).

Relative paths in the file are relative to it, but for `out`, which is relative to where the command runs, as are paths
given by `--set a.b=c` on the command line. A recipe that ships goes by its name, such as tiny/pretrain.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, model_validator

from capfilt.config import describe, override
from capfilt.errors import ConfigError
from capfilt.training.augment import Augment
from capfilt.training.objective import ObjectiveConfig
from capfilt.training.parts import DataPart, ModelPart, OptimPart, Part, RunPart, Validation

SHIPPED = (Path(__file__).parents[1] / "_shipped" / "pipelines", Path(__file__).parents[2] / "pipelines")
"""Where shipped recipes lie: inside an installed wheel, or beside the package in a checkout."""

KINDS: dict[str, dict[str, dict[str, Any]]] = {
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


class Recipe(Part):
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
    path = find_recipe(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys; found a {type(raw).__name__}")
    _anchor(raw, path.resolve().parent)
    for setting in settings or []:
        override(raw, setting)
    _anchor(raw, Path.cwd(), "out")
    kind = raw.get("recipe")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{path}: recipe: must be one of {', '.join(KINDS)} (found {kind!r})")
    for name, defaults in KINDS[kind].items():
        if isinstance(raw.get(name) or {}, dict):
            raw[name] = {**defaults, **(raw.get(name) or {})}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe(error, str(path), Recipe)) from error


def find_recipe(name: str | Path) -> Path:
    """The file itself, or that of a shipped recipe.

    Raises:
        ConfigError: neither; with a guess at what was meant.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {p.relative_to(root).with_suffix("").as_posix(): p for root in SHIPPED for p in root.rglob("*.yaml")}
    if str(name) in known:
        return known[str(name)]
    beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(name), [*known, *beside], 1)
    meant = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(f"{name}: no such file or shipped recipe{meant} Shipped: {', '.join(sorted(known)) or 'none'}")


def _anchor(raw: dict[str, Any], base: Path, *more: str) -> None:
    """Make relative paths absolute, in place; a name (tiny/filter, a hub id) stays unless there is such a file."""
    for keys in (*_FILES, *_FILES_OR_NAMES, *more):
        *parents, last = keys.split(".")
        for holder in _below(raw, parents):
            value = holder.get(last)
            if not isinstance(value, str) or not value:
                continue
            path = base / Path(value).expanduser()
            if keys not in _FILES_OR_NAMES or value.startswith((".", "/", "~")) or path.exists():
                holder[last] = str(path.resolve())


def _below(here: Any, keys: list[str]) -> list[dict[str, Any]]:
    """The mappings at `keys`, `*` for every entry of a list; none where the document has another form."""
    if not keys:
        return [here] if isinstance(here, dict) else []
    if keys[0] == "*":
        return [found for item in here for found in _below(item, keys[1:])] if isinstance(here, list) else []
    return _below(here.get(keys[0]), keys[1:]) if isinstance(here, dict) else []
