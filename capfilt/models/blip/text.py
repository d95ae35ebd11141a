"""Text transformer in its three modes (paper section 3.1, figure 2).

| mode | self-attention | cross-attention | token 0 | used by |
|---|---|---|---|---|
| text encoder | bidirectional, encoder's | no | [CLS] | ITC |
| image-grounded encoder | bidirectional, encoder's | yes | [ENC] | ITM |
| image-grounded decoder | causal, decoder's | yes | [DEC] | LM |

Embeddings, cross-attention and feed-forward layers share one set of weights in all three modes. Only the self-attention
has one version for the encoder and one for the decoder, because the two tasks differ most there (Table 3). The layers
are post-LN, as in BERT.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.models.blip.config import MEDConfig, TextConfig
from capfilt.models.blip.layers import KV, Attention, init_weights
from capfilt.models.blip.packed import Linear, Matrix, gelu, linear
from capfilt.models.blip.weight_cache import WeightCache


class AttentionBlock(nn.Module):
    """Attention with residual and norm: norm(x + attention(x))."""

    def __init__(self, config: TextConfig, kv_width: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, kv_width, config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (B, L, D) -> (B, L, D); `kv`, `mask` and `causal` as in `Attention.context`."""
        return self.add_norm(x, self.attention.context(x, kv, mask, causal))

    def add_norm(self, x: Tensor, context: Tensor) -> Tensor:
        """Apply the output map, residual and norm to what the attention returned, both (..., D)."""
        out: Tensor = self.norm(x + self.dropout(self.attention.out(context)))
        return out


class TextLayer(nn.Module):
    """Self-attention of the mode, cross-attention if there is an image, feed-forward."""

    def __init__(self, config: MEDConfig) -> None:
        super().__init__()
        text = config.text
        halves = {"encoder": config.encoder, "decoder": config.decoder}
        self.self_attention = nn.ModuleDict({name: AttentionBlock(text) for name, built in halves.items() if built})
        self.cross_attention = AttentionBlock(text, config.vision.width)
        self.up = Linear(text.width, text.mlp_width)
        self.down = Linear(text.mlp_width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.eps)
        self.dropout = nn.Dropout(text.dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return norm(x + mlp(x)), x (..., D)."""
        out: Tensor = self.norm(x + self.dropout(self.down(gelu(self.up, x))))
        return out

    def self_attention_of(self, half: str) -> AttentionBlock:
        """Return the self-attention of a half, "encoder" or "decoder"."""
        return cast(AttentionBlock, self.self_attention[half])

    def forward(self, half: str, x: Tensor, mask: Tensor | None, causal: bool, image_kv: KV | None) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        Args:
            half: "encoder" or "decoder".
            x: (B, L, D).
            mask: bool, broadcast to (B, H, L, L); True = may be attended to.
            causal: each position attends to itself and earlier ones.
            image_kv: keys and values of B images; None leaves the cross-attention out.
        """
        block = self.self_attention_of(half)
        x = block(x, block.attention.project_kv(x), mask, causal)
        return self.feed_forward(x if image_kv is None else self.cross_attention(x, image_kv))


class TextTransformer(nn.Module):
    """Embeddings and layers of the text side, called in one of the three modes."""

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
        """Embed ids (B, L) int64 at positions start .. start + L - 1 -> (B, L, D)."""
        return self.embed_at(ids, torch.arange(start, start + ids.shape[1], device=ids.device))

    def embed_at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed ids (..., L) int64 at positions (L,) int64 -> (..., L, D)."""
        out: Tensor = self.dropout(self.norm(self.word(ids) + self.position(positions)))
        return out

    def cross_kv(self, image_states: Tensor) -> list[KV]:
        """Compute every layer's cross-attention keys and values of image states (B, P + 1, D_vision)."""
        return [layer.cross_attention.attention.project_kv(image_states) for layer in self.layers]  # type: ignore[union-attr, operator]

    def run(self, half: str, ids: Tensor, mask: Tensor | None, image_kv: list[KV] | None) -> Tensor:
        """Run all layers in one mode.

        Args:
            half: "encoder", or "decoder", which is causal.
            ids: (B, L) int64.
            mask: (B, L) bool, True = token, False = padding; None for the decoder or where nothing is padded.
            image_kv: each layer's keys and values of B images; None leaves the cross-attention out.

        Returns:
            (B, L, D).
        """
        x = self.embed(ids)
        keys = None if mask is None else mask[:, None, None, :]
        causal = half == "decoder"
        for i, layer in enumerate(self.layers):
            args = (half, x, keys, causal, image_kv[i] if image_kv else None)
            x = checkpoint(layer, *args, use_reentrant=False) if self.checkpointing and self.training else layer(*args)
        return x


class LMHead(nn.Module):
    """LM head: dense, gelu, norm, then the transposed word embedding and a bias, as in BERT."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._packed: WeightCache[Matrix] = WeightCache()
        self.apply(init_weights)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """Return logits (..., V) of states x (..., D); `word` is the word embedding (V, D)."""
        return linear(self.norm(gelu(self.dense, x)), word, self.bias, self._packed)
