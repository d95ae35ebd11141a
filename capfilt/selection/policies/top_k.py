"""`policy: top_k`: the best texts per image, without a threshold."""

from typing import ClassVar

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.texts import Score, Texts, first_true, rank
from capfilt.store.arrays import Reasons


class TopK(Policy):
    """Rejects all but the best `select.top_k` texts per image by `select.rank_by`."""

    name: ClassVar[PolicyName] = "top_k"
    reasons: ClassVar[tuple[str, ...]] = ("not_top_k",)

    def needs(self, select: SelectSettings) -> tuple[Score, ...]:
        return (select.rank_by,)

    def thresholds(self, select: SelectSettings) -> dict[Score, float]:
        return {}

    def decide(self, texts: Texts, select: SelectSettings) -> Reasons:
        missing = texts.missing(select.rank_by)
        places = rank(texts, select.rank_by, texts.judged & ~missing)
        return first_true((missing, "no_score"), (places >= select.top_k, "not_top_k"))

    def describe(self, select: SelectSettings) -> str:
        by = select.rank_by.upper()
        if select.top_k == 1:
            return f"The best text per image by {by} is kept."
        return f"The best {select.top_k} texts per image by {by} are kept."
