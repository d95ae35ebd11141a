"""int8 linear layers for a CPU: int8 weights, and activations quantised row by row (dynamic quantisation).

Weights have one scale per output; activations have one scale per row (token), computed when they arrive. Products are
summed exactly in int32, so a row's result has the same bits whatever the other rows, and for any number of threads.
oneDNN computes the product with weights packed once, and scales it in cache. Where torch cannot, `torch._int_mm`
does it, as in torchao, with the same bits. With AMX, 577 rows of 768 -> 3072 take 2.3 ms by oneDNN and 3.9 by
`_int_mm`, 48 rows 0.28 and 0.46. `_int_mm` against the alternatives (768 -> 3072, one thread of a processor with
AVX512-VNNI, torch 2.13; speed against torch's fp32 `linear`, and the relative error of the product):

| | 577 rows | 8 rows | error |
|---|---|---|---|
| this module, `_int_mm` | 4.2 x | 2.2 x | .009 |
| torchao 0.18, eager: the same numbers | 3.1 x | 0.7 x | .009 |
| torch.ao `quantize_dynamic`, to be removed; one scale per batch | 4.5 x | 3.3 x | .022 |
| bf16 | 1.9 x | 1.5 x | .003 |

A processor without VNNI adds pairs of products in 16 bits, which overflow. There the weights keep 7 bits, whose pairs
cannot overflow (255 * 63 * 2 < 2**15): coarser, and other numbers than a processor with VNNI gives. 577 rows of
768 -> 3072 take a core 16 ms (uint8; 24 in int8), MKL's fp32 34, and `_int_mm`, which has no kernel there, 920 (Zen 3).
A product gains 2.0 x, so that with all else of int8 free the captioner alone would gain 1.24 x there, and both models
1.6 x; measured: 1.16 x and 1.31 x. On photos-val, measured as in `precision`, P(match) moves by .038 at most, mean
.0052, 0.95 % of verdicts flip, AUC of ITM moves by .0006, of ITC by .0004. For the few rows of decoding fbgemm's kernel
takes half of oneDNN's time, but torch has it for its deprecated quantised tensors only.

Shape legend: R rows, I inputs, O outputs, D width, V vocabulary.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capfilt.errors import ConfigError
from capfilt.models.blip.packed import gelu
from capfilt.models.blip.text import LMHead
from capfilt.models.blip.weight_cache import WeightCache
from capfilt.models.torch_compat import cpu_has_amx, int_mm, pack_int8_weight, packed_int8_linear


class Int8Kernel(NamedTuple):
    """How int8 matrices are multiplied."""

    levels: int
    """Largest absolute value of a quantised weight: 127, or 63 where pairs of products with 127 overflow (no VNNI)."""
    packed: bool = True
    """True: by oneDNN, with packed weights, scaled in cache. False: by `torch._int_mm`."""
    zero: int = 0
    """Zero point of the activations: 0 in int8, or 128 in uint8, which is a third faster without VNNI."""


INT8_KERNELS = (
    Int8Kernel(127), Int8Kernel(127, zero=128), Int8Kernel(63, zero=128), Int8Kernel(127, packed=False),
    Int8Kernel(63, packed=False),
)  # fmt: skip
"""From the fastest to the slowest."""


@cache
def int8_kernel() -> Int8Kernel:
    """Return the first of `INT8_KERNELS` that is fast and, found by trying, exact on this processor.

    Raises:
        ConfigError: none is exact.
    """
    for kernel in INT8_KERNELS:
        if _is_fast(kernel) and _is_exact(kernel):
            return kernel
    raise ConfigError("precision int8: this processor's int8 products are not exact; take fp32")


def _is_fast(kernel: Int8Kernel) -> bool:
    """Without AMX, oneDNN multiplies int8 by int8 with its reference code: 150 times as slow as uint8 by int8."""
    return not kernel.packed or kernel.zero > 0 or cpu_has_amx()


def _is_exact(kernel: Int8Kernel) -> bool:
    """Compare products of the largest possible sums, and of varied numbers, with those of int64."""
    sign = torch.tensor([1, -1], dtype=torch.int8).repeat(16)[:, None]
    numbers = torch.arange(79 * 256).view(79, 256).mul(37).remainder(255).sub(127)
    x = torch.cat([sign * 127 * torch.ones(32, 256), numbers[:9]])
    weight = torch.cat([sign * kernel.levels * torch.ones(32, 256), numbers[9:] * kernel.levels // 127])
    scale = torch.linspace(0.1, 2, len(weight))
    try:
        product = _product(_round(x.clone(), kernel), weight.to(torch.int8), scale, kernel, WeightCache())
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, (x.long() @ weight.long().t()).float() * scale)


def _round(rows: Tensor, kernel: Int8Kernel) -> Tensor:
    """Round rows (R, I) float32 in -127 .. 127, in place, and return them as uint8 (with a zero point) or int8."""
    rows = rows.round_()
    return rows.add_(kernel.zero).to(torch.uint8) if kernel.zero else rows.to(torch.int8)


def _product(
    rows: Tensor, weight: Tensor, scale: Tensor, kernel: Int8Kernel, cache: WeightCache[tuple[Tensor, Tensor]]
) -> Tensor:
    """Multiply and scale, with the same bits for every kernel with these levels.

    Args:
        rows: (R, I) as `_round` returns them.
        weight: (O, I) int8.
        scale: (O,) float32.
        kernel: how to multiply.
        cache: keeps the packed weight.

    Returns:
        (R, O) float32.
    """
    if not kernel.packed:
        return int_mm(rows, weight.t()).float().mul_(scale)
    packed, weight_zeros = cache.get([weight], lambda: _pack(weight))
    return packed_int8_linear(rows, kernel.zero, packed, scale, weight_zeros)


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight (O, I) int8 for oneDNN, with the zero point 0 of each output, (O,) int32."""
    return pack_int8_weight(weight), torch.zeros(len(weight), dtype=torch.int32)


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights, which quantises each input row to int8; float32 in and out."""

    quantised: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Int8Kernel) -> None:
        """Quantise weight (O, I) float32 and keep bias (O,); `kernel` as `int8_kernel` returns it."""
        super().__init__()
        self.kernel = kernel
        scale = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / kernel.levels
        self.register_buffer("quantised", (weight.detach() / scale).round_().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.detach())
        self._packed: WeightCache[tuple[Tensor, Tensor]] = WeightCache()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) float32 -> (..., O) float32. A row of zeros gives the bias; a row that is not finite, nan."""
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True)).clamp_(min=1e-12)
        rounded = _round(rows * (127 / largest), self.kernel)
        product = _product(rounded, self.quantised, self.scale, self.kernel, self._packed)
        return torch.addcmul(self.bias, product, largest / 127, out=product).view(*x.shape[:-1], -1)


class Int8Head(nn.Module):
    """`LMHead` whose last product, with the word embedding, is int8."""

    def __init__(self, head: LMHead, word: Tensor, kernel: Int8Kernel) -> None:
        """Quantise the word embedding (V, D)."""
        super().__init__()
        self.head = head
        self.words = Int8Linear(word, head.bias, kernel)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """Return logits (..., V) of states x (..., D); `word` is ignored, it takes the place of `LMHead`'s."""
        logits: Tensor = self.words(self.head.norm(gelu(self.head.dense, x)))
        return logits
