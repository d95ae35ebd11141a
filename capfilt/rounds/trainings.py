"""The recipes of a round's three trainings, and the fingerprints of all that a round makes after `emit`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capfilt.config.pipeline import Pipeline
from capfilt.config.rounds import Pretrain
from capfilt.errors import CapfiltError, ConfigError
from capfilt.models.digest import weights_digest
from capfilt.models.hub import resolve
from capfilt.rounds.training_set import SOURCES, TrainingSet
from capfilt.store.fingerprint import fingerprint
from capfilt.training.recipe import make_recipe
from capfilt.training.recipe_sections import Recipe

VERSION = 1
"""Raised when the same input would train otherwise."""
STAGES = ("pretrain", "finetune_captioner", "finetune_filter")
KINDS = {"pretrain": "pretrain", "finetune_captioner": "captioner", "finetune_filter": "filter"}
"""Stage -> kind of recipe."""
_OURS = ("recipe", "out", "data.sources")
_PATHS = ("init", "vision_init", "text_init", "tokenizer")


@dataclass(frozen=True)
class Training:
    """One training of a round."""

    stage: str
    fingerprint: str
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Its run's folder."""
        return Path(self.recipe.out)

    @property
    def model(self) -> Path:
        """What it made."""
        from capfilt.training.loop import model_folder

        return model_folder(self.recipe)


def trainings(
    pipeline: Pipeline, folder: Path, training: TrainingSet, print_: str, last: Path | None
) -> list[Training]:
    """The three of a round, in order.

    Args:
        pipeline: of the loop.
        folder: the round's.
        training: what they are trained on.
        print_: its fingerprint.
        last: the model that the round before pre-trained.

    Raises:
        ConfigError: a recipe that is wrong, naming the key. CheckpointError: an initialisation that is not there.
    """
    assert pipeline.pretrain is not None
    first = _first(pipeline.pretrain, folder, training, print_, last)
    return [first, *(_tuned(pipeline, stage, folder, training, first) for stage in STAGES[1:])]


def check(pipeline: Pipeline) -> None:
    """Raises ConfigError or CheckpointError for what can be known of the trainings before anything runs."""
    nothing = TrainingSet(Path("training"), dict.fromkeys(SOURCES, 1))
    trainings(pipeline, Path("round"), nothing, "", None)


def _first(part: Pretrain, folder: Path, training: TrainingSet, print_: str, last: Path | None) -> Training:
    model = dict(part.recipe.get("model") or {})
    if part.start == "continue" and last is not None:
        model = {key: value for key, value in model.items() if key in ("dropout", "drop_path")} | {"init": str(last)}
    digests = {key: _digest(model, key) for key in _PATHS if model.get(key)}
    sources = pretrain_sources(part, training)
    raw = _raw("pretrain", part.recipe, sources, model)
    material = _material("pretrain", raw, print_, {"init": digests})
    return _training("pretrain", raw, folder, material)


def _tuned(pipeline: Pipeline, stage: str, folder: Path, training: TrainingSet, first: Training) -> Training:
    part = getattr(pipeline, stage)
    if "init" in (part.recipe.get("model") or {}):
        raise ConfigError(f"{stage}.recipe.model.init: it begins with what `pretrain` made; leave the key out")
    model = {**(part.recipe.get("model") or {}), "init": str(first.model)}
    raw = _raw(stage, part.recipe, [_source(training, "human")], model)
    return _training(stage, raw, folder, _material(stage, raw, first.fingerprint, {}))


def pretrain_sources(part: Pretrain, training: TrainingSet) -> list[dict[str, Any]]:
    """The data of `pretrain`, sources of which there is no text left out."""
    weights = dict.fromkeys(SOURCES, 1.0) | {str(source): weight for source, weight in part.weights.items()}
    there = [source for source in SOURCES if training.texts[source]]
    if part.texts == "all":
        return [_source(training, source, weight=weights[source], text_mode="all") for source in there]
    drawn = [source for source in there if source != "human"]
    sources = [_source(training, "human", weight=weights["human"])]
    if drawn:
        sources.append(_source(training, drawn, text_weights=[weights[source] for source in drawn]))
    return sources


def _source(training: TrainingSet, text: str | list[str], **more: Any) -> dict[str, Any]:
    return {"path": str(training.pairs), "text": text, "image_id": "uid", **more}


def _raw(stage: str, recipe: Mapping[str, Any], sources: list[dict[str, Any]], model: dict[str, Any]) -> dict[str, Any]:
    data = recipe.get("data") or {}
    given = [key for key in _OURS if key in recipe or (key == "data.sources" and "sources" in data)]
    if given:
        raise ConfigError(f"{stage}.recipe.{given[0]}: the loop sets it; leave the key out")
    return {**recipe, "recipe": KINDS[stage], "model": model, "data": {**data, "sources": sources}}


def _material(stage: str, raw: Mapping[str, Any], before: str, more: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights; neither paths nor how the work is spread over processes."""
    run = {key: value for key, value in (raw.get("run") or {}).items() if key in ("seed", "ranks", "precision")}
    sources = [{**source, "path": ""} for source in raw["data"]["sources"]]
    model = {key: value for key, value in raw["model"].items() if key not in _PATHS}
    recipe = {**raw, "model": model, "data": {**raw["data"], "sources": sources}, "run": run}
    return {"version": VERSION, "stage": stage, "recipe": recipe, "from": before, **more}


def _training(stage: str, raw: Mapping[str, Any], folder: Path, material: dict[str, Any]) -> Training:
    print_ = fingerprint(material)
    recipe = make_recipe({**raw, "out": str(folder / f"{stage}-{print_}")}, f"{stage}.recipe")
    return Training(stage, print_, recipe)


def _digest(model: Mapping[str, Any], key: str) -> str:
    """Of the weights that a model starts from; a warm start's folder, which is no checkpoint, counts by its name."""
    try:
        return weights_digest(str(model[key]), model.get("revision") if key == "init" else None)
    except CapfiltError:
        if key == "init":
            raise
        return str(resolve(str(model[key])).name)
