"""`policy: itc_threshold`: a threshold on the cosine of the image's and the text's features."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true
from capfilt.store.arrays import Reasons


class ItcThreshold(Policy):
    """Rejects texts whose ITC is below `select.itc_threshold`."""

    name: ClassVar[PolicyName] = "itc_threshold"
    reasons: ClassVar[tuple[str, ...]] = ("below_itc_threshold",)

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {"itc": select.itc_threshold}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        low = texts.below("itc", select)
        return first_true((texts.missing("itc"), "no_score"), (low, "below_itc_threshold"))

    def describe(self, select: SelectSettings) -> str:
        return f"A text is kept if its ITC is at least {select.itc_threshold}."
