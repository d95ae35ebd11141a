"""Checks that the judge writes the scores that the selection reads, before a run begins."""

from collections.abc import Collection

from capfilt.config.pipeline import SelectSettings
from capfilt.errors import ConfigError
from capfilt.selection.policies import POLICIES, policy_of


def check_policy(select: SelectSettings, available_scores: Collection[str]) -> None:
    """Refuse a policy that reads a score which no judge writes.

    Args:
        select: the pipeline's selection.
        available_scores: scores that the judge writes (`itm`, `itc`); empty where the pipeline has no `score`.

    Raises:
        ConfigError: naming the score that is missing, and the policies that do without it.
    """
    needs = policy_of(select).needs(select)
    missing = [score for score in needs if score not in available_scores]
    written = ", ".join(sorted(available_scores)) or "no score"
    if missing:
        others = [policy.name for policy in POLICIES if set(policy.needs(select)) <= set(available_scores)]
        raise ConfigError(
            f"select.policy: {select.policy} needs {' and '.join(missing)}, but the judge of `score` writes {written}; "
            f"take another judge, or one of these policies: {', '.join(others)}"
        )
    if select.max_texts_per_image is not None and available_scores and select.rank_by not in available_scores:
        raise ConfigError(
            f"select.rank_by: max_texts_per_image ranks by {select.rank_by}, but the judge of `score` writes "
            f"{written}; set select.rank_by={sorted(available_scores)[0]}"
        )
