"""Matrix products for inference on a CPU: oneDNN, with weights brought into its layout once.

torch's own `linear` uses MKL, which takes its AVX2 path on processors of other makers and brings weights into its
layout again at every call. Measured in GFLOP/s on one core with AVX512 (768 -> 3072, torch 2.13), MKL / oneDNN with
packed weights: 577 rows 61 / 97, 64 rows 62 / 95, 16 rows 46 / 90, 4 rows 24 / 75. With unpacked weights oneDNN is as
slow as MKL below 64 rows.

oneDNN also makes a row's result independent of the other rows: a row has the same bits in any batch of two or more
(measured for 1 .. 1299 rows, AVX2 and AVX512, one and two threads), where MKL's bits change below four rows. A single
row has a kernel of its own and is therefore doubled. That takes no longer, because such a product waits for its
weights.

The packed copy is kept as well as the weights, so a model that has been used on a CPU takes twice their memory. On a
processor with AVX2 only, the vision tower (`many_rows`) uses MKL with unpacked weights (`AVX2`). In training, on other
devices and dtypes, under autocast and in a torch without oneDNN, torch's `linear` is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.blip.weight_cache import WeightCache
from capfilt.models.torch_compat import HAS_PACKED_LINEAR, pack_linear_weight, packed_linear, packed_linear_add

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
"""Whether this processor has no wider vectors than AVX2. MKL is then the faster one for many rows, and gelu is faster
after the product than inside it: 577 rows of 768 -> 3072 -> 768 gain 1.29 x from the two (Zen 3)."""


def can_pack(*tensors: Tensor) -> bool:
    """Return whether products of these tensors use oneDNN: float32 on a CPU, in inference mode, without autocast."""
    return (
        HAS_PACKED_LINEAR
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    )


class PackedMatrix:
    """A matrix (N, K) in oneDNN's layout, to multiply rows by its transpose."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = pack_linear_weight(matrix)

    def add_to(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return residual + x @ matrix.T + bias, (..., N); x (..., K) float32, two rows or more."""
        rows, to = x.reshape(-1, x.shape[-1]), residual.reshape(-1, residual.shape[-1])
        return packed_linear_add(rows, to, self._matrix, bias).view(residual.shape)

    def __call__(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """Return x @ matrix.T + bias, (..., N), or its exact (erf) gelu; x (..., K) float32."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1:
            rows = rows.expand(2, -1)
        out = packed_linear(rows, self._matrix, bias, gelu and not AVX2)
        out = out[: x.numel() // x.shape[-1]].reshape(*x.shape[:-1], -1)
        return F.gelu(out) if gelu and AVX2 else out


class PlainMatrix:
    """The same operations on a matrix as it is, by MKL."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix.detach()

    def add_to(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `PackedMatrix.add_to`."""
        out = residual.clone() if bias is None else residual + bias
        out.view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self._matrix.t())
        return out

    def __call__(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """See `PackedMatrix.__call__`."""
        out = F.linear(x, self._matrix, bias)
        return F.gelu(out) if gelu else out


Matrix = PackedMatrix | PlainMatrix


def choose_layout(matrix: Tensor, many_rows: bool) -> Matrix:
    """Return a matrix (N, K) in the faster layout for this processor.

    With MKL a row has the same bits whatever the other rows, if there are four or more rows in all and one thread.

    Args:
        matrix: (N, K) float32.
        many_rows: each product has hundreds of rows, as in the vision tower.
    """
    return PlainMatrix(matrix) if many_rows and AVX2 else PackedMatrix(matrix)


def packed_layout(weight: Tensor, cache: WeightCache[Matrix], many_rows: bool = False) -> Matrix:
    """Return the weight (N, K) in its layout, from the cache after the first call."""
    return cache.get([weight], lambda: choose_layout(weight, many_rows))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: WeightCache[Matrix],
    gelu: bool = False,
    many_rows: bool = False,
) -> Tensor:
    """Return `F.linear(x, weight, bias)` or its gelu, x (..., K) -> (..., N); `cache` keeps the packed weight."""
    if not can_pack(x, weight) or x.numel() == 0:
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    return packed_layout(weight, cache, many_rows)(x, bias, gelu)


class Linear(nn.Linear):
    """`nn.Linear` of both towers: the same parameters, computed by `linear` of this module."""

    def __init__(self, inputs: int, outputs: int, many_rows: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.many_rows = many_rows
        self._packed: WeightCache[Matrix] = WeightCache()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        return linear(x, self.weight, self.bias, self._packed, many_rows=self.many_rows)

    def packed(self) -> Matrix:
        """Return the weight in its layout."""
        return packed_layout(self.weight, self._packed, self.many_rows)

    def gelu(self, x: Tensor) -> Tensor:
        """Return gelu(forward(x)), the same bits. With AVX512 gelu is applied while the product is in cache, which
        saves 1.5 % of a vision pass."""
        return linear(x, self.weight, self.bias, self._packed, gelu=True, many_rows=self.many_rows)


class FusedMLP:
    """residual + down(gelu(up(x))), slice by slice of the hidden width, so that the hidden values stay in cache."""

    WIDTH = 4096 if AVX2 else 1024
    """Hidden width of a slice. 1154 rows of 768 -> 3072 -> 768 reach 0.91 of the core's peak, and 0.88 in one piece
    (AVX512). With MKL's products (AVX2) a tower is 2 % faster in one piece."""

    def __init__(self) -> None:
        self._slices: WeightCache[list[tuple[Matrix, Matrix]]] = WeightCache()

    def __call__(self, residual: Tensor, up: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
        """Return residual + down(gelu(up(x))), (..., D).

        Args:
            residual: (..., D).
            up: D -> hidden. Layers other than `Linear`, and any layer off the CPU, are called whole.
            down: hidden -> D.
            x: (..., D), two rows or more.
        """
        if not (isinstance(up, Linear) and isinstance(down, Linear) and can_pack(residual, x, up.weight, down.weight)):
            return add_to(residual, down, gelu(up, x))
        slices = self._slices.get([up.weight, down.weight], lambda: self._split(up, down))
        closing: Tensor | None = down.bias  # added once, with the first slice
        for (first, then), bias in zip(slices, torch.split(up.bias, self.WIDTH), strict=True):
            residual, closing = then.add_to(residual, first(x, bias, gelu=True), closing), None
        return residual

    def _split(self, up: Linear, down: Linear) -> list[tuple[Matrix, Matrix]]:
        both = zip(torch.split(up.weight, self.WIDTH), torch.split(down.weight, self.WIDTH, dim=1), strict=True)
        return [(choose_layout(first, up.many_rows), choose_layout(then, down.many_rows)) for first, then in both]


def add_to(residual: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """Return residual + layer(x). For a `Linear` the sum is computed while the product is in cache."""
    if isinstance(layer, Linear) and can_pack(residual, x, layer.weight) and residual.numel() > residual.shape[-1]:
        return layer.packed().add_to(residual, x, layer.bias)
    out: Tensor = residual + layer(x)
    return out


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """Return gelu(layer(x)) for a `Linear` or the layer that replaces it (int8)."""
    return layer.gelu(x) if isinstance(layer, Linear) else F.gelu(layer(x))
