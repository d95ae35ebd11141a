"""`policy: either`: thresholds on ITM and on ITC, one of them to be reached."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true
from capfilt.store.arrays import Reasons


class Either(Policy):
    """Rejects texts of which neither ITM nor ITC reaches its threshold; one null score is no reason to reject."""

    name: ClassVar[PolicyName] = "either"
    reasons: ClassVar[tuple[str, ...]] = ("below_both",)
    either: ClassVar[bool] = True

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {"itm": select.itm_threshold, "itc": select.itc_threshold}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        low_itm, low_itc = texts.below("itm", select), texts.below("itc", select)
        out_itm, out_itc = texts.missing("itm") | low_itm, texts.missing("itc") | low_itc
        return first_true((low_itm & low_itc, "below_both"), (out_itm & out_itc, "no_score"))

    def describe(self, select: SelectSettings) -> str:
        return (
            f"A text is kept if its ITM is at least {select.itm_threshold} or its ITC at least {select.itc_threshold}."
        )
