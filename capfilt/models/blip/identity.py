"""What a loaded BLIP says of itself: its card, and a key of its weights."""

import hashlib

import torch
from torch import nn

from capfilt.models.blip.config import MEDConfig
from capfilt.models.card import ModelCard, Role

PROMPT = "a picture of "
"""Before each caption (official code), and in the captioner's training."""


def card_of(config: MEDConfig, device: torch.device, card: ModelCard | None = None) -> ModelCard:
    """The card with the roles that the checkpoint has; a GPU does not promise the same bits in every batch."""
    captioner: tuple[Role, ...] = ("captioner",) if config.decoder else ()
    judge: tuple[Role, ...] = ("judge", "embedder") if config.encoder else ()
    card = card or ModelCard(name="this BLIP", system="blip", prompt=PROMPT)
    scores = ("itc", "itm") if judge else ()
    return card.model_copy(update={"roles": captioner + judge, "scores": scores, "deterministic": device.type == "cpu"})


def weights_hash(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's weights and buffers, as they compute; 1 s per GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
