"""Private and renamed torch calls, all in one place; the rest of the package uses torch's public interface.

Torch may change these without notice, so the dependency has an upper bound. `SUPPORTED` repeats it, and
`tests/models/test_torch_compat.py` fails if the two differ, if the installed torch is outside, or if one of these calls
no longer computes what the public operation computes. To support a newer torch, run that file and `tests/models/blip`
with it, then raise both bounds.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SUPPORTED = ">=2.6,<2.14"
"""The torch versions of the dependency in pyproject.toml; the tests run with the version in constraints.txt."""

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
HAS_PACKED_LINEAR: bool = _ONEDNN and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this torch has oneDNN's linear with a packed weight. Where it has not, callers use `F.linear`."""


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Return a weight (N, K) float32 in the layout of oneDNN, for `packed_linear` and `packed_linear_add`.

    Raises:
        NotImplementedError: this torch does not have the operation (see `HAS_PACKED_LINEAR`).
    """
    if not HAS_PACKED_LINEAR:
        raise NotImplementedError(f"torch {torch.__version__} has no oneDNN linear; use torch.nn.functional.linear")
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """Return `F.linear(x, weight, bias)` or, with `gelu`, its exact (erf) gelu; x (R, K) float32 -> (R, N)."""
    then, kind = ("gelu", "none") if gelu else ("none", "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, then, [], kind)
    return out


def packed_linear_add(x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return `residual + F.linear(x, weight, bias)`; x (R, K) and residual (R, N) float32 -> (R, N)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
    return out


def int_mm(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the exact product of int8 matrices: rows (R, K), weight (K, N) -> (R, N) int32.

    Raises:
        NotImplementedError: this torch does not have the operation.
    """
    if not hasattr(torch, "_int_mm"):
        raise NotImplementedError(f"torch {torch.__version__} has no torch._int_mm")
    return torch._int_mm(rows, weight)


def pack_int8_weight(weight: Tensor) -> Tensor:
    """Return a weight (N, K) int8 in the layout of oneDNN, for `packed_int8_linear`.

    Raises:
        NotImplementedError: this torch does not have the operation.
    """
    if not hasattr(torch.ops.onednn, "qlinear_prepack"):
        raise NotImplementedError(f"torch {torch.__version__} has no oneDNN int8 linear; use torch_compat.int_mm")
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def packed_int8_linear(rows: Tensor, zero: int, packed: Tensor, scale: Tensor, weight_zeros: Tensor) -> Tensor:
    """Return `(rows - zero) @ weight.T * scale`, summed in int32.

    Args:
        rows: (R, K) int8, or uint8 with zero point `zero`.
        zero: zero point of `rows`: the number that represents 0.
        packed: a weight (N, K) from `pack_int8_weight`.
        scale: (N,) float32.
        weight_zeros: (N,) int32, all 0.

    Returns:
        (R, N) float32.
    """
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero, packed, scale, weight_zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


def cpu_has_amx() -> bool:
    """Return whether the processor has AMX. False where torch cannot tell."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return check is not None and bool(check())


def cpu_multiplies_bf16() -> bool:
    """Return whether the processor has bf16 products (avx512_bf16 or amx). False where torch cannot tell."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)


def lerp_all_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Set each tensor to `tensor + weight * (end - tensor)` in place; one by one where torch has no fused operation."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(tensors, ends, weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def data_parallel(module: nn.Module, find_unused_parameters: bool) -> DistributedDataParallel:
    """Wrap a module in DDP without the broadcast of buffers before each pass; torch 2.13 renamed that option."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"find_unused_parameters": find_unused_parameters, name: False}
    return DistributedDataParallel(module, **options)
