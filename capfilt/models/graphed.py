"""A function of tensors as a CUDA graph: captured once, then one launch for all its kernels; on a CPU, the function.

Written for decoding, whose token is some hundreds of kernels of a few microseconds each, which take longer to launch
than to run. Not measured: no GPU was at hand; the tests run the same code on a CPU, where nothing is captured.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before the capture, in which libraries choose their kernels and workspaces (torch's notes on CUDA graphs)."""


class Graphed:
    """`call`, for inputs of always the same shapes, dtypes and device.

    `call` must neither read a tensor's value on the host nor replace a tensor that it works on: a graph knows addresses
    only. What it writes in place stays written, by the runs before the capture too.
    """

    def __init__(self, call: Callable[..., Tensor], *inputs: Tensor) -> None:
        """`inputs`: examples. On CUDA `call` runs now. Raises torch.OutOfMemoryError where that does not fit."""
        self._inputs = [torch.clone(given) for given in inputs]
        self._call = partial(call, *self._inputs)  # kept, and with it what a graph works on
        self._run = _captured(self._call, inputs[0].device) if inputs[0].device.type == "cuda" else self._call

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What `call` gives for these inputs: the caller's own, later calls do not write to it."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            assert kept.shape == given.shape, f"{tuple(given.shape)} where {tuple(kept.shape)} was captured"
            kept.copy_(given)
        return self._run().clone()


def _captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A replay, which writes always the same output.

    Other threads go on copying images to the device meanwhile (`stages.feed`), which only a capture that is "global"
    would forbid.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
