"""The recipes of a round's three trainings, and their fingerprints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capfilt.config.pipeline import Pipeline
from capfilt.config.rounds import Pretrain
from capfilt.errors import CapfiltError, ConfigError
from capfilt.models.digest import weights_digest
from capfilt.models.hub import resolve
from capfilt.rounds.training_set import ORIGINS, TrainingSet
from capfilt.store.fingerprint import fingerprint
from capfilt.training.recipe import make_recipe, objective_of
from capfilt.training.recipe_sections import Recipe

VERSION = 1
"""Part of every fingerprint. Raise it when the same recipe and data would give other weights."""
STAGES = ("pretrain", "finetune_captioner", "finetune_filter")
KINDS = {"pretrain": "pretrain", "finetune_captioner": "captioner", "finetune_filter": "filter"}
"""Stage -> kind of recipe."""
_SET_BY_LOOP = ("recipe", "out", "data.sources")


@dataclass(frozen=True)
class Training:
    """One training of a round."""

    stage: str
    """One of STAGES."""
    fingerprint: str
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The folder of its training run."""
        return Path(self.recipe.out)

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        from capfilt.training.loop import model_folder

        return model_folder(self.recipe)


def round_trainings(
    pipeline: Pipeline, folder: Path, training_set: TrainingSet, data_fingerprint: str, previous: Path | None
) -> list[Training]:
    """Build the three trainings of a round, in order.

    Args:
        pipeline: the pipeline of the loop.
        folder: the folder of the round.
        training_set: the data.
        data_fingerprint: the fingerprint of the training set.
        previous: the pre-trained model of the round before, if there was one.

    Raises:
        ConfigError: a mistake in a recipe, with its key.
        CheckpointError: the model to start from does not exist.
    """
    assert pipeline.pretrain is not None
    first = _pretraining(pipeline.pretrain, folder, training_set, data_fingerprint, previous)
    return [first, *(_finetuning(pipeline, stage, folder, training_set, first) for stage in STAGES[1:])]


def check_trainings(pipeline: Pipeline) -> None:
    """Check the recipes before anything runs. Raises ConfigError or CheckpointError as `round_trainings`."""
    placeholder = TrainingSet(Path("training"), dict.fromkeys(ORIGINS, 1))
    round_trainings(pipeline, Path("round"), placeholder, "", None)


def _pretraining(
    settings: Pretrain, folder: Path, training_set: TrainingSet, data_fingerprint: str, previous: Path | None
) -> Training:
    objective = objective_of(settings.recipe, "pretrain.recipe")
    model = dict(settings.recipe.get("model") or {})
    if settings.start == "continue" and previous is not None:
        model = {key: model[key] for key in objective.kept_model_keys if key in model} | {"init": str(previous)}
    digests = {key: _digest(model, key) for key in objective.model_paths if model.get(key)}
    raw = _full_recipe("pretrain", settings.recipe, pretrain_sources(settings, training_set), model)
    return _training("pretrain", raw, folder, data_fingerprint, init=digests)


def _finetuning(pipeline: Pipeline, stage: str, folder: Path, training_set: TrainingSet, first: Training) -> Training:
    settings = getattr(pipeline, stage)
    given = settings.recipe.get("model") or {}
    if "init" in given:
        raise ConfigError(f"{stage}.recipe.model.init: it starts from the model of `pretrain`; remove the key")
    raw = _full_recipe(stage, settings.recipe, [_source(training_set, "human")], {**given, "init": str(first.model)})
    return _training(stage, raw, folder, first.fingerprint)


def pretrain_sources(settings: Pretrain, training_set: TrainingSet) -> list[dict[str, Any]]:
    """Return the `data.sources` of `pretrain`. An origin without any text is left out."""
    weights = dict.fromkeys(ORIGINS, 1.0) | {str(origin): weight for origin, weight in settings.weights.items()}
    present = [origin for origin in ORIGINS if training_set.texts[origin]]
    if settings.texts == "all":
        return [_source(training_set, origin, weight=weights[origin], text_mode="all") for origin in present]
    drawn = [origin for origin in present if origin != "human"]
    sources = [_source(training_set, "human", weight=weights["human"])]
    if drawn:
        sources.append(_source(training_set, drawn, text_weights=[weights[origin] for origin in drawn]))
    return sources


def _source(training_set: TrainingSet, text: str | list[str], **more: Any) -> dict[str, Any]:
    return {"path": str(training_set.pairs), "text": text, "image_id": "uid", **more}


def _full_recipe(
    stage: str, recipe: Mapping[str, Any], sources: list[dict[str, Any]], model: dict[str, Any]
) -> dict[str, Any]:
    """Return the user's recipe with the keys that the loop sets, except `out`."""
    data = recipe.get("data") or {}
    given = [key for key in _SET_BY_LOOP if key in recipe or (key == "data.sources" and "sources" in data)]
    if given:
        raise ConfigError(f"{stage}.recipe.{given[0]}: the loop sets it; remove the key")
    return {**recipe, "recipe": KINDS[stage], "model": model, "data": {**data, "sources": sources}}


def _training(stage: str, raw: Mapping[str, Any], folder: Path, source: str, **more: Any) -> Training:
    """Complete a training with its fingerprint. `source`: fingerprint of the data or of the training before it."""
    inputs = {"version": VERSION, "stage": stage, "recipe": _fingerprint_recipe(stage, raw), "from": source, **more}
    own = fingerprint(inputs)
    recipe = make_recipe({**raw, "out": str(folder / f"{stage}-{own}")}, f"{stage}.recipe")
    return Training(stage, own, recipe)


def _fingerprint_recipe(stage: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe that the weights depend on: no paths, no worker processes, threads or logs."""
    run = {key: value for key, value in (raw.get("run") or {}).items() if key in ("seed", "ranks", "precision")}
    sources = [{**source, "path": ""} for source in raw["data"]["sources"]]
    paths = objective_of(raw, f"{stage}.recipe").model_paths
    model = {key: value for key, value in raw["model"].items() if key not in paths}
    return {**raw, "model": model, "data": {**raw["data"], "sources": sources}, "run": run}


def _digest(model: Mapping[str, Any], key: str) -> str:
    """Hash the weights that a model starts from. A warm start's folder is no checkpoint: its name is used instead."""
    try:
        return weights_digest(str(model[key]), model.get("revision") if key == "init" else None)
    except CapfiltError:
        if key == "init":
            raise
        return str(resolve(str(model[key])).name)
