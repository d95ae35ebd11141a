"""Identity of a loaded BLIP: its card and a hash of its weights."""

import hashlib

import torch
from torch import nn

from capfilt.models.blip.config import MEDConfig
from capfilt.models.card import ModelCard, Role

PROMPT = "a picture of "
"""Start of each caption (official code), also in the captioner's training."""


def card_of(config: MEDConfig, device: torch.device, card: ModelCard | None = None) -> ModelCard:
    """Return the card of a loaded BLIP.

    Args:
        config: its halves decide roles and scores.
        device: on a CPU the model is deterministic; a GPU does not give the same bits in every batch.
        card: what is known before loading; None: BLIP's defaults.
    """
    captioner: tuple[Role, ...] = ("captioner",) if config.decoder else ()
    judge: tuple[Role, ...] = ("judge", "embedder") if config.encoder else ()
    card = card or ModelCard(name="this BLIP", system="blip", prompt=PROMPT)
    scores = ("itc", "itm") if judge else ()
    return card.model_copy(update={"roles": captioner + judge, "scores": scores, "deterministic": device.type == "cpu"})


def weights_hash(module: nn.Module) -> str:
    """Return the sha256 of a module's weights and buffers (names, dtypes, shapes, bytes). It takes 1 s per GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
