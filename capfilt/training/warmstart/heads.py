"""The joint space of the two teachers: a small head per teacher, which `joint.py` trains and the students match."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBED = 256
"""Dimensions of the joint space; the student's `embed_dim`."""


class Heads(nn.Module):
    """A head on each teacher's features: EfficientNet-Lite0's of an image, MiniLM's of a text."""

    image_mean: Tensor
    image_scale: Tensor

    def __init__(self, hidden: int = 768, drop: float = 0.3) -> None:
        super().__init__()
        self.image, self.text = head(1280, hidden, drop), head(384, hidden, drop)
        self.scale = nn.Parameter(torch.tensor(2.65))
        self.register_buffer("image_mean", torch.zeros(1280))
        self.register_buffer("image_scale", torch.ones(1280))

    def images(self, pooled: Tensor) -> Tensor:
        """(B, 1280) EfficientNet-Lite0's pooled features -> (B, 256), L2-normalised."""
        return F.normalize(self.image((pooled - self.image_mean) / self.image_scale), dim=-1)

    def texts(self, embedded: Tensor) -> Tensor:
        """(B, 384) MiniLM's embeddings -> (B, 256), L2-normalised."""
        return F.normalize(self.text(embedded), dim=-1)


def head(width: int, hidden: int, drop: float) -> nn.Sequential:
    """Two linear layers: (B, width) -> (B, EMBED)."""
    return nn.Sequential(
        nn.Dropout(drop), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(drop), nn.Linear(hidden, EMBED)
    )


def load_heads(path: str | Path) -> Heads:
    """Load heads that `joint.py` saved: frozen, in eval mode."""
    heads = Heads()
    heads.load_state_dict(torch.load(path, weights_only=True))
    return heads.eval().requires_grad_(False)
