"""Decode token by token with a key-value cache: the text decoder's rows, each attending to its past and its image.

Each step computes one token per row. Self-attention keys and values lie in a cache of `max_length` positions, allocated
at the first step. Cross-attention keys belong to an image and are shared by all of its captions and beams (`cross`).
Rows whose caption has ended can leave the batch (`select`).

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
    """The decoder's rows, each fed token by token; a row attends to its own past and to its image."""

    look_every = 1
    """Tokens between two looks at which rows have ended."""

    def __init__(self, med: MED, keys: ImageKeys, images: int, max_length: int) -> None:
        """One row for each of `images` images to begin with; `keys` are theirs."""
        self._med, self._keys, self._max_length = med, keys, max_length
        self._layers = cast("list[TextLayer]", list(med.text.layers))
        self._image_of = list(range(images))
        self._counts = [1] * images
        self._cache: list[KV] = []
        self._length = 0

    def step(self, ids: Tensor) -> Tensor:
        """ids (R, L) int64, the next tokens -> (R, V) float32 logits after the last."""
        x = self._med.text.embed(ids, self._length)
        asking = [count * ids.shape[1] for count in self._counts]
        for i, layer in enumerate(self._layers):
            x = self._attend(i, layer.own("decoder"), x)
            cross = layer.cross_attention
            seen = self._keys.seen(i, cross.attention, x.flatten(0, 1), asking).view_as(x)
            x = layer.feed(cross.close(x, seen))
        self._length += ids.shape[1]
        logits: Tensor = self._med.lm_head(x[:, -1], self._med.text.word.weight)
        return logits.float()

    def _attend(self, i: int, block: AttentionBlock, x: Tensor) -> Tensor:
        start, end = self._length, self._length + x.shape[1]
        new = block.attention.project_kv(x)
        if i == len(self._cache):
            room = (x.shape[0], new[0].shape[1], self._max_length, new[0].shape[3])
            self._cache.append((new[0].new_empty(room), new[1].new_empty(room)))
        for kept, fresh in zip(self._cache[i], new, strict=True):
            kept[:, :, start:end] = fresh
        keys, values = (kept[:, :, :end] for kept in self._cache[i])
        out: Tensor = block(x, (keys, values), None, causal=start == 0)
        return out

    def spread(self, times: int) -> None:
        """Go on with so many copies of each row, side by side."""
        device = self._cache[0][0].device
        self.select(torch.arange(len(self._image_of), device=device).repeat_interleave(times))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, (R',) int64, still image by image; a row may be taken several times, an image left."""
        self._cache = select_kv(self._cache, rows)
        chosen = [self._image_of[row] for row in rows.tolist()]
        groups = [(image, len(list(group))) for image, group in groupby(chosen)]
        if len(groups) < len(self._counts):
            self._keys = self._keys.of([image for image, _ in groups])
        self._counts = [count for _, count in groups]
        self._image_of = [place for place, count in enumerate(self._counts) for _ in range(count)]
