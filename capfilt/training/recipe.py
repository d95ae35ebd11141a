"""Read a training recipe: one YAML file, in which the objective's defaults for its kind fill what the file leaves out.

Relative paths in the file are relative to the file, except `out`. `out`, and paths that `--set a.b=c` gives on the
command line, are relative to the current directory. A shipped recipe is found by its name, such as tiny/pretrain.

`objective.type` names the objective (`objectives/registry.py`); without it the objective is BLIP's.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capfilt.config.yaml_file import anchor, describe, find_yaml, override, read_yaml
from capfilt.errors import ConfigError
from capfilt.training.objectives.base import Objective
from capfilt.training.objectives.registry import DEFAULT, find_objective
from capfilt.training.recipe_sections import Recipe

_FILES = ("data.sources.*.path", "validation.path", "validation.train")


def load_recipe(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Read a recipe, apply overrides, fill in defaults, make paths absolute and validate.

    Args:
        path: a file, or the name of a shipped recipe (tiny/pretrain).
        settings: overrides in the form `a.b=c`, as `--set` takes them.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    path = find_yaml(path, ("recipe",), "recipe")
    raw = read_yaml(path)
    names = _model_paths(raw, settings or [], str(path))
    anchor(raw, path.resolve().parent, _FILES, names)
    for setting in settings or []:
        override(raw, setting)
    anchor(raw, Path.cwd(), (*_FILES, "out"), names)
    return make_recipe(raw, str(path))


def make_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """Validate a parsed recipe, after filling in the defaults of its kind.

    Args:
        raw: the document.
        where: its file or key, for error messages.

    Raises:
        ConfigError: one line per mistake.
    """
    objective = objective_of(raw, where)
    kind = raw.get("recipe")
    if not isinstance(kind, str) or kind not in objective.kinds:
        raise ConfigError(f"{where}: recipe: must be one of {', '.join(objective.kinds)} (found {kind!r})")
    filled = dict(raw)
    for name, defaults in objective.kinds[kind].items():
        if isinstance(raw.get(name) or {}, dict):
            filled[name] = {**defaults, **(raw.get(name) or {})}
    try:
        return objective.recipe_type.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(describe(error, where, objective.recipe_type)) from error


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from JSON, as `recipe.json` holds it. Raises ConfigError as `make_recipe` does."""
    return make_recipe(json.loads(text), "recipe.json")


def objective_of(raw: Mapping[str, Any], where: str) -> type[Objective]:
    """The objective of a parsed recipe. Raises ConfigError: there is none of that name."""
    section = raw.get("objective")
    return find_objective(section.get("type", DEFAULT) if isinstance(section, dict) else DEFAULT, where)


def _model_paths(raw: Mapping[str, Any], settings: list[str], where: str) -> list[str]:
    """The keys of `model` that are paths or names, for the objective that the recipe has after its overrides."""
    overridden = copy.deepcopy(dict(raw))
    for setting in settings:
        override(overridden, setting)
    return [f"model.{key}" for key in objective_of(overridden, where).model_paths]
