"""What a selection policy is: which scores it reads, which texts it rejects, and how it describes itself."""

from typing import ClassVar, Protocol

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.texts import Score, Texts
from capfilt.store.arrays import Reasons


class Policy(Protocol):
    """A rule that rejects texts by their stored scores. It has no state; `select` in the pipeline file sets it up."""

    name: ClassVar[PolicyName]
    reasons: ClassVar[tuple[str, ...]]
    """The verdicts it gives, keys of `REASONS`; `no_score` is not among them."""
    either: ClassVar[bool] = False
    """True if a text passes where any of its scores reaches its threshold, False if all of them have to."""
    calibrated: ClassVar[bool] = False
    """True if the ITM threshold is measured on the run's human pairs (`capfilt.selection.calibration`)."""

    def needs(self, select: SelectSettings) -> tuple[Score, ...]:
        """Scores that it reads, the most important first; a text for which they are null is rejected as `no_score`.

        By default those that have a threshold.
        """
        return tuple(self.thresholds(select))

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        """Least scores that a text needs; the report draws one slider per score from them. Empty if it has none."""
        ...

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        """Reason against each text, (n,), None where it passes. Only the values at `texts.judged` are used."""
        ...

    def describe(self, select: SelectSettings) -> str:
        """One plain sentence for the report and the terminal."""
        ...
