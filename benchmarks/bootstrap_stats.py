"""Paired statistics of the bootstrap experiment: does a row beat another, with the same seeds and test images?

An interval is the 2.5th to 97.5th percentile over resamples of seeds and, within, of test images, the same ones for
both rows. A row counts as better (worse) only where the interval of the difference lies above (below) 0.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return "better", "worse" or "not told apart" (the interval contains 0)."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"


def hits(result: dict[str, Any], k: int = 1) -> Floats:
    """Return (N,): per test image the share of its two queries (text to image, image to text) with rank <= k."""
    ways = [np.asarray(result[f"{way}_ranks"]) <= k for way in ("t2i", "i2t")]
    found: Floats = np.mean(ways, axis=0)
    return found


def estimate(values: Sequence[Floats], resamples: int = 2000) -> Estimate:
    """Bootstrap mean and interval of S seeds x N images: resample seeds, and images (the same for all seeds)."""
    table = np.stack(values)
    rng = np.random.default_rng(0)
    seeds, images = table.shape
    draws = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(rng.integers(images, size=images), minlength=images)
        draws[i] = (table[rng.integers(seeds, size=seeds)] @ weights).mean() / images
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(table.mean()), float(low), float(high))


def difference(these: Sequence[Floats], those: Sequence[Floats]) -> Estimate:
    """Estimate these - those, paired by seed and image."""
    return estimate([a - b for a, b in zip(these, those, strict=True)])


def auc(high: Any, low: Any) -> float:
    """Return the share of (high, low) pairs in the right order; ties count half."""
    order = np.sort(low)
    wins = np.searchsorted(order, high, "left") + np.searchsorted(order, high, "right")
    return float(wins.mean() / 2 / len(low))
