"""Image processor: bicubic squash to a square, / 255, CLIP mean and std, with the bits of `BlipImageProcessorPil`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capfilt.errors import CheckpointError
from capfilt.media.rgb import CLIP_MEAN, CLIP_STD, to_rgb


@dataclass(frozen=True)
class ImageProcessor:
    """Converts PIL images to normalised pixels."""

    size: int
    """Side S of the square, in pixels."""
    mean: tuple[float, ...] = CLIP_MEAN
    """Per RGB channel, in [0, 1]."""
    std: tuple[float, ...] = CLIP_STD
    """Per RGB channel, in [0, 1]."""

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Convert B PIL images of any mode -> (B, 3, S, S) float32."""
        return torch.stack([self.one(image) for image in images])

    def one(self, image: Image.Image) -> Tensor:
        """Convert one PIL image of any mode -> (3, S, S) float32."""
        square = to_rgb(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        unit = (np.asarray(square).astype(np.float64) * (1 / 255)).astype(np.float32)
        x = (unit - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, as transformers reads it."""
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "BlipImageProcessor",
            "image_std": list(self.std),
            "processor_class": "BlipProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": self.size, "width": self.size},
        }

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`."""
        text = json.dumps(self.to_json(), indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def read_processor(folder: Path, size: int) -> ImageProcessor:
    """Read a folder's processor file; CLIP's mean and std are used where it names none.

    transformers 4 and the hub have `preprocessor_config.json`; transformers 5 nests it in `processor_config.json`.

    Args:
        folder: of the model.
        size: the model's image size in pixels.

    Raises:
        CheckpointError: the file is not JSON, or leaves out a step or wants a resampling that capfilt always does.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            config = _read(path)
            return ImageProcessor(size, _channels(path, config, "image_mean"), _channels(path, config, "image_std"))
    return ImageProcessor(size)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("image_processor", config)
        resample = config.get("resample", 3)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an image processor's config ({error})") from error
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not config.get(step, True)]
    if off or resample != Image.Resampling.BICUBIC:
        found = ", ".join([*(f"{step} false" for step in off), f"resample {resample}"])
        raise CheckpointError(f"{path}: {found}; capfilt resizes bicubically (3), rescales and normalises")
    return dict(config)


def _channels(path: Path, config: dict[str, Any], key: str) -> tuple[float, ...]:
    values = config.get(key, CLIP_MEAN if key == "image_mean" else CLIP_STD)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise CheckpointError(f"{path}: {key} is {values!r}; three numbers, one an RGB channel")
    return tuple(float(value) for value in values)
