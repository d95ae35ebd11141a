"""`policy: keep_all`: no filter; the only policy that needs no judge."""

from typing import ClassVar

import numpy as np

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts
from capfilt.store.arrays import Reasons


class KeepAll(Policy):
    """Rejects nothing."""

    name: ClassVar[PolicyName] = "keep_all"
    reasons: ClassVar[tuple[str, ...]] = ()

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        return np.full(len(texts.image), None, dtype=object)

    def describe(self, select: SelectSettings) -> str:
        return "Every text is kept that is no duplicate and was not refused before."
