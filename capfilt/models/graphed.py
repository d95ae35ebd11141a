"""Run a function of tensors as a CUDA graph: captured once, then one launch for all its kernels.

It is for decoding, where a token is some hundreds of kernels of a few microseconds each, which take longer to launch
than to run. On a CPU the function itself is called. Not measured: no GPU was available, and the tests run the same code
on a CPU, where nothing is captured.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the capture, in which libraries choose their kernels and workspaces (torch's notes on CUDA graphs)."""


class Graphed:
    """Callable that replays `call` for inputs of fixed shapes, dtypes and device.

    `call` must neither read a tensor's value on the host nor replace a tensor that it works on, because a graph knows
    addresses only. Its writes in place persist, also those of the calls before the capture.
    """

    def __init__(self, call: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Capture `call` with example inputs; on CUDA it runs now.

        Raises:
            torch.OutOfMemoryError: the calls or the capture do not fit in memory.
        """
        self._inputs = [torch.clone(given) for given in inputs]
        self._call = partial(call, *self._inputs)  # keeps alive what the graph works on
        self._run = _captured(self._call, inputs[0].device) if inputs[0].device.type == "cuda" else self._call

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the result of `call` for these inputs, as a copy that later calls do not overwrite."""
        for buffer, given in zip(self._inputs, inputs, strict=True):
            assert buffer.shape == given.shape, f"{tuple(given.shape)} where {tuple(buffer.shape)} was captured"
            buffer.copy_(given)
        return self._run().clone()


def _captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Capture `call` and return its replay, which writes to the same output tensor each time.

    Other threads may copy images to the device during the capture (`inference.transfer`), so the error mode is
    "thread_local"; "global" would forbid it.
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
