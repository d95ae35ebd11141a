"""The text transformer in its three modes (paper section 3.1, figure 2).

| mode | self-attention | cross-attention | token 0 | used by |
|---|---|---|---|---|
| text encoder | bidirectional, encoder's | no | [CLS] | ITC |
| image-grounded encoder | bidirectional, encoder's | yes | [ENC] | ITM |
| image-grounded decoder | causal, decoder's | yes | [DEC] | LM |

Embeddings, cross-attention and feed-forward layers are one set of weights for all three; only the self-attention has an
encoder's and a decoder's version, since the two tasks differ most there (Table 3). Post-LN, as BERT.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.models.blip.config import MEDConfig, TextConfig
from capfilt.models.blip.layers import KV, Attention, init_weights


class AttentionBlock(nn.Module):
    """norm(x + attention(x))."""

    def __init__(self, config: TextConfig, kv_width: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, kv_width, config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (B, L, D) -> the same."""
        out: Tensor = self.norm(x + self.dropout(self.attention(x, kv, mask, causal)))
        return out


class TextLayer(nn.Module):
    """Self-attention of the mode -> cross-attention (if there is an image) -> feed-forward."""

    def __init__(self, config: MEDConfig) -> None:
        super().__init__()
        text = config.text
        halves = {"encoder": config.encoder, "decoder": config.decoder}
        self.self_attention = nn.ModuleDict({name: AttentionBlock(text) for name, there in halves.items() if there})
        self.cross_attention = AttentionBlock(text, config.vision.width)
        self.up = nn.Linear(text.width, text.mlp_width)
        self.down = nn.Linear(text.mlp_width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.eps)
        self.dropout = nn.Dropout(text.dropout)

    def attend(self, half: str, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Self-attention over x itself."""
        block = self.self_attention[half]
        out: Tensor = block(x, block.attention.project_kv(x), mask, causal)  # type: ignore[union-attr, operator]
        return out

    def cross_and_feed(self, x: Tensor, image_kv: KV | None) -> Tensor:
        """What follows the self-attention in every mode."""
        if image_kv is not None:
            x = self.cross_attention(x, image_kv)
        out: Tensor = self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return out

    def forward(self, half: str, x: Tensor, mask: Tensor | None, causal: bool, image_kv: KV | None) -> Tensor:
        """x (B, L, D) -> the same."""
        return self.cross_and_feed(self.attend(half, x, mask, causal), image_kv)


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
        position = self.position.weight[start : start + ids.shape[1]]
        out: Tensor = self.dropout(self.norm(self.word(ids) + position))
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
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(init_weights)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """x (..., D), word (V, D) -> logits (..., V)."""
        return F.linear(self.norm(F.gelu(self.dense(x))), word, self.bias)
