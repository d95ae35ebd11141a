"""Choose the device of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from capfilt.errors import ConfigError
from capfilt.models.torch_compat import cpu_multiplies_bf16

CPU = torch.device("cpu")


def pick_device(name: str | None) -> torch.device:
    """Return a torch device.

    Args:
        name: `cpu`, `cuda` or `cuda:1`; None or "auto" chooses cuda if there is one, else cpu.

    Raises:
        ConfigError: another name, or a GPU that this machine does not have.
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
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; take cpu, "
            "or give the stage a GPU (resources.STAGE.num_gpus)"
        )
    return device


def has_bf16(device: torch.device = CPU) -> bool:
    """Return whether the hardware multiplies bf16: any CUDA device; a CPU with avx512_bf16 or amx."""
    return device.type != "cpu" or cpu_multiplies_bf16()


def bf16_autocast(device: torch.device = CPU, wanted: bool = True) -> torch.autocast:
    """Return an autocast to bf16, enabled if `wanted` and `has_bf16`; emulated, it is 10 times slower than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bf16(device))


@contextmanager
def model_threads(device: torch.device) -> Iterator[None]:
    """Limit torch to one thread inside the block if the device is a CPU; restore the number of threads after it.

    Sums on a CPU may depend on the number of threads. One worker per core is also the faster way to use the cores:
    0.434 images/s, against 0.384 with one multi-threaded worker (BLIP-base, two cores).
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
