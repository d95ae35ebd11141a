"""What of a model's settings decides its numbers. Needs no torch, unless the device is left open."""

from typing import Any

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources


def fingerprint_fields(use: ModelSettings) -> dict[str, Any]:
    """What of the settings decides a model's numbers, JSON-able. The weights count by their digest.

    Sums differ in their last bits between a CPU and a GPU, and on a GPU with the batch, so that both are fields.
    """
    return {"batch_size": use.batch_size, "precision": use.precision, "device": use.device}


def resolve_devices(pipeline: Pipeline) -> Pipeline:
    """The pipeline with cpu or cuda for each `device: auto`, so that one run never mixes the two.

    cuda: the stage's workers are given GPUs (`resources`), or this machine has one. Without GPUs in `resources` torch
    is asked, and imported for that.
    """
    changes = {
        name: use.model_copy(update={"device": _device(pipeline.resources.get(name, Resources()))})
        for name, use in (("caption", pipeline.caption), ("score", pipeline.score))
        if use is not None and use.device == "auto"
    }
    return pipeline.model_copy(update=changes) if changes else pipeline


def _device(need: Resources) -> str:
    if need.num_gpus:
        return "cuda"
    from capfilt.models.device import pick_device

    return pick_device(None).type
