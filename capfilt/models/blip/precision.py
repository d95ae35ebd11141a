"""Change the precision of a loaded BLIP: fp32 (the reference), bf16, or int8 on a CPU (`blip.int8`).

bf16 rounds weights and activations. It is for GPUs (written, not measured) and for CPUs that multiply bf16; on other
CPUs it is emulated, at a sixth of fp32's speed.

int8 replaces the large linear layers of a CPU model. Cross-attention's keys and values stay fp32, because absorbed
cross-attention (`blip.cross`) needs their weights, and it is faster: with int8 keys, half of the decoder's time was
spent reading them (16 images).

BLIP-base at 384 px, CPU seconds per image, fp32 -> int8: vision 1.17 -> 0.50, captions 0.24 -> 0.21, two texts judged
0.21 -> 0.14. Captioner and judge in int8 are 2.1 x as fast as in fp32, and 1.3 x if only the captioner is in int8, also
with AMX. With AMX both in bf16 are 2.8 x as fast.

Effect on the scores, on the tiny filter with all its layers replaced (`smallest=0`; photos-val, 368 pairs and as many
mismatched / the bundled sample, 877): |P(match) - fp32's| at most .029 / .029, mean .0036 / .0034; 0.27 / 0.46 % of
verdicts at 0.5 flip; AUC of ITM moves by .0003 / .0000, of ITC by .0001 / .0004. bf16: at most .011 / .009, mean
.0015 / .0013; 0.27 / 0.23 %; AUC .0001 / .0001 and .0002 / .0002. Of the tiny models' own layers only the captioner's
last one reaches `SMALLEST`: their scores do not change.

torch.compile is not offered: with it vision took 1.34 s per image (and 13 s to compile), without it 1.17.
"""

from typing import Literal

import torch
from torch import nn

from capfilt.errors import ConfigError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.int8 import Int8Head, Int8Kernel, Int8Linear, int8_kernel
from capfilt.models.blip.med import MED
from capfilt.models.device import has_bf16

Precision = Literal["fp32", "bf16", "int8"]

SMALLEST = 2**18
"""Smallest number of weights of an int8 layer, 512 x 512. Below, rounding costs as much as the product saves."""

_FP32 = ("cross_attention.attention.key", "cross_attention.attention.value")


def apply_precision(blip: Blip, precision: Precision, smallest: int = SMALLEST) -> Blip:
    """Change a BLIP in place to compute in this precision, for inference only. Scores stay float32.

    Args:
        blip: in fp32, as `Blip.load` returns it.
        precision: fp32 changes nothing.
        smallest: int8 only: linear layers with fewer weights stay fp32.

    Returns:
        The same BLIP.

    Raises:
        ConfigError: bf16 on a CPU without bf16 products, or int8 on a GPU.
    """
    if precision == "bf16":
        _check_bf16(blip.device)
        blip.med.to(torch.bfloat16)
    if precision == "int8":
        if blip.device.type != "cpu":
            raise ConfigError(f"precision int8 on {blip.device}: it is for CPUs; take bf16")
        _quantise(blip.med, int8_kernel(), smallest)
    return blip


def _check_bf16(device: torch.device) -> None:
    if not has_bf16(device):
        raise ConfigError("precision bf16: this processor has neither avx512_bf16 nor amx; take fp32 or int8")


def _quantise(med: MED, kernel: Int8Kernel, smallest: int) -> None:
    """Replace linear layers of at least `smallest` weights, and the LM head, by int8 layers."""
    for name, module in list(med.named_modules()):
        if isinstance(module, nn.Linear) and module.weight.numel() >= smallest and not name.endswith(_FP32):
            parent, _, attribute = name.rpartition(".")
            setattr(med.get_submodule(parent), attribute, Int8Linear(module.weight, module.bias, kernel))
    if med.config.decoder and med.text.word.weight.numel() >= smallest:
        med.add_module("lm_head", Int8Head(med.lm_head, med.text.word.weight, kernel))
