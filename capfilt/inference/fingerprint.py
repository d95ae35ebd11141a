"""The settings of a model that its numbers depend on. Needs no torch, unless `device` is auto."""

from typing import Any

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources, SelectSettings
from capfilt.models.card import find_card
from capfilt.models.registry import default_prompt


def fingerprint_fields(use: ModelSettings) -> dict[str, Any]:
    """Return the settings that a model's numbers depend on, JSON-able. The weights count by their digest.

    Device and batch size are included because sums differ in their last bits between a CPU and a GPU, and between
    batch sizes on a GPU.
    """
    return {"batch_size": use.batch_size, "precision": use.precision, "device": use.device}


def resolve_models(pipeline: Pipeline) -> Pipeline:
    """Fill in the settings whose defaults depend on the models: devices, prompt and thresholds.

    - `device: auto` becomes cuda if `resources` gives the stage GPUs or this machine has one, else cpu. One run
      therefore never mixes numbers of a CPU and a GPU. torch is imported only if `resources` gives no GPUs.
    - The prompt, if not set, becomes the captioner's own, so that the stored decoding of every text has its prompt.
    - `select.itm_threshold` and `select.itc_threshold`, if not set, become those of the judge's card, if it has them.

    Returns:
        A changed copy, or the pipeline itself if there is nothing to fill in.

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
    """Return the thresholds of the judge's card that the pipeline does not set, if they differ from the defaults."""
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
