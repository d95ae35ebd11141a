"""Numbers in which a loaded BLIP computes: fp32 (the reference), bf16, or int8 on a CPU.

bf16 rounds weights and activations. It is for GPUs (written, not measured), and for CPUs that multiply bf16; on others
it is emulated, at a sixth of fp32's speed.

int8 replaces the large linear layers of a CPU model. Weights have one scale an output, activations one scale a row
(token), made when they come; products are summed exactly in int32, so a row's result has the same bits whatever rows
are beside it, and for any number of threads. oneDNN does the product with weights laid out once, and scales it in
cache; where torch has not that, `torch._int_mm`, as in torchao, with the same bits: with AMX, 577 rows of 768 -> 3072
take 2.3 ms by the first and 3.9 by the second, 48 rows 0.28 and 0.46. `_int_mm` against the other ways
(768 -> 3072, one thread of a processor with AVX512-VNNI, torch 2.13; speed against torch's fp32 `linear`, and the
relative error of the product):

| | 577 rows | 8 rows | error |
|---|---|---|---|
| this | 4.2 x | 2.2 x | .009 |
| torchao 0.18, eager: the same numbers | 3.1 x | 0.7 x | .009 |
| torch.ao `quantize_dynamic`, to be removed; a scale a batch | 4.5 x | 3.3 x | .022 |
| bf16 | 1.9 x | 1.5 x | .003 |

Cross-attention's keys and values stay fp32: their weights are needed as they are where it is absorbed (`blip.cross`),
which is faster: with int8 keys, half of the decoder's time went into looking through them (16 images).
BLIP-base at 384 px, CPU seconds an image, fp32 -> int8: vision 1.17 -> 0.50, captions 0.24 -> 0.21, two texts judged
0.21 -> 0.14; both models int8 2.1 x, the captioner alone 1.3 x (also with AMX, where both in bf16 are 2.8 x).

What it costs, on the tiny filter with all its layers replaced (`smallest=0`; photos-val, 368 pairs and as many
mismatched / the bundled sample, 877): |P(match) - fp32's| at most .029 / .029, mean .0036 / .0034; 0.27 / 0.46 % of
verdicts at 0.5 flip; AUC of ITM moves by .0003 / .0000, of ITC by .0001 / .0004. bf16: at most .011 / .009, mean
.0015 / .0013; 0.27 / 0.23 %; AUC .0001 / .0001 and .0002 / .0002. Of the tiny models' own layers only the captioner's
last one reaches `SMALLEST`: their scores do not change.

A processor without VNNI adds pairs of products in 16 bits, which overflow. There the weights keep 7 bits, whose pairs
cannot (255 * 63 * 2 < 2**15): coarser, and other numbers than a processor with VNNI gives. 577 rows of 768 -> 3072 take
a core 16 ms (uint8; 24 in int8), MKL's fp32 34; `_int_mm`, which has no kernel there, 920 (Zen 3). A product gains 2.0
x, so that with all else of int8 free the captioner alone would gain 1.24 x in all there, and both models 1.6 x;
measured: 1.16 x and 1.31 x. On photos-val as above P(match) moves by .038 at most, mean .0052, 0.95 % of verdicts flip,
AUC of ITM moves by .0006, of ITC by .0004. For the few rows of decoding fbgemm's kernel takes half of oneDNN's time,
but torch has it for its deprecated quantised tensors alone.
torch.compile is not offered: vision took 1.34 s an image with it (and 13 s to begin), 1.17 without.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from capfilt.errors import ConfigError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.med import MED
from capfilt.models.blip.packed import Derived, gelu
from capfilt.models.blip.text import LMHead
from capfilt.models.device import has_bf16

Precision = Literal["fp32", "bf16", "int8"]

SMALLEST = 2**18
"""Weights of a linear layer that int8 pays for, 512 x 512; below, rounding costs as much as the product saves."""

_FP32 = ("cross_attention.attention.key", "cross_attention.attention.value")


def apply_precision(blip: Blip, precision: Precision, smallest: int = SMALLEST) -> Blip:
    """The same BLIP, changed in place, computing in that precision; scores stay float32. For inference alone.

    Args:
        blip: in fp32, as `Blip.load` gives it.
        precision: fp32 changes nothing.
        smallest: int8: linear layers with fewer weights stay fp32.

    Raises:
        ConfigError: the device cannot: bf16 on a CPU without such products, int8 on a GPU.
    """
    if precision == "bf16":
        _check_bf16(blip.device)
        blip.med.to(torch.bfloat16)
    if precision == "int8":
        if blip.device.type != "cpu":
            raise ConfigError(f"precision int8 on {blip.device}: it is for CPUs; take bf16")
        _replace(blip.med, int8_way(), smallest)
    return blip


def _check_bf16(device: torch.device) -> None:
    if not has_bf16(device):
        raise ConfigError("precision bf16: this processor has neither avx512_bf16 nor amx; take fp32 or int8")


class Way(NamedTuple):
    """How int8 is multiplied."""

    levels: int
    """Largest whole number that a weight may be: 127, or 63 where pairs of products with 127 overflow (no VNNI)."""
    packed: bool = True
    """By oneDNN, with weights laid out once, scaled in cache; else by `torch._int_mm`."""
    zero: int = 0
    """What stands for 0 in activations: 0 in int8, or 128 in uint8, a third faster where there is no VNNI."""


WAYS = (Way(127), Way(63, zero=128), Way(127, packed=False), Way(63, packed=False))
"""The fastest first."""


@cache
def int8_way() -> Way:
    """The first of `WAYS` that is exact on this processor, found by trying.

    Raises:
        ConfigError: none is.
    """
    for way in WAYS:
        if _is_exact(way):
            return way
    raise ConfigError("precision int8: this processor's int8 products are not exact; take fp32")


def _is_exact(way: Way) -> bool:
    sign = torch.tensor([1, -1], dtype=torch.int8).repeat(16)[:, None]
    numbers = torch.arange(79 * 256).view(79, 256).mul(37).remainder(255).sub(127)
    x = torch.cat([sign * 127 * torch.ones(32, 256), numbers[:9]])  # the first rows are the worst that there are
    weight = torch.cat([sign * way.levels * torch.ones(32, 256), numbers[9:] * way.levels // 127])
    scale = torch.linspace(0.1, 2, len(weight))
    whole = weight.to(torch.int8)
    try:
        found = _product(_whole_rows(x.clone(), way), whole, scale, way, Derived())
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found, (x.long() @ weight.long().t()).float() * scale)


def _whole_rows(rows: Tensor, way: Way) -> Tensor:
    """rows (R, I) float32 of -127 .. 127, changed in place -> the nearest whole numbers, uint8 or int8."""
    rows = rows.round_()
    return rows.add_(way.zero).to(torch.uint8) if way.zero else rows.to(torch.int8)


def _product(rows: Tensor, weight: Tensor, scale: Tensor, way: Way, kept: Derived[tuple[Tensor, Tensor]]) -> Tensor:
    """rows (R, I) as `_whole_rows` gives them, weight (O, I) int8, scale (O,) -> (R, O) float32; the same bits in every
    way with these levels."""
    if not way.packed:
        return torch._int_mm(rows, weight.t()).float().mul_(scale)
    packed, zero = kept.get([weight], lambda: _pack(weight))
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, way.zero, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (O, I) int8 -> as oneDNN wants it, and a zero point for each output."""
    return torch.ops.onednn.qlinear_prepack(weight, None), torch.zeros(len(weight), dtype=torch.int32)


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights and an int8 copy of each input row; float32 in and out."""

    whole: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, way: Way) -> None:
        """weight (O, I) float32, bias (O,); `way` as `int8_way` gives it."""
        super().__init__()
        self.way = way
        scale = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / way.levels
        self.register_buffer("whole", (weight.detach() / scale).round_().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.detach())
        self._packed: Derived[tuple[Tensor, Tensor]] = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) float32 -> (..., O) float32. A row of zeros gives the bias; one that is not finite stays so."""
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True)).clamp_(min=1e-12)
        quantised = _whole_rows(rows * (127 / largest), self.way)
        product = _product(quantised, self.whole, self.scale, self.way, self._packed)
        return torch.addcmul(self.bias, product, largest / 127, out=product).view(*x.shape[:-1], -1)


class Int8Head(nn.Module):
    """`LMHead` whose last product, with the word embeddings, is int8."""

    def __init__(self, head: LMHead, word: Tensor, way: Way) -> None:
        """word (V, D)."""
        super().__init__()
        self.head = head
        self.words = Int8Linear(word, head.bias, way)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V); `word` is not read."""
        logits: Tensor = self.words(self.head.norm(gelu(self.head.dense, x)))
        return logits


def _replace(med: MED, way: Way, smallest: int) -> None:
    for name, module in list(med.named_modules()):
        if isinstance(module, nn.Linear) and module.weight.numel() >= smallest and not name.endswith(_FP32):
            parent, _, attribute = name.rpartition(".")
            setattr(med.get_submodule(parent), attribute, Int8Linear(module.weight, module.bias, way))
    if med.config.decoder and med.text.word.weight.numel() >= smallest:
        med.add_module("lm_head", Int8Head(med.lm_head, med.text.word.weight, way))
