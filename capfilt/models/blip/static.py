"""Decode on a GPU with steps of fixed shapes, so that a step can be captured in a CUDA graph (`models.graphed`).

The cache has `max_length` positions from the start. A step writes the position that a tensor on the device names, and
attends to all positions under a mask computed from that tensor. Rows are grouped by image, the same number for each.
The prompt goes through the same step, token by token. Rows that have ended are computed on until all have ended, which
is checked every few tokens only, so that the host need not wait for each step.

Buffers have the size of the largest batch so far, and each graph works on their first rows: one graph per batch size,
with sizes rounded up (`round_up`). They stay on the device from batch to batch (keys and values of the images,
BLIP-base at 384 px in bf16: 21 MB per image) until `release_all`.

This is for nucleus sampling and greedy decoding. Beam search, whose rows change places, uses
`cached_decoder.CachedDecoder`. Not measured: no GPU was available. On a CPU the same code runs without a graph, in
tests only.

Shape legend: B images, R rows, M max_length, S states per image, D width, H heads, K head width, V vocabulary.
"""

from functools import partial
from typing import cast
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.blip.cross import KeyValue
from capfilt.models.blip.med import MED
from capfilt.models.blip.text import TextLayer
from capfilt.models.graphed import Graphed


class StaticDecoder:
    """Decoder of one model, used for one batch after another. Call `begin` before the first `step` of each batch."""

    check_every = 4
    """Tokens between two checks of whether all rows have ended."""

    def __init__(self, med: MED) -> None:
        """Wrap `med`, which has a decoder and is in eval mode. Its weights may change in place, but not move."""
        self._med = med
        self.release()
        _ALL.add(self)

    def release(self) -> None:
        """Free buffers and graphs."""
        self._steps: dict[int, Graphed] = {}
        self._shape: tuple[object, ...] = ()
        self._own = self._cross = torch.empty(0)

    def begin(self, image_states: Tensor, draws: int, max_length: int) -> None:
        """Start a batch, in inference mode.

        Args:
            image_states: (B, S, D_vision).
            draws: rows per image.
            max_length: tokens of the longest sequence, prompt included.

        Raises:
            torch.OutOfMemoryError: the buffers or the graph do not fit.
        """
        images = round_up(len(image_states))
        self._allocate(image_states, images, draws, max_length)
        if images not in self._steps:
            self._steps[images] = self._capture(images, draws)
        self._images, self._rows, self._length = images, len(image_states) * draws, 0
        self._idle = images * draws - self._rows
        self._own.zero_()  # a masked position is multiplied by 0, so it must be finite
        for layer, buffers in zip(self._med.text.layers, self._cross, strict=True):
            fresh = cast(TextLayer, layer).cross_attention.attention.project_kv(image_states)
            for buffer, values in zip(buffers, fresh, strict=True):
                buffer[: len(values)] = values

    def _allocate(self, states: Tensor, images: int, draws: int, max_length: int) -> None:
        shape = (draws, max_length, states.shape[1], states.dtype, states.device)
        if shape == self._shape and images <= self._cross.shape[2]:
            return
        self.release()
        text = self._med.config.text
        layers, heads, width = len(self._med.text.layers), text.heads, text.width // text.heads
        self._own = states.new_zeros(layers, 2, images * draws, heads, max_length, width)
        self._cross = states.new_zeros(layers, 2, images, heads, states.shape[1], width)
        self._positions = torch.arange(max_length, device=states.device)
        self._shape = shape

    def _capture(self, images: int, draws: int) -> Graphed:
        keys = KeyValue([(k, v) for k, v in self._cross[:, :, :images]])
        step = partial(_one_token, self._med, self._own[:, :, : images * draws], keys, [draws] * images)
        return Graphed(step, self._positions.new_zeros(images * draws, 1), self._positions[:1])

    def spread(self, times: int) -> None:
        """Do nothing: every image has its rows from the start (see `CachedDecoder.spread`)."""
        assert self._rows % times == 0

    def step(self, ids: Tensor) -> Tensor:
        """Feed the next tokens, (N, L) int64 for N images or all rows -> logits (N, V) float32 after the last."""
        times = self._rows // len(ids)
        rows = F.pad(ids.repeat_interleave(times, dim=0), (0, 0, 0, self._idle))
        for column in torch.split(rows, 1, dim=1):
            logits = self._steps[self._images](column, self._positions[self._length : self._length + 1])
            self._length += 1
        return logits[: self._rows : times]


def _one_token(med: MED, own: Tensor, keys: KeyValue, counts: list[int], ids: Tensor, position: Tensor) -> Tensor:
    """Feed one token per row.

    Args:
        med: with a decoder, in eval mode.
        own: (layers, 2, R, H, M, K), self-attention keys and values; those of `position` are written.
        keys: the encoded images.
        counts: rows per image.
        ids: (R, 1) int64.
        position: (1,) int64.

    Returns:
        Logits (R, V) float32.
    """
    x = med.text.embed_at(ids, position)
    past = torch.arange(own.shape[4], device=ids.device) <= position  # (M,)
    for i, layer in enumerate(cast("list[TextLayer]", list(med.text.layers))):
        block, cross = layer.self_attention_of("decoder"), layer.cross_attention
        for cache, fresh in zip(own[i], block.attention.project_kv(x), strict=True):
            cache.index_copy_(2, position, fresh)
        x = block(x, (own[i, 0], own[i, 1]), past[None, None, None])
        context = keys.attend(i, cross.attention, x[:, 0], counts)[:, None]
        x = layer.feed_forward(cross.add_norm(x, context))
    logits: Tensor = med.lm_head(x[:, 0], med.text.word.weight)
    return logits.float()


_ALL: WeakSet[StaticDecoder] = WeakSet()


def release_all() -> None:
    """Free the buffers of all decoders and torch's cached blocks, after memory ran out."""
    for decoder in list(_ALL):
        decoder.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def round_up(images: int) -> int:
    """Round up to 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, and at most a third of the rows idle."""
    power = 1 << (images - 1).bit_length()
    return power * 3 // 4 if images <= power * 3 // 4 else power
