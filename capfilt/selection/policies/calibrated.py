"""`policy: calibrated`: a threshold on ITM that the run's human pairs decide."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.itm_threshold import ItmThreshold


class Calibrated(ItmThreshold):
    """Rejects as `itm_threshold` does, at the least threshold that reaches `select.target_precision`."""

    name: ClassVar[PolicyName] = "calibrated"
    calibrated: ClassVar[bool] = True

    def describe(self, select: SelectSettings) -> str:
        precision = select.target_precision
        return f"A text is kept if its ITM reaches the threshold that gives a precision of {precision} on human pairs."
