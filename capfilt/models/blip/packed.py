"""Matrix products of inference on a CPU: oneDNN, with weights laid out for it once.

torch's own `linear` is MKL's, which takes its AVX2 path on other makers' processors and lays weights out anew at every
call. Measured in GFLOP/s on one core with AVX512 (768 -> 3072, torch 2.13), MKL / oneDNN with packed weights: 577 rows
61 / 97, 64 rows 62 / 95, 16 rows 46 / 90, 4 rows 24 / 75. With plain weights oneDNN is as slow as MKL below 64 rows.

It also makes a row's result independent of the rows beside it: a row has the same bits in any batch of two or more
(measured for 1 .. 1299 rows, AVX2 and AVX512, one and two threads), where MKL's change below four. A single row, which
has a kernel of its own, is therefore doubled; that takes no longer, since such a product waits for its weights.

The packed copy lies beside the weights, so a model that has been used on a CPU takes twice their memory.
Where a processor has AVX2 only, an image's states (`many_rows`) go to MKL, with the weights as they lie (`AVX2`).
Elsewhere (training, other devices and dtypes, autocast, torch without oneDNN) it is torch's `linear`.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch._C.has_mkl
"""Whether this processor has no wider products than AVX2, where MKL is the faster one for many rows, and a gelu is
better taken after the product: 577 rows of 768 -> 3072 -> 768 with both pay 1.29 x (Zen 3)."""

THERE = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this torch has oneDNN's products."""


def packs(*tensors: Tensor) -> bool:
    """Whether products of these go through oneDNN: float32 on a CPU, in inference mode."""
    return (
        THERE
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    )


class Packed:
    """A matrix (N, K) to multiply rows with, laid out for oneDNN."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)

    def add_to(self, rest: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) float32, of two rows or more -> rest + x @ matrix.T + bias, (..., N)."""
        rows, to = x.reshape(-1, x.shape[-1]), rest.reshape(-1, rest.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, to, self._matrix, bias, "add")
        return out.view(rest.shape)

    def __call__(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """x (..., K) float32 -> x @ matrix.T + bias, (..., N), or the (exact) gelu of it."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1:
            rows = rows.expand(2, -1)
        then, kind = ("gelu", "none") if gelu and not AVX2 else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._matrix, bias, then, [], kind)
        out = out[: x.numel() // x.shape[-1]].reshape(*x.shape[:-1], -1)
        return F.gelu(out) if gelu and AVX2 else out


class Plain:
    """The same as it lies, for MKL."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix.detach()

    def add_to(self, rest: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Packed.add_to`."""
        out = rest.clone() if bias is None else rest + bias
        out.view(-1, rest.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self._matrix.t())
        return out

    def __call__(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """See `Packed.__call__`."""
        out = F.linear(x, self._matrix, bias)
        return F.gelu(out) if gelu else out


def laid(matrix: Tensor, many_rows: bool) -> Packed | Plain:
    """The matrix (N, K), for whichever is faster; `many_rows`: hundreds at each call, an image's states.

    A row of MKL's has the same bits beside any rows, of four or more in all, with one thread.
    """
    return Plain(matrix) if many_rows and AVX2 else Packed(matrix)


class Derived(Generic[T]):
    """What is made of weights once, and again when they have changed; copies and pickles of a model begin without."""

    def __init__(self) -> None:
        self._of: list[tuple[Tensor, int, int]] = []
        self._made: T | None = None

    def get(self, weights: list[Tensor], make: Callable[[], T]) -> T:
        """`make()`, or what it gave for these very weights. (A write through `.data` is not seen.)"""
        now = [(w, w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        same = len(now) == len(self._of) and all(
            a[0] is b[0] and a[1:] == b[1:] for a, b in zip(now, self._of, strict=True)
        )
        if self._made is None or not same:
            self._of, self._made = now, make()
        return self._made

    def __reduce__(self) -> tuple[type["Derived[T]"], tuple[()]]:
        return type(self), ()


def laid_out(weight: Tensor, kept: Derived[Packed | Plain], many_rows: bool = False) -> Packed | Plain:
    """The weight as `kept` has it, or will."""
    return kept.get([weight], lambda: laid(weight, many_rows))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Derived[Packed | Plain],
    gelu: bool = False,
    many_rows: bool = False,
) -> Tensor:
    """`F.linear`, or its gelu; `kept` holds the packed weight."""
    if not packs(x, weight) or x.numel() == 0:
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    return laid_out(weight, kept, many_rows)(x, bias, gelu)


class Linear(nn.Linear):
    """The `nn.Linear` of both towers: the same parameters, the product as above."""

    def __init__(self, inputs: int, outputs: int, many_rows: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.many_rows = many_rows
        self._packed: Derived[Packed | Plain] = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        return linear(x, self.weight, self.bias, self._packed, many_rows=self.many_rows)

    def packed(self) -> Packed | Plain:
        """The weights, laid out."""
        return laid_out(self.weight, self._packed, self.many_rows)

    def gelu(self, x: Tensor) -> Tensor:
        """gelu of `forward`, the same bits; with AVX512 taken while the product is in cache, 1.5 % of a vision pass."""
        return linear(x, self.weight, self.bias, self._packed, gelu=True, many_rows=self.many_rows)


class Feed:
    """rest + down(gelu(up(x))), the hidden width taken part by part, so that what lies between stays in cache."""

    WIDTH = 4096 if AVX2 else 1024
    """Of a part: 1154 rows of 768 -> 3072 -> 768 reach 0.91 of the core's peak, in one piece 0.88 (AVX512); with MKL's
    products (AVX2) a tower in one piece is 2 % faster."""

    def __init__(self) -> None:
        self._parts: Derived[list[tuple[Packed | Plain, Packed | Plain]]] = Derived()

    def __call__(self, rest: Tensor, up: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
        """rest and x (..., D), two rows or more -> (..., D). Other layers than `Linear` on a CPU are asked whole."""
        if not (isinstance(up, Linear) and isinstance(down, Linear) and packs(rest, x, up.weight, down.weight)):
            return add_to(rest, down, gelu(up, x))
        parts = self._parts.get([up.weight, down.weight], lambda: self._split(up, down))
        closing: Tensor | None = down.bias
        for (first, then), bias in zip(parts, torch.split(up.bias, self.WIDTH), strict=True):
            rest, closing = then.add_to(rest, first(x, bias, gelu=True), closing), None
        return rest

    def _split(self, up: Linear, down: Linear) -> list[tuple[Packed | Plain, Packed | Plain]]:
        both = zip(torch.split(up.weight, self.WIDTH), torch.split(down.weight, self.WIDTH, dim=1), strict=True)
        return [(laid(first, up.many_rows), laid(then, down.many_rows)) for first, then in both]


def add_to(rest: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """rest + layer(x) of a `Linear`, or of what stands in its place; the sum, too, is taken in cache."""
    if isinstance(layer, Linear) and packs(rest, x, layer.weight) and rest.numel() > rest.shape[-1]:
        return layer.packed().add_to(rest, x, layer.bias)
    out: Tensor = rest + layer(x)
    return out


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """gelu(layer(x)) of a `Linear`, or of what stands in its place."""
    return layer.gelu(x) if isinstance(layer, Linear) else F.gelu(layer(x))
