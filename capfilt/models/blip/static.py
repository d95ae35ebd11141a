"""Decoding on a GPU: a token's step of fixed shapes, so that it can be captured in a CUDA graph (`models.graphed`).

The cache has `max_length` places from the start; a step writes the place that a tensor on the device names, and looks
at all places under a mask made of that tensor. Rows lie image by image, as many for each image. The prompt goes through
the same step, token by token. Rows that have ended are computed on until all have, which is asked every few tokens
only: the host waits for no step.

Buffers are those of the largest batch so far, and each graph works on the first rows of them: one graph for each size
of batch, sizes rounded up (`rounded`). They stay on the device from batch to batch (keys and values of the images,
BLIP-base at 384 px in bf16: 21 MB an image) until `release_all`.

Nucleus sampling and greedy decoding come here; beam search, whose rows change places, has
`cached_decoder.CachedDecoder`.
Not measured: no GPU was at hand. On a CPU the same code runs without a graph, in tests alone.

Shape legend: B images, R rows, M max_length, S states an image, D width, H heads, K head width, V vocabulary.
"""

from functools import partial
from typing import cast
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.blip.cross import Built
from capfilt.models.blip.med import MED
from capfilt.models.blip.text import TextLayer
from capfilt.models.graphed import Graphed


class StaticDecoder:
    """A model's decoder, for one batch after another; `begin` before the first `step` of each."""

    look_every = 4
    """Tokens between two looks whether all rows have ended."""

    def __init__(self, med: MED) -> None:
        """`med`: with a decoder, in eval mode; its weights may change in place, but not move."""
        self._med = med
        self.release()
        _ALL.add(self)

    def release(self) -> None:
        """Let go of buffers and graphs."""
        self._steps: dict[int, Graphed] = {}
        self._kind: tuple[object, ...] = ()
        self._own = self._cross = torch.empty(0)

    def begin(self, image_states: Tensor, draws: int, max_length: int) -> None:
        """Go on with these images, (B, S, D_vision), `draws` rows each, in inference mode.

        Raises torch.OutOfMemoryError.
        """
        images = rounded(len(image_states))
        self._make_room(image_states, images, draws, max_length)
        if images not in self._steps:
            self._steps[images] = self._step_of(images, draws)
        self._images, self._rows, self._length = images, len(image_states) * draws, 0
        self._idle = images * draws - self._rows
        self._own.zero_()  # a masked place counts 0 times what is there, which must be finite
        for layer, kept in zip(self._med.text.layers, self._cross, strict=True):
            fresh = cast(TextLayer, layer).cross_attention.attention.project_kv(image_states)
            for to, values in zip(kept, fresh, strict=True):
                to[: len(values)] = values

    def _make_room(self, states: Tensor, images: int, draws: int, max_length: int) -> None:
        kind = (draws, max_length, states.shape[1], states.dtype, states.device)
        if kind == self._kind and images <= self._cross.shape[2]:
            return
        self.release()
        text = self._med.config.text
        layers, heads, width = len(self._med.text.layers), text.heads, text.width // text.heads
        self._own = states.new_zeros(layers, 2, images * draws, heads, max_length, width)
        self._cross = states.new_zeros(layers, 2, images, heads, states.shape[1], width)
        self._places = torch.arange(max_length, device=states.device)
        self._kind = kind

    def _step_of(self, images: int, draws: int) -> Graphed:
        keys = Built([(k, v) for k, v in self._cross[:, :, :images]])
        step = partial(_one_token, self._med, self._own[:, :, : images * draws], keys, [draws] * images)
        return Graphed(step, self._places.new_zeros(images * draws, 1), self._places[:1])

    def spread(self, times: int) -> None:
        """Nothing is left to do: every image has its rows from the beginning."""
        assert self._rows % times == 0

    def step(self, ids: Tensor) -> Tensor:
        """The next tokens, (N, L) int64, N the images or all rows -> (N, V) float32 logits after the last."""
        times = self._rows // len(ids)
        rows = F.pad(ids.repeat_interleave(times, dim=0), (0, 0, 0, self._idle))
        for column in torch.split(rows, 1, dim=1):
            logits = self._steps[self._images](column, self._places[self._length : self._length + 1])
            self._length += 1
        return logits[: self._rows : times]


def _one_token(med: MED, own: Tensor, keys: Built, counts: list[int], ids: Tensor, position: Tensor) -> Tensor:
    """The step: own (layers, 2, R, H, M, K), ids (R, 1) int64, position (1,) int64 -> (R, V) float32 logits."""
    x = med.text.embed_at(ids, position)
    past = torch.arange(own.shape[4], device=ids.device) <= position  # (M,)
    for i, layer in enumerate(cast("list[TextLayer]", list(med.text.layers))):
        block, cross = layer.own("decoder"), layer.cross_attention
        for kept, fresh in zip(own[i], block.attention.project_kv(x), strict=True):
            kept.index_copy_(2, position, fresh)
        x = block(x, (own[i, 0], own[i, 1]), past[None, None, None])
        seen = keys.seen(i, cross.attention, x[:, 0], counts)[:, None]
        x = layer.feed(cross.close(x, seen))
    logits: Tensor = med.lm_head(x[:, 0], med.text.word.weight)
    return logits.float()


_ALL: WeakSet[StaticDecoder] = WeakSet()


def release_all() -> None:
    """Let go of what decoders keep, and of what torch keeps for later: where memory ran out."""
    for decoder in list(_ALL):
        decoder.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rounded(images: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, and at most a third of the rows idle."""
    power = 1 << (images - 1).bit_length()
    return power * 3 // 4 if images <= power * 3 // 4 else power
