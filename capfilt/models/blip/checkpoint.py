"""Load and save checkpoints: the transformers layout (config.json + safetensors) and, to load, the official `.pth`.

Loading is strict: every tensor of the model must be present in its shape, copies of one tensor must agree, and only
known training state may be left over. The naming schemes are in `names`. The model is built without initialising its
weights, which saves 20 s at base size on one core.
"""

import json
import os
import pickle
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from capfilt.errors import CheckpointError, listed
from capfilt.models.blip.config import MEDConfig, from_transformers, infer, to_transformers
from capfilt.models.blip.med import MED
from capfilt.models.blip.names import from_official, hub_names, is_training_state
from capfilt.models.blip.vision import interpolate_positions
from capfilt.models.hub import weight_files


def _halves(config: MEDConfig) -> list[str]:
    return ["text_encoder"] * config.encoder + ["text_decoder.bert"] * config.decoder


def assign(med: MED, tensors: dict[str, Tensor], where: str) -> None:
    """Fill a model with weights. Position embeddings of another grid are interpolated.

    Args:
        med: the model; tensors on the meta device are replaced, others are overwritten.
        tensors: transformers' name -> weight.
        where: their file or folder, for errors.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape, or differ from their copy. It names them.
    """
    state: dict[str, Tensor] = {}
    used = set[str]()
    wrong: dict[str, list[str]] = {"missing": [], "left over": [], "of another shape": [], "unlike their copy": []}
    for key, ours in med.state_dict().items():
        names = hub_names(key, _halves(med.config))
        used.update(names)
        found = [name for name in names if name in tensors]
        if not found:
            wrong["missing"].append(names[0])
            continue
        first = tensors[found[0]]
        wrong["unlike their copy"] += [name for name in found[1:] if not torch.equal(first, tensors[name])]
        state[key] = _fit(med, key, first.to(ours.dtype, copy=True))
        if state[key].shape != ours.shape:
            wrong["of another shape"].append(f"{found[0]} is {tuple(first.shape)}, not {tuple(ours.shape)}")
    wrong["left over"] = [name for name in tensors if name not in used and not is_training_state(name)]
    if any(wrong.values()):
        found = [f"{len(names)} {what}: {listed(names, 6)}" for what, names in wrong.items() if names]
        raise CheckpointError(f"{where}: these weights are not a BLIP of the stated shape: {'; '.join(found)}")
    med.load_state_dict(state, assign=next(med.parameters()).is_meta)


def _fit(med: MED, key: str, tensor: Tensor) -> Tensor:
    vision = med.config.vision
    return interpolate_positions(tensor, vision.grid) if key == "vision.position" else tensor


def _unlike(tensors: Iterable[str]) -> str:
    """Describe how tensor names differ from BLIP-base's, for the error about another architecture."""
    with torch.device("meta"):
        med = MED(MEDConfig())
    names = {key: set(hub_names(key, _halves(med.config))) for key in med.state_dict()}
    theirs, known = set(tensors), set[str]().union(*names.values())
    missing = sorted(min(group) for group in names.values() if not group & theirs)
    left = sorted(theirs - known)
    return (
        f"against BLIP-base {len(missing)} are missing: {listed(missing, 6)}; {len(left)} left over: {listed(left, 6)}"
    )


def halves_of(names: Iterable[str]) -> dict[str, bool]:
    """Return which halves a checkpoint has, from its tensor names: {"encoder": bool, "decoder": bool}."""
    names = list(names)
    return {
        "encoder": any(n.startswith("text_encoder.") for n in names),
        "decoder": any(n.startswith("text_decoder.") for n in names),
    }


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder (safetensors or pytorch_model.bin, whole or in shards), or of an official `.pth`.

    Returns:
        Transformers' name -> tensor.

    Raises:
        CheckpointError: there are no weights, or a file is damaged or would run code.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors |= _load_file(file)
    return tensors


def _load_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {named[1]}, which could run code" if named else "not a pickle of plain tensors"
        raise CheckpointError(f"{file}: refused: {reason}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged weights ({str(error).splitlines()[0]})") from error
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{file}: holds no table of tensors; an official .pth is {{'model': name -> tensor}}")
    return {from_official(name): tensor for name, tensor in state.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`.

    Raises:
        CheckpointError: the file is missing, or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a BLIP config ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(config).__name__}, not an object")
    return config


def load(path: Path, *, image_size: int | None = None) -> MED:
    """Load a MED from a folder in the transformers layout or from an official `.pth` file, in fp32 and eval mode.

    Args:
        path: a folder with config.json and weights (fp32 or fp16), as written by `save_pretrained` or `save`; or a
            file, whose shape is inferred from its tensors (`config.infer`).
        image_size: side of the input in pixels, if not the checkpoint's; position embeddings are interpolated (paper
            section 4.1).

    Raises:
        CheckpointError: not a BLIP, or its weights do not fit its config.
        ConfigError: the image size is not a multiple of the patch size.
    """
    if path.is_file():
        tensors = load_tensors(path)
        return build(infer(tensors, str(path), **halves_of(tensors)), tensors, str(path), image_size)
    raw, tensors = read_config(path), load_tensors(path)
    try:
        config = from_transformers(raw, str(path / "config.json"), **halves_of(tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_unlike(tensors)}") from error
    return build(config, tensors, str(path), image_size)


def build(config: MEDConfig, tensors: dict[str, Tensor], where: str, image_size: int | None) -> MED:
    """Build a MED in eval mode from tensors.

    Args:
        config: its shape.
        tensors: transformers' name -> weight.
        where: their file or folder, for errors.
        image_size: side of the input in pixels; None: that of `config`.

    Raises:
        CheckpointError: the config has neither half, or the tensors do not fit it.
    """
    if not (config.encoder or config.decoder):
        raise CheckpointError(f"{where}: not a BLIP: neither text_encoder.* nor text_decoder.*; {_unlike(tensors)}")
    if image_size is not None:
        config = replace(config, vision=replace(config.vision, image_size=image_size))
    with torch.device("meta"):
        med = MED(config)
    assign(med, tensors, where)
    return med.eval()


def hub_tensors(med: MED) -> dict[str, Tensor]:
    """Return the tensors under transformers' names, each once; `text_encoder` holds those that both halves share."""
    halves = _halves(med.config)
    state = {hub_names(key, halves)[0]: tensor for key, tensor in med.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def save(med: MED, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors; `transformers` opens them with the class named in `architectures`.

    A MED with only a decoder opens as `BlipForConditionalGeneration`, one with an encoder as
    `BlipForImageTextRetrieval`. For a pre-trained MED with both halves, transformers then ignores the decoder's
    tensors. Each file is written under a temporary name and renamed, so that a kill leaves the old file or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in sorted(hub_tensors(med).items())}
    part = folder / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / "model.safetensors")
    part = folder / "config.json.part"
    part.write_text(json.dumps(to_transformers(med.config), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / "config.json")
