"""Pixels bit-equal to transformers' PIL processor, and processor files that it opens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.errors import CheckpointError
from capfilt.media.rgb import to_rgb
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.image import ImageProcessor, read_processor

SIZES = [(1, 1), (37, 91), (384, 384), (500, 333), (1023, 17), (33, 1200), (32, 32)]


def noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    random = np.random.default_rng([seed, *size])
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 4)
    array = random.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode in ("P", "1"):
        return Image.fromarray(array[..., :3]).convert(mode)
    return Image.fromarray(array[..., 0], "L") if mode == "L" else Image.frombytes(mode, size, array.tobytes())


def palette_with_transparency(size: tuple[int, int]) -> Image.Image:
    image = noise("P", size)
    image.info["transparency"] = 3
    return image


def theirs(image: Image.Image, size: int) -> torch.Tensor:
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    pixels: torch.Tensor = processor(image, return_tensors="pt").pixel_values[0]
    return pixels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "1", "CMYK"])
def test_bit_equal(mode: str, size: tuple[int, int]) -> None:
    image = noise(mode, size)
    for side in (128, 225):
        ours = ImageProcessor(side)([image])
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        assert torch.equal(ours[0], theirs(image, side))


def test_bit_equal_at_384() -> None:
    image = noise("RGB", (640, 427))
    assert torch.equal(ImageProcessor(384).one(image), theirs(image, 384))


def test_bit_equal_with_transparent_colour() -> None:
    image = palette_with_transparency((50, 40))
    assert torch.equal(ImageProcessor(64).one(image), theirs(image, 64))
    assert not torch.equal(ImageProcessor(64).one(image), ImageProcessor(64).one(image.convert("RGB")))


def test_transparent_is_white_and_16_bit_grey_is_not() -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert to_rgb(grey).getpixel((0, 0)) == (128, 128, 128)


def test_files_open_in_transformers(folders: Any, tmp_path: Path) -> None:
    """One image_processor_type serves both backends: without torchvision the PIL class opens."""
    blip = Blip.load(folders("filter", "wide-text"))
    blip.save(tmp_path)
    image = noise("RGB", (71, 53))
    for opener in (BlipProcessor, AutoProcessor):
        processor = opener.from_pretrained(tmp_path)
        assert isinstance(processor, BlipProcessor)
        pixels = processor(images=image, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, blip.preprocess([image]), atol=0.05, rtol=0)  # torchvision's, if installed
    pil = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert torch.equal(pil(image, return_tensors="pt").pixel_values, blip.preprocess([image]))


def test_read_both_layouts(folders: Any, tmp_path: Path) -> None:
    """preprocessor_config.json (hub, transformers 4) and the nested processor_config.json (transformers 5)."""
    assert (folders("filter") / "processor_config.json").is_file()
    assert read_processor(folders("filter"), 32) == ImageProcessor(32)
    mine = ImageProcessor(48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    mine.save(tmp_path)
    assert read_processor(tmp_path, 48) == mine
    nested = json.dumps({"image_processor": {"image_mean": [0.1, 0.2, 0.3]}, "processor_class": "BlipProcessor"})
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "gone")
    (tmp_path / "processor_config.json").write_text(nested)
    assert read_processor(tmp_path, 48).mean == (0.1, 0.2, 0.3)
    assert read_processor(tmp_path / "nowhere", 8) == ImageProcessor(8)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not an image processor"),
        ("[1]", "not an image processor"),
        ('{"resample": 2}', "resample 2"),
        ('{"do_normalize": false}', "do_normalize false"),
        ('{"image_std": [1]}', "image_std"),
    ],
)
def test_processor_that_is_not_ours(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: .*{told}"):
        read_processor(tmp_path, 32)
