"""Augment images for training, with Pillow alone (torchvision breaks transformers' imports next to a CPU torch).

The paper's training transform: random resized crop, horizontal flip, RandAugment without the colour changes that would
make a caption wrong. Magnitudes are those of salesforce/BLIP `transform/randaugment.py`: each of n drawn operations is
applied with probability 0.5; with level m of 10, enhancement factor 1.8 m / 10 + 0.1, shear 0.3 m / 10, translation
m pixels whatever the image's size, rotation 3 m degrees, either sign, grey (128) outside the image. At the official
m = 5 the enhancement factor is therefore exactly 1, and Brightness and Sharpness do not change the image.

Crop and resize are one `Image.resize(box=...)` call. A large JPEG is decoded at a half, a quarter or an eighth of its
size if even the smallest crop is then not enlarged.
"""

import math
from collections.abc import Callable
from random import Random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from capfilt.media.rgb import CLIP_MEAN, CLIP_STD

_RATIO = (3 / 4, 4 / 3)
_GREY = (128, 128, 128)
Box = tuple[int, int, int, int]
Operation = Callable[[Image.Image, float, Random], Image.Image]


class Augment(BaseModel):
    """The paper's training transform (section 4.1): image -> normalised pixels. Its only randomness is `rng`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(default=224, ge=8)
    """Side S of the output in pixels."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Share of the area that a crop covers, (0.5, 1) in fine-tuning. None: no crop, the whole image is squashed."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    randaugment_n: int = Field(default=2, ge=0)
    """Operations per image; 0 turns RandAugment off."""
    randaugment_m: float = Field(default=5, ge=0, le=10)
    """Magnitude of the operations, 0 to 10."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Per RGB channel, in [0, 1]."""
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def evaluation(cls, size: int) -> "Augment":
        """The transform without randomness: bicubic squash to S x S, and normalisation."""
        return cls(size=size, crop_scale=None, flip=0, randaugment_n=0)

    @property
    def draft_side(self) -> int | None:
        """Shorter side that a JPEG must keep so that the smallest crop is not enlarged; None without a crop."""
        if self.crop_scale is None or self.crop_scale[0] <= 0:
            return None
        return math.ceil(self.size / math.sqrt(self.crop_scale[0] * _RATIO[0])) + 1

    def __call__(self, image: Image.Image, rng: Random) -> Tensor:
        """Augment and normalise an RGB image of any size: (3, S, S) float32, `(value / 255 - mean) / std`."""
        return self.normalise(self.distort(image, rng))

    def distort(self, image: Image.Image, rng: Random) -> Image.Image:
        """Augment an RGB image: S x S, not yet normalised."""
        side = (self.size, self.size)
        if self.crop_scale is None:
            image = image.resize(side, Image.Resampling.BICUBIC)
        else:
            box = crop_box(image.width, image.height, self.crop_scale, rng)
            image = image.resize(side, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in rng.choices(_OPERATIONS, k=self.randaugment_n):
            if rng.random() < 0.5:
                image = operation(image, self.randaugment_m, rng)
        return image

    def normalise(self, image: Image.Image) -> Tensor:
        """Normalise an RGB image of H x W: (3, H, W) float32."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        pixels = (
            torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        )
        return torch.addcmul((-mean / std)[:, None, None], pixels, (1 / (255 * std))[:, None, None])


def crop_box(width: int, height: int, scale: tuple[float, float], rng: Random) -> Box:
    """Draw a crop as torchvision's RandomResizedCrop does: (left, top, right, bottom) in pixels.

    The share of the area is uniform in `scale`, the aspect ratio log-uniform in 3/4..4/3. After ten draws that do not
    fit, it is the largest central crop whose aspect ratio is within those bounds.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * _RATIO[1])))
    h = max(1, min(height, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _signed(value: float, rng: Random) -> float:
    return value if rng.random() < 0.5 else -value


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance.Brightness | ImageEnhance.Sharpness]) -> Operation:
    def apply(image: Image.Image, level: float, rng: Random) -> Image.Image:
        factor = level / 10 * 1.8 + 0.1
        return image if factor == 1 else enhancer(image).enhance(factor)

    return apply


def _affine(coefficients: Callable[[float], tuple[float, ...]], unit: float) -> Operation:
    def apply(image: Image.Image, level: float, rng: Random) -> Image.Image:
        matrix = coefficients(_signed(level / 10 * unit, rng))
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)

    return apply


def _rotate(image: Image.Image, level: float, rng: Random) -> Image.Image:
    return image.rotate(_signed(level * 3, rng), Image.Resampling.BILINEAR, fillcolor=_GREY)


_OPERATIONS: list[Operation] = [
    lambda image, level, rng: image,
    lambda image, level, rng: ImageOps.autocontrast(image),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, level, rng: ImageOps.equalize(image),
    _affine(lambda v: (1, v, 0, 0, 1, 0), 0.3),
    _affine(lambda v: (1, 0, 0, v, 1, 0), 0.3),
    _affine(lambda v: (1, 0, v, 0, 1, 0), 10),
    _affine(lambda v: (1, 0, 0, 0, 1, v), 10),
    _rotate,
]
"""Identity, AutoContrast, Brightness, Sharpness, Equalize, ShearX, ShearY, TranslateX, TranslateY, Rotate."""
