"""Copy prepared images to the device of the model, ahead of the model. A CPU needs no copy.

For a GPU, each decoding thread copies its image to pinned memory and from there to the device, on another stream than
the model's. The model's stream waits for the copies of a batch before it computes the batch. Decoding, copying and
computing thus happen at the same time. As many batches are on the device as `rows.model_batches` decodes ahead. Not
measured: no GPU was available.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from capfilt.models.protocols import Prepared


class Transfer(Protocol):
    """Copies prepared images to one device."""

    def send(self, prepared: Prepared) -> Prepared:
        """Start to copy one image, and return it on the device. The copy may still be running.

        Called by a decoding thread.
        """
        ...

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        """Let the model wait for the copies of these images, which `send` returned.

        Called by the model's thread before it uses them.
        """
        ...


class HostTransfer:
    """Passes images on unchanged, for a model on a CPU."""

    def send(self, prepared: Prepared) -> Prepared:
        """See `Transfer.send`."""
        return prepared

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        """See `Transfer.arrive`."""


class GpuTransfer:
    """Copies tensors to a GPU through pinned memory, on a separate stream. Bytes are passed on unchanged."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _copies(device)

    def send(self, prepared: Prepared) -> Prepared:
        """See `Transfer.send`. If the device is full, tensors stay in pinned memory."""
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
                tensor.record_stream(model)  # its memory is not reused before the model's stream is done with it


def transfer_to(device: torch.device) -> Transfer:
    """Return the transfer to a device."""
    return GpuTransfer(device) if device.type == "cuda" else HostTransfer()


def _tensors(prepared: Sequence[Prepared]) -> Iterator[Tensor]:
    for one in prepared:
        if not isinstance(one, bytes):
            yield from one.values()


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """Return the device's copy stream, the same for all shards.

    Its high priority puts it in another pool of torch than the streams on which CUDA graphs are captured.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
