from pathlib import Path

import pytest
import torch
from torch import nn

from capfilt.errors import ConfigError
from capfilt.models.blip import Blip, int8, precision
from capfilt.models.blip.int8 import Int8Head, Int8Kernel, Int8Linear, int8_kernel
from capfilt.models.blip.precision import Precision, apply_precision
from capfilt.models.device import has_bf16
from tests.pictures import photo

TINY = Path(__file__).parents[3] / "models/tiny"
CPU = torch.device("cpu")
TEXTS = [["a dog on the grass", "a map"], ["two people"], ["a red car in a street at night"]]


def load(name: str, kind: Precision, smallest: int = 0) -> Blip:
    return apply_precision(Blip.load(TINY / name), kind, smallest)


def scores(blip: Blip) -> torch.Tensor:
    """(T, 2): ITC, ITM."""
    pixels = blip.preprocess([photo(seed=i) for i in range(len(TEXTS))])
    return torch.tensor([[match.itc, match.itm] for row in blip.score(pixels, TEXTS) for match in row])


@pytest.mark.parametrize("levels", [127, 63])
def test_int8_linear_is_near_and_exact_in_its_sums(levels: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    x = torch.randn(7, 5, 96)
    with torch.inference_mode():
        ours, theirs = Int8Linear(layer.weight, layer.bias, Int8Kernel(levels, packed=False))(x), layer(x)
        error = (ours - theirs).norm() / theirs.norm()
    assert ours.shape == (7, 5, 40)
    assert ours.dtype == torch.float32
    assert 1e-4 < error < (0.015 if levels == 127 else 0.025)


def test_int8_rows_have_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    quantised = Int8Linear(layer.weight, layer.bias, int8_kernel())
    x = torch.randn(50, 96) * torch.logspace(-3, 3, 50)[:, None]
    with torch.inference_mode():
        together = quantised(x)
        for count in (1, 2, 3, 17):
            assert torch.equal(quantised(x[:count]), together[:count])


def test_int8_of_zeros_is_the_bias_and_of_nan_is_nan() -> None:
    layer = nn.Linear(64, 32)
    x = torch.zeros(2, 64)
    x[1, 3] = torch.nan
    with torch.inference_mode():
        out = Int8Linear(layer.weight, layer.bias, int8_kernel())(x)
    assert torch.equal(out[0], layer.bias)
    assert out[1].isnan().all()


def test_fp32_changes_nothing() -> None:
    assert torch.equal(scores(load("filter", "fp32")), scores(Blip.load(TINY / "filter")))


def test_int8_scores_are_near_fp32_s_and_float32() -> None:
    reference, ours = scores(load("filter", "fp32")), scores(load("filter", "int8"))
    assert ours.dtype == torch.float32
    assert 0 < (ours - reference).abs().max() < 0.05


@pytest.mark.skipif(not has_bf16(CPU), reason="this processor does not multiply bf16")
def test_bf16_scores_are_near_fp32_s_and_float32() -> None:
    blip = load("filter", "bf16")
    assert blip.med.text.word.weight.dtype == torch.bfloat16
    ours = scores(blip)
    assert ours.dtype == torch.float32
    assert 0 < (ours - scores(load("filter", "fp32"))).abs().max() < 0.03
    captions = load("captioner", "bf16").caption(blip.preprocess([photo()]), ["u"])
    assert captions[0].text


def test_bf16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with pytest.raises(ConfigError, match="neither avx512_bf16 nor amx; take fp32 or int8"):
        load("filter", "bf16")


def test_int8_is_refused_on_a_gpu() -> None:
    blip = Blip.load(TINY / "filter")
    blip.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="int8 on cuda"):
        apply_precision(blip, "int8")


def test_weights_keep_seven_bits_where_eight_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without VNNI: pairs of products are added in 16 bits, and stop at 2**15 - 1."""

    def saturating(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        products = (x.int() + 128)[:, :, None] * weight.int()[None]
        pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * weight.int().sum(0)).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(int8, "INT8_KERNELS", [kernel for kernel in int8.INT8_KERNELS if not kernel.packed])
    int8_kernel.cache_clear()
    try:
        assert int8_kernel() == Int8Kernel(63, packed=False)
        monkeypatch.setattr(torch, "_int_mm", lambda x, weight: torch.zeros(len(x), weight.shape[1], dtype=torch.int32))
        int8_kernel.cache_clear()
        with pytest.raises(ConfigError, match="not exact"):
            int8_kernel()
    finally:
        int8_kernel.cache_clear()


def test_the_chosen_kernel_has_the_bits_of_int_mm() -> None:
    torch.manual_seed(0)
    layer, x, kernel = nn.Linear(96, 40), torch.randn(20, 96), int8_kernel()
    plain = Int8Kernel(kernel.levels, packed=False)
    assert kernel.packed, "oneDNN's int8 products are not exact here, or not in this torch"
    with torch.inference_mode():
        ours, theirs = (Int8Linear(layer.weight, layer.bias, one)(x) for one in (kernel, plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("amx", [True, False])
def test_int8_by_int8_is_left_to_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(int8, "_is_exact", lambda kernel: True)
    int8_kernel.cache_clear()
    try:
        assert int8_kernel() == Int8Kernel(127, zero=0 if amx else 128)
    finally:
        int8_kernel.cache_clear()


def test_which_layers_are_replaced() -> None:
    blip = load("captioner", "int8")
    layer = blip.med.text.layers[0]
    assert isinstance(blip.med.vision.blocks[0].up, Int8Linear)
    assert isinstance(layer.cross_attention.attention.query, Int8Linear)
    assert isinstance(layer.cross_attention.attention.key, nn.Linear)
    assert isinstance(layer.cross_attention.attention.value, nn.Linear)
    assert isinstance(blip.med.lm_head, Int8Head)
    pixels = blip.preprocess([photo(seed=i) for i in range(3)])
    states = blip.encode_images(pixels)
    together = blip.captions(states, ["a", "b", "c"], [0, 1])
    alone = [blip.encode_images(pixels[i : i + 1]) for i in range(3)]
    assert [blip.captions(one, [uid], [0, 1])[0] for one, uid in zip(alone, "abc", strict=True)] == together


def test_small_layers_stay_as_they_are() -> None:
    blip = load("filter", "int8", precision.SMALLEST)
    assert not any(isinstance(module, Int8Linear) for module in blip.med.modules())
    reference = load("filter", "fp32")
    assert torch.equal(scores(blip), scores(reference))
