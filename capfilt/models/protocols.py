"""The four small interfaces behind which every model system stands, and the values that they exchange.

Null where a system has no such score, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

PixelBatch = Tensor
"""(B, 3, S, S) float32, normalised with the model's mean and std; S is the model's image size in pixels."""


@dataclass(frozen=True)
class Caption:
    """One synthetic text; `logprob`: mean natural-log probability of its tokens under the captioner, [SEP] included."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Match:
    """How well a text fits an image: `itc` raw cosine in [-1, 1] (no temperature), `itm` softmax P(match) in [0, 1]."""

    itc: float | None
    itm: float | None


@dataclass(frozen=True)
class TrainBatch:
    """One training step's input on one rank."""

    pixels: Tensor
    """(B, 3, S, S) float32, augmented and normalised."""
    texts: list[str]
    """B texts after `pre_caption`."""
    image_ids: Tensor
    """(B,) int64; equal ids are the same image."""
    uids: list[str]
    """B row names for error messages."""


@runtime_checkable
class Captioner(Protocol):
    def caption(self, images: PixelBatch, uids: Sequence[str], sample: int = 0) -> list[Caption]:
        """One caption an image; nucleus noise is keyed on (seed, uid, sample, position)."""
        ...


@runtime_checkable
class Matcher(Protocol):
    def score(self, images: PixelBatch, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """For each image the scores of each of its texts; the vision tower runs once an image."""
        ...


@runtime_checkable
class Embedder(Protocol):
    def embed(self, images: PixelBatch) -> Tensor:
        """(B, D) float16, L2-normalised."""
        ...


@runtime_checkable
class Objective(Protocol):
    def loss(self, batch: TrainBatch) -> Mapping[str, torch.Tensor]:
        """Named scalar terms, summed by the training loop."""
        ...
