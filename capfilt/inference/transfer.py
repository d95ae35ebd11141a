"""How pixels come to the device that computes with them: as they are on a CPU; ahead of the model on a GPU.

There each decoding thread copies its image into pinned memory and from there, on a stream beside the model's, to the
device; the model's stream waits for the copies of a batch when the batch's turn comes. Decoding, copying and computing
so go on at once, and as many batches lie on the device as `rows.model_batches` decodes ahead. Not measured: no GPU was
at hand.
"""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


class Feed(Protocol):
    """To one device."""

    def send(self, pixels: Tensor) -> Tensor:
        """Called by a decoding thread: an image's pixels, which may still be under way."""
        ...

    def arrive(self, pixels: Sequence[Tensor]) -> None:
        """Called by the model's thread, before it touches these, that were sent."""
        ...


class HostTransfer:
    """Nothing to do: the tensors themselves are passed on."""

    def send(self, pixels: Tensor) -> Tensor:
        """See `Feed.send`."""
        return pixels

    def arrive(self, pixels: Sequence[Tensor]) -> None:
        """See `Feed.arrive`."""


class GpuTransfer:
    """Pinned, and copied on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _copies(device)

    def send(self, pixels: Tensor) -> Tensor:
        """See `Feed.send`. Where the device has no room, they stay in pinned memory."""
        with torch.cuda.stream(self._stream):
            pinned = pixels.pin_memory()
            try:
                return pinned.to(self._device, non_blocking=True)
            except torch.OutOfMemoryError:
                return pinned

    def arrive(self, pixels: Sequence[Tensor]) -> None:
        """See `Feed.arrive`. The host does not wait."""
        model = torch.cuda.current_stream(self._device)
        model.wait_stream(self._stream)
        for one in pixels:
            if one.is_cuda:
                one.record_stream(model)  # its memory is not another's before the model is done with it


def transfer_to(device: torch.device) -> Feed:
    """The device's kind."""
    return GpuTransfer(device) if device.type == "cuda" else HostTransfer()


def together(pixels: Sequence[Tensor]) -> Tensor:
    """(3, S, S) each, arrived -> (B, 3, S, S), on the GPU if one of them is there."""
    devices = {one.device for one in pixels}
    device = min(devices, key=lambda device: device.type == "cpu")
    return torch.stack([one.to(device) for one in pixels] if len(devices) > 1 else list(pixels))


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """One for all shards, of high priority: from another pool than the streams on which graphs are captured."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
