"""The input of one forward pass in training."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TrainBatch:
    """B images, each with one text, on one rank."""

    pixels: Tensor
    """(B, 3, S, S) float32, augmented and normalised."""
    texts: list[str]
    """B texts after `pre_caption`."""
    image_ids: Tensor
    """(B,) int64; equal ids are the same image."""
    uids: list[str]
    """B row names, for error messages."""
