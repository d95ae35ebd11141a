"""Encode texts for inference without padding: all texts in one sequence of tokens.

Everything but the attention works on single tokens, one row each. A text's tokens attend to each other, and the rows of
all texts of an image attend to that image together (`cross.ImageKeys`). The heads read the first token only, so the
last layer computes only that row. A text's result has the same bits whatever other texts and images are in the batch
(see `packed`).

Shape legend: B images, T texts, N tokens of all texts, L tokens of the longest, D width, H heads, K head width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from capfilt.models.blip.cross import ImageKeys
from capfilt.models.blip.layers import attend
from capfilt.models.blip.text import AttentionBlock, TextLayer, TextTransformer


def first_tokens(
    text: TextTransformer, rows: Sequence[Sequence[int]], keys: ImageKeys | None = None, texts: Sequence[int] = ()
) -> Tensor:
    """Return the encoder's last state of each text's first token.

    Args:
        text: in eval mode, with the encoder half.
        rows: T texts as token ids, grouped by image.
        keys: B encoded images; None leaves the cross-attention out.
        texts: number of texts of each of the B images, at least one.

    Returns:
        (T, D).
    """
    device = text.word.weight.device
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row], device=device)
    positions = torch.tensor([i for length in lengths for i in range(length)], device=device)
    x = text.embed_at(ids, positions)  # (N, D), N tokens in all
    first = torch.tensor([0, *lengths[:-1]], device=device).cumsum(0)  # (T,)
    query_counts = [sum(part.tolist()) for part in torch.split(torch.tensor(lengths), list(texts))] if keys else []
    last = len(text.layers) - 1
    for i, layer in enumerate(cast("list[TextLayer]", list(text.layers))):
        context = _self_attend(layer.self_attention_of("encoder"), x, lengths)
        if i == last:
            x, context, query_counts = x[first], context[first], list(texts)
        x = layer.self_attention_of("encoder").add_norm(x, context)
        if keys:
            block = layer.cross_attention
            x = block.add_norm(x, keys.attend(i, block.attention, x, query_counts))
        x = layer.feed_forward(x)
    return x


def _self_attend(block: AttentionBlock, x: Tensor, lengths: list[int]) -> Tensor:
    """Attend from each token to its own text, x (N, D) -> (N, D)."""
    attention = block.attention
    q, k, v = (one(x).unflatten(-1, (attention.heads, -1)) for one in (attention.query, attention.key, attention.value))
    if x.device.type != "cpu":
        return padded_attention(q, k, v, lengths)
    parts = zip(*(part.transpose(0, 1)[None].split(lengths, dim=2) for part in (q, k, v)), strict=True)
    return torch.cat([attend(*part)[0].transpose(0, 1) for part in parts]).flatten(1)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Attend from each token to its own text in one padded call, for a device on which many small calls are slow.

    Args:
        q, k, v: (N, H, K) each, N tokens of all texts.
        lengths: tokens of each text.

    Returns:
        (N, D).
    """
    q, k, v = (pad_sequence(list(torch.split(part, lengths)), batch_first=True).transpose(1, 2) for part in (q, k, v))
    valid = torch.arange(q.shape[2], device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
    return attend(q, k, v, valid[:, None, None]).transpose(1, 2)[valid].flatten(1)
