"""`policy: both`: thresholds on ITM and on ITC, both to be reached."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true
from capfilt.store.arrays import Reasons


class Both(Policy):
    """Rejects texts of which ITM or ITC is below its threshold."""

    name: ClassVar[PolicyName] = "both"
    reasons: ClassVar[tuple[str, ...]] = ("below_both", "below_itm_threshold", "below_itc_threshold")

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {"itm": select.itm_threshold, "itc": select.itc_threshold}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        low_itm, low_itc = texts.below("itm", select), texts.below("itc", select)
        return first_true(
            (texts.missing("itm") | texts.missing("itc"), "no_score"),
            (low_itm & low_itc, "below_both"),
            (low_itm, "below_itm_threshold"),
            (low_itc, "below_itc_threshold"),
        )

    def describe(self, select: SelectSettings) -> str:
        return (
            f"A text is kept if its ITM is at least {select.itm_threshold} and its ITC at least {select.itc_threshold}."
        )
