"""Which processor to compute on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from capfilt.errors import ConfigError
from capfilt.models.torch_compat import cpu_multiplies_bf16

CPU = torch.device("cpu")


def pick_device(name: str | None) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`; None or "auto" is cuda if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: take cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: take cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here; take cpu, "
            "or give the stage a GPU (resources.STAGE.num_gpus)"
        )
    return device


def has_bf16(device: torch.device = CPU) -> bool:
    """Whether products in bf16 are the processor's own: any CUDA device; a CPU with avx512_bf16 or amx."""
    return device.type != "cpu" or cpu_multiplies_bf16()


def bf16_autocast(device: torch.device = CPU, wanted: bool = True) -> torch.autocast:
    """bf16 where it is wanted and the device has such products; emulated they take ten times as long as float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bf16(device))


@contextmanager
def model_threads(device: torch.device) -> Iterator[None]:
    """One torch thread for models on a CPU, for the time of the block; then as many as before.

    A CPU's sums may depend on the number of threads. (One worker per core is the faster way to use the cores too: 0.434
    against 0.384 images/s with a team of threads, measured with BLIP-base on two cores.)
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
