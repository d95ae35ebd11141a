"""Helpers for systems whose prepared images and states are tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.errors import InputError
from capfilt.models.protocols import Prepared, States


def stack(prepared: Sequence[Prepared], name: str) -> Tensor:
    """Stack the tensors called `name` of B images, all of one shape -> (B, ...).

    If some are on a GPU and others in main memory (because the GPU was full when they were sent), all go to the GPU.

    Raises:
        InputError: no images, or an image without such a tensor, because another system prepared it.
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
    """Return states that are a tensor. Raises InputError for others, because another system encoded them."""
    if not isinstance(states, Tensor):
        raise InputError(f"states are {type(states).__name__}, not a tensor; give those that this model encoded")
    return states
