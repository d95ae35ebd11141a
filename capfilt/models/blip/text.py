"""The text transformer in its three modes (paper section 3.1, figure 2).

| mode | self-attention | cross-attention | token 0 | used by |
|---|---|---|---|---|
| text encoder | bidirectional, encoder's | no | [CLS] | ITC |
| image-grounded encoder | bidirectional, encoder's | yes | [ENC] | ITM |
| image-grounded decoder | causal, decoder's | yes | [DEC] | LM |

Embeddings, cross-attention and feed-forward layers are one set of weights for all three; only the self-attention has an
encoder's and a decoder's version, since the two tasks differ most there (Table 3). Post-LN, as BERT.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.models.blip.config import MEDConfig, TextConfig
from capfilt.models.blip.layers import KV, Attention, init_weights
from capfilt.models.blip.packed import Derived, Linear, Packed, Plain, gelu, linear


class AttentionBlock(nn.Module):
    """norm(x + attention(x))."""

    def __init__(self, config: TextConfig, kv_width: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, kv_width, config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (B, L, D) -> the same."""
        return self.close(x, self.attention.seen(x, kv, mask, causal))

    def close(self, x: Tensor, seen: Tensor) -> Tensor:
        """What follows the attention, of x and what it has seen, both (..., D)."""
        out: Tensor = self.norm(x + self.dropout(self.attention.out(seen)))
        return out


class TextLayer(nn.Module):
    """Self-attention of the mode -> cross-attention (if there is an image) -> feed-forward."""

    def __init__(self, config: MEDConfig) -> None:
        super().__init__()
        text = config.text
        halves = {"encoder": config.encoder, "decoder": config.decoder}
        self.self_attention = nn.ModuleDict({name: AttentionBlock(text) for name, there in halves.items() if there})
        self.cross_attention = AttentionBlock(text, config.vision.width)
        self.up = Linear(text.width, text.mlp_width)
        self.down = Linear(text.mlp_width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.eps)
        self.dropout = nn.Dropout(text.dropout)

    def feed(self, x: Tensor) -> Tensor:
        """norm(x + mlp(x)), x (..., D)."""
        out: Tensor = self.norm(x + self.dropout(self.down(gelu(self.up, x))))
        return out

    def own(self, half: str) -> AttentionBlock:
        """The self-attention of a half."""
        return cast(AttentionBlock, self.self_attention[half])

    def forward(self, half: str, x: Tensor, mask: Tensor | None, causal: bool, image_kv: KV | None) -> Tensor:
        """x (B, L, D) -> the same."""
        block = self.own(half)
        x = block(x, block.attention.project_kv(x), mask, causal)
        return self.feed(x if image_kv is None else self.cross_attention(x, image_kv))


class TextTransformer(nn.Module):
    """Embeddings and layers, called in one of the three modes."""

    def __init__(self, config: MEDConfig) -> None:
        super().__init__()
        text = config.text
        self.checkpointing = False
        self.word = nn.Embedding(text.vocab_size, text.width)
        self.position = nn.Embedding(text.max_positions, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.eps)
        self.dropout = nn.Dropout(text.dropout)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(text.layers))
        self.apply(init_weights)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """ids (B, L) int64 at positions start .. start + L -> (B, L, D)."""
        return self.embed_at(ids, torch.arange(start, start + ids.shape[1], device=ids.device))

    def embed_at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (..., L) int64 and their positions (L,) -> (..., L, D)."""
        out: Tensor = self.dropout(self.norm(self.word(ids) + self.position(positions)))
        return out

    def cross_kv(self, image_states: Tensor) -> list[KV]:
        """(B, P + 1, D_vision) -> every layer's cross-attention keys and values, computed once an image."""
        return [layer.cross_attention.attention.project_kv(image_states) for layer in self.layers]  # type: ignore[union-attr, operator]

    def run(self, half: str, ids: Tensor, mask: Tensor | None, image_kv: list[KV] | None) -> Tensor:
        """ids (B, L) int64 -> (B, L, D). The decoder is causal; mask (B, L) bool is the encoder's, True = token."""
        x = self.embed(ids)
        keys = None if mask is None else mask[:, None, None, :]
        causal = half == "decoder"
        for i, layer in enumerate(self.layers):
            args = (half, x, keys, causal, image_kv[i] if image_kv else None)
            x = checkpoint(layer, *args, use_reentrant=False) if self.checkpointing and self.training else layer(*args)
        return x


class LMHead(nn.Module):
    """dense -> gelu -> norm -> the transposed word embedding + bias."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._packed: Derived[Packed | Plain] = Derived()
        self.apply(init_weights)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """x (..., D), word (V, D) -> logits (..., V)."""
        return linear(self.norm(gelu(self.dense, x)), word, self.bias, self._packed)
