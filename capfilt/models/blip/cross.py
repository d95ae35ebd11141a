"""What cross-attention sees of encoded images in inference: keys and values, or the image's states as they are.

Keys and values of 577 states are 16.3 GFLOP an image (BLIP-base, all layers), after which a query row costs 21 MFLOP.
*Absorbed*, none are built: since q . (W_k s) = (W_k^T q) . s, each head's query goes through its W_k once and is
compared with the states themselves, and since sum_s p_s (W_v s) = W_v (sum_s p_s s), W_v comes after the attention; a
row then costs 283 MFLOP, so that few rows are cheaper without keys: below `FEW_ROWS` an image. (The key's bias adds the
same to all scores of a row, and the softmax takes it away.) That needs the weights themselves, so layers that are no
plain `Linear` in float32 on a CPU have keys and values.

Rows lie image by image, `counts[b]` of image b. Nothing here makes a row depend on those of other images, bits
included (with one torch thread): products of three rows and fewer have other kernels, and are padded to four; so have
MKL's of up to twelve whose right side is a transposed view (AVX512), so the value's weights are laid out anew, once.

Shape legend: B images, R rows, S states an image, D width, H heads, K head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from capfilt.models.blip.layers import KV, Attention, attend
from capfilt.models.blip.packed import Linear, Packed, packs
from capfilt.models.blip.text import TextLayer, TextTransformer

FEW_ROWS = 62
"""Query rows an image up to which absorbed cross-attention is the faster one (measured: even at 60 to 80)."""


class ImageKeys(Protocol):
    """B encoded images, as the text layers' cross-attention asks them."""

    def seen(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows x (R, D) of B images -> (R, D), what they have seen, before the attention's `out`."""
        ...

    def of(self, images: Sequence[int]) -> "ImageKeys":
        """These images only."""
        ...


def few(rows: int) -> bool:
    """Whether so many query rows an image are cheaper without keys."""
    return rows <= FEW_ROWS


def image_keys(text: TextTransformer, image_states: Tensor, rows: int, decoding: bool = False) -> ImageKeys:
    """The cheaper kind for so many query rows an image in all; image_states (B, S, D_vision)."""
    if few(rows) and all(_plain(layer, image_states) for layer in text.layers):
        return RowByRow(image_states) if decoding else Together.build(image_states)
    return Built(text.cross_kv(image_states))


def _plain(layer: object, states: Tensor) -> bool:
    attention = cast(TextLayer, layer).cross_attention.attention
    key, value = attention.key, attention.value
    return type(key) is Linear and type(value) is Linear and packs(states, key.weight, value.weight)


class Built:
    """Every layer's keys and values, (B, H, S, K) each."""

    def __init__(self, kv: list[KV]) -> None:
        self._kv = kv

    def seen(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """See `ImageKeys.seen`."""
        q = _by_image(attention.query(x), counts)
        q = F.pad(q, (0, 0, 0, -q.shape[1] % 4))
        out = attend(attention.split(q), *self._kv[layer]).transpose(1, 2).flatten(2)
        return _by_row(out, counts)

    def of(self, images: Sequence[int]) -> "Built":
        """See `ImageKeys.of`."""
        index = torch.tensor(images, device=self._kv[0][0].device)
        return Built([(k[index], v[index]) for k, v in self._kv])


def _by_image(x: Tensor, counts: Sequence[int]) -> Tensor:
    """(R, D) -> (B, L, D), filled up with zeros; in one piece where no image has more rows than another."""
    if len(set(counts)) == 1:
        return x.reshape(-1, counts[0], x.shape[1])
    return pad_sequence(list(torch.split(x, list(counts))), batch_first=True)


def _by_row(x: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, L, D) -> (R, D), contiguous: bits of bf16 products depend on it."""
    if len(set(counts)) == 1:
        return x[:, : counts[0]].flatten(0, 1).contiguous()
    return torch.cat([image[:count] for image, count in zip(x, counts, strict=True)])


class Absorbed(ABC):
    """Of each image its states (S, D), the same for all layers."""

    def seen(self, layer: int, attention: Attention, x: Tensor, counts: Sequence[int]) -> Tensor:
        """See `ImageKeys.seen`."""
        rows, heads = len(x), attention.heads
        q = _four(attention.query(x)).view(-1, heads, attention.key.out_features // heads)  # (R, H, K)
        key = attention.key.weight.view(heads, q.shape[-1], -1)
        asked = torch.bmm((q * q.shape[-1] ** -0.5).transpose(0, 1), key)  # (H, R, D_vision)
        mixed = self._look(asked[:, :rows].transpose(0, 1), counts)
        mixed = _four(mixed).transpose(0, 1)  # (H, R, D_vision)
        out = torch.bmm(mixed, attention.value_by_head()).transpose(0, 1)[:rows]  # (R, H, K)
        return out.flatten(1) + attention.value.bias

    @abstractmethod
    def _look(self, asked: Tensor, counts: Sequence[int]) -> Tensor:
        """asked (R, H, D) -> (R, H, D), the states by the attention of each head."""

    @abstractmethod
    def of(self, images: Sequence[int]) -> "Absorbed":
        """See `ImageKeys.of`."""


def _four(rows: Tensor) -> Tensor:
    """(R, ...) -> the same, filled up with zeros to four rows."""
    lacking = 4 - len(rows)
    return rows if lacking <= 0 else torch.cat([rows, rows.new_zeros(lacking, *rows.shape[1:])])


class Together(Absorbed):
    """All rows of an image ask at once: for texts, which have many. States, and transposed, packed once."""

    def __init__(self, images: list[tuple[Packed, Packed]]) -> None:
        self._images = images

    @classmethod
    def build(cls, image_states: Tensor) -> "Together":
        """image_states (B, S, D_vision)."""
        return cls([(Packed(states), Packed(states.T)) for states in image_states])

    def _look(self, asked: Tensor, counts: Sequence[int]) -> Tensor:
        parts = zip(torch.split(asked, list(counts)), self._images, strict=True)
        seen = [across(there(part.flatten(0, 1)).softmax(-1)) for part, (there, across) in parts]
        return torch.cat(seen).view(asked.shape)

    def of(self, images: Sequence[int]) -> "Together":
        return Together([self._images[i] for i in images])


class RowByRow(Absorbed):
    """Each row reads its image by itself: for decoding, a row or few an image at a time.

    SDPA, whose queries are a row's heads, goes through the states block by block and uses a block twice while it is in
    cache; two packed products each fetch a copy of their own. 0.24 ms a row, layer and image against 0.46 (48 images of
    1.8 MB, 12 heads, one core with AVX512); from four rows an image on they are equal. All rows of an image in one call
    would share what they fetch, and each row's bits would depend on how many they are.
    """

    def __init__(self, states: Tensor) -> None:
        self._states = states  # (B, S, D)

    def _look(self, asked: Tensor, counts: Sequence[int]) -> Tensor:
        if len(set(counts)) == 1:
            return _attended(asked.reshape(-1, counts[0], *asked.shape[1:]), self._states).flatten(0, 1)
        parts = zip(torch.split(asked, list(counts)), self._states, strict=True)
        return torch.cat([_attended(part[None], states[None])[0] for part, states in parts])

    def of(self, images: Sequence[int]) -> "RowByRow":
        return RowByRow(self._states[list(images)])


def _attended(asked: Tensor, states: Tensor) -> Tensor:
    """asked (B, R, H, D), states (B, S, D) -> as asked."""
    shown = states[:, None].expand(-1, asked.shape[1], -1, -1)
    return F.scaled_dot_product_attention(asked, shown, shown, scale=1.0)
