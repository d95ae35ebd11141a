"""Vision tower: a pre-LN ViT (Dosovitskiy et al. 2021), as in the paper (section 3.1).

Its output is computed once per image and used for ITC (the class token), ITM and decoding (all states, by
cross-attention).

Shape legend: B images, P patches, S side in pixels, D width.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.errors import InputError
from capfilt.models.blip.config import VisionConfig
from capfilt.models.blip.layers import DropPath, attend, init_weights
from capfilt.models.blip.packed import FusedMLP, Linear, Matrix, add_to, can_pack, choose_layout, gelu
from capfilt.models.blip.weight_cache import WeightCache

IMAGES_PER_PASS = 4
"""Images per pass on a CPU in fp32. oneDNN's product takes a fifth longer for 577 rows (nine blocks and one row) than
for 576. One image takes 704 ms, and two take 598 ms each (BLIP-base, 384 px, one core with AVX512). Four take another
hundredth less, with the same bits. Other layers (int8) take one image at a time, so that activations stay in cache."""


class VisionAttention(nn.Module):
    """Self-attention with one fused map for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, many_rows=True)
        self.out = Linear(width, width, many_rows=True)
        self._qkv: WeightCache[list[Matrix]] = WeightCache()

    def context(self, x: Tensor) -> Tensor:
        """Attend among states x (B, P + 1, D) -> (B, P + 1, D), before the map `out`."""
        q, k, v = (part.view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for part in self._project(x))
        return attend(q, k, v).transpose(1, 2).flatten(2)

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Compute queries, keys and values. On a CPU they are three products: SDPA reads rows of one 8 % faster than
        rows of all three."""
        qkv = self.qkv
        if not (isinstance(qkv, Linear) and can_pack(x, qkv.weight)):
            return qkv(x).chunk(3, dim=-1)  # type: ignore[no-any-return]
        thirds = self._qkv.get(
            [qkv.weight], lambda: [choose_layout(third, qkv.many_rows) for third in qkv.weight.chunk(3)]
        )
        return [third(x, bias) for third, bias in zip(thirds, qkv.bias.chunk(3), strict=True)]


class VisionBlock(nn.Module):
    """Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = VisionAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.up = Linear(config.width, config.mlp_width, many_rows=True)
        self.down = Linear(config.mlp_width, config.width, many_rows=True)
        self.drop_path = DropPath(drop_path)
        self._mlp = FusedMLP()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, P + 1, D) -> (B, P + 1, D)."""
        context = self.attention.context(self.norm1(x))
        if self.training:
            x = x + self.drop_path(self.attention.out(context))
            x = x + self.drop_path(self.down(gelu(self.up, self.norm2(x))))
            return x
        x = add_to(x, self.attention.out, context)
        return self._mlp(x, self.up, self.down, self.norm2(x))


class VisionTower(nn.Module):
    """Patch embedding, class token, position embedding, blocks and final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.patch = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        rates = [config.drop_path * i / max(config.layers - 1, 1) for i in range(config.layers)]
        self.blocks = nn.ModuleList(VisionBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Inference on a CPU takes a few images at a time, so that an image's states have the same bits in every batch.

        Args:
            pixels: (B, 3, S, S) float, normalised; S is the configured image size.

        Returns:
            States (B, P + 1, D), class token first.

        Raises:
            InputError: pixels of another shape.
        """
        size = self.config.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise InputError(f"images of shape {tuple(pixels.shape)}; this model takes (batch, 3, {size}, {size})")
        if torch.is_inference_mode_enabled() and pixels.device.type == "cpu":
            plain = isinstance(cast(VisionBlock, self.blocks[0]).up, Linear)
            return torch.cat([self._encode(part) for part in torch.split(pixels, IMAGES_PER_PASS if plain else 1)])
        return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        out: Tensor = self.norm(x)
        return out


def interpolate_positions(position: Tensor, grid: int) -> Tensor:
    """Resize a position embedding to another grid of patches, bicubically (224 px -> 384 px fine-tuning, section 4.1).

    Args:
        position: (1, P + 1, D), class token first. One that does not belong to a square grid is returned unchanged.
        grid: patches along a side.

    Returns:
        (1, grid ** 2 + 1, D).
    """
    old = math.isqrt(max(position.shape[1] - 1, 0)) if position.dim() == 3 else 0
    if old == grid or old == 0 or old * old != position.shape[1] - 1:
        return position
    patches = position[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2).to(position.dtype)], dim=1)
