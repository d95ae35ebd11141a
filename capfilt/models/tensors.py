"""Prepared images as tensors, for systems whose inputs are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.errors import InputError
from capfilt.models.protocols import Prepared, States


def stack(prepared: Sequence[Prepared], name: str) -> Tensor:
    """The tensors of that name of B images, of one shape each -> (B, ...).

    They are put on the GPU if one of them is there: where it has no more room, the others are still in main memory.

    Raises:
        InputError: no image, or one that has no tensor of that name: another system prepared it.
    """
    found = [one.get(name) if not isinstance(one, bytes) else None for one in prepared]
    tensors = [one for one in found if one is not None]
    if not tensors or len(tensors) < len(found):
        raise InputError(
            f"{len(found)} images, {len(tensors)} of them with {name!r}; give images that this model prepared"
        )
    devices = {one.device for one in tensors}
    device = min(devices, key=lambda device: device.type == "cpu")
    return torch.stack([one.to(device) for one in tensors] if len(devices) > 1 else tensors)


def tensor_of(states: States) -> Tensor:
    """States that are one tensor. Raises InputError if they are not: another system encoded them."""
    if not isinstance(states, Tensor):
        raise InputError(f"states are {type(states).__name__}, not a tensor; give those that this model encoded")
    return states
