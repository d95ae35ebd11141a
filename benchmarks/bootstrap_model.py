"""The experiment's MED and its training: capfilt's own text transformer, heads and objective over cached features.

The vision tower is a projection of EfficientNet-Lite0's cached features with the interface that MED expects of a ViT:
(B, 1 + cells, D), the pooled token first. The text transformer starts as MiniLM and reads a text for ITC as that does,
off the mean of its tokens. All else is the product's: ITC with momentum queue and soft targets, ITM with hard
negatives, LM; sampling; scoring.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bootstrap_features import Features
from benchmarks.bootstrap_text import is_fresh, take_start
from capfilt.models.blip import Blip
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.layers import init_weights
from capfilt.models.blip.med import MED
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer
from capfilt.models.device import bf16_autocast
from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.blip.objective import BlipObjective
from capfilt.training.objectives.blip.settings import BlipSettings
from capfilt.training.recipe_sections import OptimSection
from capfilt.training.schedule import learning_rate

Pair = tuple[int, str]
"""Row number and text."""


@dataclass(frozen=True)
class Shape:
    """Size of the model."""

    width: int = 256
    """Width of the image states; that of the text is MiniLM's."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which of MiniLM's six layers."""
    side: int = 4
    """Cells along a side after pooling."""
    max_tokens: int = 30
    feature_drop: float = 0.5
    """Dropout of the vision tower's inputs."""
    text_drop: float = 0.4
    """Dropout of MiniLM's encoding of a text."""


@dataclass(frozen=True)
class Fit:
    """Length and learning rates of one training."""

    steps: int
    batch: int
    lr: float
    """Learning rate of new parameters; MiniLM's layers have `slow` times that."""
    objective: BlipSettings
    slow: float = 0.2
    ramp: float = 0.15
    """Share of the steps over which alpha grows."""
    warmup: float = 0.1
    every: int = 1
    """ITM is computed in every `every`-th step, because its three pairs per image take most of the time."""
    lm_every: int = 1
    """LM is computed in every `lm_every`-th step."""
    free: bool = False
    """Train MiniLM's layers too. For LM only, because their encoding of a text for ITC is cached."""
    tokens: int | None = None
    """Cut texts at this length; None leaves it to the model."""


class FeatureTower(nn.Module):
    """(B, 1280 + cells * C) -> (B, 1 + cells, D); features are standardised by the statistics of `sample`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], sample: Tensor, width: int, drop: float) -> None:
        super().__init__()
        self.checkpointing, self.shape, self.drop = False, shape, nn.Dropout(drop)
        pooled, cells, channels = shape
        each = sample[:, pooled:].reshape(-1, channels)
        self.register_buffer("mean", torch.cat([sample[:, :pooled].mean(0), each.mean(0).repeat(cells)]))
        power = each.std(0).sqrt()  # the first axes stay the larger ones
        self.register_buffer("scale", torch.cat([sample[:, :pooled].std(0), power.repeat(cells)]) + 1e-3)
        self.pooled, self.cells = nn.Linear(pooled, width), nn.Linear(channels, width)
        self.position = nn.Parameter(torch.zeros(1, cells, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for layer in (self.pooled, self.cells):
            init_weights(layer)

    def forward(self, features: Tensor) -> Tensor:
        """The pooled token stays as the projection makes it; cells get positions."""
        pooled, cells, channels = self.shape
        features = self.drop((features - self.mean) / self.scale)
        whole, parts = features[:, :pooled], features[:, pooled:].unflatten(1, (cells, channels))
        seen = self.norm(self.cells(parts) + self.position)
        return torch.cat([self.pooled(whole)[:, None].to(seen.dtype), seen], dim=1)


class Images:
    """The cached features as model inputs, cells pooled to `side` x `side`."""

    def __init__(self, features: Features, side: int) -> None:
        cells = torch.from_numpy(features.cells)
        n, views, count, channels = cells.shape
        grid = int(count**0.5)
        step = grid // side
        found = torch.empty(n, views, side * side, channels, dtype=torch.float16)
        for i in range(views):
            x = cells[:, i].float().unflatten(1, (side, step, side, step)).mean((2, 4))
            found[:, i] = x.flatten(1, 2)
        self.inputs = torch.cat([torch.from_numpy(features.pooled), found.flatten(2)], dim=2)
        self.shape = (features.pooled.shape[2], side * side, channels)

    def take(self, rows: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """Return (B, 1280 + cells * C) float32; view 0 by default."""
        return self.inputs[list(rows), list(views) if views is not None else [0] * len(rows)].float()

    def sample(self) -> Tensor:
        """Return up to 1024 evenly spaced images, view 0, for the tower's statistics."""
        return self.take(range(0, len(self.inputs), max(1, len(self.inputs) // 1024)))


def build(images: Images, text: Path, shape: Shape, seed: int) -> tuple[MED, TextTokenizer]:
    """Build the initial model of a seed: the warm-started text transformer, all else random."""
    torch.manual_seed(seed)
    config = TextConfig(**json.loads((text / "text.json").read_text()))
    vision = VisionConfig(shape.width, 1, shape.width // 64, shape.width, 16 * shape.side, 16)
    med = MED(MEDConfig(vision, config, 256))
    med.vision = FeatureTower(images.shape, images.sample(), shape.width, shape.feature_drop)  # type: ignore[assignment]
    take_start(med, text, shape.text_drop)
    tokenizer = read_tokenizer(text, config)
    tokenizer.max_tokens = shape.max_tokens
    return med, tokenizer


def batches(pairs: Sequence[Pair], size: int, seed: int) -> Iterator[list[Pair]]:
    """Yield batches without end: each epoch has all images in a new order, each with one of its texts, chosen anew.

    An epoch's incomplete batch is completed from the next epoch.
    """
    rng = np.random.default_rng(seed)
    texts: dict[int, list[str]] = {}
    for image, text in pairs:
        texts.setdefault(image, []).append(text)
    images, waiting = list(texts), list[Pair]()
    while True:
        while len(waiting) < size:
            order = [images[i] for i in rng.permutation(len(images))]
            waiting += [(image, texts[image][rng.integers(len(texts[image]))]) for image in order]
        yield waiting[:size]
        waiting = waiting[size:]


def fit(med: MED, tokenizer: TextTokenizer, images: Images, pairs: Sequence[Pair], how: Fit, seed: int) -> float:
    """Train in place; return the mean loss of the last tenth of the steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 1)
    med.text.freeze(not how.free)  # type: ignore[operator]
    if how.tokens is not None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.max_tokens = how.tokens
    objective = BlipObjective(med, tokenizer, how.objective).train()
    optim = OptimSection(
        lr=how.lr, min_lr=how.lr / 100, schedule="cosine", warmup_steps=int(how.warmup * how.steps),
        epochs=how.steps, global_batch=how.batch,
    )  # fmt: skip
    groups = list(_groups(objective, how, optim.weight_decay))
    optimizer = torch.optim.AdamW(groups, lr=how.lr)
    left_out = {"itm": how.every, "lm": how.lm_every}
    feed, views, losses = batches(pairs, how.batch, seed), images.inputs.shape[1], list[float]()
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(optim, step, 1)
        objective.advance(min(1.0, step / max(1.0, how.ramp * how.steps)))
        rows, texts = zip(*next(feed), strict=True)
        pixels = images.take(rows, rng.integers(views, size=len(rows)).tolist())
        batch = TrainBatch(pixels, list(texts), torch.tensor(rows), [str(row) for row in rows])
        without = {name: 0.0 for name, every in left_out.items() if step % every}
        objective.settings = how.objective.model_copy(update=without)
        with bf16_autocast():
            terms = objective(batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    med.eval()
    return float(np.mean(losses[-max(1, how.steps // 10) :]))


def _groups(objective: BlipObjective, how: Fit, decay: float) -> Iterator[dict[str, Any]]:
    """Group parameters: weight decay for matrices only, and a lower learning rate for MiniLM's layers."""
    named = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    for old in (True, False):
        for matrix in (True, False):
            found = [
                p
                for name, p in named
                if (p.dim() > 1) is matrix and (name.startswith("med.text.") and not is_fresh(name)) is old
            ]
            yield {"params": found, "weight_decay": decay * matrix, "rate": how.slow if old else 1.0}


def blip(med: MED, tokenizer: TextTokenizer) -> Blip:
    """Wrap a MED as capfilt's `Blip`; images are given as states."""
    return Blip(med, tokenizer, ImageProcessor(med.config.vision.image_size))
