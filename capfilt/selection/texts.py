"""The texts of one shard as arrays, and the vectorised questions that policies ask of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capfilt.config.pipeline import SelectSettings
from capfilt.store.arrays import Bools, Floats, Reasons, equal

Score = Literal["itm", "itc"]


@dataclass(frozen=True)
class Texts:
    """The n texts of a shard. Every field is an array (n,)."""

    image: NDArray[np.int64]
    """Position of the pairs row; equal for the texts of one image."""
    origin: NDArray[np.object_]
    """web | synthetic | human."""
    sample: NDArray[np.int64]
    """Number of the caption, -1 for a row's own text."""
    itc: Floats
    """Cosine, -1 .. 1; NaN where null."""
    itm: Floats
    """P(match), 0 .. 1; NaN where null."""
    refused: Reasons
    """Why the text is rejected whatever its scores are, or None."""
    failed: Bools
    """True where scoring the row failed."""

    @property
    def judged(self) -> Bools:
        """Texts that the policy decides on, (n,): not refused, and not human."""
        return equal(self.refused, None) & ~equal(self.origin, "human")

    def score(self, name: Score) -> Floats:
        """The scores of that name, (n,) float32, NaN where null."""
        return self.itm if name == "itm" else self.itc

    def missing(self, name: Score) -> Bools:
        """True where that score is null, (n,)."""
        return np.isnan(self.score(name))

    def below(self, name: Score, select: SelectSettings) -> Bools:
        """True where the score is less than the threshold of the text's origin, (n,); False where it is null.

        Scores are stored as float32, so thresholds are compared as float32: a score of 0.9 passes a threshold of 0.9.
        """
        setting = f"{name}_threshold"
        threshold = np.full(len(self.origin), getattr(select, setting), dtype=np.float32)
        for origin, own in select.per_origin.items():
            if getattr(own, setting) is not None:
                threshold[equal(self.origin, origin)] = getattr(own, setting)
        low: Bools = self.score(name) < threshold
        return low


def rank(texts: Texts, by: Score, among: Bools) -> NDArray[np.int64]:
    """Return the place of each text among the texts of its image, from 0, (n,).

    Higher scores come first and null scores last, then a row's own text before captions, then the lower sample.

    Args:
        texts: n texts.
        by: the score that decides.
        among: (n,); texts that are not in it are placed after those that are.
    """
    score = texts.score(by)
    falling = np.where(np.isnan(score), np.inf, -score)
    order = np.lexsort((texts.sample, falling, ~among, texts.image))
    images = texts.image[order]
    first = np.searchsorted(images, images, side="left")
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - first
    return places


def first_true(*cases: tuple[Bools, str]) -> Reasons:
    """Return, for each text, the reason of the first case that is true of it, or None, (n,).

    Args:
        cases: (true where the case applies, (n,); its reason), in order of precedence; at least one.
    """
    out = np.full(len(cases[0][0]), None, dtype=object)
    for true, reason in reversed(cases):
        out[true] = reason
    return out
