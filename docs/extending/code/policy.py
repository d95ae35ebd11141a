"""Example of a policy: keep captions only for images without a web text that matches."""

from typing import ClassVar

import numpy as np

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true
from capfilt.store.arrays import Reasons, equal


class WebFirst(Policy):
    """Reject captions of images whose web text reaches the ITM threshold."""

    name: ClassVar[str] = "web_first"
    reasons: ClassVar[tuple[str, ...]] = ("below_itm_threshold", "web_text_kept")

    def needs(self, select: SelectSettings) -> tuple[Score, ...]:
        """Return the scores that the judge must write; `plan` refuses a pipeline without them."""
        return ("itm",)

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        """Return the thresholds that the report draws as sliders."""
        return {"itm": select.itm_threshold}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        """Return the reason against each text, or None: arrays (n,), no loop over rows."""
        missing, low = texts.missing("itm"), texts.below("itm", select)
        good_web = texts.judged & equal(texts.origin, "web") & ~missing & ~low
        second = equal(texts.origin, "synthetic") & np.isin(texts.image, texts.image[good_web])
        return first_true((missing, "no_score"), (low, "below_itm_threshold"), (second, "web_text_kept"))

    def describe(self, select: SelectSettings) -> str:
        """Return one sentence for the report and the terminal."""
        return f"Web texts with an ITM of at least {select.itm_threshold} are kept, captions only where there is none."
