"""The text encoder's first token in inference: texts laid end to end, so that none is padded.

All but the attention works on tokens, one row each; a text's tokens see each other, and its image's rows ask that image
together (`cross.ImageKeys`). Heads read the first token only, so the last layer goes on with that row alone. A text's
result has the same bits whatever texts and images are beside it (see `packed`).
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
    """The encoder's last state of each text's first token.

    Args:
        text: in eval mode, with the encoder's half.
        rows: T texts as token ids, those of one image side by side.
        keys: of B images, if they are to be seen.
        texts: how many of the rows belong to each of the B images, at least one.

    Returns:
        (T, D).
    """
    device = text.word.weight.device
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row], device=device)
    positions = torch.tensor([i for length in lengths for i in range(length)], device=device)
    x = text.embed_at(ids, positions)  # (N, D), N tokens in all
    first = torch.tensor([0, *lengths[:-1]], device=device).cumsum(0)  # (T,)
    asking = [sum(part.tolist()) for part in torch.split(torch.tensor(lengths), list(texts))] if keys else []
    last = len(text.layers) - 1
    for i, layer in enumerate(cast("list[TextLayer]", list(text.layers))):
        seen = _themselves(layer.own("encoder"), x, lengths)
        if i == last:
            x, seen, asking = x[first], seen[first], list(texts)
        x = layer.own("encoder").close(x, seen)
        if keys:
            block = layer.cross_attention
            x = block.close(x, keys.seen(i, block.attention, x, asking))
        x = layer.feed(x)
    return x


def _themselves(block: AttentionBlock, x: Tensor, lengths: list[int]) -> Tensor:
    """x (N, D) -> (N, D): what each token has seen of its own text."""
    attention = block.attention
    q, k, v = (one(x).unflatten(-1, (attention.heads, -1)) for one in (attention.query, attention.key, attention.value))
    if x.device.type != "cpu":
        return _padded(q, k, v, lengths)
    parts = zip(*(part.transpose(0, 1)[None].split(lengths, dim=2) for part in (q, k, v)), strict=True)
    return torch.cat([attend(*part)[0].transpose(0, 1) for part in parts]).flatten(1)


def _padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The same in one call, for a device on which many small ones are slow. (N, H, K) -> (N, D)."""
    q, k, v = (pad_sequence(list(torch.split(part, lengths)), batch_first=True).transpose(1, 2) for part in (q, k, v))
    there = torch.arange(q.shape[2], device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
    return attend(q, k, v, there[:, None, None]).transpose(1, 2)[there].flatten(1)
