"""Cross-attention to encoded images in inference: by keys and values, or directly to the image's states.

Keys and values of 577 states are 16.3 GFLOP per image (BLIP-base, all layers), after which a query row costs 21 MFLOP.
*Absorbed* cross-attention builds none. Since q . (W_k s) = (W_k^T q) . s, each head's query is multiplied by W_k once
and compared with the states themselves. Since sum_s p_s (W_v s) = W_v (sum_s p_s s), W_v is applied after the
attention. A row then costs 283 MFLOP, so it is the cheaper way for up to `MAX_ABSORBED_ROWS` query rows per image. (The
key's bias adds the same number to all scores of a row, which the softmax cancels.) Absorbed cross-attention needs the
weights themselves, so it is used for `Linear` layers in float32 on a CPU only; all others have keys and values.

Rows are grouped by image, `counts[b]` for image b. A row's result does not depend on the rows of other images, bits
included (with one torch thread). Products of three rows or fewer use other kernels and are padded to four. MKL's
products of up to twelve rows with a transposed view on the right (AVX512) do too, so the value's weight is transposed
in memory, once.

Shape legend: B images, R rows, S states per image, D width, H heads, K head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from capfilt.models.blip.layers import KV, Attention, attend
from capfilt.models.blip.packed import Linear, PackedMatrix, can_pack
from capfilt.models.blip.text import TextLayer, TextTransformer

MAX_ABSORBED_ROWS = 62
"""Query rows per image up to which absorbed cross-attention is the faster way (measured: equal at 60 to 80)."""


class ImageKeys(Protocol):
    """B encoded images, as the text layers' cross-attention reads them."""

    def attend(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Attend from rows to their images.

        Args:
            layer: index of the text layer.
            attention: that layer's cross-attention.
            x: (R, D), rows grouped by image.
            counts: B numbers of rows, sum R.

        Returns:
            (R, D), before the attention's output map.
        """
        ...

    def select(self, images: Sequence[int]) -> "ImageKeys":
        """Return only the images at these indices."""
        ...


def use_absorbed(rows: int) -> bool:
    """Return whether this number of query rows per image is cheaper without keys and values."""
    return rows <= MAX_ABSORBED_ROWS


def image_keys(text: TextTransformer, image_states: Tensor, rows: int, decoding: bool = False) -> ImageKeys:
    """Return the cheapest kind of cross-attention.

    Args:
        text: the text side.
        image_states: (B, S, D_vision).
        rows: expected query rows per image in all.
        decoding: rows come a few at a time, not all at once.
    """
    if use_absorbed(rows) and all(_can_absorb(layer, image_states) for layer in text.layers):
        return SdpaStates(image_states) if decoding else PackedStates.build(image_states)
    return KeyValue(text.cross_kv(image_states))


def _can_absorb(layer: object, states: Tensor) -> bool:
    attention = cast(TextLayer, layer).cross_attention.attention
    key, value = attention.key, attention.value
    return type(key) is Linear and type(value) is Linear and can_pack(states, key.weight, value.weight)


class KeyValue:
    """Keys and values of every layer, each (B, H, S, K)."""

    def __init__(self, kv: list[KV]) -> None:
        self._kv = kv

    def attend(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """See `ImageKeys.attend`."""
        q = _by_image(attention.query(x), counts)
        q = F.pad(q, (0, 0, 0, -q.shape[1] % 4))
        out = attend(attention.split(q), *self._kv[layer]).transpose(1, 2).flatten(2)
        return _by_row(out, counts)

    def select(self, images: Sequence[int]) -> "KeyValue":
        """See `ImageKeys.select`."""
        index = torch.tensor(images, device=self._kv[0][0].device)
        return KeyValue([(k[index], v[index]) for k, v in self._kv])


def _by_image(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Reshape rows (R, D) to (B, L, D), padded with zeros where images have different numbers of rows."""
    if len(set(counts)) == 1:
        return x.reshape(-1, counts[0], x.shape[1])
    return pad_sequence(list(torch.split(x, list(counts))), batch_first=True)


def _by_row(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Undo `_by_image`: (B, L, D) -> (R, D), contiguous because the bits of bf16 products depend on it."""
    if len(set(counts)) == 1:
        return x[:, : counts[0]].flatten(0, 1).contiguous()
    return torch.cat([image[:count] for image, count in zip(x, counts, strict=True)])


class AbsorbedCross(ABC):
    """Cross-attention to the states (S, D) of each image, the same for all layers."""

    def attend(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """See `ImageKeys.attend`."""
        rows, heads = len(x), attention.heads
        q = _pad_to_four(attention.query(x)).view(-1, heads, attention.key.out_features // heads)  # (R, H, K)
        key = attention.key.weight.view(heads, q.shape[-1], -1)
        absorbed = torch.bmm((q * q.shape[-1] ** -0.5).transpose(0, 1), key)  # (H, R, D_vision)
        mixed = self._mix(absorbed[:, :rows].transpose(0, 1), counts)
        mixed = _pad_to_four(mixed).transpose(0, 1)  # (H, R, D_vision)
        out = torch.bmm(mixed, attention.value_by_head()).transpose(0, 1)[:rows]  # (R, H, K)
        return out.flatten(1) + attention.value.bias

    @abstractmethod
    def _mix(self, queries: Tensor, counts: Sequence[int]) -> Tensor:
        """Average the states by attention weight: absorbed queries (R, H, D) -> (R, H, D)."""

    @abstractmethod
    def select(self, images: Sequence[int]) -> "AbsorbedCross":
        """See `ImageKeys.select`."""


def _pad_to_four(rows: Tensor) -> Tensor:
    """Pad (R, ...) with zeros to at least four rows."""
    missing = 4 - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


class PackedStates(AbsorbedCross):
    """All rows of an image in one product, for texts with many tokens. States and their transpose are packed once."""

    def __init__(self, images: list[tuple[PackedMatrix, PackedMatrix]]) -> None:
        self._images = images

    @classmethod
    def build(cls, image_states: Tensor) -> "PackedStates":
        """Pack the states (B, S, D_vision)."""
        return cls([(PackedMatrix(states), PackedMatrix(states.T)) for states in image_states])

    def _mix(self, queries: Tensor, counts: Sequence[int]) -> Tensor:
        parts = zip(torch.split(queries, list(counts)), self._images, strict=True)
        mixed = [transposed(states(part.flatten(0, 1)).softmax(-1)) for part, (states, transposed) in parts]
        return torch.cat(mixed).view(queries.shape)

    def select(self, images: Sequence[int]) -> "PackedStates":
        return PackedStates([self._images[i] for i in images])


class SdpaStates(AbsorbedCross):
    """Each row attends to its image by itself, for decoding: one row or a few per image at a time.

    SDPA, whose queries are a row's heads, reads the states block by block and uses a block twice while it is in cache;
    two packed products each read a copy of their own. Per row, layer and image it takes 0.24 ms against 0.46 (48 images
    of 1.8 MB, 12 heads, one core with AVX512); from four rows per image on they are equal. All rows of an image in one
    call would share what they read, but then each row's bits would depend on the number of rows.
    """

    def __init__(self, states: Tensor) -> None:
        self._states = states  # (B, S, D)

    def _mix(self, queries: Tensor, counts: Sequence[int]) -> Tensor:
        if len(set(counts)) == 1:
            return _sdpa(queries.reshape(-1, counts[0], *queries.shape[1:]), self._states).flatten(0, 1)
        parts = zip(torch.split(queries, list(counts)), self._states, strict=True)
        return torch.cat([_sdpa(part[None], states[None])[0] for part, states in parts])

    def select(self, images: Sequence[int]) -> "SdpaStates":
        return SdpaStates(self._states[list(images)])


def _sdpa(queries: Tensor, states: Tensor) -> Tensor:
    """Attend from (B, R, H, D) to states (B, S, D), which are keys and values -> (B, R, H, D)."""
    expanded = states[:, None].expand(-1, queries.shape[1], -1, -1)
    return F.scaled_dot_product_attention(queries, expanded, expanded, scale=1.0)
