"""FLOP of the models by formula, and the speed of the machine's matrix products (the GEMM peak).

The formulas count the products of linear layers, attention and patches, two operations per multiply-add, for the model
as the paper describes it, with keys and values of every state in cross-attention. For few query rows capfilt leaves
keys and values out (`models.blip.cross`); `executed_flop` counts what is computed, and is compared with the peak.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.inference.batching import ThreadLanes
from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.cross import MAX_ABSORBED_ROWS
from capfilt.models.blip.packed import PackedMatrix
from capfilt.models.torch_compat import HAS_PACKED_LINEAR


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Count (rows, inputs) x (inputs, outputs)."""
    return 2 * rows * inputs * outputs


def vision_flop(config: MEDConfig) -> int:
    """Count the vision tower for one image."""
    v = config.vision
    patches, width = v.grid**2, v.width
    states = patches + 1
    layer = linear(states, width, 4 * width) + 2 * linear(states, width, v.mlp_width)
    layer += 2 * linear(states, width, states)  # q k^T and p v, all heads
    return linear(patches, 3 * v.patch_size**2, width) + v.layers * layer


def cross_kv_flop(config: MEDConfig) -> int:
    """Count the cross-attention keys and values of one image for all text layers."""
    return config.text.layers * 2 * linear(_states(config), config.vision.width, config.text.width)


def text_flop(config: MEDConfig, tokens: int, seen: int, cross: bool) -> int:
    """Count the text layers for `tokens` tokens that attend to `seen` tokens each, with cross-attention if `cross`."""
    t = config.text
    layer = linear(tokens, t.width, 4 * t.width) + 2 * linear(tokens, t.width, t.mlp_width)
    layer += 2 * linear(tokens, t.width, seen)
    if cross:
        layer += 2 * linear(tokens, t.width, t.width) + 2 * linear(tokens, t.width, _states(config))
    return t.layers * layer


def absorbed_flop(config: MEDConfig, tokens: int) -> int:
    """Count absorbed cross-attention of these rows, which replaces `cross_kv_flop` and two products."""
    t, width = config.text, config.vision.width
    maps = 2 * linear(tokens, t.width, width)  # each head's W_k and W_v: heads x (K x D)
    return t.layers * (maps + 2 * linear(tokens * t.heads, width, _states(config)))


def decode_flop(config: MEDConfig, prompt: int, new_tokens: int) -> int:
    """Count one caption, given keys and values: prompt, all new tokens but the last, and one LM head per new token."""
    tokens = prompt + new_tokens - 1
    t = config.text
    layers = text_flop(config, prompt, prompt, cross=True)
    layers += sum(text_flop(config, 1, seen, cross=True) for seen in range(prompt + 1, tokens + 1))
    return layers + new_tokens * (linear(1, t.width, t.width) + linear(1, t.width, t.vocab_size))


def match_flop(config: MEDConfig, lengths: list[int]) -> int:
    """Count ITM (given keys and values) and ITC of texts with these token counts."""
    return sum(
        text_flop(config, length, length, cross=True) + text_flop(config, length, length, cross=False)
        for length in lengths
    )


def image_flop(config: MEDConfig, prompt: int, new_tokens: int, lengths: list[int], shared: bool = False) -> int:
    """Count one image captioned once and judged with texts of these token counts, without absorbed attention."""
    towers = 1 if shared else 2
    return (
        towers * vision_flop(config)
        + 2 * cross_kv_flop(config)
        + decode_flop(config, prompt, new_tokens)
        + match_flop(config, lengths)
    )


def executed_flop(config: MEDConfig, prompt: int, new_tokens: int, lengths: list[int], shared: bool = False) -> int:
    """Count the same with absorbed cross-attention where it is used (fp32 on a CPU).

    It is up to 0.5 % too much at base shape, because the last layer computes only the first token of a judged text.
    """
    tokens = prompt + new_tokens - 1
    return (
        image_flop(config, prompt, new_tokens, lengths, shared)
        - saved_flop(config, tokens, tokens + 1)
        - saved_flop(config, sum(lengths), sum(lengths))
    )


def saved_flop(config: MEDConfig, tokens: int, room: int) -> int:
    """Count what absorbed cross-attention saves for `tokens` query rows; 0 if `room` rows are too many."""
    if room > MAX_ABSORBED_ROWS:
        return 0
    products = config.text.layers * 2 * linear(tokens, config.text.width, _states(config))
    return cross_kv_flop(config) + products - absorbed_flop(config, tokens)


def _states(config: MEDConfig) -> int:
    return config.vision.grid**2 + 1


CALLS = 4
"""Products per lane between two readings of the clock."""


@torch.inference_mode()
def gemm_peak(repeats: int = 40) -> float:
    """Measure GFLOP/s of float32 products on all of torch's threads.

    It is the best of MKL and oneDNN, of two shapes, and of one product shared by the threads or one product per thread
    (as in a worker's lanes); medians. The products run one after the other for a second or two, as in a model, but the
    result drifts with the processor's clock: 366 .. 431 GFLOP/s within an hour on one virtual machine of two cores.
    """
    best, lanes = 0.0, ThreadLanes(torch.get_num_threads())
    for rows, inputs, outputs in ((577, 768, 3072), (1024, 1024, 4096)):
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        products = [lambda x=x, w=weight: F.linear(x, w)]
        if HAS_PACKED_LINEAR:
            packed = PackedMatrix(weight)
            products.append(lambda x=x, p=packed: p(x))
        for call in products:
            gflop = linear(rows, inputs, outputs) / 1e9
            best = max(best, gflop / median(_seconds(call, repeats)))
            each = median(
                _seconds(
                    lambda call=call: lanes.map(_calls(call), [*range(lanes.count)]), max(repeats // CALLS // 2, 1)
                )
            )
            best = max(best, CALLS * lanes.count * gflop / each)
    return best


def _calls(call: Callable[[], Tensor]) -> Callable[[list[int]], None]:
    @torch.inference_mode()
    def several(_: list[int]) -> None:
        for _ in range(CALLS):
            call()

    return several


def _seconds(call: object, repeats: int) -> list[float]:
    assert callable(call)
    call()
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return spent
