"""Which texts are kept: a pure decision over stored scores, one shard's texts at a time, vectorised.

The order of precedence: a reason that is known without a score (`Texts.refused`); human texts are kept; the policy of
`select`; then `max_texts_per_image`.
"""

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies import policy_of
from capfilt.selection.texts import Texts, rank
from capfilt.store.arrays import Reasons, equal


def decide(texts: Texts, select: SelectSettings) -> Reasons:
    """Decide on n texts.

    Returns:
        (n,): the reason against each text, None where it is kept.
    """
    reasons, judged = texts.refused.copy(), texts.judged
    reasons[judged] = policy_of(select).decide(texts, select)[judged]
    reasons[equal(reasons, "no_score") & texts.failed] = "score_failed"
    if select.max_texts_per_image is not None:
        passed = equal(reasons, None)
        places = rank(texts, select.rank_by, passed)
        reasons[passed & (places >= select.max_texts_per_image)] = "over_max_texts"
    return reasons
