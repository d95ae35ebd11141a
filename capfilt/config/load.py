"""Read a pipeline file: find it, apply overrides, make paths absolute, validate.

Relative paths in the file are relative to it; paths given by `--set a.b=c` are relative to where the command runs.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capfilt.config.pipeline import Pipeline
from capfilt.config.yaml_file import anchor, describe, find_yaml, override, read_yaml
from capfilt.errors import ConfigError

_FILES = (
    "base", "sources.*.path", "sources.*.image_root", "sources.*.download.block_hosts", "dedup.decontaminate.*.path",
    "ingest.block_hashes", "truth.path", "evaluate.pairs",
)  # fmt: skip
"""Keys whose values are paths."""
_NAMES = (
    "caption.model", "score.model", "caption.tokenizer", "score.tokenizer",
    *(f"pretrain.recipe.model.{key}" for key in ("init", "vision_init", "text_init", "tokenizer")),
    *(f"{part}.recipe.model.tokenizer" for part in ("finetune_captioner", "finetune_filter")),
)  # fmt: skip
"""Keys whose values are names of models or tokenizers, or paths to them."""


def load_pipeline(path: str | Path, settings: list[str] | None = None) -> Pipeline:
    """Read a pipeline file, apply overrides, make paths absolute, and validate.

    Args:
        path: a file, or the name of a shipped pipeline (demo). A file with `base: RUN` starts from that run's pipeline.
        settings: overrides `a.b=c`, as `--set` takes them.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    path = find_yaml(path, ("sources", "base"), "pipeline")
    raw = read_yaml(path)
    if "recipe" in raw:
        raise ConfigError(f"{path}: this is a training recipe; use `capfilt train {path}`")
    anchor(raw, path.resolve().parent, _FILES, _NAMES)
    for setting in settings or []:
        override(raw, setting)
    anchor(raw, Path.cwd(), _FILES, _NAMES)
    if "base" in raw:
        raw = _on_base(raw, path)
    return validate(raw, str(path))


def with_settings(pipeline: Pipeline, settings: list[str], where: str) -> Pipeline:
    """Return the pipeline with `a.b=c` settings applied. Raises ConfigError."""
    raw = pipeline.model_dump(mode="json")
    for setting in settings:
        override(raw, setting)
    anchor(raw, Path.cwd(), _FILES, _NAMES)
    return validate(raw, where)


def _on_base(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the pipeline of the run that `base` names, with this file's keys in place of its own."""
    file = Path(str(raw["base"])) / "run.json"
    if not file.is_file():
        raise ConfigError(f"{path}: base: no finished run there ({file} is missing)")
    found = read_yaml(file).get("pipeline")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: base: {file} has no pipeline in it")
    return {**found, "name": file.parent.name, **raw}


def validate(raw: dict[str, Any], where: str) -> Pipeline:
    """Turn a parsed document into a Pipeline. Raises ConfigError, with one line per mistake."""
    try:
        return Pipeline.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe(error, where, Pipeline)) from error
