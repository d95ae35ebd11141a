"""How prepared images come to the device that computes: as they are to a CPU; ahead of the model to a GPU.

There each decoding thread copies its image into pinned memory and from there, on a stream beside the model's, to the
device; the model's stream waits for the copies of a batch when the batch's turn comes. Decoding, copying and computing
happen at the same time, and as many batches are on the device as `rows.model_batches` decodes ahead. Not measured: no
GPU was at hand.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from capfilt.models.protocols import Prepared


class Transfer(Protocol):
    """To one device."""

    def send(self, prepared: Prepared) -> Prepared:
        """Called by a decoding thread: one image, whose tensors may still be under way when it returns."""
        ...

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        """Called by the model's thread, before it touches these, which were sent."""
        ...


class HostTransfer:
    """Nothing to do: what was prepared is passed on."""

    def send(self, prepared: Prepared) -> Prepared:
        """See `Transfer.send`."""
        return prepared

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        """See `Transfer.arrive`."""


class GpuTransfer:
    """Tensors are pinned, and copied on a stream of its own; bytes stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _copies(device)

    def send(self, prepared: Prepared) -> Prepared:
        """See `Transfer.send`. Where the device has no room, tensors stay in pinned memory."""
        if isinstance(prepared, bytes):
            return prepared
        with torch.cuda.stream(self._stream):
            return {name: self._copy(tensor.pin_memory()) for name, tensor in prepared.items()}

    def _copy(self, pinned: Tensor) -> Tensor:
        try:
            return pinned.to(self._device, non_blocking=True)
        except torch.OutOfMemoryError:
            return pinned

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        """See `Transfer.arrive`. The host does not wait."""
        model = torch.cuda.current_stream(self._device)
        model.wait_stream(self._stream)
        for tensor in _tensors(prepared):
            if tensor.is_cuda:
                tensor.record_stream(model)  # its memory is not another's before the model is done with it


def transfer_to(device: torch.device) -> Transfer:
    """The device's kind."""
    return GpuTransfer(device) if device.type == "cuda" else HostTransfer()


def _tensors(prepared: Sequence[Prepared]) -> Iterator[Tensor]:
    for one in prepared:
        if not isinstance(one, bytes):
            yield from one.values()


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """One for all shards, of high priority: from another pool than the streams on which graphs are captured."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
