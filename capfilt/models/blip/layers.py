"""Attention and the small blocks that both towers share.

Shape legend: B images or texts, L query tokens, S key tokens, D width, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.blip.packed import Linear
from capfilt.models.blip.weight_cache import WeightCache

KV = tuple[Tensor, Tensor]
"""Keys and values of one attention, each (B, H, S, K)."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, rate: float = 0.0, causal: bool = False
) -> Tensor:
    """Compute scaled dot-product attention.

    It is SDPA except for gradients in bf16 on a CPU, where SDPA's backward takes 67 ms and plain matrix products take
    12 (64 images, 65 tokens, 3 heads, one thread of an AVX512-bf16 processor, torch 2.13).

    Args:
        q: (B, H, L, K).
        k: (B, H, S, K).
        v: (B, H, S, K).
        mask: bool, broadcast to (B, H, L, S); True = may be attended to.
        rate: dropout of the attention weights.
        causal: position i attends to positions 0 .. i.

    Returns:
        (B, H, L, K).
    """
    if not (q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v, mask, rate, causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.dropout(scores.float().softmax(-1).to(v.dtype), rate) @ v


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value maps.

    In cross-attention the states behind keys and values may have another width.
    """

    def __init__(self, width: int, heads: int, kv_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = Linear(width, width)
        self.key = Linear(kv_width or width, width)
        self.value = Linear(kv_width or width, width)
        self.out = Linear(width, width)
        self._value_by_head: WeightCache[Tensor] = WeightCache()

    def value_by_head(self) -> Tensor:
        """Return the value's weight as (H, D_kv, K), contiguous and cached, for absorbed cross-attention (`cross`)."""
        weight = self.value.weight
        return self._value_by_head.get(
            [weight], lambda: weight.detach().view(self.heads, -1, weight.shape[1]).transpose(1, 2).contiguous()
        )

    def split(self, x: Tensor) -> Tensor:
        """Split into heads: (B, L, D) -> (B, H, L, K)."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def project_kv(self, states: Tensor) -> KV:
        """Compute keys and values of states (B, S, D_kv)."""
        return self.split(self.key(states)), self.split(self.value(states))

    def context(self, x: Tensor, kv: KV, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from x (B, L, D) to keys and values -> (B, L, D), before the map `out`; `mask` as in `attend`."""
        rate = self.dropout if self.training else 0.0
        return attend(self.split(self.query(x)), *kv, mask, rate, causal).transpose(1, 2).flatten(2)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drop a residual branch for whole samples, and scale the others to keep the
    mean. In training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device, dtype=x.dtype) >= self.rate
        return x * keep / (1.0 - self.rate)


def init_weights(module: nn.Module) -> None:
    """Initialise as ViT and BERT: weights Normal(0, 0.02) truncated at two deviations, zero biases, unit norms."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
