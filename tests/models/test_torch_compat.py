"""Each private torch call computes what the public operation computes, for the torch versions that are supported."""

import tomllib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch import nn

from capfilt.models import torch_compat

ROOT = Path(__file__).parents[2]
onednn = pytest.mark.skipif(not torch_compat.HAS_PACKED_LINEAR, reason="torch without oneDNN")


def test_the_installed_torch_is_supported() -> None:
    version = Version(Version(torch.__version__).base_version)
    assert version in SpecifierSet(torch_compat.SUPPORTED), (
        f"torch {torch.__version__} is outside {torch_compat.SUPPORTED}: capfilt/models/torch_compat.py has private "
        "calls that are not tested with it. Run this file and tests/models/blip, then raise both bounds"
    )


def test_the_dependency_has_the_same_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    assert [each.specifier for each in requirements if each.name == "torch"] == [SpecifierSet(torch_compat.SUPPORTED)]


def test_the_tested_version_is_supported() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.removeprefix("torch==") for line in lines if line.startswith("torch==")]
    assert len(pinned) == 1
    assert Version(pinned[0]) in SpecifierSet(torch_compat.SUPPORTED)


@onednn
@pytest.mark.parametrize("rows", [2, 7, 64])
@torch.inference_mode()
def test_packed_linear_is_linear(rows: int) -> None:
    x, weight, bias, residual = torch.randn(rows, 48), torch.randn(72, 48), torch.randn(72), torch.randn(rows, 72)
    packed = torch_compat.pack_linear_weight(weight)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(torch_compat.packed_linear(x, packed, bias), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch_compat.packed_linear(x, packed, None), F.linear(x, weight), atol=1e-5, rtol=1e-5)
    bent = torch_compat.packed_linear(x, packed, bias, gelu=True)
    torch.testing.assert_close(bent, F.gelu(expected), atol=1e-5, rtol=1e-5)
    before = residual.clone()
    added = torch_compat.packed_linear_add(x, residual, packed, bias)
    torch.testing.assert_close(added, residual + expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(residual, before)


@onednn
@torch.inference_mode()
def test_a_packed_weight_does_not_follow_later_writes() -> None:
    """`WeightCache` packs anew; that it must is shown here."""
    weight, x = torch.randn(72, 48), torch.randn(5, 48)
    packed, expected = torch_compat.pack_linear_weight(weight.clone()), F.linear(x, weight)
    weight.zero_()
    torch.testing.assert_close(torch_compat.packed_linear(x, packed, None), expected, atol=1e-5, rtol=1e-5)


def test_packing_without_onednn_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compat, "HAS_PACKED_LINEAR", False)
    with pytest.raises(NotImplementedError, match=r"use torch\.nn\.functional\.linear"):
        torch_compat.pack_linear_weight(torch.randn(4, 4))


def int8(rows: int, columns: int, levels: int = 127) -> torch.Tensor:
    return torch.randint(-levels, levels + 1, (rows, columns), dtype=torch.int8)


def test_int_mm_is_exact() -> None:
    rows, weight = int8(32, 96), int8(40, 96, 63)
    assert torch.equal(torch_compat.int_mm(rows, weight.t()), rows.int() @ weight.int().t())


def test_a_torch_without_int_mm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(NotImplementedError, match=r"has no torch\._int_mm"):
        torch_compat.int_mm(int8(2, 4), int8(4, 2))


@onednn
@pytest.mark.parametrize("zero", [0, 128])
@torch.inference_mode()
def test_packed_int8_linear_is_exact_and_scaled(zero: int) -> None:
    rows, weight, scale = int8(32, 96), int8(40, 96, 63), torch.linspace(0.1, 2, 40)
    packed, zeros = torch_compat.pack_int8_weight(weight), torch.zeros(40, dtype=torch.int32)
    shifted = (rows.int() + zero).to(torch.uint8 if zero else torch.int8)
    out = torch_compat.packed_int8_linear(shifted, zero, packed, scale, zeros)
    assert torch.equal(out, (rows.int() @ weight.int().t()).float() * scale)


def test_bf16_is_known_as_torch_s_public_capabilities_say() -> None:
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this torch has no public list of the processor's capabilities")
    known = torch.cpu.get_capabilities()
    assert torch_compat.cpu_multiplies_bf16() == bool(known.get("avx512_bf16") or known.get("amx_tile"))


def test_bf16_is_denied_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert torch_compat.cpu_multiplies_bf16() is False


@pytest.mark.parametrize("fused", [True, False])
def test_lerp_all_has_the_bits_of_lerp(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.delattr(torch, "_foreach_lerp_")
    tensors, ends = [torch.randn(3, 5), torch.randn(17)], [torch.randn(3, 5), torch.randn(17)]
    expected = [tensor.lerp(end, 0.005) for tensor, end in zip(tensors, ends, strict=True)]
    torch_compat.lerp_all_(tensors, ends, 0.005)
    assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(tensors, expected, strict=True))


def test_data_parallel_does_not_broadcast_buffers_before_a_pass(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        wrapped = torch_compat.data_parallel(module, find_unused_parameters=True)
        assert wrapped.find_unused_parameters
        assert not getattr(wrapped, "forward_sync_buffers", getattr(wrapped, "broadcast_buffers", True))
        assert torch.equal(wrapped.eval()(torch.ones(2, 3)), module(torch.ones(2, 3)))
    finally:
        dist.destroy_process_group()
