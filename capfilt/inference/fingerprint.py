"""What of a model's settings decides its numbers. Needs no torch, unless the device is left open."""

from typing import Any

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources
from capfilt.models.registry import default_prompt


def fingerprint_fields(use: ModelSettings) -> dict[str, Any]:
    """What of the settings decides a model's numbers, JSON-able. The weights count by their digest.

    Sums differ in their last bits between a CPU and a GPU, and on a GPU with the batch, so that both are fields.
    """
    return {"batch_size": use.batch_size, "precision": use.precision, "device": use.device}


def resolve_models(pipeline: Pipeline) -> Pipeline:
    """The pipeline with what its models decide by default filled in: cpu or cuda for `device: auto`, and the prompt.

    So one run never mixes a CPU's numbers with a GPU's, and every text's decoding says with which prompt it was drawn.
    cuda: the stage's workers are given GPUs (`resources`), or this machine has one. Without GPUs in `resources` torch
    is asked, and imported for that.

    Raises:
        ConfigError: no such captioner.
    """
    changes: dict[str, ModelSettings] = {}
    for name, use in (("caption", pipeline.caption), ("score", pipeline.score)):
        if use is not None and use.device == "auto":
            device = _device(pipeline.resources.get(name, Resources()))
            changes[name] = use.model_copy(update={"device": device})
    if pipeline.caption is not None and pipeline.caption.decoding.prompt is None:
        decoding = pipeline.caption.decoding.model_copy(update={"prompt": default_prompt(pipeline.caption)})
        changes["caption"] = changes.get("caption", pipeline.caption).model_copy(update={"decoding": decoding})
    return pipeline.model_copy(update=changes) if changes else pipeline


def _device(need: Resources) -> str:
    if need.num_gpus:
        return "cuda"
    from capfilt.models.device import pick_device

    return pick_device(None).type
