"""Which processor to compute on."""

import torch

from capfilt.errors import ConfigError


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
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here; take cpu"
        )
    return device
