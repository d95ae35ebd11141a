"""Load the weights of one tower from a warm start, a BLIP checkpoint, or what the paper starts from (section 4.1): a
plain ViT in timm's or DeiT's names, and a BERT."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from capfilt.errors import CheckpointError, listed
from capfilt.models.blip import checkpoint
from capfilt.models.blip.names import from_official, hub_names
from capfilt.models.blip.vision import interpolate_positions


@torch.no_grad()
def take_vision(tower: nn.Module, path: Path, grid: int) -> None:
    """Fill a vision tower of grid x grid patches; positions of another grid are interpolated.

    Raises:
        CheckpointError: weights are missing, left over or of another shape.
    """
    state = _state(path, "vision")
    if "position" in state:
        state["position"] = interpolate_positions(state["position"], grid)
    missing = [name for name in tower.state_dict() if name not in state]
    if missing:
        raise CheckpointError(f"{path}: no vision weights for this shape: {len(missing)} missing: {listed(missing, 4)}")
    _copy(tower, state, path, "vision")


@torch.no_grad()
def take_text(text: nn.Module, path: Path) -> None:
    """Fill a text transformer.

    The decoder is filled from the encoder, or the reverse, if the source has only one of them. Cross-attention that the
    source does not have keeps its initial weights, and so do the rows of [DEC] and [ENC] for a vocabulary without them.

    Raises:
        CheckpointError: weights are missing, left over or of another shape.
    """
    state, mine = _state(path, "text"), text.state_dict()
    for name in [name for name in mine if name not in state]:
        twin = other_half(name)
        if twin in state:
            state[name] = state[twin]
    missing = [name for name in mine if name not in state and ".cross_attention." not in name]
    if missing:
        raise CheckpointError(f"{path}: no text weights for this shape: {len(missing)} missing: {listed(missing, 4)}")
    words, fresh = state["word.weight"], mine["word.weight"]
    if words.shape[0] == fresh.shape[0] - 2:
        state["word.weight"] = torch.cat([words.to(fresh.dtype), fresh[-2:]])
    halves = {f".{half}." for half in ("encoder", "decoder") if any(f".{half}." in name for name in mine)}
    unused = {n for n in state if (".encoder." in n or ".decoder." in n) and not any(half in n for half in halves)}
    _copy(text, {name: tensor for name, tensor in state.items() if name not in unused}, path, "text")


@torch.no_grad()
def take_projection(projection: nn.Module, path: Path) -> None:
    """Fill an ITC projection from a warm start's proj.safetensors, if the folder of the tower has one.

    Raises:
        CheckpointError: the projection has another shape.
    """
    file = path / "proj.safetensors"
    if file.is_file():
        _copy(projection, load_file(file), file, "projection")


def other_half(name: str) -> str:
    """The name of the same weight in the other self-attention (encoder or decoder)."""
    return name.replace(".decoder.", ".encoder.") if ".decoder." in name else name.replace(".encoder.", ".decoder.")


def _copy(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    mine = module.state_dict()
    left = [name for name in state if name not in mine]
    if left:
        raise CheckpointError(f"{path}: {what} weights of another shape: {len(left)} left over: {listed(left, 4)}")
    for name, tensor in state.items():
        if tensor.shape != mine[name].shape:
            theirs, ours = tuple(tensor.shape), tuple(mine[name].shape)
            raise CheckpointError(f"{path}: {what} {name} is {theirs}, the recipe's {ours}")
        mine[name].copy_(tensor)


def _state(path: Path, what: str) -> dict[str, Tensor]:
    """The tower's tensors under our names, whatever kind of checkpoint is at `path`."""
    warm = path / f"{what}.safetensors"
    if warm.is_file():
        return load_file(warm)
    if path.is_dir() and _is_blip(path):
        return _part(checkpoint.load(path).state_dict(), what)
    tensors = checkpoint.load_tensors(path)
    if any(checkpoint.halves_of(tensors).values()):
        return _part(checkpoint.load(path).state_dict(), what)
    return _foreign(tensors, path, what)


def _part(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{what}."): t.detach().clone() for n, t in state.items() if n.startswith(f"{what}.")}


def _is_blip(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return config.is_file() and json.loads(config.read_text()).get("model_type") == "blip"
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{config}: cannot be read as a model's config ({error})") from error


def _foreign(tensors: dict[str, Tensor], path: Path, what: str) -> dict[str, Tensor]:
    """A ViT's or BERT's tensors under our names, without its heads."""
    if what == "vision":
        named = {from_official(f"visual_encoder.{name}"): tensor for name, tensor in tensors.items()}
    else:
        named = {_bert(name): tensor for name, tensor in tensors.items()}
    layers = [int(part) for name in named for part in name.split(".") if part.isdigit()]
    found = {}
    for ours in _names(what, max(layers, default=-1) + 1):
        hub = hub_names(ours, ["text_encoder"])[0]
        if hub in named:
            found[ours.removeprefix(f"{what}.")] = named[hub]
    if not found:
        raise CheckpointError(f"{path}: no {what} tower: neither a warm start, a BLIP, nor a plain ViT or BERT")
    return found


def _bert(name: str) -> str:
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return "text_encoder." + name.replace("LayerNorm.beta", "LayerNorm.bias")


def _names(what: str, layers: int) -> list[str]:
    """Our names of the tensors of a tower with that many layers."""
    from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
    from capfilt.models.blip.med import MED

    vision = VisionConfig(width=8, layers=max(layers, 1), heads=1, mlp_width=8, image_size=16)
    text = TextConfig(vocab_size=4, width=8, layers=max(layers, 1), heads=1, mlp_width=8, max_positions=4, dec_id=2)
    with torch.device("meta"):
        med = MED(MEDConfig(vision, text, 8, encoder=True, decoder=False))
    return [name for name in med.state_dict() if name.startswith(f"{what}.") and ".cross_attention." not in name]
