"""A CUDA device that is not there: rehearse on a CPU what a system does on a GPU, to find a tensor left on the CPU.

`FakeCuda` is torch's FakeTensorMode, whose tensors know a device but have no values, and which refuses a product of
tensors on two devices as a GPU does. Decoding and some losses look at values, so each fake tensor has its values beside
it, computed on the CPU: control flow goes as it would, and results can be compared with the CPU's.

Not rehearsed: the backward pass (autograd's engine wants a real accelerator), pinned memory, streams and CUDA graphs.
`rehearsal` runs what would be captured in a graph uncaptured. A build of torch without CUDA has no device guard for it,
which indexing and autograd ask for; `fake_guard` lends it the one of the `meta` device, which does nothing.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from capfilt.models import graphed

CUDA = torch.device("cuda:0")
_CUDA, _META = 1, 14
"""Places of the two devices in c10's registry of device guards (c10/core/DeviceType.h)."""


class FakeCuda(FakeTensorMode):
    """FakeTensorMode whose tensors have values: `value(tensor)`."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._depth = 0

    def fake(self, tensor: Tensor) -> Tensor:
        """The tensor as if on the GPU."""
        with _disable_current_modes():
            real = value(tensor).detach()
            made = FakeTensor(self, real.to("meta"), CUDA)
        made.value = real
        return made

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Each operation twice: as a fake, which checks devices, and on the values."""
        if self._depth:
            return super().dispatch(func, types, args, kwargs)
        self._depth += 1
        try:
            return self._both(func, types, args, kwargs or {})
        finally:
            self._depth -= 1

    def _both(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        try:
            fakes = super().dispatch(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            fakes = None
        with _disable_current_modes():
            values = func(*tree_map(value, args), **tree_map(value, kwargs))
        if fakes is None:
            device = next(one.device for one in tree_flatten((args, kwargs))[0] if isinstance(one, FakeTensor))
            fakes = tree_map(lambda one: self._made(one, device), values)
        for one, its in zip(tree_flatten(fakes)[0], tree_flatten(values)[0], strict=True):
            if isinstance(one, FakeTensor):
                assert one.shape == its.shape, f"{func}: {one.shape} as a fake, {its.shape} in fact"
                one.value = its
        return fakes

    def _made(self, one: Any, device: torch.device) -> Any:
        if not isinstance(one, Tensor):
            return one
        with _disable_current_modes():
            return FakeTensor(self, one.to("meta"), device)


def value(one: Any) -> Any:
    """The values of a fake tensor; cpu in place of the fake device; whatever else as it is."""
    if isinstance(one, FakeTensor):
        return one.value
    if isinstance(one, torch.device):
        return torch.device("cpu") if one.type == "cuda" else one
    return one


def move(module: nn.Module, mode: FakeCuda) -> nn.Module:
    """The module with its parameters and buffers on the fake GPU, in place. Tensors that are neither stay behind."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    fake = mode.fake(tensor)
                    parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if parameter else fake
                    moved[id(tensor)].value = fake.value
                store[name] = moved[id(tensor)]
    return module


@contextmanager
def fake_guard() -> Iterator[None]:
    """A device guard for CUDA, on builds of torch without one."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


@contextmanager
def rehearsal() -> Iterator[FakeCuda]:
    """The fake GPU, for the time of the block: make models before with `move`, tensors inside with `mode.fake`."""
    with fake_guard(), pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH), FakeCuda() as mode:
        patch.setattr(graphed, "_captured", _uncaptured)
        yield mode


def _uncaptured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    return call
