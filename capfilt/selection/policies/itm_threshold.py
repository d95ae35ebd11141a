"""`policy: itm_threshold`: the paper's filter, a threshold on the probability that image and text match."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true
from capfilt.store.arrays import Reasons


class ItmThreshold(Policy):
    """Rejects texts whose ITM is below `select.itm_threshold`."""

    name: ClassVar[PolicyName] = "itm_threshold"
    reasons: ClassVar[tuple[str, ...]] = ("below_itm_threshold",)

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {"itm": select.itm_threshold}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        low = texts.below("itm", select)
        return first_true((texts.missing("itm"), "no_score"), (low, "below_itm_threshold"))

    def describe(self, select: SelectSettings) -> str:
        return f"A text is kept if its ITM is at least {select.itm_threshold}."
