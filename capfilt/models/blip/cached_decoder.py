"""Decode token by token with a key-value cache: the text decoder's rows, each attending to its past and its image.

Each step computes one token per row. The cache of self-attention keys and values has `max_length` positions and is
allocated at the first step. Cross-attention keys belong to an image and are shared by all of its captions and beams
(`cross`). Rows whose caption has ended can leave the batch (`select`).

Shape legend: B images, R rows (captions or beams, grouped by image), L tokens, D width, H heads, K head width,
V vocabulary.
"""

from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from capfilt.models.blip.cross import ImageKeys
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED, select_kv
from capfilt.models.blip.text import AttentionBlock, TextLayer


class CachedDecoder:
    """Rows of the text decoder. Each row attends to its own past and to its image."""

    check_every = 1
    """Tokens between two checks of which rows have ended."""

    def __init__(self, med: MED, keys: ImageKeys, images: int, max_length: int) -> None:
        """Start with one row per image.

        Args:
            med: with a decoder, in eval mode.
            keys: the encoded images.
            images: their number.
            max_length: tokens of the longest sequence, prompt included.
        """
        self._med, self._keys, self._max_length = med, keys, max_length
        self._layers = cast("list[TextLayer]", list(med.text.layers))
        self._image_of = list(range(images))
        self._counts = [1] * images
        self._cache: list[KV] = []
        self._length = 0

    def step(self, ids: Tensor) -> Tensor:
        """Feed the next tokens, ids (R, L) int64 -> logits (R, V) float32 after the last."""
        x = self._med.text.embed(ids, self._length)
        query_counts = [count * ids.shape[1] for count in self._counts]
        for i, layer in enumerate(self._layers):
            x = self._self_attend(i, layer.self_attention_of("decoder"), x)
            cross = layer.cross_attention
            context = self._keys.attend(i, cross.attention, x.flatten(0, 1), query_counts).view_as(x)
            x = layer.feed_forward(cross.add_norm(x, context))
        self._length += ids.shape[1]
        logits: Tensor = self._med.lm_head(x[:, -1], self._med.text.word.weight)
        return logits.float()

    def _self_attend(self, i: int, block: AttentionBlock, x: Tensor) -> Tensor:
        """Append the keys and values of x (R, L, D) to layer i's cache and attend to all so far -> (R, L, D)."""
        start, end = self._length, self._length + x.shape[1]
        new = block.attention.project_kv(x)
        if i == len(self._cache):
            shape = (x.shape[0], new[0].shape[1], self._max_length, new[0].shape[3])
            self._cache.append((new[0].new_empty(shape), new[1].new_empty(shape)))
        for cache, fresh in zip(self._cache[i], new, strict=True):
            cache[:, :, start:end] = fresh
        keys, values = (cache[:, :, :end] for cache in self._cache[i])
        out: Tensor = block(x, (keys, values), None, causal=start == 0)
        return out

    def spread(self, times: int) -> None:
        """Replace each row by `times` copies, side by side."""
        device = self._cache[0][0].device
        self.select(torch.arange(len(self._image_of), device=device).repeat_interleave(times))

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, (R',) int64, grouped by image.

        A row may be repeated. An image without rows is dropped.
        """
        self._cache = select_kv(self._cache, rows)
        chosen = [self._image_of[row] for row in rows.tolist()]
        groups = [(image, len(list(group))) for image, group in groupby(chosen)]
        if len(groups) < len(self._counts):
            self._keys = self._keys.select([image for image, _ in groups])
        self._counts = [count for _, count in groups]
        self._image_of = [index for index, count in enumerate(self._counts) for _ in range(count)]
