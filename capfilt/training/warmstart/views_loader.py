"""Load training batches for `distill.py`: stored views with their targets, and their augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capfilt.media.rgb import CLIP_MEAN, CLIP_STD
from capfilt.training.warmstart.teacher_targets import GRID

ViewBatch = tuple[Tensor, Tensor, Tensor, Tensor]
"""pixels (B, 3, S, S) in [0, 1]; targets pooled (B, 1280), maps (B, 64, C), inner (B, 64, 272); all float32."""


class StoredViews:
    """Memory-mapped folders that `teacher_targets.py` wrote. A view is drawn in proportion to its folder's weight."""

    def __init__(self, folders: list[str], weights: list[float]) -> None:
        names = ("pixels", "pooled", "maps", "inner")
        self.folders = [tuple(np.load(Path(f) / f"{n}.npy", mmap_mode="r") for n in names) for f in folders]
        sizes = np.array([len(arrays[0]) for arrays in self.folders], dtype=np.float64) * np.array(weights)
        self.share = sizes / sizes.sum()

    def batch(self, size: int, rng: np.random.Generator) -> ViewBatch:
        """Draw `size` random views."""
        counts = rng.multinomial(size, self.share)
        rows = [(p, np.sort(rng.integers(len(p[0]), size=n))) for p, n in zip(self.folders, counts, strict=True) if n]
        arrays = [np.concatenate([p[k][i] for p, i in rows]) for k in range(4)]
        return as_tensors(arrays)


def as_tensors(arrays: list[NDArray[Any]]) -> ViewBatch:
    """Convert stored arrays (pixels, pooled, maps, inner) to a batch."""
    pixels, *targets = (torch.from_numpy(np.array(a)) for a in arrays)
    pooled, maps, inner = (t.float() for t in targets)
    return pixels.permute(0, 3, 1, 2).float() / 255, pooled, maps, inner


def flipped(batch: ViewBatch) -> ViewBatch:
    """Mirror half of the views and their cells, except for the finer cells inside a cell of block 4, a small error."""
    pixels, pooled, maps, inner = batch
    flip = (torch.rand(len(pixels)) < 0.5)[:, None, None, None]
    cells = [
        torch.where(flip, x.flip(2), x).flatten(1, 2)
        for x in (t.reshape(len(t), GRID, GRID, -1) for t in (maps, inner))
    ]
    return torch.where(flip, pixels.flip(3), pixels), pooled, cells[0], cells[1]


def cutmix(batch: ViewBatch, rng: np.random.Generator) -> ViewBatch:
    """CutMix (Yun et al. 2019): replace a rectangle of cells and their targets by the next image's.

    The pooled targets are mixed by area. The teacher's pooled feature is a mean over its cells, so this is close to its
    feature of the mixed image.
    """
    sides = rng.integers(1, GRID, size=2)
    top, left = (int(rng.integers(0, GRID - n + 1)) for n in sides)
    cell = torch.zeros(GRID, GRID, dtype=torch.bool)
    cell[top : top + sides[0], left : left + sides[1]] = True
    share, flat = cell.float().mean(), cell.flatten()[None, :, None]
    pixels, pooled, maps, inner = batch
    fine = cell.repeat_interleave(pixels.shape[-1] // GRID, 0).repeat_interleave(pixels.shape[-1] // GRID, 1)
    return (
        torch.where(fine, pixels.roll(1, 0), pixels),
        pooled.lerp(pooled.roll(1, 0), share),
        torch.where(flat, maps.roll(1, 0), maps),
        torch.where(flat, inner.roll(1, 0), inner),
    )


def jittered(pixels: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, each by a factor in [0.6, 1.4] per image; (B, 3, S, S) in [0, 1]."""
    brightness, contrast, saturation = torch.empty(3, len(pixels), 1, 1, 1).uniform_(0.6, 1.4)
    pixels = pixels * brightness
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * contrast
    grey = pixels.mean(1, keepdim=True)
    coloured: Tensor = grey + (pixels - grey) * saturation
    return coloured.clamp(0, 1)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise pixels (B, 3, S, S) in [0, 1] with CLIP's mean and std."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std
