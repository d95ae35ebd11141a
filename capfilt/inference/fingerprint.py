"""What of a model's settings decides its numbers. Needs no torch, unless the device is left open."""

from typing import Any

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources, SelectSettings
from capfilt.models.card import find_card
from capfilt.models.registry import default_prompt


def fingerprint_fields(use: ModelSettings) -> dict[str, Any]:
    """What of the settings decides a model's numbers, JSON-able. The weights count by their digest.

    Sums differ in their last bits between a CPU and a GPU, and on a GPU with the batch, so that both are fields.
    """
    return {"batch_size": use.batch_size, "precision": use.precision, "device": use.device}


def resolve_models(pipeline: Pipeline) -> Pipeline:
    """The pipeline with what its models decide by default filled in: device, prompt, and suggested thresholds.

    `device: auto` becomes cpu or cuda; a prompt that is not given the captioner's own; `select.itm_threshold` and
    `select.itc_threshold` that are not given those of the judge's card, where it states them.

    So one run never mixes a CPU's numbers with a GPU's, and every text's decoding says with which prompt it was drawn.
    cuda: the stage's workers are given GPUs (`resources`), or this machine has one. Without GPUs in `resources` torch
    is asked, and imported for that.

    Raises:
        ConfigError: no such captioner.
    """
    changes: dict[str, ModelSettings | SelectSettings] = {}
    for name, use in (("caption", pipeline.caption), ("score", pipeline.score)):
        if use is not None and use.device == "auto":
            device = _device(pipeline.resources.get(name, Resources()))
            changes[name] = use.model_copy(update={"device": device})
    if pipeline.caption is not None and pipeline.caption.decoding.prompt is None:
        decoding = pipeline.caption.decoding.model_copy(update={"prompt": default_prompt(pipeline.caption)})
        changes["caption"] = changes.get("caption", pipeline.caption).model_copy(update={"decoding": decoding})
    if suggested := _suggested_thresholds(pipeline):
        changes["select"] = pipeline.select.model_copy(update=suggested)
    return pipeline.model_copy(update=changes) if changes else pipeline


def _suggested_thresholds(pipeline: Pipeline) -> dict[str, float]:
    """The thresholds of the judge's card that the pipeline leaves open."""
    card = None if pipeline.score is None else find_card(pipeline.score.model)
    stated = {f"{score}_threshold": value for score, value in card.thresholds.items()} if card else {}
    select = pipeline.select
    left_open = type(select).model_fields.keys() - select.model_fields_set
    return {key: value for key, value in stated.items() if key in left_open and value != getattr(select, key)}


def _device(need: Resources) -> str:
    if need.num_gpus:
        return "cuda"
    from capfilt.models.device import pick_device

    return pick_device(None).type
